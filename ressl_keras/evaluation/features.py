"""Features of a set of images, extracted once; of a large set into a file."""

import contextlib
import dataclasses
import hashlib
import os
import shutil
import time
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from ressl_keras import devices
from ressl_keras.data.images import ArrayImages, Subset, spread_indices
from ressl_keras.encoders.embed import embeddings, write_npy
from ressl_keras.encoders.encoder import encoder_hash, input_size
from ressl_keras.errors import UsageError
from ressl_keras.files import lock, read_json, replacing, write_json

# Features of more bytes than this go into a file.
LIMIT = 2**30
# Batches per block: what an interruption loses at most.
_BATCHES = 16
_SECONDS = 60  # between two lines of progress


@dataclasses.dataclass(frozen=True)
class Resources:
    """Where an evaluation runs, and where it keeps what it has computed.

    Attributes:
        strategy: `tf.distribute.Strategy`; None takes one device. Every worker of
            several makes the same calls.
        cache: folder that keeps all features from evaluation to evaluation, or None.
        work: folder for what an interrupted evaluation goes on from, and for large
            features; or None. Several workers must all see `work` or `cache`.
        log: called with a line of text.
        limit: features of more bytes go into a file.
    """

    strategy: tf.distribute.Strategy | None = None
    cache: str | None = None
    work: str | None = None
    log: Callable[[str], object] = lambda line: None
    limit: int = LIMIT

    @property
    def chief(self):
        """Whether this process is the one that computes results and writes files."""
        return self.strategy is None or devices.is_chief(self.strategy)

    @property
    def place(self):
        """Number of this worker, and how many there are."""
        return devices.place(self.strategy) if self.strategy else (0, 1)

    def scope(self):
        """A context whose variables are on all devices."""
        return (self.strategy or tf.distribute.get_strategy()).scope()

    def gather(self, number):
        """The different numbers of all workers, after waiting for them."""
        return devices.gather(self.strategy, number) if self.strategy else [number]

    def folder_for(self, count, dim):
        """Folder for so many features; None where they stay in memory."""
        large = 4 * count * dim > self.limit or self.place[1] > 1
        return self.cache or (self.work if large else None)


ONE_DEVICE = Resources()


def extract(encoder, images, count=None, batch_size=256, cache=None):
    """Features of a set of images and their labels.

    Args:
        encoder: `keras.Model` from images in 0-255 [batch, size, size, 3] to features
            [batch, dim].
        images: any set of images.
        count: take only so many, evenly spread; None takes all.
        batch_size: images per batch.
        cache: folder that keeps features from call to call; None keeps none.

    Returns:
        Tuple of features, float32 array [count, dim], with `cache` a memory map of a
        file; and labels, integer array [count], or None where the images have none.
        Images that cannot be read are left out of both.
    """
    if count is not None and count < len(images):
        images = Subset(images, spread_indices(images, count))
    resources = Resources(cache=cache)
    features, images = readable_features(encoder, images, resources, batch_size)
    return features, images.labels


def readable_features(encoder, images, resources, batch_size=256):
    """Features of the images that can be read, on all devices.

    In a folder the work goes on where it was interrupted: finished blocks of rows are
    kept. The file is named by a hash of all that the features depend on.

    Args:
        encoder: as in `extract`.
        images: a set of images.
        resources: `Resources`.
        batch_size: images per batch and device.

    Returns:
        Tuple of features, float32 array [count, dim], in memory or a memory map; and
        the images they belong to: the same, or a `Subset` of those that can be read.
        On workers other than the chief the features are None.
    """
    folder = resources.folder_for(len(images), encoder.output_shape[-1])
    if folder is None:
        parts = embeddings(images, encoder, batch_size, resources.strategy)
        features = np.concatenate(list(parts))
        unreadable = _unreadable(images, 0, len(images))
        features = np.delete(features, unreadable, axis=0) if unreadable else features
    else:
        os.makedirs(folder, exist_ok=True)
        path = os.path.join(folder, f"features-{fingerprint(encoder, images)}.npy")
        _check_agreement(path, resources)
        if resources.gather(int(os.path.exists(path))) != [1]:
            _extract_once(path, encoder, images, resources, batch_size)
        features = np.load(path, mmap_mode="r") if resources.chief else None
        unreadable = read_json(_sidecar(path)).get("unreadable", [])
    if unreadable:
        resources.log(f"{len(unreadable)} unreadable images are left out.")
        images = Subset(images, np.delete(np.arange(len(images)), unreadable))
    return features, images


def _check_agreement(path, resources):
    number = int(hashlib.sha256(os.path.basename(path).encode()).hexdigest()[:7], 16)
    if len(resources.gather(number)) > 1:
        raise UsageError(
            "The workers see different images or weights: sizes and times of the files "
            "count. All must read the same files."
        )


def _sidecar(path):
    """File that names the rows left out of a file of features."""
    return f"{os.path.splitext(path)[0]}.json"


def _unreadable(images, start, stop):
    """Indices from `start` to `stop` of images that could not be read, a list."""
    recorded = getattr(images, "unreadable", None)
    if recorded is None:
        return []
    indices = np.asarray(recorded.indices(), np.int64)
    return indices[(indices >= start) & (indices < stop)].tolist()


