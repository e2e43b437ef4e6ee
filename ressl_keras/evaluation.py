"""How good an encoder is: neighbours, a linear probe, fine-tuning, a picture.

All but the picture are run on the encoder and on the same encoder untrained, because
accuracies of random features are far above chance and a figure alone says little.
"""

import dataclasses
import hashlib
import os
import time

import keras
import numpy as np

from ressl_keras import data, encoders, finetuning, labelled, neighbours, probes
from ressl_keras.errors import UsageError, near

PROTOCOLS = ("knn", "linear", "finetune", "neighbours")
PICTURE_FILE = "neighbours.png"


@dataclasses.dataclass
class Evidence:
    """What an encoder was judged by; what the protocols did not need stays None.

    Attributes:
        train: images whose labels were learned from.
        test: images it was judged on.
        train_features: float32 array [train, dim].
        test_features: float32 array [test, dim].
        knn_classes: the class that the neighbours give each test image, integer array
            [test].
    """

    train: object = None
    test: object = None
    train_features: np.ndarray | None = None
    test_features: np.ndarray | None = None
    knn_classes: np.ndarray | None = None


def extract(encoder, images, count=None, batch_size=256, cache=None):
    """Features of a set of images.

    Args:
        encoder: `keras.Model` from images in 0-255 [batch, size, size, 3] to features
            [batch, dim].
        images: `ArrayImages` or `EncodedImages`.
        count: take only so many, evenly spread; None takes all.
        batch_size: images a batch.
        cache: folder that keeps features from call to call; None keeps none.

    Returns:
        Tuple of features, float32 array [count, dim], and labels, integer array
        [count], or None where the images have none.
    """
    if count is not None and count < len(images):
        images = labelled.Selection(images, data.evaluation_indices(images, count))
    if cache is None:
        features = encoders.encode(images, encoder, None, batch_size, verbose=0)
        return features, images.labels
    os.makedirs(cache, exist_ok=True)
    path = os.path.join(cache, f"features-{_fingerprint(encoder, images)}.npy")
    if not os.path.exists(path):
        encoders.encode(images, encoder, path, batch_size, verbose=0)
    return np.load(path), images.labels


def _fingerprint(encoder, images):
    """A checksum that differs where features could."""
    digest = hashlib.sha256(encoder.to_json().encode())
    for weight in encoder.get_weights():
        digest.update(np.ascontiguousarray(weight).tobytes())
    for part in _contents(images):
        digest.update(part)
    return digest.hexdigest()[:16]


def _contents(images):
    if isinstance(images, labelled.Selection):
        yield images.indices.numpy().tobytes()
        yield from _contents(images.images)
    elif isinstance(images, data.ArrayImages):
        yield images.images.numpy().tobytes()
    else:
        for source in images.sources.numpy():
            yield source
            if not images.in_memory:
                status = os.stat(source)
                yield f"{status.st_size} {status.st_mtime_ns}".encode()


def untrained(encoder):
    """The same network with fresh weights; preprocessing constants stay.

    Returns:
        A `keras.Model`, or None where the network is a SavedModel or has code of its
        own and cannot be made anew.
    """
    if encoders.is_frozen(encoder):
        return None
    try:
        return keras.models.clone_model(encoder)
    except ValueError:  # a subclassed model
        return None


