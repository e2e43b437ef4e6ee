"""Layers from elsewhere inside a `View`, with their randomness from the step's seed."""

import inspect

import keras
import tensorflow as tf

from ressl_keras.seeds import reseed


def takes_seed(operation):
    """Whether a layer is called as `operation(planes, seed=, first=)`."""
    call = getattr(operation, "call", operation)
    return "seed" in inspect.signature(call).parameters


def apply(operation, planes, seed, first=0):
    """Applies a layer on channels-last images to planes.

    The layer's seed generators, and those of layers inside it, are set from the seed.
    The draws are then a function of the seed and of the replica's first image, whatever
    was drawn before.

    Args:
        operation: layer called as `operation(images)` on float images [batch, height,
            width, 3] in 0-1, such as Keras' preprocessing layers.
        planes: float tensor [batch, 3, height, width] in 0-1.
        seed: integer tensor [2].
        first: index of the first image in the global batch.

    Returns:
        Planes of the result.
    """
    seed = tf.random.experimental.stateless_fold_in(seed, tf.cast(first, tf.int32))
    reseed([operation], lambda: seed)
    images = tf.transpose(planes, [0, 2, 3, 1])
    call = inspect.signature(operation.call).parameters
    options = {"training": True} if "training" in call else {}
    images = tf.cast(operation(images, **options), planes.dtype)
    return tf.transpose(images, [0, 3, 1, 2])


def output_shape(operation, planes_shape):
    """Shape of the planes that `apply` returns."""
    batch, channels, height, width = planes_shape
    images = keras.KerasTensor((batch, height, width, channels), "float32")
    batch, height, width, channels = operation.compute_output_spec(images).shape
    return (batch, channels, height, width)
