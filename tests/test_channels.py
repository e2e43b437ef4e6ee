"""Images of one and of four channels, from the file to the embedding."""

import io

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ressl_keras import (
    Config,
    UsageError,
    build_backbone,
    evaluate,
    images_from,
    load_dataset,
    load_encoder,
    pretrain,
)
from ressl_keras.augmentation import bundle, layers
from ressl_keras.augmentations import view_augmentations
from ressl_keras.data import decoding
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages, EncodedImages, in_channels
from ressl_keras.data.pipeline import labelled_crops, training_batches
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.embed import encode
from ressl_keras.training import build
from ressl_keras.training.exporting import export_file

SEED = tf.constant([3, 4])
SETTINGS = dict(
    backbone="resnet10_small", width=4, batch_size=8, queue_size=16, max_steps=2,
    hidden_dim=8, embedding_dim=4, knn_every=0, image_size=16,
)  # fmt: skip


def saved(image, kind, **options):
    file = io.BytesIO()
    image.save(file, kind, **options)
    return file.getvalue()


@pytest.fixture
def rgba(random):
    return Image.fromarray(random.integers(0, 256, [20, 24, 4]).astype(np.uint8))


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA"])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("WEBP", {"lossless": True, "exact": True}),
        ("TIFF", {}),
        ("JPEG", {"quality": 95}),
        ("BMP", {}),
    ],
)
@pytest.mark.parametrize("channels", [1, 4])
def test_files_are_decoded_in_one_or_four_channels(mode, kind, options, channels, rgba):
    if (mode, kind) in (("RGBA", "JPEG"), ("RGBA", "BMP")):
        pytest.skip("such files have no alpha channel, or TensorFlow reads none")
    file = saved(rgba.convert(mode), kind, **options)
    shown = Image.open(io.BytesIO(file))
    expected = np.asarray(shown.convert("RGBA")).astype(int)
    if channels == 1:
        luma = shown.convert("RGBA").convert("RGB").convert("L")
        expected = np.asarray(luma).astype(int)[..., None]
    found = decoding.decode(file, decoding.Decoder(channels=channels)).numpy()
    near = 16 if kind == "JPEG" else 1  # two JPEG decoders, two roundings of the luma
    assert np.abs(found.astype(int) - expected).max() <= near


def test_arrays_change_their_channels_as_files_do(random):
    for given in (1, 3, 4):
        pixels = random.integers(0, 256, [5, 6, given]).astype(np.uint8)
        file = tf.io.encode_png(pixels)
        for channels in (1, 3, 4):
            expected = decoding.decode(file, decoding.Decoder(channels=channels))
            found = in_channels(pixels, channels)
            assert np.abs(found.astype(int) - expected.numpy()).max() <= 1
    images = images_from(np.zeros([2, 4, 4], np.uint8), channels=4)
    assert images.images.shape == (2, 4, 4, 4) and images.channels == 4


def plain(view):
    """The view without normalisation."""
    channels = len(view.mean)
    return layers.View(view.operations, (0.0,) * channels, (1.0,) * channels)


@pytest.mark.long
def test_a_gray_view_is_that_of_the_gray_colour_image(random):
    gray = random.integers(0, 256, [8, 16, 16, 1]).astype(np.uint8)
    augmentations = view_augmentations("gray")
    _, (one,) = bundle.build_views(16, None, augmentations, channels=1)
    _, (three,) = bundle.build_views(16, None, augmentations)
    found = plain(one)(gray, training=True, seed=SEED)
    expected = plain(three)(np.repeat(gray, 3, -1), training=True, seed=SEED)
    assert found.shape == (8, 16, 16, 1)
    # The weights of the luma sum to 0.9999.
    np.testing.assert_allclose(found[..., 0], expected[..., 0], atol=1e-3)
    assert one(gray).shape == (8, 16, 16, 1)


