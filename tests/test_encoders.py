"""Encoders as files: what is written, what is read, and encoding into files."""

import json
import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT

from ressl_keras import UsageError, build_backbone, build_projector, views
from ressl_keras.data.images import ArrayImages
from ressl_keras.encoders import embed
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.encoder import (
    describe,
    encoder_hash,
    input_size,
    is_frozen,
    load_encoder,
    save_encoder,
)
from ressl_keras.encoders.serving import save_saved_model
from ressl_keras.evaluation.protocols import untrained
from ressl_keras.method.networks import pooled


@pytest.fixture
def backbone():
    return build_backbone("resnet10_small", (16, 16, 3), width=4)


@pytest.fixture
def images(random):
    return random.integers(0, 256, [10, 16, 16, 3]).astype(np.uint8)


def test_the_encoder_has_its_preprocessing_inside(backbone, images):
    normalised = (images / 255 - views.MEAN) / views.STD
    encoder = build_encoder(backbone)
    np.testing.assert_allclose(encoder(images), backbone(normalised), atol=1e-4)


def test_the_projector_can_stay_behind_the_backbone(backbone, images):
    projector = build_projector(32, 16, 8)
    normalised = (images / 255 - views.MEAN) / views.STD
    encoder = build_encoder(backbone, projector)
    expected = projector(backbone(normalised))
    np.testing.assert_allclose(encoder(images), expected, atol=1e-4)


@pytest.mark.parametrize("name", ["resnet10_small", "resnet18", "MobileNetV3Small"])
@pytest.mark.long
def test_height_and_width_can_be_left_open(name, random):
    width = {"width": 4} if name == "resnet10_small" else {}
    backbone = build_backbone(name, (64, 64, 3), **width)
    fixed = build_encoder(backbone)
    free = build_encoder(backbone, any_size=True)
    images = random.uniform(0, 255, [2, 64, 64, 3])
    np.testing.assert_allclose(free(images), fixed(images), atol=1e-5)
    assert free(images[:, :50, :33]).shape == (2, fixed.output_shape[1])


