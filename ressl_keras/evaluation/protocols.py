"""The protocols that evaluate an encoder: kNN, linear probe, fine-tuning, a picture.

All but the picture are run on the encoder and on the same encoder untrained: random
features are far above chance, and an accuracy alone says little.
"""

import dataclasses
import os
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np

from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import stratified
from ressl_keras.encoders.encoder import is_frozen
from ressl_keras.errors import UsageError, closest
from ressl_keras.evaluation import classifiers, knn, neighbours
from ressl_keras.evaluation.features import extract

PROTOCOLS = ("knn", "linear", "finetune", "neighbours")
PROBES = ("fast", "paper")


@dataclasses.dataclass
class Predictions:
    """What the protocols computed; what they did not need stays None.

    Attributes:
        train: labelled images that were learned from.
        test: labelled images that the encoder was judged on.
        train_features: float32 array [train, dim].
        test_features: float32 array [test, dim].
        knn_classes: class of each test image by kNN, integer array [test].
    """

    train: object = None
    test: object = None
    train_features: np.ndarray | None = None
    test_features: np.ndarray | None = None
    knn_classes: np.ndarray | None = None


def untrained(encoder):
    """The same network with fresh weights and the same preprocessing.

    Returns:
        A `keras.Model`, or None if the network cannot be built again: a SavedModel, or
        a subclassed model.
    """
    if is_frozen(encoder):
        return None
    try:
        return keras.models.clone_model(encoder)
    except ValueError:  # a subclassed model
        return None


def evaluate(
    encoder: keras.Model,
    dataset: Dataset,
    protocols: Sequence[str] = ("knn", "linear"),
    *,
    label_fraction: float = 1.0,
    probe: str = "fast",
    finetune_epochs: int | None = None,
    seed: int = 0,
    cache: str | None = None,
    picture: str = "neighbours.png",
    predictions: Predictions | None = None,
    log: Callable[[str], object] = print,
) -> dict[str, dict]:
    """Judges an encoder, beside the same encoder untrained.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        dataset: `Dataset`, labelled for all protocols but `neighbours`.
        protocols: any of `knn`, `linear`, `finetune` and `neighbours`.
        label_fraction: share of the training labels used, the same for every class.
        probe: how `linear` learns: `fast`, on features extracted once, or `paper`, on
            crops and flips for 100 epochs.
        finetune_epochs: epochs of `finetune`; see `classifiers.finetune`.
        seed: integer seed of the choice of labels and of all learning.
        cache: folder that keeps features from run to run; None keeps none.
        picture: PNG file that `neighbours` writes.
        predictions: `Predictions` that receives features and predicted classes.
        log: called with a line of text.

    Returns:
        Dict from protocol to `top1`, `top5`, `untrained_top1` and `untrained_top5`, in
        per cent, the last two only if the network can be built again; `neighbours` has
        `agreement`, the share of drawn neighbours of the query's class (None without
        labels). A label fraction below 1 is named beside them.

    Raises:
        UsageError: if the data set has no labels, a protocol is unknown, or the encoder
            cannot be trained but `finetune` is asked for.
    """
    _check(encoder, dataset, protocols, probe)
    judges = [protocol for protocol in protocols if protocol != "neighbours"]
    results = {protocol: {} for protocol in protocols}
    if "neighbours" in protocols:
        results["neighbours"] = _draw_neighbours(encoder, dataset, picture, log)
    if not judges:
        return results
    if label_fraction != 1:
        chosen = stratified(dataset.train, label_fraction, seed)
        dataset = dataclasses.replace(dataset, train=chosen)
        log(f"{len(chosen)} labels, {100 * label_fraction:g} % of every class")
        for protocol in judges:
            results[protocol]["label_fraction"] = label_fraction
    keras.utils.set_random_seed(seed)
    for which, prefix, model, found in (
        ("trained", "", encoder, predictions or Predictions()),
        ("untrained", "untrained_", untrained(encoder), Predictions()),
    ):
        if model is None:
            log("The network cannot be built again: no untrained figures.")
            continue
        found.train, found.test = dataset.train, dataset.test
        judge = _Judge(model, which, found, probe, finetune_epochs, seed, cache, log)
        for protocol in judges:
            for name, value in judge.accuracy(protocol).items():
                results[protocol][prefix + name] = round(value, 2)
    return results


