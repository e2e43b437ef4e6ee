"""Which image files can be read: all of them at the start, and one that broke later."""

import contextlib
import os
import time

import tensorflow as tf

from ressl_keras.data import decoding
from ressl_keras.errors import UsageError, printable

# What reading a missing, forbidden or damaged file raises.
_READ_ERRORS = (
    tf.errors.InvalidArgumentError,
    tf.errors.NotFoundError,
    tf.errors.PermissionDeniedError,
    tf.errors.FailedPreconditionError,
    tf.errors.DataLossError,
    tf.errors.UnknownError,
)


def sizes(
    paths,
    log=print,
    clock=time.monotonic,
    every=10.0,
    decoder=decoding.DEFAULT,
):
    """Decodes every image once, several at a time.

    Headers are not enough: the end of a file may be missing.

    Args:
        paths: list of paths, strings or bytes.
        log: called with a line of text about the progress.
        clock: function that returns seconds.
        every: seconds between two lines of progress.
        decoder: `decoding.Decoder`.

    Returns:
        Dict from path to (height, width), None where it cannot be decoded.
    """
    found = dict.fromkeys(paths)
    said = clock()
    for count, (index, height, width) in enumerate(_decodable(paths, decoder), 1):
        found[paths[index]] = int(height), int(width)
        if clock() - said >= every:
            said = clock()
            log(f"Checked {count:,} of {len(paths):,} images.")
    return found


def _decodable(paths, decoder):
    """Iterates over (index, height, width) of the images that can be decoded."""
    if not paths:
        return ()

    def size(index, path):
        image = decoding.decode(tf.io.read_file(path), decoder)
        shape = tf.shape(image, tf.int64)
        return tf.stack([index, shape[0], shape[1]])

    with tf.device("CPU"):
        sources = tf.constant(list(map(os.fsencode, paths)))
        images = tf.data.Dataset.from_tensor_slices(sources).enumerate()
    images = images.map(size, tf.data.AUTOTUNE, deterministic=False)
    return images.ignore_errors().as_numpy_iterator()


@contextlib.contextmanager
def naming_unreadable(files, log=print, *, likely=None, before=None):
    """Turns the error of an image that cannot be read into a line with its name.

    Args:
        files: list of paths or of (path, class), or a function that returns such a
            list: where the image may be.
        log: called with a line of text.
        likely: function that returns the paths to try first, or None.
        before: function called before the error is raised, which returns a sentence to
            add; or None.

    Raises:
        UsageError: if an image cannot be read. Other errors are left as they are.
    """
    try:
        yield
    except _READ_ERRORS as error:
        broken = first_unreadable(likely() if likely else [], log)
        if broken is None:
            everything = files() if callable(files) else files
            paths = [
                file[0] if isinstance(file, tuple) else file for file in everything
            ]
            broken = first_unreadable(paths, log)
        if broken is None:
            raise
        added = f" {before()}" if before else ""
        raise UsageError(
            f"{printable(os.fsdecode(broken))} {_fault(broken)}, though it was listed "
            f"at the start.{added} Put it back, or start again: images that cannot be "
            "read are passed over when --check_images looks at them."
        ) from error


def first_unreadable(paths, log=print):
    """The first of some image files that cannot be decoded, or None."""
    found = sizes(list(dict.fromkeys(paths)), log)
    return next((path for path, size in found.items() if size is None), None)


def _fault(path):
    if not os.path.exists(path):
        return "is not there any more"
    if not os.access(path, os.R_OK):
        return "may not be read"
    return "cannot be decoded"