@pytest.mark.parametrize(
    ("name", "strides", "dims"),
    [
        ("resnet10_small", (1, 2, 4, 8), (64, 128, 256, 512)),
        ("resnet10_micro", (1, 2, 4, 8), (64, 128, 512, 2048)),
        ("resnet50", (4, 8, 16, 32), (256, 512, 1024, 2048)),
        # After the first convolution of the next block, as detectors take them.
        ("EfficientNetB0", (4, 8, 16, 32), (144, 240, 672, 1280)),
    ],
)
@pytest.mark.long
def test_the_last_maps_of_four_resolutions_are_named(name, strides, dims, random):
    encoder = build_encoder(build_backbone(name, (32, 32, 3)), any_size=True)
    outputs = [encoder.get_layer(f"stage{n}").output for n in (1, 2, 3, 4)]
    images = random.uniform(0, 255, [1, 64, 96, 3])
    maps = keras.Model(encoder.input, outputs)(images)
    for stride, dim, found in zip(strides, dims, maps):
        assert found.shape == (1, 64 // stride, 96 // stride, dim)
    # The features are the mean of the last.
    np.testing.assert_allclose(
        encoder(images), np.mean(maps[-1], (1, 2)), rtol=1e-5, atol=1e-6
    )


def test_a_network_of_three_resolutions_has_no_stages():
    x = images = keras.Input([32, 32, 3])
    for _ in range(2):
        x = keras.layers.Conv2D(4, 3, 2, "same")(x)
    backbone = keras.Model(images, keras.layers.GlobalAveragePooling2D()(x))
    encoder = build_encoder(backbone, any_size=True)
    assert encoder.input_shape == (None, None, None, 3)
    assert not [layer.name for layer in encoder.layers if "stage" in layer.name]


def test_a_file_of_open_size_knows_which_it_was_trained_on(backbone, images, tmp_path):
    encoder = build_encoder(backbone, any_size=True)
    path = save_encoder(encoder, tmp_path, {"input_size": [16, 16]})
    (tmp_path / "encoder.json").unlink()
    loaded = load_encoder(path)
    assert loaded.input_shape == (None, None, None, 3)
    assert loaded.image_size == 16
    large = ArrayImages(np.repeat(np.repeat(images, 3, axis=1), 3, axis=2))
    assert input_size(loaded, large) == input_size(untrained(loaded), large) == 16
    assert load_encoder(path, "tf").image_size == 16
    loaded.save(tmp_path / "resaved.keras")
    assert load_encoder(tmp_path / "resaved.keras").image_size is None


@pytest.mark.parametrize(
    "size",
    [
        [16, -1],
        pytest.param([0, 0], marks=pytest.mark.long),
        "16",
        pytest.param(None, marks=pytest.mark.long),
        [16, 17],
    ],
)
def test_a_file_that_lies_about_its_size_is_not_believed(size, backbone, tmp_path):
    encoder = build_encoder(backbone, any_size=True)
    path = save_encoder(encoder, tmp_path, {"input_size": size})
    assert load_encoder(path).image_size is None


@pytest.mark.long
def test_an_encoder_computes_in_another_policy_on_request(backbone, images, tmp_path):
    path = save_encoder(build_encoder(backbone, any_size=True), tmp_path, {})
    plain, half = load_encoder(path), load_encoder(path, dtype="mixed_bfloat16")
    for layer in half.layers:
        weighted = isinstance(layer, (keras.layers.Conv2D, keras.layers.Dense))
        assert (layer.compute_dtype == "bfloat16") or not weighted
    expected, found = plain(images).numpy(), np.float32(half(images))
    assert 0 < np.abs(found - expected).max() < 0.05 * np.abs(expected).max()
    with pytest.raises(UsageError, match="its own dtype"):
        folder = tmp_path / "saved"
        save_saved_model(plain, 16, str(folder), warmup=False)
        load_encoder(folder / "1", dtype="mixed_bfloat16")


def test_a_network_that_counts_pixels_keeps_its_size():
    counting = keras.Sequential(
        [keras.Input([8, 8, 3]), keras.layers.Flatten(), keras.layers.Dense(5)]
    )
    encoder = build_encoder(counting, any_size=True)
    assert encoder.input_shape == (None, 8, 8, 3)


def around(inner, side):
    """A network that holds another one behind a convolution."""
    images = keras.Input([side, side, 3])
    return keras.Model(images, inner(keras.layers.Conv2D(3, 1)(images)))


def test_a_network_around_one_of_any_size_is_left_open(random):
    resnet = build_backbone("resnet10_small", (None, None, 3), width=4)
    maps = keras.Sequential([keras.Input([None, None, 3]), keras.layers.Conv2D(2, 3)])
    for backbone in (around(around(resnet, None), 16), pooled(around(maps, 16))):
        encoder = build_encoder(backbone, any_size=True)
        assert encoder.input_shape == (None, None, None, 3)
        convolution, body = backbone.layers[1:3]
        large = random.integers(0, 256, [2, 24, 20, 3]).astype(np.uint8)
        expected = body(convolution((large / 255 - views.MEAN) / views.STD)).numpy()
        if expected.ndim == 4:
            expected = expected.mean(axis=(1, 2))
        np.testing.assert_allclose(encoder(large), expected, atol=1e-4)


def test_a_network_around_one_of_a_fixed_size_keeps_it(backbone):
    encoder = build_encoder(around(backbone, 16), any_size=True)
    assert encoder.input_shape == (None, 16, 16, 3)


def test_a_backbone_trained_in_half_precision_is_exported_in_float32(images):
    keras.mixed_precision.set_global_policy("mixed_bfloat16")
    try:
        backbone = build_backbone("resnet10_small", (16, 16, 3), width=4)
        encoder = build_encoder(backbone)
    finally:
        keras.mixed_precision.set_global_policy("float32")
    assert backbone.compute_dtype == "bfloat16"
    assert encoder(images).dtype == "float32"


@pytest.mark.long
def test_the_file_loads_with_keras_alone_and_gives_the_same_features(
    backbone, images, tmp_path
):
    encoder = build_encoder(backbone)
    path = save_encoder(encoder, tmp_path, {"method": "ressl", "steps": 7})
    np.save(tmp_path / "images.npy", images)
    program = (
        "import sys, keras, numpy as np\n"
        f"encoder = keras.models.load_model({str(path)!r})\n"
        "np.save('features.npy', encoder.predict(np.load('images.npy'), verbose=0))\n"
        "assert 'ressl_keras' not in sys.modules\n"
    )
    subprocess.run([sys.executable, "-c", program], check=True, cwd=tmp_path)
    np.testing.assert_allclose(
        np.load(tmp_path / "features.npy"), encoder(images), atol=1e-5
    )
    description = json.loads((tmp_path / "encoder.json").read_text())
    assert description["input_size"] == [16, 16]
    assert description["embedding_size"] == 32
    assert (description["method"], description["steps"]) == ("ressl", 7)
    assert description["versions"]["keras"] == keras.__version__
    assert not list(tmp_path.glob("*writing*"))


def test_the_description_names_the_commit_of_this_checkout(backbone):
    command = ["git", "-C", ROOT, "rev-parse", "HEAD"]
    result = subprocess.run(command, capture_output=True, text=True)
    if result.returncode:
        pytest.skip("not a checkout")
    described = describe(build_encoder(backbone), {})
    assert described["git_commit"].removesuffix("-dirty") == result.stdout.strip()


def test_the_work_directory_stands_for_its_encoder(backbone, tmp_path):
    save_encoder(build_encoder(backbone), tmp_path, {})
    assert load_encoder(str(tmp_path)).output_shape == (None, 32)


@pytest.fixture(scope="module")
def application():
    """A network of keras.applications, as anyone may have saved it."""
    return keras.applications.MobileNetV3Small(
        (32, 32, 3), weights=None, include_top=False, pooling="avg", alpha=0.75
    )


@pytest.mark.parametrize("kind", ["keras", "saved_model"])
@pytest.mark.long
def test_an_encoder_made_elsewhere_is_read(kind, application, tmp_path, random):
    path = tmp_path / ("model.keras" if kind == "keras" else "model")
    if kind == "keras":
        application.save(path)
    else:
        application.export(path, verbose=False)
    images = random.uniform(0, 255, [2, 32, 32, 3]).astype(np.float32)
    encoder = load_encoder(str(path))
    assert encoder.output_shape == (None, 432)
    assert is_frozen(encoder) == (kind == "saved_model")
    np.testing.assert_allclose(encoder(images), application(images), atol=1e-5)


@pytest.mark.parametrize(
    "mode, expected",
    [
        ("tf", lambda images: images / 127.5 - 1),
        ("torch", lambda images: (images / 255 - views.MEAN) / views.STD),
        ("caffe", lambda images: images[..., ::-1] - [103.939, 116.779, 123.68]),
    ],
)
def test_an_encoder_from_elsewhere_gets_the_pixels_it_wants(
    mode, expected, images, tmp_path
):
    plain = keras.Sequential([keras.Input([16, 16, 3]), keras.layers.Flatten()])
    plain.save(tmp_path / "plain.keras")
    encoder = load_encoder(str(tmp_path / "plain.keras"), mode)
    pixels = expected(images.astype(np.float64)).reshape(len(images), -1)
    np.testing.assert_allclose(encoder(images), pixels, rtol=1e-5, atol=1e-4)


def damaged(kind, folder):
    """A path that is no encoder, and what is to be said about it."""
    model = keras.Sequential([keras.Input([8, 8, 3]), keras.layers.Conv2D(4, 3)])
    path = folder / "encoder.keras"
    if kind == "absent":
        return path, "no encoder at"
    if kind == "text":
        path.write_text("hello")
        return path, "not a Keras model"
    if kind == "truncated":
        model.save(path)
        path.write_bytes(path.read_bytes()[:5000])
        return path, "not a Keras model"
    if kind == "map":
        model.save(path)
        return path, "not features"
    if kind in ("oblong", "by name"):
        pixels = keras.Input([8, 12 if kind == "oblong" else 8, 3])
        features = keras.layers.GlobalAveragePooling2D()(pixels)
        outputs = {"features": features} if kind == "by name" else features
        keras.Model(pixels, outputs).save(path)
        return path, "not squares" if kind == "oblong" else "features by name"
    if kind == "vectors":
        keras.Sequential([keras.Input([9]), keras.layers.Dense(2)]).save(path)
        return path, "not images"
    if kind == "folder":
        (folder / "stuff.txt").write_text("hello")
        return folder, "nor a SavedModel"
    if kind == "broken":
        (folder / "saved_model.pb").write_text("hello")
        return folder, "is not a SavedModel"
    model.export(folder / "model", verbose=False)
    return folder / "model", "not features"


@pytest.mark.parametrize(
    "kind",
    [
        "absent",
        "text",
        "truncated",
        "map",
        "oblong",
        "by name",
        "vectors",
        "folder",
        "broken",
        "map_saved_model",
    ],
)
def test_what_is_no_encoder_is_one_clear_line(kind, tmp_path):
    path, message = damaged(kind, tmp_path)
    with pytest.raises(UsageError, match=message) as caught:
        load_encoder(str(path))
    assert "\n" not in str(caught.value)


def test_a_saved_model_is_the_same_wherever_it_lies(backbone, tmp_path):
    """For tables of embeddings and for caches of features."""
    hashes = []
    for name in ("one", "other"):
        build_encoder(backbone).export(tmp_path / name, verbose=False)
        hashes.append(encoder_hash(load_encoder(str(tmp_path / name))))
    kernel = backbone.layers[1].kernel
    kernel.assign(2 * kernel)
    build_encoder(backbone).export(tmp_path / "third", verbose=False)
    changed = encoder_hash(load_encoder(str(tmp_path / "third")))
    assert hashes[0] == hashes[1] != changed


def test_pixels_are_rounded_for_an_encoder_of_whole_numbers(tmp_path):
    pixels = keras.Input([4, 4, 3], dtype="uint8")
    maps = keras.layers.Rescaling(1.0)(pixels)
    encoder = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(maps))
    batch = np.full([2, 4, 4, 3], [9.4, 9.5, 9.6], np.float32)
    found = embed.encode([batch], encoder, verbose=0)
    np.testing.assert_array_equal(found[0], np.round([9.4, 9.5, 9.6]))


