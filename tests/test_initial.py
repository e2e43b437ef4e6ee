"""Starting from other weights, with the scaling that they were trained with."""

import os

import keras
import numpy as np
import pytest
import tiny

from ressl_keras import Config, UsageError, export_encoder, load_encoder, pretrain
from ressl_keras.encoders.building import build_encoder
from ressl_keras.method import networks
from ressl_keras.training import build, initial

SETTINGS = dict(batch_size=4, queue_size=8, hidden_dim=8, embedding_dim=4, knn_every=0)
MODES = {
    "ResNet50": "caffe",
    "VGG16": "caffe",
    "MobileNetV2": "tf",
    "DenseNet121": "torch",
    "EfficientNetB0": "none",
    "ConvNeXtTiny": "none",
    "MobileNetV3Small": "none",
    "resnet18_small": None,
}


def source(random, size=8):
    """A network with weights unlike any that is built anew."""
    network = tiny.build_backbone(input_shape=(size, size, 3))
    weights = [random.uniform(0.1, 1, size=w.shape) for w in network.get_weights()]
    network.set_weights(weights)
    return network


def started(path, network=None, **options):
    """Model and messages of a run that starts from a file."""
    config = Config(init=str(path), **SETTINGS, **options)
    keras.utils.set_random_seed(7)
    network = network or tiny.build_backbone()
    model = build.build_model(config, build.Plan(8), network=network)
    lines = []
    initial.start_from(model, config, lines.append)
    return model, lines


@pytest.fixture
def pixels(random):
    return random.integers(0, 256, [4, 8, 8, 3]).astype(np.uint8)


@pytest.mark.parametrize("mode", ["none", "tf", "torch", "caffe"])
def test_a_source_sees_images_scaled_as_it_was_trained(mode, pixels, random, tmp_path):
    network = source(random)
    network.save(tmp_path / "source.keras")
    model, lines = started(tmp_path / "source.keras", init_preprocessing=mode)
    prepared = keras.applications.imagenet_utils.preprocess_input(
        pixels.astype(np.float32), mode=mode
    ) if mode != "none" else pixels  # fmt: skip
    expected = network(prepared)
    found = build_encoder(model.backbone)(pixels)
    np.testing.assert_allclose(found, expected, rtol=1e-3)
    assert lines == [
        f"2 of 2 layers of resnet18_small start from {tmp_path}/source.keras."
    ]
    for one, other in zip(model.student.weights, model.teacher.weights):
        np.testing.assert_array_equal(one, other)


def test_a_scaling_that_only_trained_weights_have_is_taken_over(
    pixels, random, tmp_path
):
    """EfficientNet of keras.applications has one behind its normalisation."""

    def efficient(scale):
        images = keras.Input([8, 8, 3])
        x = keras.layers.Normalization()(keras.layers.Rescaling(1 / 255)(images))
        x = keras.layers.Rescaling(scale)(x) if scale else x
        x = keras.layers.Conv2D(4, 3)(x)
        return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))

    there = efficient([2.0, 3.0, 4.0])
    there.layers[2].adapt(random.uniform(size=[4, 8, 8, 3]))
    there.save(tmp_path / "there.keras")
    for own in (efficient(None), efficient([2.0, 3.0, 4.0])):
        model, _ = started(tmp_path / "there.keras", own, init_preprocessing="none")
        encoder = build_encoder(model.backbone)
        np.testing.assert_allclose(encoder(pixels), there(pixels), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("name", MODES)
def test_the_scaling_of_a_keras_network_is_known(name):
    assert networks.application_mode(name) == MODES[name]


def test_an_encoder_of_this_package_goes_on_as_it_was(pixels, random, tmp_path):
    network = source(random)
    network.save(tmp_path / "source.keras")
    model, _ = started(tmp_path / "source.keras", init_preprocessing="tf")
    encoder = build_encoder(model.backbone)
    encoder.save(tmp_path / "encoder.keras")
    (tmp_path / "run").mkdir()
    encoder.save(tmp_path / "run" / "encoder.keras")
    for path in (tmp_path / "encoder.keras", tmp_path / "run"):
        config = Config(init=str(path))
        assert initial.preprocessing_of(config) == "tf"
        again, _ = started(path, init_preprocessing="tf")
        found = build_encoder(again.backbone)(pixels)
        np.testing.assert_allclose(found, encoder(pixels), rtol=1e-4)
    plain = build_encoder(source(random))
    plain.save(tmp_path / "plain.keras")
    assert initial.preprocessing_of(Config(init=str(tmp_path / "plain.keras"))) == "own"


@pytest.mark.parametrize("channels", [1, 3, 4])
def test_an_encoder_is_known_by_its_own_channels(channels, tmp_path):
    """Also where the run that starts from it has others."""
    shape = (8, 8, channels)
    encoder = build_encoder(tiny.build_backbone(input_shape=shape))
    encoder.save(tmp_path / "encoder.keras")
    for wanted in (3, 4):
        config = Config(init=str(tmp_path / "encoder.keras"), channels=wanted)
        assert initial.preprocessing_of(config) == "own"


def test_what_fits_is_taken_and_the_rest_is_named(random, tmp_path):
    def network(units):
        images = keras.Input([8, 8, 3])
        x = keras.layers.Conv2D(4, 3, name="stem")(images)
        x = keras.layers.Conv2D(units, 3, name="middle")(x)
        return keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))

    there = network(5)
    there.save(tmp_path / "there.keras")
    model, lines = started(
        tmp_path / "there.keras", network(6), init_preprocessing="own"
    )
    np.testing.assert_array_equal(
        model.backbone.get_layer("stem").kernel, there.get_layer("stem").kernel
    )
    assert "1 of 2 layers" in lines[0] and "not found there: middle." in lines[0]
    with pytest.raises(UsageError, match=r"No layer of .*there.keras fits"):
        started(tmp_path / "there.keras", init_preprocessing="own")


