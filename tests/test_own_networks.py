"""Networks of the user's own: models, files, functions, vision transformers."""

import os
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf

from examples.networks import conv_mixer, half_resolution
from ressl_keras import Config, UsageError, build_backbone, export_encoder, pretrain
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import load_encoder
from ressl_keras.method.networks import pooled
from ressl_keras.run_folder import RunFolder
from ressl_keras.training import backbones, build

SETTINGS = dict(
    batch_size=8,
    queue_size=16,
    max_steps=2,
    hidden_dim=8,
    embedding_dim=4,
    knn_every=0,
    image_size=16,
)


def network(outputs="maps", size=16):
    images = keras.Input([size, size, 3])
    maps = keras.layers.Conv2D(6, 3, strides=4, activation="relu")(images)
    made = {
        "maps": lambda: maps,
        "tokens": lambda: keras.layers.Reshape([-1, 6])(maps),
        "features": lambda: keras.layers.GlobalAveragePooling2D()(maps),
    }[outputs]()
    return keras.Model(images, made, name="mine")


@pytest.mark.parametrize("outputs", ["maps", "tokens", "features"])
def test_maps_and_tokens_are_averaged_into_features(outputs, random):
    model = network(outputs)
    images = random.normal(size=[3, 16, 16, 3])
    result = np.asarray(model(images))
    expected = result.mean(axis=tuple(range(1, result.ndim - 1)))
    np.testing.assert_allclose(pooled(model)(images), expected, atol=1e-6)


def two_inputs():
    one, other = keras.Input([8, 8, 3]), keras.Input([8, 8, 3])
    return keras.Model([one, other], keras.layers.Add()([one, other]))


def flat():
    features = keras.Input([8])
    return keras.Model(features, keras.layers.Dense(2)(features))


def two_outputs():
    images = keras.Input([8, 8, 3])
    return keras.Model(images, [images, keras.layers.Flatten()(images)])


class Subclassed(keras.Model):
    def call(self, images):
        return images


@pytest.mark.parametrize(
    "model, message",
    [
        (two_inputs, r"takes \(None, 8, 8, 3\), \(None, 8, 8, 3\), not images"),
        (flat, r"takes \(None, 8\), not images"),
        (two_outputs, "not features, maps or tokens"),
        (Subclassed, "no functional Keras model"),
    ],
)
def test_what_is_no_image_network_is_refused(model, message):
    with pytest.raises(UsageError, match=message):
        pooled(model())


@pytest.mark.long
def test_a_model_in_memory_is_trained_kept_and_exported(random, tmp_path):
    pixels = random.integers(0, 256, [16, 16, 16, 3]).astype(np.uint8)
    model, config = network(), Config(**SETTINGS)
    before = model.get_weights()
    path = pretrain(
        pixels, tmp_path, config, backbone=model, verbose=False, log=lambda line: None
    )
    for weight, kept in zip(model.get_weights(), before):
        np.testing.assert_array_equal(weight, kept)  # the caller's stays as it is
    kept = keras.models.load_model(tmp_path / "network.keras")
    np.testing.assert_array_equal(kept.get_weights()[0], before[0])
    trained = load_encoder(path)
    assert trained.output_shape == (None, 6)
    moved = np.abs(trained.get_weights()[-2] - before[0])
    assert 0 < moved.max() < 0.5
    features = trained(pixels.astype(np.float32)).numpy()
    os.remove(path)
    again = load_encoder(export_encoder(str(tmp_path), log=lambda line: None))
    np.testing.assert_allclose(again(pixels.astype(np.float32)), features, atol=1e-5)
    lines = []
    pretrain(pixels, tmp_path, config, backbone=network(), log=lines.append)
    assert "nothing is left to train" in "".join(lines)


