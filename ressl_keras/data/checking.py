"""Which image files can be read: found while reading, or by a check of all of them."""

import contextlib
import errno
import os
import threading
import time

import numpy as np
import tensorflow as tf

from ressl_keras.data import check_memory, decoding
from ressl_keras.data.plain import plain
from ressl_keras.errors import UsageError, printable

# Why an image cannot be read.
MISSING, FORBIDDEN = "is not there any more", "may not be read"
CANNOT_DECODE = "cannot be decoded"

# So many unreadable images never stop a run, however few were read before.
_FEW = 10
# Files of one pipeline of the check, which holds their paths.
_BLOCK = 16384

# What reading a missing, forbidden or damaged file raises.
_READ_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DataLossError,
    tf.errors.UnknownError,
)


class Unreadable:
    """Images of a set that could not be read, collected while others are read.

    Several threads of the input pipeline may call `record` at the same time.

    Args:
        name: function of an index to where the image is, in words.
        fault: function of an index to why it cannot be read, in words.

    """

    def __init__(self, name, fault=lambda index: CANNOT_DECODE):
        self._name, self._fault = name, fault
        self._found, self._lock = {}, threading.Lock()
        self._counted, self._read = set(), 0

    def record(self, indices, read=0):
        """Notes images that could not be read.

        Args:
            indices: int64 array of indices into the set; may be empty.
            read: how many images training has read so far; 0 where others read.

        """
        with self._lock:
            for index in indices.tolist():
                if index not in self._found:
                    self._found[index] = self._name(index), self._fault(index)
            if read:
                self._counted.update(indices.tolist())
                self._read = max(self._read, int(read))

    def indices(self):
        """Indices into the set, sorted, int64 array."""
        with self._lock:
            return np.array(sorted(self._found), np.int64)

    def faults(self):
        """Dict from where an image is to why it cannot be read, by index."""
        with self._lock:
            return dict(self._found[index] for index in sorted(self._found))

    def excess(self, share, count):
        """Says whether more than a share of what training has read is unreadable.

        Args:
            share: a number in 0-1.
            count: images of the set; they are read again in every epoch.

        Returns:
            Tuple of the numbers of unreadable and of read images, or None if there are
            no more than the share and a few.
        """
        with self._lock:
            found, read = len(self._counted), min(self._read, count)
            return (found, read) if found > max(_FEW, share * read) else None


class UnreadablePart:
    """The unreadable images of a part of a set, by their indices in the part.

    Args:
        whole: `Unreadable` of the set.
        indices: integer array of indices of the set, the part.
    """

    def __init__(self, whole, indices):
        self.whole, self._indices = whole, indices

    def record(self, indices, read=0):
        """As `Unreadable.record`, with indices into the part."""
        self.whole.record(self._indices[indices])

    def indices(self):
        """Indices into the part, sorted, int64 array."""
        return np.flatnonzero(np.isin(self._indices, self.whole.indices()))

    def faults(self):
        """As `Unreadable.faults`, of the whole set."""
        return self.whole.faults()


def fault(path):
    """Why a file cannot be read as an image, in words; it is opened once more."""
    try:
        with open(path, "rb") as file:
            file.read(1)
    except FileNotFoundError:
        return MISSING
    except PermissionError:
        return FORBIDDEN
    except OSError as error:
        reason = os.strerror(error.errno) if error.errno else "no reason given"
        return MISSING if error.errno == errno.ENOTDIR else f"cannot be read: {reason}"
    return CANNOT_DECODE


