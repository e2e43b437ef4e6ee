"""Labelled images for the judges: a share of them, and crops of them to learn from."""

import numpy as np
import tensorflow as tf

from ressl_keras import data, views
from ressl_keras.errors import UsageError


class Selection:
    """Some of the images of a set, in a given order.

    Args:
        images: `data.ArrayImages` or `data.EncodedImages`.
        indices: integer array [count] of places in `images`.
    """

    def __init__(self, images, indices):
        self.images, self.same_size = images, images.same_size
        with tf.device("CPU"):
            self.indices = tf.constant(indices, tf.int64)
        self.labels = None if images.labels is None else images.labels[indices]

    def __len__(self):
        return len(self.indices)

    @property
    def size(self):
        """Height and width in pixels, for images of one size."""
        return self.images.size

    def read(self, index):
        """The image at a place, or the batch at several: uint8, in a graph."""
        return self.images.read(tf.gather(self.indices, index))

    def encoded(self, index):
        """The bytes of the image at a place, for encoded images, in a graph."""
        return self.images.encoded(tf.gather(self.indices, index))


def stratified(images, fraction, seed=0):
    """The same share of every class, drawn at random.

    Args:
        images: labelled images.
        fraction: share to take, in (0, 1]; of every class at least one image.
        seed: integer seed of the draw.

    Returns:
        `images` themselves for a fraction of 1, else a `Selection`.

    Raises:
        UsageError: if the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"The label fraction must lie in (0, 1]; got {fraction}.")
    if fraction == 1:
        return images
    order = np.random.default_rng(seed).permutation(len(images))
    chosen = []
    for label in np.unique(images.labels):
        members = order[images.labels[order] == label]
        chosen.append(members[: max(round(fraction * len(members)), 1)])
    return Selection(images, np.sort(np.concatenate(chosen)))


def crops(images, batch_size, epochs, size, seed=0, scale=(0.2, 1.0)):
    """Batches of random crops and flips with their labels, epoch after epoch.

    Args:
        images: labelled images.
        batch_size: images a batch; what is left at the end of an epoch is dropped.
        epochs: passes over the images, each in an order of its own.
        size: side of the crops in pixels.
        seed: integer seed of order, crops and flips.
        scale: smallest and largest share of an image's area.

    Returns:
        A `tf.data.Dataset` of float32 batches [batch_size, size, size, 3] in 0-255 and
        int64 labels [batch_size].
    """
    labels = tf.constant(images.labels, tf.int64)
    crop = views.RandomResizedCropAndFlip(size, scale)

    def read(step, indices):
        draw = tf.stack([tf.constant(seed, tf.int64), step])
        if images.same_size:
            planes = crop(views.to_planes(images.read(indices)), seed=draw)
            batch = 255 * views.to_pixels(planes)
        else:
            draws = crop.draw(draw, batch_size)
            batch = tf.map_fn(
                lambda place: data.read_crops(
                    images.encoded(indices[place]), [crop], [draws[place]]
                )[0],
                tf.range(batch_size),
                fn_output_signature=tf.TensorSpec([size, size, 3], tf.uint8),
            )
            batch = tf.cast(batch, tf.float32)
        return batch, tf.gather(labels, indices)

    steps = epochs * (len(images) // batch_size)
    indices = data.shuffled_indices(len(images), batch_size, seed, 0, steps)
    batches = indices.enumerate().map(read, tf.data.AUTOTUNE)
    return batches.prefetch(tf.data.AUTOTUNE)
