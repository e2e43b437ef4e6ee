"""Copying the weights of a network into another one of the same layers."""

import keras

from ressl_keras.keras_private import flatten_layers


def copy_weights(source, target):
    """Gives a network the weights of another one, and what it computes from them.

    Args:
        source: `keras.Model`.
        target: `keras.Model` of the same layers.
    """
    target.set_weights(source.get_weights())
    finalize(target)


def copy_statistics(source, target):
    """Gives a network the statistics of the images that another one was adapted to.

    Args:
        source: `keras.Model`.
        target: a clone of it; all other weights stay as they are.
    """
    for theirs, own in zip(flatten_layers(source), flatten_layers(target)):
        if isinstance(theirs, keras.layers.Normalization):
            own.set_weights(theirs.get_weights())
    finalize(target)


def finalize(model):
    """Lets layers compute again what they keep beside their weights.

    An adapted `keras.layers.Normalization` computes with tensors that it makes of its
    weights when it is adapted or loaded, but not in `set_weights`.
    """
    for layer in flatten_layers(model):
        if isinstance(layer, keras.layers.Normalization):
            layer.finalize_state()