def test_a_file_and_a_function_are_networks(random, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    model = network()
    model.save("mine.keras")
    (tmp_path / "own_networks_here.py").write_text(
        "import keras\n"
        "def build(input_shape):\n"
        "    return keras.Sequential([\n"
        "        keras.Input(input_shape), keras.layers.Conv2D(5, 3)])\n"
        "nothing = 3\n"
        "def text(input_shape):\n"
        "    return 'a network'\n"
    )
    images = random.normal(size=[2, 16, 16, 3])
    folder = RunFolder(tmp_path / "run")
    (tmp_path / "run").mkdir()
    network("features").save(tmp_path / "run" / "network.keras")  # never trained
    backbones.check("mine.keras", 64, folder)
    found = backbones.own_network("mine.keras", folder, 16)
    np.testing.assert_allclose(found(images), pooled(model)(images), atol=1e-6)
    backbones.check("own_networks_here:build", 64, folder)
    found = backbones.own_network("own_networks_here:build", folder, 16)
    assert found(images).shape == (2, 5)
    assert backbones.own_network("resnet18_small", folder, 16) is None
    for spec, message in [
        ("other.keras", "There is no file other.keras"),
        ("no_such_module:build", "No module named 'no_such_module'"),
        ("own_networks_here:nothing", "has no function nothing"),
        ("own_networks_here:text", "returned str, no keras.Model"),
    ]:
        with pytest.raises(UsageError, match=message):
            backbones.check(spec, 64, folder)
            backbones.own_network(spec, folder, 16)
    (tmp_path / "run" / "checkpoints").mkdir()  # now it has: its own copy is enough
    backbones.check("other.keras", 64, folder)


def test_a_function_builds_a_network_of_any_size_where_crops_have_several(
    tmp_path, monkeypatch
):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "own_networks_of_any_size.py").write_text(
        "import keras\n"
        "def maps(input_shape):\n"
        "    return keras.Sequential([\n"
        "        keras.Input(input_shape), keras.layers.Conv2D(5, 3)])\n"
        "def flat(input_shape):\n"
        "    return keras.Sequential([\n"
        "        keras.Input(input_shape), keras.layers.Flatten(), "
        "keras.layers.Dense(5)])\n"
    )
    config = Config(crops=(12, 8), **SETTINGS)
    folder = RunFolder(tmp_path / "run")

    def model(backbone):
        size = build.network_size(config, 16)
        network = backbones.own_network(backbone, folder, size)
        return build.build_model(config, build.Plan(16), network=network)

    made = model("own_networks_of_any_size:maps")
    assert made.backbone.input_shape == (None, None, None, 3)
    with pytest.raises(UsageError, match="several sizes, which --crops asks for: "):
        model("own_networks_of_any_size:flat")


@pytest.mark.parametrize("nested", [False, True], ids=["flat", "nested"])
def test_an_own_network_takes_the_precision_and_the_batch_norms_of_the_run(nested):
    images = keras.Input([None, None, 3])
    x = keras.layers.BatchNormalization()(keras.layers.Conv2D(4, 3)(images))
    network = keras.Model(images, x, name="body")
    if nested:
        images = keras.Input([None, None, 3])
        network = keras.Model(images, network(images))
    config = Config(precision="mixed_bfloat16", batch_norm="synchronized", **SETTINGS)
    model = build.build_model(config, build.Plan(16), network=pooled(network))
    body = model.backbone.get_layer("body") if nested else model.backbone
    normalization = body.layers[2]
    assert normalization.synchronized
    assert normalization.dtype_policy.name == "mixed_bfloat16"
    assert model.backbone.output_shape == (None, 4)


def test_an_image_size_that_does_not_fit_is_said():
    with pytest.raises(UsageError, match="16 x 16, not of 32; --image_size=16"):
        backbones.in_policy(network("features"), 32)
    with pytest.raises(UsageError, match="3 channels, not 1; --channels says"):
        backbones.in_policy(network("features"), 16, 1)


@keras.saving.register_keras_serializable("tests")
class Uncopied(keras.layers.Layer):
    def __init__(self, factor):
        super().__init__()
        self.factor = factor

    def call(self, images):
        return self.factor * images


def test_a_layer_that_cannot_be_copied_is_said():
    images = keras.Input([8, 8, 3])
    model = keras.Model(images, keras.layers.Flatten()(Uncopied(2)(images)))
    with pytest.raises(UsageError, match="Every layer of it needs get_config"):
        backbones.in_policy(model, 8)


