"""The protocols that evaluate an encoder: kNN, linear probe, fine-tuning, a picture.

All but the picture are run on the encoder and, unless this is left out, on the same
encoder untrained: random features are far above chance, and an accuracy alone says
little.
"""

import contextlib
import dataclasses
import os
import tempfile
import time
from collections.abc import Callable, Sequence

import keras
import numpy as np
import tensorflow as tf

from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import (
    Subset,
    listed,
    per_class,
    spread_indices,
    stratified,
    without_labels,
)
from ressl_keras.encoders.encoder import clone_encoder, is_frozen
from ressl_keras.errors import UsageError, closest, printable
from ressl_keras.evaluation import classifiers, knn, linear, neighbours
from ressl_keras.evaluation.features import ONE_DEVICE, Resources, readable_features
from ressl_keras.evaluation.kept import KeptClassifier
from ressl_keras.evaluation_options import PROBES, PROTOCOLS, EvaluationOptions
from ressl_keras.files import read_lines
from ressl_keras.run_folder import RunFolder

# Images that the picture of neighbours looks among at most.
_MOST_NEIGHBOURS = 50_000


@dataclasses.dataclass
class Predictions:
    """What the protocols computed; what they did not need stays None.

    Attributes:
        train: labelled images that were learned from, without unreadable ones.
        test: labelled images that the encoder was judged on, likewise.
        train_features: float32 array [train, dim], of a large set a memory map.
        test_features: float32 array [test, dim], likewise.
        knn_classes: class of each test image by kNN, integer array [test].
    """

    train: object = None
    test: object = None
    train_features: np.ndarray | None = None
    test_features: np.ndarray | None = None
    knn_classes: np.ndarray | None = None


def untrained(encoder):
    """The same network with fresh random weights and the same preprocessing.

    Returns:
        A `keras.Model`, or None if the network cannot be built again: a SavedModel, or
        a subclassed model.
    """
    if is_frozen(encoder):
        return None
    try:
        return clone_encoder(encoder)
    except ValueError:  # a subclassed model
        return None


def evaluate(
    encoder: keras.Model,
    dataset: Dataset,
    protocols: Sequence[str] = ("knn", "linear"),
    *,
    initial: keras.Model | None = None,
    picture: str = "neighbours.png",
    predictions: Predictions | None = None,
    strategy: tf.distribute.Strategy | None = None,
    work: str | None = None,
    workdir: str | os.PathLike | None = None,
    log: Callable[[str], object] = print,
    **settings: object,
) -> dict[str, dict]:
    """Judges an encoder, beside the same encoder untrained.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        dataset: `Dataset`, labelled for all protocols but `neighbours`.
        protocols: any of `knn`, `linear`, `finetune` and `neighbours`.
        initial: the encoder as it was before its training, to compare with; None takes
            the same network with fresh random weights.
        picture: PNG file that `neighbours` writes.
        predictions: `Predictions` that receives features and predicted classes.
        strategy: `tf.distribute.Strategy` in whose scope the encoder was loaded; None
            takes one device. Each of several workers makes the same call.
        work: folder for what an interrupted evaluation goes on from, and for large
            features; None takes a temporary one. Several workers must all see it.
        workdir: folder that `save_classifier` writes `classifier.keras` and the next
            SavedModel in `classifier` into; may be absent.
        log: called with a line of text.
        **settings: further fields of `EvaluationOptions`, such as `label_fraction`,
            `probe`, `finetune_epochs`, `untrained`, `save_classifier`, `seed` and
            `feature_cache`.

    Returns:
        Dict from protocol to `top1`, `top5`, `untrained_top1` and `untrained_top5`, in
        per cent, the last two only if the network can be built again and `untrained`
        is not False; `neighbours` has `agreement`, the share of drawn neighbours of the
        query's class (None without labels). Which labels were used is named beside
        them, unless all were. Empty on workers other than the chief.

    Raises:
        UsageError: if the data set has no labels, a protocol is unknown, the encoder
            cannot be trained but `finetune` is asked for, or a classifier is to be
            kept without a `workdir`.

    Example:

    >>> results = evaluate(load_encoder("runs/mine"), dataset, ["knn"])
    >>> sorted(results["knn"])
    ['top1', 'top5', 'untrained_top1', 'untrained_top5']
    """
    _check(encoder, dataset, protocols, settings.get("probe", "fast"))
    options = EvaluationOptions(protocol=tuple(protocols), **settings)
    folder = None
    if options.save_classifier:
        if workdir is None:
            raise UsageError("save_classifier needs a workdir to write into.")
        folder = RunFolder(workdir)
        folder.prepare()
    with contextlib.ExitStack() as stack:
        if work is None:
            # On Linux a memory map outlives its file.
            work = stack.enter_context(tempfile.TemporaryDirectory())
        resources = Resources(strategy, options.feature_cache, work, log)
        return run(
            encoder, dataset, options, resources, predictions, picture, initial, folder
        )


def run(
    encoder,
    dataset,
    options,
    resources,
    predictions=None,
    picture=None,
    initial=None,
    folder=None,
):
    """What `evaluate` does, with `EvaluationOptions` and `features.Resources`.

    `folder` is the `RunFolder` of a classifier that is kept.
    """
    _check(encoder, dataset, options.protocol, options.probe)
    for caution in options.cautions():
        resources.log(caution)
    keep = None
    if options.save_classifier:
        keep = KeptClassifier(folder, encoder, dataset, resources.log)
    results = {protocol: {} for protocol in options.protocol}
    if "neighbours" in results and resources.chief:
        results["neighbours"] = _draw_neighbours(
            encoder, dataset, picture, resources.log
        )
    if set(results) - {"neighbours"}:
        found = predictions or Predictions()
        keras.utils.set_random_seed(options.seed)
        other = None
        if options.untrained:
            with resources.scope():
                other = initial or untrained(encoder)
            if other is None:
                resources.log(
                    "The network cannot be built again: no untrained figures."
                )
        models = encoder, other
        _run_judges(models, dataset, options, resources, found, results, keep)
    if keep and keep.per_class:
        (learned,) = {"linear", "finetune"} & set(results)
        results[learned]["per_class"] = keep.per_class
    return results if resources.chief else {}