def evaluate(
    encoder,
    dataset,
    protocols=("knn", "linear"),
    *,
    label_fraction=1.0,
    probe="fast",
    finetune_epochs=None,
    seed=0,
    cache=None,
    picture=PICTURE_FILE,
    evidence=None,
    progress=print,
):
    """Judges an encoder, beside the same encoder untrained.

    Args:
        encoder: `keras.Model` from images in 0-255 to features [batch, dim].
        dataset: `data.Dataset`, labelled for all protocols but `neighbours`.
        protocols: any of `knn`, `linear`, `finetune` and `neighbours`.
        label_fraction: share of the training labels used, the same of every class.
        probe: how `linear` learns: `fast`, on features extracted once, or `paper`, on
            crops and flips for 100 epochs.
        finetune_epochs: epochs of `finetune`; see `finetuning.finetune`.
        seed: integer seed of the share of labels and of all learning.
        cache: folder that keeps features from run to run; None keeps none.
        picture: PNG file that `neighbours` writes.
        evidence: an `Evidence` to fill in, for those who want more than accuracies.
        progress: called with a line of text now and then.

    Returns:
        Dict from protocol to `top1`, `top5`, `untrained_top1` and `untrained_top5`, in
        per cent, the last two only where the network can be made anew; `neighbours`
        has `agreement`, the share of drawn neighbours of the query's class (None
        without labels). A label fraction below 1 is named beside them.

    Raises:
        UsageError: if the data set has no labels, a protocol is unknown, or the encoder
            cannot be trained but `finetune` is asked for.
    """
    for protocol in protocols:
        if protocol not in PROTOCOLS:
            raise UsageError(
                f"Unknown protocol '{protocol}'. {near(protocol, PROTOCOLS)}"
            )
    if probe not in ("fast", "paper"):
        raise UsageError(f"Unknown probe '{probe}'; known are fast and paper.")
    judges = [protocol for protocol in protocols if protocol != "neighbours"]
    if judges and not dataset.labelled:
        raise UsageError(f"{dataset.name} has no labels to evaluate with.")
    if "finetune" in judges and encoders.is_frozen(encoder):
        raise UsageError(
            "A SavedModel cannot be fine-tuned, its weights are frozen; give the "
            ".keras file, or --protocol=knn,linear."
        )
    results = {protocol: {} for protocol in protocols}
    if "neighbours" in protocols:
        bank = dataset.train if dataset.labelled else dataset.pretrain
        queries = dataset.test if dataset.labelled else bank
        if isinstance(bank, data.StreamedImages):
            raise UsageError(f"{dataset.name} is too large to look for neighbours in.")
        agreement = neighbours.picture(encoder, queries, bank, picture)
        results["neighbours"] = {"picture": os.path.basename(picture)}
        if agreement is not None:
            results["neighbours"]["agreement"] = round(agreement, 2)
        progress(f"neighbours drawn in {picture}")
    if not judges:
        return results
    if label_fraction != 1:
        chosen = labelled.stratified(dataset.train, label_fraction, seed)
        dataset = dataclasses.replace(dataset, train=chosen)
        progress(f"{len(chosen)} labels, {100 * label_fraction:g} % of every class")
        for protocol in judges:
            results[protocol]["label_fraction"] = label_fraction
    keras.utils.set_random_seed(seed)
    for prefix, model, seen in (
        ("", encoder, evidence or Evidence()),
        ("untrained_", untrained(encoder), Evidence()),
    ):
        if model is None:
            progress("The network cannot be made anew: no untrained figures.")
            continue
        which = "untrained" if prefix else "trained"
        seen.train, seen.test = dataset.train, dataset.test
        for protocol in judges:
            if protocol == "knn" or (protocol, probe) == ("linear", "fast"):
                inputs = _features(model, which, seen, cache, progress)
            start = time.perf_counter()
            if protocol == "knn":
                votes = probes.knn_votes(*inputs[:3])
                seen.knn_classes = votes.argmax(axis=-1)
                accuracy = probes.accuracies(votes, dataset.test.labels)
            elif protocol == "finetune":
                accuracy = finetuning.finetune(
                    model, dataset.train, dataset.test, finetune_epochs, seed=seed
                )
            elif probe == "fast":
                accuracy = probes.linear_probe(*inputs, seed=seed)
            else:
                accuracy = probes.online_linear_probe(
                    model, dataset.train, dataset.test, seed=seed
                )
            progress(f"{protocol} of the {which} encoder: {_seconds_since(start)}")
            for name, value in accuracy.items():
                results[protocol][prefix + name] = round(value, 2)
    return results


def _features(model, which, seen, cache, progress):
    """Training and test features and labels, extracted once."""
    if seen.test_features is None:
        start = time.perf_counter()
        seen.train_features, _ = extract(model, seen.train, cache=cache)
        seen.test_features, _ = extract(model, seen.test, cache=cache)
        progress(f"features of the {which} encoder: {_seconds_since(start)}")
    return seen.train_features, seen.train.labels, seen.test_features, seen.test.labels


def _seconds_since(start):
    return f"{time.perf_counter() - start:.1f} s"


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