def test_kerascv_still_imports_and_its_backbones_are_networks():
    try:
        from keras_cv.models import ResNetBackbone
    except Exception as error:
        pytest.fail(
            f"KerasCV no longer imports ({error}). It has no further releases planned: "
            "docs/design.md says what replaces it."
        )
    body = ResNetBackbone(
        stackwise_filters=(64, 16), stackwise_blocks=(1, 1), stackwise_strides=(1, 2),
        block_type="basic_block", include_rescaling=False, input_shape=(32, 32, 3),
    )  # fmt: skip
    found = backbones.in_policy(pooled(body), 32)
    images = np.ones([2, 32, 32, 3], np.float32)
    maps = np.asarray(body(images))
    np.testing.assert_allclose(found(images), maps.mean(axis=(1, 2)), atol=1e-5)


@pytest.mark.parametrize(
    "name, size, patch, layers, dim",
    [
        ("vit_tiny", 32, 4, 12, 192),
        ("vit_tiny", 224, 16, 12, 192),
        ("vit_micro", 32, 4, 6, 64),
    ],
)
def test_a_vision_transformer_has_the_size_of_its_kind(name, size, patch, layers, dim):
    backbone = build_backbone(name, (size, size, 3))
    assert backbone.output_shape == (None, dim)
    attention, mlp = 4 * (dim * dim + dim), 8 * dim * dim + 5 * dim
    blocks = layers * (attention + mlp + 4 * dim)
    patches = (size // patch) ** 2 * dim + 3 * patch * patch * dim
    assert backbone.count_params() == blocks + patches + 2 * dim
    with pytest.raises(UsageError, match="squares of one size"):
        build_backbone(name, (None, None, 3))
    with pytest.raises(UsageError, match="patches of 5 pixels do not fill"):
        build_backbone(name, (size, size, 3), patch_size=5)


@pytest.mark.long
def test_a_vision_transformer_becomes_a_model_and_an_encoder(tmp_path, random):
    config = Config(backbone="vit_micro", optimizer="adamw", **SETTINGS)
    model = build.build_model(config, build.Plan(16))
    pixels = random.integers(0, 256, [8, 16, 16, 3]).astype(np.uint8)
    model.fit(tf.data.Dataset.from_tensors(pixels), verbose=0)
    assert np.isfinite(float(model.metrics[0].result()))
    encoder = build_encoder(model.backbone, None, 16, any_size=True)
    encoder.save(tmp_path / "encoder.keras")
    images = pixels.astype(np.float32)
    again = load_encoder(tmp_path / "encoder.keras")
    np.testing.assert_allclose(again(images), encoder(images), atol=1e-4)
    program = (
        "import keras, numpy\n"
        f"encoder = keras.models.load_model({str(tmp_path / 'encoder.keras')!r})\n"
        "print(encoder(numpy.zeros([1, 16, 16, 3], 'float32')).shape)\n"
    )
    plain = subprocess.run(
        [sys.executable, "-c", program], capture_output=True, text=True
    )
    assert plain.stdout.strip() == "(1, 64)"


def test_the_example_is_a_network_whose_maps_are_averaged():
    network = conv_mixer((32, 32, 3))
    assert network.output_shape == (None, 16, 16, 96)
    assert pooled(network).output_shape == (None, 96)


def test_the_example_at_half_resolution_is_a_small_resnet_on_patches(random):
    network = half_resolution((16, 16, 3), width=4)
    convolution, resnet = network.layers[1:]
    kernel, bias = map(np.asarray, convolution.weights)
    images = random.normal(size=[3, 16, 16, 3]).astype(np.float32)
    patches = images.reshape(3, 8, 2, 8, 2, 3).transpose(0, 1, 3, 2, 4, 5)
    projected = patches.reshape(3, 8, 8, 12) @ kernel.reshape(12, 12) + bias
    assert resnet.output_shape == (None, 32)
    np.testing.assert_allclose(network(images), resnet(projected), atol=1e-5)


def test_tokens_know_their_place_and_patches_are_squares(random):
    backbone = build_backbone("vit_tiny", (8, 8, 3), patch_size=4)
    embedding = backbone.get_layer("patch_embedding")
    tokens = keras.Model(backbone.input, embedding.output)
    image = random.normal(size=[1, 8, 8, 3]).astype(np.float32)
    kernel, places = map(np.asarray, embedding.weights)
    patch = image[0, :4, 4:].reshape(-1)  # row by row
    expected = patch @ kernel + places[1]
    np.testing.assert_allclose(tokens(image)[0, 1], expected, atol=1e-4)
    assert np.std(places) > 0.01