def _run_judges(models, dataset, options, resources, predictions, results, keep):
    """Runs the protocols that have accuracies and puts these into the results."""
    train, facts = _labelled(dataset.train, options, resources.log)
    judges = [protocol for protocol in options.protocol if protocol != "neighbours"]
    for protocol in judges:
        results[protocol] |= facts
    for which, prefix, model, found in (
        ("trained", "", models[0], predictions),
        ("untrained", "untrained_", models[1], Predictions()),
    ):
        if model is None:
            continue
        found.train, found.test = train, dataset.test
        sets = train, dataset.test
        judge = _Judge(model, which, *sets, found, options, resources, keep)
        keep = None  # of the trained encoder alone
        for protocol in judges:
            for name, value in (judge.accuracy(protocol) or {}).items():
                results[protocol][prefix + name] = round(value, 2)


def predict(encoder, dataset):
    """What kNN makes of a data set, for a report without a new evaluation.

    Args:
        encoder: as in `evaluate`.
        dataset: labelled `Dataset`.

    Returns:
        A `Predictions`.
    """
    sets = dataset.train, dataset.test
    found = Predictions(*sets)
    judge = _Judge(encoder, "trained", *sets, found, EvaluationOptions(), ONE_DEVICE)
    judge.accuracy("knn")
    return found


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


def _labelled(train, options, log):
    """The labelled images that are used, and what the results say of them."""
    if options.label_list:
        try:
            names = [line.strip() for line in read_lines(options.label_list)]
        except OSError as error:
            raise UsageError(
                f"--label_list={options.label_list} cannot be read: {error.strerror}."
            ) from error
        chosen, missing = listed(train, filter(None, names))
        name = os.path.basename(options.label_list)
        if not len(chosen):
            raise UsageError(
                f"None of the files that {name} names is there to learn from."
            )
        log(f"{len(chosen):,} labels, named by {name}")
        if missing:
            log(
                f"Warning: {len(missing):,} of its files are not among the images to "
                f"learn from, such as {printable(missing[0])}."
            )
        return chosen, {"label_list": name, "labels": len(chosen)}
    if options.labels_per_class:
        chosen = per_class(train, options.labels_per_class, options.seed)
        log(f"{len(chosen):,} labels, {options.labels_per_class:,} of every class")
        return chosen, {"labels_per_class": options.labels_per_class}
    if options.label_fraction != 1:
        chosen = stratified(train, options.label_fraction, options.seed)
        log(f"{len(chosen)} labels, {100 * options.label_fraction:g} % of every class")
        return chosen, {"label_fraction": options.label_fraction}
    return train, {}


def _draw_neighbours(encoder, dataset, picture, log):
    bank = dataset.train if dataset.labelled else without_labels(dataset.pretrain)
    whole = len(bank)
    if whole > _MOST_NEIGHBOURS:
        bank = Subset(bank, spread_indices(bank, _MOST_NEIGHBOURS))
        log(f"neighbours are sought among {len(bank):,} of {whole:,} images")
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
    train: object
    test: object
    predictions: Predictions
    options: EvaluationOptions
    resources: Resources
    keep: Callable | None = None
    extracted: bool = False

    def accuracy(self, protocol):
        """Top-1 and top-5 accuracy by a protocol; None on workers but the chief."""
        on_features = protocol == "knn" or (
            (protocol, self.options.probe) == ("linear", "fast")
        )
        if on_features:
            self._extract()
        if on_features and not self.resources.chief:
            return None
        start = time.perf_counter()
        accuracy = getattr(self, f"_{protocol}")()
        self._took(f"{protocol} of the {self.which} encoder", start)
        return accuracy

    def _extract(self):
        if self.extracted:
            return
        found, start = self.predictions, time.perf_counter()
        found.train_features, found.train = readable_features(
            self.encoder, self.train, self.resources
        )
        found.test_features, found.test = readable_features(
            self.encoder, self.test, self.resources
        )
        self.extracted = True
        self._took(f"features of the {self.which} encoder", start)

    def _took(self, what, start):
        self.resources.log(f"{what}: {time.perf_counter() - start:.1f} s")

    def _knn(self):
        found = self.predictions
        votes = knn.knn_votes(
            found.train_features, found.train.labels, found.test_features
        )
        found.knn_classes = votes.argmax(axis=-1)
        return knn.accuracies(votes, found.test.labels)

    def _linear(self):
        found, options = self.predictions, self.options
        if options.probe == "paper":
            return classifiers.online_linear_probe(
                self.encoder,
                self.train,
                self.test,
                options.probe_epochs,
                options.probe_batch_size,
                options.probe_learning_rate,
                options.seed,
                self.resources,
                f"linear {self.which}",
                self.keep,
            )
        return linear.linear_probe(
            found.train_features,
            found.train.labels,
            found.test_features,
            found.test.labels,
            seed=options.seed,
            keep=self.keep,
        )

    def _finetune(self):
        options = self.options
        return classifiers.finetune(
            self.encoder,
            self.train,
            self.test,
            options.finetune_epochs,
            options.finetune_batch_size,
            options.finetune_learning_rate,
            options.seed,
            self.resources,
            f"finetune {self.which}",
            options.early_stopping,
            options.class_weights,
            self.keep,
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