@pytest.mark.long
def test_the_script_refuses_what_is_no_encoder(tmp_path):
    kinds = ("text", "truncated", "folder", "map")
    running = []
    for kind in kinds:
        (tmp_path / kind).mkdir()
        path, message = damaged(kind, tmp_path / kind)
        command = [sys.executable, ROOT / "evaluate.py", f"--encoder={path}"]
        process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
        running.append((process, message))
    for process, message in running:
        _, errors = process.communicate()
        assert process.returncode == 1
        lines = [line for line in errors.split("\n") if "evaluate.py" in line]
        assert len(lines) == 1 and message in lines[0]
        assert "Traceback" not in errors


@pytest.mark.parametrize("batch_size", [3, 10, 64])
def test_encoding_into_an_array_file_streams_the_encoders_outputs(
    backbone, images, batch_size, tmp_path
):
    encoder = build_encoder(backbone)
    batches = tf.data.Dataset.from_tensor_slices(images).batch(batch_size)
    count = embed.encode(batches, encoder, tmp_path / "e.npy", verbose=0)
    written = np.load(tmp_path / "e.npy")
    assert count == len(written) == 10
    np.testing.assert_allclose(written, encoder(images), atol=1e-5)
    assert not list(tmp_path.glob("*writing*"))


def test_encoding_into_records_keeps_the_order(backbone, images, tmp_path):
    encoder = build_encoder(backbone)
    batches = tf.data.Dataset.from_tensor_slices((images, range(10))).batch(4)
    assert embed.encode(batches, encoder, f"{tmp_path}/e.tfrecord", verbose=0) == 10
    records = list(tf.data.TFRecordDataset(f"{tmp_path}/e.tfrecord"))
    for index, (record, expected) in enumerate(zip(records, encoder(images))):
        example = tf.train.Example.FromString(record.numpy())
        assert example.features.feature["index"].int64_list.value == [index]
        embedding = example.features.feature["embedding"].float_list.value
        np.testing.assert_allclose(embedding, expected, atol=1e-5)


def test_encoding_a_data_set_of_this_package_shows_its_progress(
    backbone, images, capsys
):
    encoder = build_encoder(backbone)
    embeddings = embed.encode(ArrayImages(images), encoder, batch_size=4)
    np.testing.assert_allclose(embeddings, encoder(images), atol=1e-5)
    assert "10/10" in capsys.readouterr().out


def test_encoding_nothing_or_into_an_unknown_format_is_refused(backbone, tmp_path):
    encoder = build_encoder(backbone)
    with pytest.raises(UsageError, match="neither"):
        embed.encode([], encoder, tmp_path / "e.csv")
    with pytest.raises(UsageError, match="no images"):
        embed.encode([], encoder, tmp_path / "e.npy")
    assert not list(tmp_path.iterdir())
