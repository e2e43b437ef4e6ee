"""What is private in Keras: whether it is as we take it, and still needed."""

import keras
import numpy as np
import tensorflow as tf
import tiny

from ressl_keras.keras_private import (
    flatten_layers,
    keep_saving_cache,
    weights_in_memory,
)


def optimizers_made(save):
    """How many optimizers come into being while something is saved."""
    made, init = [], keras.optimizers.Optimizer.__init__

    def counted(self, *arguments, **options):
        made.append(self)
        init(self, *arguments, **options)

    keras.optimizers.Optimizer.__init__ = counted
    try:
        save()
    finally:
        keras.optimizers.Optimizer.__init__ = init
    return len(made)


def test_a_save_makes_no_optimizer_again(tmp_path):
    """If the first part fails, Keras is mended and the workaround can go."""
    model = tiny.build_model()

    def save():
        model.save_weights(tmp_path / "m.weights.h5", overwrite=True)

    keras.utils.clear_session()
    save()
    assert optimizers_made(save) == 1
    keep_saving_cache()
    assert optimizers_made(save) == 0


def test_weights_in_memory_are_a_file_that_keras_loads(tmp_path):
    """A copy: what the model learns afterwards is not in it."""
    model, other = tiny.build_model(), tiny.build_model()
    model.queue.enqueue(tf.ones([5, 6]) / 6**0.5)
    expected = [variable.numpy() for variable in model.variables]
    state = weights_in_memory(model)
    for variable in model.variables:
        variable.assign(tf.zeros_like(variable))
    (tmp_path / "m.weights.h5").write_bytes(state)
    other.load_weights(tmp_path / "m.weights.h5")
    for variable, value in zip(other.variables, expected, strict=True):
        np.testing.assert_array_equal(variable.numpy(), value)


def test_a_layer_has_all_layers_inside_it():
    class Outer(keras.layers.Layer):
        def __init__(self):
            super().__init__()
            self.inner = keras.layers.RandomFlip(name="inner")
            self.listed = [keras.Sequential([keras.layers.Dense(1, name="deep")])]

    names = {layer.name for layer in flatten_layers(Outer())}
    assert {"inner", "deep"} < names