def check(
    paths,
    root,
    decoder=decoding.DEFAULT,
    log=print,
    *,
    again=False,
    clock=time.monotonic,
    every=10.0,
):
    """Decodes every image of a folder once, several at a time, and remembers it.

    Headers are not enough: the end of a file may be missing. A later check reads the
    files that are new, or whose size or time of change differs.

    Args:
        paths: list of paths below `root`, strings.
        root: the folder.
        decoder: `decoding.Decoder`.
        log: called with a line of text about the progress.
        again: whether to decode also what an earlier check knows.
        clock: function that returns seconds.
        every: seconds between two lines of progress.

    Returns:
        Tuple of sizes, int32 array [count, 2] of height and width, 0 where an image
        cannot be read; and a dict from path to reason for those.
    """
    memory = check_memory.CheckMemory(root, repr(decoder))
    entries = memory.entries(paths, known=not again)
    unknown = np.flatnonzero(entries["state"] == check_memory.UNKNOWN)
    if len(unknown) < len(paths):
        log(
            f"{len(paths) - len(unknown):,} of {len(paths):,} images are as an earlier "
            "check found them."
        )
    said, count, broken = clock(), 0, {}
    try:
        for start in range(0, len(unknown), _BLOCK):
            block = unknown[start : start + _BLOCK]
            for index, *size in _decodable([paths[i] for i in block], decoder):
                entries["size"][block[index]] = size
                count += 1
                if clock() - said >= every:
                    said = clock()
                    log(f"Checked {count:,} of {len(unknown):,} images.")
            # A disk may have failed for a moment.
            left = _empty(entries["size"], block)
            for index, *size in _decodable([paths[i] for i in left], decoder):
                entries["size"][left[index]] = size
            faults = {i: fault(paths[i]) for i in _empty(entries["size"], block)}
            # What is missing or forbidden may be there again without a sign of it.
            changing = [i for i, why in faults.items() if why != CANNOT_DECODE]
            entries["state"][np.setdiff1d(block, changing)] = check_memory.CHECKED
            broken |= faults
    finally:
        memory.keep(entries, log)
    sizes = entries["size"]
    reasons = (broken.get(i, CANNOT_DECODE) for i in _empty(sizes))
    return sizes, dict(zip((paths[i] for i in _empty(sizes)), reasons))


def _empty(sizes, among=None):
    """Indices of the rows that are 0, int64 array; by default among all."""
    among = np.arange(len(sizes)) if among is None else among
    return among[~sizes[among].any(axis=1)]


def _decodable(paths, decoder):
    """Iterates over (index, height, width) of the images that can be decoded."""
    if not len(paths):
        return ()

    def size(index, path):
        image = decoding.decode(tf.io.read_file(path), decoder)
        shape = tf.shape(image, tf.int64)
        return tf.stack([index, shape[0], shape[1]])

    with tf.device("CPU"):
        sources = tf.constant(list(map(os.fsencode, paths)))
        images = tf.data.Dataset.from_tensor_slices(sources).enumerate()
    images = images.map(plain(size), tf.data.AUTOTUNE, deterministic=False)
    return images.ignore_errors().as_numpy_iterator()


@contextlib.contextmanager
def naming_unreadable(files, *, likely=None, before=None):
    """Turns the error of images that cannot be read into a line with a name.

    One image that cannot be read is replaced by the next one that can. An error means
    that thousands in a row cannot, or that the folder is gone.

    Args:
        files: list of paths, or a function that returns it: where the image may be.
        likely: function that returns the paths to try first, or None.
        before: function called before the error is raised, which returns a sentence to
            add; or None.

    Raises:
        UsageError: if an image cannot be read. Other errors are left as they are.
    """
    try:
        yield
    except _READ_ERRORS as error:
        broken = first_unreadable(likely() if likely else [])
        if broken is None:
            broken = first_unreadable(files() if callable(files) else files)
        if broken is None:
            raise
        added = f" {before()}" if before else ""
        raise UsageError(
            f"{printable(os.fsdecode(broken))} {fault(broken)}, nor can an image in "
            f"its place be read.{added} Put the images back and give the same command, "
            "or start again with those that are there."
        ) from error


def first_unreadable(paths):
    """One of some image files that cannot be decoded, or None.

    Those that cannot be opened are found without decoding the others.
    """
    paths = list(dict.fromkeys(paths))
    for path in paths:
        if fault(path) != CANNOT_DECODE:
            return path
    for start in range(0, len(paths), _BLOCK):
        block = paths[start : start + _BLOCK]
        found = {int(index) for index, *_ in _decodable(block, decoding.DEFAULT)}
        broken = set(range(len(block))) - found
        if broken:
            return block[min(broken)]
    return None
