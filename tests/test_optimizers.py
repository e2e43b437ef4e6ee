"""The optimizer against its definition in NumPy."""

import keras
import numpy as np
import tensorflow as tf

from ressl_keras import SGD, warmup_cosine


def test_weight_decay_is_part_of_the_gradient_and_spares_vectors(random):
    """Momentum SGD as the paper's framework defines it, at a constant rate:
    v = momentum v + (gradient + decay w); w = w - rate v."""
    shapes = {"kernel": (3, 4), "bias": (4,)}
    variables = [keras.Variable(random.normal(size=s)) for s in shapes.values()]
    expected = [variable.numpy() for variable in variables]
    velocity = [np.zeros(shape) for shape in shapes.values()]
    optimizer = SGD(learning_rate=0.1, momentum=0.9, l2=0.05)
    for _ in range(5):
        gradients = [random.normal(size=s).astype("float32") for s in shapes.values()]
        optimizer.apply([tf.constant(g) for g in gradients], variables)
        for i, decay in enumerate((0.05, 0.0)):
            velocity[i] = 0.9 * velocity[i] + gradients[i] + decay * expected[i]
            expected[i] = expected[i] - 0.1 * velocity[i]
    for variable, values in zip(variables, expected):
        np.testing.assert_allclose(variable.numpy(), values, atol=1e-5)


def test_the_optimizer_survives_serialisation():
    optimizer = SGD(warmup_cosine(0.1, 100, 10), momentum=0.8, l2=1e-4)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert (again.l2, again.momentum) == (1e-4, 0.8)
    assert float(again.learning_rate) == float(optimizer.learning_rate)


def test_the_learning_rate_rises_linearly_then_falls_as_a_cosine():
    schedule = warmup_cosine(peak=0.4, total_steps=110, warmup_steps=10)
    rates = [float(schedule(step)) for step in (0, 5, 10, 35, 60, 110)]
    cosine = 0.2 * (1 + np.cos(np.pi / 4))
    np.testing.assert_allclose(rates, [0, 0.2, 0.4, cosine, 0.2, 0], atol=1e-6)


def test_without_warm_up_the_learning_rate_starts_at_its_peak():
    schedule = warmup_cosine(peak=0.4, total_steps=100)
    np.testing.assert_allclose(schedule(0), 0.4)
