"""The fused batch norm against Keras' own layer, and against NumPy."""

import keras
import numpy as np
import pytest
import tensorflow as tf

from ressl_keras import build_backbone
from ressl_keras.method.normalization import FusedBatchNormalization, fuse_batch_norms

IMAGES = [6, 5, 4, 3]


def make_norm(**options):
    """Keras' layer with weights and averages that are none of their defaults."""
    options = {"momentum": 0.9, "epsilon": 1e-5, **options}
    norm = keras.layers.BatchNormalization(
        gamma_initializer=keras.initializers.RandomUniform(0.5, 2, seed=1),
        beta_initializer=keras.initializers.RandomUniform(-1, 1, seed=2),
        moving_mean_initializer=keras.initializers.RandomUniform(-1, 1, seed=3),
        moving_variance_initializer=keras.initializers.RandomUniform(0.5, 2, seed=4),
        **options,
    )
    norm.build(IMAGES)
    return norm


def images(random, shape=IMAGES, dtype="float32"):
    return tf.cast(random.normal(0.5, 2, shape), dtype)


def trained(layer, inputs, compiled=tf.function):
    """Output, gradients of inputs and weights, and averages after one step."""
    targets = np.random.default_rng(1).normal(size=inputs.shape)

    @compiled
    def step(inputs):
        with tf.GradientTape() as tape:
            tape.watch(inputs)
            outputs = layer(inputs, training=True)
            loss = tf.reduce_sum(tf.cast(outputs, tf.float32) * targets)
        variables = [weight.value for weight in layer.trainable_variables]
        return outputs, *tape.gradient(loss, [inputs, *variables])

    results = step(inputs)
    return [tf.cast(result, tf.float32).numpy() for result in results] + [
        weight.numpy() for weight in layer.non_trainable_variables
    ]


def eager(function):
    return function


def xla(function):
    return tf.function(function, jit_compile=True)


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"scale": False, "momentum": 0.99, "epsilon": 1e-3},
        {"center": False},
        {"axis": 1},
    ],
    ids=str,
)
def test_it_trains_as_keras_layer_does(options, random):
    compare(options, tf.function, random)


@pytest.mark.parametrize("compiled", [eager, xla])
def test_it_trains_so_however_it_is_compiled(compiled, random):
    compare({}, compiled, random)