@dataclasses.dataclass
class _Parts:
    """The finished blocks of rows of an extraction, each in a file of its own."""

    folder: str
    count: int
    rows: int

    def blocks(self, worker=0, workers=1):
        """(start, stop) of all blocks, or of a worker's share."""
        starts = range(0, self.count, self.rows)
        share = slice(
            len(starts) * worker // workers, len(starts) * (worker + 1) // workers
        )
        return [(i, min(i + self.rows, self.count)) for i in starts[share]]

    def path(self, block):
        return os.path.join(self.folder, "{:010d}-{:010d}.npz".format(*block))

    def write(self, block, features, unreadable):
        """Writes a block without the rows of images that could not be read."""
        gone = [index - block[0] for index in unreadable]
        features = np.delete(features, gone, axis=0) if gone else features
        unreadable = np.array(unreadable, np.int64)
        with replacing(self.path(block)) as temporary:
            np.savez(temporary, features=features, unreadable=unreadable)

    def join(self, path):
        """Writes one file of all blocks, and removes them."""
        unreadable = []

        def features():
            for block in self.blocks():
                with np.load(self.path(block)) as part:
                    unreadable.extend(part["unreadable"].tolist())
                    yield part["features"]

        with replacing(path) as temporary:
            if not write_npy(temporary, features()):
                raise UsageError("None of the images can be read.")
            if unreadable:
                write_json(_sidecar(path), {"unreadable": unreadable})
        shutil.rmtree(self.folder)


def _extract_once(path, encoder, images, resources, batch_size):
    """The same as `_extract_into`, or waits for another process that does it."""
    work = path, encoder, images, resources, batch_size
    if resources.place[1] > 1:  # workers that wait for each other
        _extract_into(*work)
        return
    name = f"{os.path.splitext(path)[0]}.lock"
    file = os.open(name, os.O_RDWR | os.O_CREAT, 0o666)
    try:
        try:
            lock(file)
        except BlockingIOError:
            resources.log("Another process extracts the same features; waiting for it.")
            lock(file, wait=True)
        if not os.path.exists(path):
            _extract_into(*work)
        # Nobody takes it any more, since the features are there.
        with contextlib.suppress(FileNotFoundError):
            os.remove(name)
    finally:
        os.close(file)


def _extract_into(path, encoder, images, resources, batch_size):
    """Extracts this worker's share of the rows; the chief joins all of them."""
    folder = os.path.splitext(path)[0]
    os.makedirs(folder, exist_ok=True)
    parts = _Parts(folder, len(images), _BATCHES * batch_size)
    blocks = parts.blocks(*resources.place)
    missing = [block for block in blocks if not os.path.exists(parts.path(block))]
    _extract_blocks(encoder, images, parts, missing, resources, batch_size)
    resources.gather(0)  # all workers are done
    if resources.chief:
        try:
            parts.join(path)
        except FileNotFoundError as error:
            raise UsageError(
                f"The features of another worker are not in {folder}; --feature_cache "
                "or the folder of --output must be one that all machines see."
            ) from error
    resources.gather(0)  # the file is there


def _extract_blocks(encoder, images, parts, missing, resources, batch_size):
    total = sum(stop - start for start, stop in parts.blocks(*resources.place))
    left = sum(stop - start for start, stop in missing)
    if left < total:
        resources.log(f"{total - left:,} of {total:,} features are there already.")
    if not missing:
        return
    rows = Subset(images, np.concatenate([np.arange(*block) for block in missing]))
    found = embeddings(rows, encoder, batch_size, resources.strategy)
    found = _said(found, total, left, resources.log)
    sizes = [stop - start for start, stop in missing]
    for block, features in zip(missing, _regrouped(found, sizes), strict=True):
        parts.write(block, features, _unreadable(images, *block))


def _said(parts, total, left, log):
    """The same arrays, with a line of progress from time to time."""
    done, start = 0, time.monotonic()
    last = start
    for rows in parts:
        done += len(rows)
        now = time.monotonic()
        if now - last > _SECONDS:
            rate, last = done / (now - start), now
            log(f"features of {total - left + done:,} of {total:,}, {rate:,.0f} a s")
        yield rows


def _regrouped(arrays, sizes):
    """Rows of arrays, regrouped into arrays of given lengths."""
    arrays, held, count = iter(arrays), [], 0
    for size in sizes:
        while count < size:
            held.append(next(arrays))
            count += len(held[-1])
        joined = np.concatenate(held)
        yield joined[:size]
        held, count = [joined[size:]], count - size


def fingerprint(encoder, images):
    """Hash of all that features depend on: network, weights, images and their size."""
    digest = hashlib.sha256(encoder_hash(encoder).encode())
    digest.update(str(input_size(encoder, images)).encode())
    for part in _contents(images):
        digest.update(part)
    return digest.hexdigest()[:16]


def _contents(images, block=4096):
    """What tells one set of images from another, in parts."""
    if isinstance(images, Subset):
        yield images.indices.numpy().tobytes()
        yield from _contents(images.images)
    elif hasattr(images, "contents"):
        yield from images.contents()
    elif isinstance(images, ArrayImages):
        for start in range(0, len(images), block):
            yield np.ascontiguousarray(images.images[start : start + block])
    else:
        yield repr(images.decoder).encode()
        for start in range(0, len(images), block):
            for source in images.sources[start : start + block].numpy():
                yield source
                if not images.in_memory:
                    yield _state_of(source)


def _state_of(path):
    """Size and time of a file, bytes."""
    try:
        status = os.stat(path)
    except OSError:  # it is replaced like one that cannot be decoded
        return b"missing"
    return f"{status.st_size} {status.st_mtime_ns}".encode()
