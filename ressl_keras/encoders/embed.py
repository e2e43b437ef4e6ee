"""Embedding many images, in memory or into a file."""

import functools
import os

import keras
import numpy as np
import tensorflow as tf

from ressl_keras.data.pipeline import evaluation_batches
from ressl_keras.encoders.encoder import input_size
from ressl_keras.errors import UsageError
from ressl_keras.run_folder import replacing


def batches_of(images, size, batch_size=256):
    """Batches of images from a set of images or any iterable of batches.

    Args:
        images: `ArrayImages` or `EncodedImages`; or any iterable of batches
            [batch, height, width, 3] in 0-255, such as a `tf.data.Dataset`, alone, in
            a tuple before their labels, or in a dict under `image`.
        size: side in pixels to resize sets of images to; others stay as they are.
        batch_size: images per batch, for sets of images.

    Yields:
        Tensors or arrays [batch, height, width, 3].
    """
    if hasattr(images, "read"):
        images = evaluation_batches(images, size, batch_size)
    for batch in images:
        if isinstance(batch, (tuple, list)):
            batch = batch[0]
        yield batch["image"] if isinstance(batch, dict) else batch


def encode(
    images: object,
    encoder: keras.Model,
    path: str | os.PathLike | None = None,
    batch_size: int = 256,
    verbose: int = 1,
) -> int | np.ndarray:
    """Embeds images batch by batch, in memory or into a file.

    With `path`, neither images nor embeddings need to fit into memory, and the file
    appears when it is complete.

    Args:
        images: what `batches_of` takes; for large data, a `tf.data.Dataset` of image
            batches.
        encoder: result of `load_encoder`.
        path: file to write: `.npy`, a float32 array [count, dim]; or `.tfrecord`,
            `tf.train.Example` records of `index` (int64) and `embedding` (floats).
            None returns the embeddings.
        batch_size: images per batch, where `images` are not batches already.
        verbose: 1 shows a progress bar, 0 nothing.

    Returns:
        Number of embeddings written, or without `path` the float32 array [count, dim].

    Raises:
        UsageError: if the file's name has another ending, or there are no images.

    Example:

    >>> encoder = load_encoder("runs/cifar10")
    >>> encode(images.batch(256), encoder, "embeddings.npy")
    50000
    """
    if path is not None and not str(path).endswith((".npy", ".tfrecord")):
        raise UsageError(f"{path} ends neither in .npy nor in .tfrecord.")
    embeddings = _embeddings(images, encoder, batch_size, verbose)
    if path is None:
        found = list(embeddings)
        if not found:
            raise UsageError("There are no images to encode.")
        return np.concatenate(found)
    write = _write_npy if str(path).endswith(".npy") else _write_tfrecord
    with replacing(path) as temporary:
        count = write(temporary, embeddings)
        if not count:
            raise UsageError("There are no images to encode.")
    return count


def _embeddings(images, encoder, batch_size, verbose):
    own = hasattr(images, "read")
    total = len(images) if own else None
    size = input_size(encoder, images) if own else None
    progress = keras.utils.Progbar(total, verbose=verbose, unit_name="image")
    count, forward = 0, None
    for batch in batches_of(images, size, batch_size):
        if forward is None:
            forward = _forward(encoder, batch.dtype)
        embeddings = forward(batch).numpy()
        count += len(embeddings)
        progress.update(count, finalize=False)
        yield embeddings
    if count:
        progress.update(count, finalize=True)


@functools.lru_cache(maxsize=2)
def _forward(encoder, dtype):
    """An encoder as a function that is traced once, for batches of any length.

    It is kept for the next call: TensorFlow never frees all of a traced function, and a
    run embeds images after every epoch.
    """
    spec = tf.TensorSpec([None, *encoder.input_shape[1:]], dtype)

    @tf.function(input_signature=[spec])
    def forward(images):
        images = tf.cast(images, encoder.inputs[0].dtype)
        return tf.cast(encoder(images, training=False), tf.float32)

    return forward


def _write_npy(path, parts):
    """Streams rows into an array file, whose header is completed at the end."""
    count, dim = 0, 0

    def header(file):
        # NumPy pads the header, so that a longer first axis fits into it later.
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": (count, dim)}
        )

    with open(path, "wb") as file:
        for part in parts:
            if not count:
                dim = part.shape[1]
                header(file)
            count += len(part)
            part.astype("<f4").tofile(file)
        file.seek(0)
        header(file)
    return count


def _write_tfrecord(path, parts):
    count = 0
    with tf.io.TFRecordWriter(path) as writer:
        for part in parts:
            for row in part:
                index = tf.train.Feature(int64_list=tf.train.Int64List(value=[count]))
                row = tf.train.Feature(float_list=tf.train.FloatList(value=row))
                features = tf.train.Features(feature={"index": index, "embedding": row})
                example = tf.train.Example(features=features)
                writer.write(example.SerializeToString())
                count += 1
    return count
