"""Embedding many images, in memory or into a file."""

import collections
import functools
import os
from concurrent.futures import ThreadPoolExecutor

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import devices
from ressl_keras.data.pipeline import evaluation_batches
from ressl_keras.encoders.encoder import input_size
from ressl_keras.errors import UsageError
from ressl_keras.files import replacing


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
    parts = embeddings(images, encoder, batch_size)
    parts = _counted(parts, len(images) if hasattr(images, "read") else None, verbose)
    if path is None:
        found = list(parts)
        if not found:
            raise UsageError("There are no images to encode.")
        return np.concatenate(found)
    write = write_npy if str(path).endswith(".npy") else _write_tfrecord
    with replacing(path) as temporary:
        count = write(temporary, parts)
        if not count:
            raise UsageError("There are no images to encode.")
    return count


def embeddings(images, encoder, batch_size=256, strategy=None):
    """Embeds images batch by batch, while the next ones are read and embedded.

    Args:
        images: what `batches_of` takes.
        encoder: result of `load_encoder`.
        batch_size: images per batch and device.
        strategy: `tf.distribute.Strategy` whose replicas in this process share the
            work; None takes one device. The encoder is best made in its scope.

    Yields:
        float32 arrays [rows, dim], in the order of the images.
    """
    replicas = devices.local_replicas(strategy) if strategy else 1
    size = input_size(encoder, images) if hasattr(images, "read") else None

    def launched():
        forward = None
        for batch in batches_of(images, size, batch_size * replicas):
            if forward is None:
                forward = _forward(
                    encoder, batch.dtype, strategy if replicas > 1 else None
                )
            yield forward(batch)

    for rows in _ahead(launched()):
        yield rows.numpy()


def _ahead(iterator, count=3):
    """The same elements, of which the next few are made in a thread."""
    with ThreadPoolExecutor(1) as thread:
        waiting = collections.deque(
            thread.submit(next, iterator, None) for _ in range(count)
        )
        while (element := waiting.popleft().result()) is not None:
            waiting.append(thread.submit(next, iterator, None))
            yield element


def _counted(parts, total, verbose):
    """The same arrays, with a progress bar."""
    progress = keras.utils.Progbar(total, verbose=verbose, unit_name="image")
    count = 0
    for rows in parts:
        count += len(rows)
        progress.update(count, finalize=False)
        yield rows
    if count:
        progress.update(count, finalize=True)


@functools.lru_cache(maxsize=4)
def _forward(encoder, dtype, strategy=None):
    """An encoder as a function that is traced once, for batches of any length.

    It is kept for the next call: TensorFlow never frees all of a traced function, and a
    run embeds images after every epoch.
    """

    def forward(images):
        wanted = tf.as_dtype(encoder.inputs[0].dtype)
        if wanted.is_integer and not images.dtype.is_integer:
            images = tf.round(images)
        images = tf.cast(images, wanted)
        return tf.cast(encoder(images, training=False), tf.float32)

    if strategy is not None:
        return _on_replicas(forward, strategy)
    spec = tf.TensorSpec([None, *encoder.input_shape[1:]], dtype)
    return tf.function(forward, input_signature=[spec])


def _on_replicas(forward, strategy):
    """The same function with each batch split over this process's replicas."""
    replicas = devices.local_replicas(strategy)

    @tf.function(reduce_retracing=True)
    def run(shares):
        return strategy.run(forward, args=(shares,))

    def embed(batch):
        share = -(-len(batch) // replicas)
        missing = replicas * share - len(batch)
        padded = tf.pad(batch, [[0, missing], *[[0, 0]] * (batch.shape.rank - 1)])
        shares = tf.split(padded, replicas)
        found = run(
            strategy.experimental_distribute_values_from_function(
                # Replicas of one process have consecutive numbers.
                lambda context: shares[context.replica_id_in_sync_group % replicas]
            )
        )
        found = strategy.experimental_local_results(found)
        return tf.concat(found, axis=0)[: len(batch)]

    return embed


def write_npy(path, parts):
    """Streams rows into an array file, whose header is completed at the end.

    Args:
        path: file to write.
        parts: iterable of float arrays [rows, dim].

    Returns:
        Number of rows.
    """
    count, dim = 0, None

    def header(file):
        # NumPy pads the header, so that a longer first axis fits into it later.
        shape = (count, dim or 0)
        np.lib.format.write_array_header_1_0(
            file, {"descr": "<f4", "fortran_order": False, "shape": shape}
        )

    with open(path, "wb") as file:
        for part in parts:
            if dim is None:
                dim = part.shape[1]
                header(file)
            count += len(part)
            part.astype("<f4", copy=False).tofile(file)
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