def compare(options, compiled, random):
    inputs = images(random)
    expected = trained(make_norm(**options), inputs)
    result = trained(FusedBatchNormalization(make_norm(**options)), inputs, compiled)
    for ours, theirs in zip(result, expected, strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("compiled", [tf.function, xla])
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_images_have_float32_statistics(precision, compiled, random):
    policy = f"mixed_{precision}"
    inputs = images(random, dtype=precision)
    theirs = trained(make_norm(dtype=policy), inputs)
    layer = FusedBatchNormalization(make_norm(dtype=policy))
    ours = trained(layer, inputs, compiled)
    assert layer(inputs, training=True).dtype == precision
    rounding = 2.0**-7 if precision == "bfloat16" else 2.0**-10
    for index in (0, 1):  # the images, and their gradients
        scale = np.abs(theirs[index]).max()
        assert np.abs(ours[index] - theirs[index]).max() < rounding * scale
    for result, expected in zip(ours[4:], theirs[4:]):
        np.testing.assert_allclose(result, expected, rtol=1e-5)


def test_the_averages_take_the_biased_variance(random):
    norm = make_norm()
    inputs = images(random)
    mean, variance = norm.moving_mean.numpy(), norm.moving_variance.numpy()
    FusedBatchNormalization(norm)(inputs, training=True)
    values = inputs.numpy().reshape([-1, 3])
    np.testing.assert_allclose(
        norm.moving_mean, 0.9 * mean + 0.1 * values.mean(0), rtol=1e-5
    )
    np.testing.assert_allclose(
        norm.moving_variance, 0.9 * variance + 0.1 * values.var(0, ddof=0), rtol=1e-5
    )


@pytest.mark.parametrize("compiled", [eager, tf.function, xla])
def test_a_single_pixel_becomes_the_offset(compiled):
    """Its variance is 0 by either count, though n - 1 is 0, too."""
    layer, norm = FusedBatchNormalization(make_norm()), make_norm()
    outputs, gradient, _, beta_gradient, *averages = trained(
        layer, tf.ones([1, 1, 1, 3]), compiled
    )
    np.testing.assert_allclose(outputs[0, 0, 0], norm.beta, rtol=1e-6)
    np.testing.assert_allclose(gradient, 0, atol=1e-5)
    assert np.all(np.isfinite(beta_gradient))
    np.testing.assert_allclose(averages[0], 0.9 * norm.moving_mean + 0.1, rtol=1e-6)
    np.testing.assert_allclose(averages[1], 0.9 * norm.moving_variance, rtol=1e-6)


def test_an_empty_batch_ends_as_with_keras():
    """Means of nothing are NaN, in Keras' averages, too."""
    expected, result = make_norm(), FusedBatchNormalization(make_norm())
    for layer in (expected, result):
        assert layer(tf.ones([0, 4, 4, 3]), training=True).shape == [0, 4, 4, 3]
    for ours, theirs in zip(result.weights, expected.weights):
        np.testing.assert_array_equal(ours, theirs)


def test_a_batch_of_any_length_is_one_trace(random):
    layer = FusedBatchNormalization(make_norm())
    step = tf.function(
        lambda images: layer(images, training=True),
        input_signature=[tf.TensorSpec([None, None, None, 3])],
    )
    step(images(random, [2, 3, 3, 3])), step(images(random))
    other = make_norm()
    other(images(np.random.default_rng(0), [2, 3, 3, 3]), training=True)
    assert step.experimental_get_tracing_count() == 1
    assert not np.allclose(layer.layer.moving_mean, other.moving_mean)


@pytest.mark.parametrize("wanted", ["images", "gamma", "beta"])
def test_a_gradient_of_one_thing_alone(wanted, random):
    norm, inputs = make_norm(), images(random)
    source = inputs if wanted == "images" else getattr(norm, wanted).value
    gradients = []
    for layer in (norm, FusedBatchNormalization(norm)):
        with tf.GradientTape(watch_accessed_variables=False) as tape:
            tape.watch(source)
            loss = tf.reduce_sum(layer(inputs, training=True) ** 3)
        gradients.append(tape.gradient(loss, source))
    np.testing.assert_allclose(*gradients, rtol=1e-4, atol=1e-4)


def operations(layer, shape=IMAGES, dtype=tf.float32, **arguments):
    step = tf.function(lambda inputs: layer(inputs, training=True, **arguments))
    graph = step.get_concrete_function(tf.TensorSpec(shape, dtype)).graph
    return {operation.type for operation in graph.get_operations()}


def test_training_is_one_kernel():
    found = operations(FusedBatchNormalization(make_norm()))
    assert "FusedBatchNormV3" in found
    assert not found & {"Mean", "SquaredDifference", "Rsqrt"}


@pytest.mark.parametrize(
    "options, call",
    [
        ({}, {"shape": [6, 3]}),
        ({}, {"shape": [6, 5, 3]}),
        ({}, {"mask": tf.ones([6, 5, 4], bool)}),
        ({"dtype": "float64"}, {"dtype": tf.float64}),
        ({"synchronized": True}, {}),
        ({"renorm": True}, {}),
        ({"axis": 2}, {"shape": [6, 5, 3, 4]}),
        ({"trainable": False}, {}),
    ],
    ids=[
        "rank2",
        "rank3",
        "mask",
        "float64",
        "synchronized",
        "renorm",
        "axis",
        "fixed",
    ],
)
def test_what_the_kernel_has_not_is_keras_layer(options, call):
    norm = keras.layers.BatchNormalization(**options)
    assert "FusedBatchNormV3" not in operations(FusedBatchNormalization(norm), **call)


def test_inference_is_keras_layer(random):
    norm, inputs = make_norm(), images(random)
    np.testing.assert_array_equal(FusedBatchNormalization(norm)(inputs), norm(inputs))


@pytest.mark.parametrize("synchronized", [False, True])
def test_replicas_train_as_with_keras_layer(synchronized, random):
    """Each on its own half of the batch; the averages are those of both halves."""
    devices = [device.name for device in tf.config.list_logical_devices("CPU")[:2]]
    strategy = tf.distribute.MirroredStrategy(devices)
    halves = tf.split(images(random), 2)
    results = []
    for kind in (lambda norm: norm, FusedBatchNormalization):
        with strategy.scope():
            layer = kind(make_norm(synchronized=synchronized))

        @tf.function
        def step(layer=layer):
            def on_one():
                context = tf.distribute.get_replica_context()
                half = tf.stack(halves)[context.replica_id_in_sync_group]
                return layer(half, training=True)

            return strategy.run(on_one)

        outputs = strategy.experimental_local_results(step())
        results.append([*outputs, *layer.non_trainable_variables])
    for ours, theirs in zip(*results, strict=True):
        np.testing.assert_allclose(
            keras.ops.convert_to_numpy(ours),
            keras.ops.convert_to_numpy(theirs),
            rtol=1e-4,
            atol=1e-5,
        )


def wraps(model):
    found = []
    for layer in model.layers:
        if isinstance(layer, FusedBatchNormalization):
            found.append(layer)
        if isinstance(layer, keras.Model):
            found += wraps(layer)
    return found


NETWORKS = {"resnet10_small": 12, "resnet18": 20, "MobileNetV3Small": 34}


@pytest.mark.parametrize("name", NETWORKS)
def test_a_view_has_the_networks_own_variables_and_layers(name):
    backbone = build_backbone(name, (32, 32, 3))
    config, paths = backbone.get_config(), [w.path for w in backbone.weights]
    before = [layer.output for layer in backbone.layers]
    fused = fuse_batch_norms(backbone)
    assert len(wraps(fused)) == NETWORKS[name]
    assert [id(w) for w in fused.weights] == [id(w) for w in backbone.weights]
    assert [id(w) for w in fused.trainable_variables] == [
        id(w) for w in backbone.trainable_variables
    ]
    assert fused.output_shape == backbone.output_shape
    # The network itself is as it was.
    assert backbone.get_config() == config
    assert [w.path for w in backbone.weights] == paths
    assert all(layer.output is x for layer, x in zip(backbone.layers, before))
    assert not wraps(backbone)


def small_network():
    inputs = keras.Input([8, 8, 3])
    x = keras.layers.Conv2D(4, 3, use_bias=False)(inputs)
    x = keras.layers.ReLU()(keras.layers.BatchNormalization()(x))
    return keras.Model(inputs, keras.layers.GlobalAveragePooling2D()(x), name="small")


def test_a_view_trains_the_network(random):
    inputs = images(random, [4, 8, 8, 3])
    network, other = small_network(), small_network()
    other.set_weights(network.get_weights())
    fused = fuse_batch_norms(network)
    for model in (fused, other):
        model.compile(keras.optimizers.SGD(0.1), "mse", jit_compile=False)
        model.fit(inputs, np.ones([4, 4]), batch_size=2, shuffle=False, verbose=0)
    for ours, theirs in zip(network.weights, other.weights):
        np.testing.assert_allclose(ours, theirs, rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(fused(inputs), network(inputs), rtol=1e-6)


def test_nested_models_are_wrapped_too():
    network = small_network()
    inputs = keras.Input([8, 8, 3])
    both = keras.layers.Concatenate()([network(inputs), network(inputs * 2)])
    outer = keras.Sequential([keras.Model(inputs, both), keras.layers.Dense(2)])
    fused = fuse_batch_norms(outer)
    assert len(wraps(fused)) == 1 and fused is not outer
    assert [id(w) for w in fused.weights] == [id(w) for w in outer.weights]
    assert fused.layers[1] is outer.layers[1]


class Subclassed(keras.Model):
    def __init__(self):
        super().__init__()
        self.norm = keras.layers.BatchNormalization()

    def call(self, inputs):
        return self.norm(inputs)


class OwnCall(type(small_network())):
    def call(self, inputs, training=None, mask=None):
        return 2 * super().call(inputs, training=training, mask=mask)


class OwnNorm(keras.layers.BatchNormalization):
    def call(self, inputs, training=None, mask=None):
        return inputs


def functional_with_its_own_call():
    network = small_network()
    return OwnCall(network.inputs, network.outputs)


@pytest.mark.parametrize(
    "build",
    [
        Subclassed,
        functional_with_its_own_call,
        lambda: keras.Sequential([Subclassed()]),
        lambda: keras.Sequential([OwnNorm()]),
        lambda: keras.Sequential([keras.Input([3]), keras.layers.Dense(2)]),
        lambda: build_backbone("resnet10_small", (8, 8, 3), 4, synchronized=True),
    ],
    ids=["subclassed", "own call", "nested", "own norm", "no norm", "synchronized"],
)
def test_a_model_with_nothing_to_wrap_is_its_own_view(build):
    model = build()
    assert fuse_batch_norms(model) is model


def test_trainable_is_one_flag_for_both():
    network = small_network()
    fused = fuse_batch_norms(network)
    (wrap,) = wraps(fused)
    norm = wrap.layer
    network.trainable = False
    assert not wrap.trainable and fused.trainable_variables == []
    network.trainable = True
    assert wrap.trainable and len(fused.trainable_variables) == 3
    wrap.trainable = False
    assert not norm.trainable and len(network.trainable_variables) == 1
    assert "FusedBatchNormV3" not in operations(fused, [2, 8, 8, 3])


@keras.saving.register_keras_serializable("tests")
class Both(keras.Model):
    """A network and its view in one model, as in training."""

    def __init__(self, network, **kwargs):
        super().__init__(**kwargs)
        self.network = network
        self.fused = fuse_batch_norms(network)

    def call(self, inputs, training=None):
        return self.fused(inputs, training=training)

    def get_config(self):
        return {"network": keras.saving.serialize_keras_object(self.network)}

    @classmethod
    def from_config(cls, config):
        return cls(keras.saving.deserialize_keras_object(config["network"]))


@pytest.mark.parametrize("whole", [True, False])
def test_a_model_of_network_and_view_is_saved_and_loaded(whole, tmp_path, random):
    inputs = images(random, [4, 8, 8, 3])
    model = Both(small_network())
    model(inputs, training=True)
    if whole:
        model.save(tmp_path / "both.keras")
        loaded = keras.models.load_model(tmp_path / "both.keras")
    else:
        model.save_weights(tmp_path / "both.weights.h5")
        loaded = Both(small_network())
        loaded(inputs)
        loaded.load_weights(tmp_path / "both.weights.h5")
    assert len(loaded.weights) == len(model.weights) == 5
    np.testing.assert_array_equal(loaded(inputs), model(inputs))
    np.testing.assert_array_equal(loaded.network(inputs), model.network(inputs))


def test_network_and_view_are_saved_each_by_itself(tmp_path, random):
    inputs = images(random, [4, 8, 8, 3])
    network = small_network()
    fused = fuse_batch_norms(network)
    fused(inputs, training=True)
    for model in (network, fused):
        model.save(tmp_path / "one.keras")
        loaded = keras.models.load_model(tmp_path / "one.keras")
        np.testing.assert_array_equal(loaded(inputs), network(inputs))