def _check(encoder, dataset, protocols, probe):
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise UsageError(
                f"Unknown protocol '{protocol}'. {closest(protocol, PROTOCOLS)}"
            )
    if probe not in PROBES:
        raise UsageError(f"Unknown probe '{probe}'. {closest(probe, PROBES)}")
    if set(protocols) - {"neighbours"} and not dataset.labelled:
        raise UsageError(f"{dataset.name} has no labels to evaluate with.")
    if "finetune" in protocols and is_frozen(encoder):
        raise UsageError(
            "A SavedModel cannot be fine-tuned, its weights are frozen; give the "
            ".keras file, or --protocol=knn,linear."
        )


def _draw_neighbours(encoder, dataset, picture, log):
    bank = dataset.train if dataset.labelled else dataset.pretrain
    queries = dataset.test if dataset.labelled else bank
    agreement = neighbours.picture(encoder, queries, bank, picture)
    log(f"neighbours drawn in {picture}")
    drawn = {"picture": os.path.basename(picture)}
    return drawn if agreement is None else {**drawn, "agreement": round(agreement, 2)}


@dataclasses.dataclass
class _Judge:
    """Runs protocols on one network; features are extracted when first needed."""

    encoder: object
    which: str
    predictions: Predictions
    probe: str
    finetune_epochs: int | None
    seed: int
    cache: str | None
    log: object

    def accuracy(self, protocol):
        """Top-1 and top-5 accuracy by a protocol."""
        if protocol == "knn" or (protocol, self.probe) == ("linear", "fast"):
            self._extract()
        start = time.perf_counter()
        accuracy = getattr(self, f"_{protocol}")()
        self._took(f"{protocol} of the {self.which} encoder", start)
        return accuracy

    def _extract(self):
        found = self.predictions
        if found.test_features is None:
            start = time.perf_counter()
            found.train_features, _ = extract(
                self.encoder, found.train, cache=self.cache
            )
            found.test_features, _ = extract(self.encoder, found.test, cache=self.cache)
            self._took(f"features of the {self.which} encoder", start)

    def _took(self, what, start):
        self.log(f"{what}: {time.perf_counter() - start:.1f} s")

    def _knn(self):
        found = self.predictions
        votes = knn.knn_votes(
            found.train_features, found.train.labels, found.test_features
        )
        found.knn_classes = votes.argmax(axis=-1)
        return knn.accuracies(votes, found.test.labels)

    def _linear(self):
        found = self.predictions
        if self.probe == "paper":
            return classifiers.online_linear_probe(
                self.encoder, found.train, found.test, seed=self.seed
            )
        return classifiers.linear_probe(
            found.train_features,
            found.train.labels,
            found.test_features,
            found.test.labels,
            seed=self.seed,
        )

    def _finetune(self):
        found = self.predictions
        return classifiers.finetune(
            self.encoder, found.train, found.test, self.finetune_epochs, seed=self.seed
        )


def table(results):
    """The results of `evaluate` as lines of text."""
    lines = [f"{'':10}{'top-1':>8}{'untrained':>11}{'top-5':>8}{'untrained':>11}"]
    columns = ("top1", "untrained_top1", "top5", "untrained_top5")
    for protocol, values in results.items():
        if protocol == "neighbours":
            continue
        line = f"{protocol:10}"
        for column, width in zip(columns, (8, 11, 8, 11)):
            value = f"{values[column]:.2f}" if column in values else "-"
            line += f"{value:>{width}}"
        lines.append(line)
    return "\n".join(lines if len(lines) > 1 else [])