def test_an_alpha_channel_moves_with_the_image_and_keeps_its_values(random):
    alpha = random.choice([0, 255], [8, 16, 16, 1]).astype(np.uint8)
    colors = random.integers(0, 256, [8, 16, 16, 3]).astype(np.uint8)
    _, (view,) = bundle.build_views(16, channels=4)
    jitter = plain(layers.View(view.operations[1:3], *([(0.0,) * 4] * 2)))
    made = jitter(np.concatenate([colors, alpha], -1), training=True, seed=SEED).numpy()
    np.testing.assert_allclose(made[..., 3:], alpha / 255, atol=1e-6)
    colored = layers.View(view.operations[1:3], (0.0,) * 3, (1.0,) * 3)
    expected = colored(colors, training=True, seed=SEED)
    np.testing.assert_allclose(made[..., :3], expected, atol=1e-5)


@pytest.mark.parametrize("channels", [1, 4])
@pytest.mark.long
def test_a_run_keeps_its_channels_to_the_server(channels, random, tmp_path):
    """Sixteen-bit gray or RGBA files of several sizes: train, export twice, serve."""
    files = []
    for i in range(16):
        shape = [17 + i, 20]
        if channels == 1:
            pixels = random.integers(0, 4096, shape).astype(np.uint16)
        else:
            pixels = random.integers(0, 256, [*shape, 4]).astype(np.uint8)
        files.append(saved(Image.fromarray(pixels), "PNG"))
    bounds = (0.0, 5000.0)
    decoder = decoding.Decoder(value_range=bounds, channels=channels)
    images = EncodedImages(files, np.arange(16) % 2, True, decoder)
    dataset = Dataset("files", images, images, images, ["a", "b"], decoder=decoder)
    lines = []
    path = pretrain(
        dataset,
        tmp_path,
        Config(**SETTINGS, value_range=bounds),
        verbose=False,
        log=lines.append,
    )
    assert f"--channels={channels}" in (tmp_path / "flags.txt").read_text()
    encoder = load_encoder(path)
    assert encoder.input_shape == (None, None, None, channels)
    embedded = encode(images, encoder, verbose=0)
    export_file(path, tmp_path / "again")
    for folder in (tmp_path, tmp_path / "again"):
        served = tf.saved_model.load(str(folder / "export" / "1")).signatures
        answer = served["serve_bytes"](image_bytes=tf.constant(files))["embedding"]
        np.testing.assert_allclose(answer, embedded, atol=1e-4)
    assert f"16, 16, {channels}]" in (tmp_path / "again" / "README.md").read_text()
    assert (tmp_path / "views.png").exists()
    results = evaluate(encoder, dataset, ["knn"], log=lambda line: None)
    assert "top1" in results["knn"]
    ((crops, _),) = labelled_crops(images, 16, 1, 8)
    assert crops.shape == (16, 8, 8, channels)


@pytest.mark.long
def test_a_folder_and_the_drawn_set_have_the_channels_asked_for(rgba, tmp_path):
    for i in range(4):
        rgba.rotate(90 * i).resize([16, 16]).save(tmp_path / f"{i}.png")
    folder = load_dataset("folder", str(tmp_path), channels=4, log=lambda line: None)
    assert folder.pretrain.images.shape == (4, 16, 16, 4)
    drawn = load_dataset("shapes", channels=1)
    assert drawn.test.images.shape == (2000, 32, 32, 1)
    batches = training_batches(drawn.pretrain, 8, 0, 0, 1)
    assert next(iter(batches)).shape == (8, 32, 32, 1)


def test_a_classifier_of_gray_images_in_memory_is_kept(random, tmp_path):
    pixels = random.integers(0, 256, [20, 8, 8, 1]).astype(np.uint8)
    images = ArrayImages(pixels, np.arange(20) % 2)
    dataset = Dataset("gray", images, images, images, ["a", "b"])
    encoder = build_encoder(build_backbone("resnet10_small", (8, 8, 1), width=4))
    options = {"save_classifier": True, "workdir": tmp_path}
    evaluate(encoder, dataset, ["linear"], log=lambda line: None, **options)
    assert (tmp_path / "classifier" / "1" / "saved_model.pb").exists()


def test_weights_for_colours_are_refused_for_gray_images():
    config = Config(init="somewhere", init_preprocessing="caffe", **SETTINGS)
    with pytest.raises(UsageError, match="is for images of three channels, not 1"):
        build.build_model(config, build.Plan(16, channels=1))
