"""The optimizer against its definition in NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import SGD, Config, UsageError, warmup_cosine
from ressl_keras.method.optimizers import build_optimizer


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


def test_sgd_spares_the_biases_and_positions_of_a_transformer_too(random):
    """Some of them have two axes; a layer's name alone spares nothing."""
    keras.utils.set_random_seed(0)
    images = keras.Input([8, 8, 3])
    x = keras.layers.EinsumDense("abcd,de->abce", [8, 8, 4], bias_axes="be")(images)
    x = keras.layers.Conv2D(4, 3, name="position_mixing")(x)
    tokens = keras.layers.Reshape([-1, 4])(x)
    tokens = keras.layers.MultiHeadAttention(2, 2)(tokens, tokens)
    variables = keras.Model(images, tokens).trainable_variables
    before = [variable.assign_add(1.0).numpy() for variable in variables]
    optimizer = SGD(learning_rate=1.0, momentum=0.0, l2=0.1)
    optimizer.apply([tf.zeros(v.shape) for v in variables], variables)
    for variable, value in zip(variables, before):
        decayed = 0.9 if variable.path.endswith("kernel") else 1.0
        expected = decayed * value
        np.testing.assert_allclose(variable, expected, atol=1e-6, err_msg=variable.path)


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


@pytest.mark.parametrize("name, kind", [("adamw", "AdamW"), ("lamb", "Lamb")])
def test_adaptive_optimizers_are_those_of_keras_and_spare_norms_and_biases(
    name, kind, random
):
    def variables():
        keras.utils.set_random_seed(0)
        heads = keras.layers.MultiHeadAttention(2, 3)
        heads.build((None, 4, 6), (None, 4, 6))  # its biases have two axes
        norm = keras.layers.LayerNormalization()
        norm.build((None, 6))
        return [*heads.trainable_variables, *norm.trainable_variables]

    ours, theirs = variables(), variables()
    kernels = {v.path for v in ours if v.name == "kernel"}
    optimizer = build_optimizer(name, 0.01, 0.3, betas=(0.8, 0.95))
    reference = getattr(keras.optimizers, kind)(
        0.01, weight_decay=0.3, beta_1=0.8, beta_2=0.95
    )
    reference.exclude_from_weight_decay([v for v in theirs if v.name != "kernel"])
    for _ in range(3):
        gradients = [random.normal(size=v.shape).astype("float32") for v in ours]
        optimizer.apply([tf.constant(g) for g in gradients], ours)
        reference.apply([tf.constant(g) for g in gradients], theirs)
    assert len(kernels) == 4
    for one, other in zip(ours, theirs):
        np.testing.assert_allclose(one, other, atol=1e-6)
    config = keras.saving.serialize_keras_object(optimizer)
    again = keras.saving.deserialize_keras_object(config)
    assert type(again) is type(optimizer) and again.weight_decay == 0.3


@pytest.mark.parametrize("replicas", [1, 2])
def test_gradients_are_clipped_by_the_norm_of_the_global_batch(replicas, random):
    gradients = random.normal(size=[replicas, 3, 4]).astype("float32")
    (clipped,), _ = tf.clip_by_global_norm([gradients.sum(axis=0)], 0.7)
    strategy = tf.distribute.MirroredStrategy(
        [f"CPU:{index}" for index in range(replicas)],
        # No collective operations, which know one number of devices in a process.
        tf.distribute.ReductionToOneDevice(),
    )
    with strategy.scope():
        variable = keras.Variable(np.zeros([3, 4], "float32"))
        optimizer = build_optimizer("sgd", 1.0, momentum=0.0, clip=0.7)
        optimizer.build([variable])

    @tf.function
    def step():
        index = tf.distribute.get_replica_context().replica_id_in_sync_group
        optimizer.apply([tf.constant(gradients)[index]], [variable])

    strategy.run(step)
    np.testing.assert_allclose(variable.numpy(), -clipped, atol=1e-6)


def test_the_optimizer_brings_defaults_that_a_setting_replaces():
    config = Config(optimizer="adamw")
    assert (config.learning_rate, config.weight_decay) == (0.001, 0.05)
    assert (Config().learning_rate, Config().weight_decay) == (0.06, 5e-4)
    assert Config(optimizer="lamb", learning_rate=0.02).learning_rate == 0.02
    # What an earlier version wrote stands for the same.
    assert Config.from_flags(["--learning_rate=0.06"]) == Config()
    with pytest.raises(UsageError, match="Did you mean adamw"):
        build_optimizer("adam", 0.1)
