"""Setting the randomness of Keras layers, such as dropout, from a seed."""

import keras
import tensorflow as tf

from ressl_keras.keras_private import flatten_layers


def reseed(layers, make_seed):
    """Sets the seed generators of layers and of those inside them.

    What the layers draw next is then a function of the seed, whatever was drawn before.

    Args:
        layers: list of layers; the same order means the same draws.
        make_seed: function that returns the seed, integer tensor [2]; called if there
            is a generator.
    """
    generators = _generators(layers)
    seed = make_seed() if generators else None
    for index, generator in enumerate(generators):
        state = tf.random.experimental.stateless_fold_in(seed, index)
        generator.state.assign(tf.cast(abs(state), generator.state.dtype))


def _generators(layers):
    """The seed generators of layers and of those inside them, in a fixed order."""
    found = {}
    for layer in layers:
        for inner in flatten_layers(layer):
            for value in vars(inner).values():
                if isinstance(value, keras.random.SeedGenerator):
                    found[id(value)] = value
    return list(found.values())