def test_a_head_behind_the_network_is_left_out(random, tmp_path):
    network = source(random)
    head = keras.layers.Dense(10)(network.output)
    keras.Model(network.input, head).save(tmp_path / "whole.keras")
    model, lines = started(tmp_path / "whole.keras", init_preprocessing="own")
    assert "2 of 2 layers" in lines[0]
    for one, other in zip(model.backbone.weights, network.weights):
        np.testing.assert_array_equal(one, other)


@pytest.mark.parametrize(
    "options, message",
    [
        ({"init": "nowhere.keras"}, "There are no weights at --init=nowhere.keras"),
        ({"init": "imagenet"}, "such as ResNet50.* not for resnet18_small"),
        (
            {"init": "imagenet", "init_preprocessing": "torch", "backbone": "resnet50"},
            "such as ResNet50.* not for resnet50",
        ),
        ({"init": "plain.keras"}, "is not known; say it with --init_preprocessing"),
    ],
)
def test_a_start_that_cannot_be_is_one_line(options, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    tiny.build_backbone().save("plain.keras")
    with pytest.raises(UsageError, match=message):
        initial.preprocessing_of(Config(**options))


def test_offline_it_is_said_what_to_fetch_and_where_to_put_it(monkeypatch):
    def refuse(**options):
        assert options["weights"] == "imagenet"
        raise Exception("URL fetch failure on https://host/net.h5: None -- no network")

    monkeypatch.setattr(networks, "_applications", lambda: {"Net": refuse})
    with pytest.raises(
        UsageError, match=r"Fetch https://host/net.h5 and put it into .*models"
    ):
        networks.application_weights("Net", (32, 32, 3))


@pytest.mark.long
def test_every_layer_of_a_keras_network_is_taken_from_its_file(random, tmp_path):
    """MobileNetV2, saved whole with its head."""
    there = keras.applications.MobileNetV2(
        weights=None, input_shape=(32, 32, 3), classes=3
    )
    there.save(tmp_path / "mobilenet.keras")
    config = Config(
        backbone="MobileNetV2", init=str(tmp_path / "mobilenet.keras"), **SETTINGS
    )
    assert initial.preprocessing_of(config) == "tf"
    config = Config(**{**vars(config), "init_preprocessing": "tf"})
    model = build.build_model(config, build.Plan(32))
    lines = []
    initial.start_from(model, config, lines.append)
    counted = sum(bool(layer.weights) for layer in there.layers) - 1  # but the head
    assert lines[0].startswith(f"{counted} of {counted} layers of MobileNetV2 start")


@pytest.mark.long
def test_a_run_resumes_and_exports_without_its_source(
    pixels, random, tmp_path, monkeypatch
):
    """It loads it once, to see what it expects and to take its weights."""
    pixels = np.concatenate([pixels] * 4)
    source(random).save(tmp_path / "bare.keras")
    model, _ = started(tmp_path / "bare.keras", init_preprocessing="tf")
    build_encoder(model.backbone).save(tmp_path / "source.keras")
    loaded, load = [], initial.load_model_file
    monkeypatch.setattr(
        initial, "load_model_file", lambda path: loaded.append(path) or load(path)
    )
    tiny.build_backbone().save(tmp_path / "net.keras")
    options = dict(
        SETTINGS, init=str(tmp_path / "source.keras"),
        backbone=str(tmp_path / "net.keras"), epochs=5, learning_rate=0.0,
    )  # fmt: skip

    def run(steps):
        config = Config(max_steps=steps, **options)
        return pretrain(
            pixels, tmp_path / "run", config, verbose=False, log=lambda line: None
        )

    first = load_encoder(run(2))(pixels).numpy()
    os.remove(tmp_path / "source.keras")
    os.remove(tmp_path / "net.keras")
    # At a learning rate of zero only the statistics of batch norms move.
    second = load_encoder(run(4))
    for layer in second._flatten_layers():
        if isinstance(layer, keras.layers.Conv2D):
            assert float(np.min(layer.kernel)) >= 0.1
    exported = load_encoder(
        export_encoder(str(tmp_path / "run"), log=lambda line: None)
    )
    np.testing.assert_allclose(exported(pixels), second(pixels), rtol=1e-4)
    assert first.shape == (16, 4)
    assert loaded == [str(tmp_path / "source.keras")]
    assert "--init_preprocessing=tf\n" in (tmp_path / "run" / "flags.txt").read_text()
