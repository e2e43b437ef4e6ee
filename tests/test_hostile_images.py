"""Hundreds of bad image files: read or refused, and never a defect."""

import io
import re

import hostile_images
import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image

from ressl_keras import UsageError
from ressl_keras.config import Config
from ressl_keras.data.datasets import load_dataset
from ressl_keras.encoders.serving import ServingModule
from ressl_keras.training import build
from ressl_keras.training.pretrain import pretrain

FILES = hostile_images.hostile_images()
# As Pillow reads them too, so that the test knows something of its own.
PLAIN = ("is-png.png", "is-jpg.jpg", "is-gif.gif", "is-bmp.bmp", "is-png.jpg")
PLAIN += ("progressive.jpg", "mode-CMYK.jpg", "mode-RGBA.png", "animated.gif")
PLAIN += ("shape-1x1.png", "shape-1x20000.png", "exif-garbage.jpg", "mode-I-16.png")


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    root = tmp_path_factory.mktemp("hostile")
    for name, content in FILES.items():
        (root / name).write_bytes(content)
    return root


@pytest.fixture(scope="module")
def dataset(folder):
    return load_dataset("folder", str(folder), check=True, log=lambda line: None)


def test_there_are_many(folder):
    assert len(FILES) >= 300
    assert len(list(folder.iterdir())) == len(FILES)


def test_each_is_read_or_listed_as_skipped(dataset, folder):
    read = {path.decode() for path in dataset.files()}
    skipped = set(dataset.skipped)
    assert not read & skipped
    assert read | skipped == {str(folder / name) for name in FILES}
    assert {str(folder / name) for name in PLAIN} <= read
    empty = {str(folder / name) for name, content in FILES.items() if not content}
    texts = {
        str(folder / f"{what}.{e}") for what in ("text", "zip") for e in ("png", "gif")
    }
    assert empty | texts <= skipped
    print(f"{len(FILES)} files: {len(read)} read, {len(skipped)} skipped")


@pytest.mark.long
def test_training_works_on_what_is_left(dataset, tmp_path, monkeypatch):
    monkeypatch.setattr(build, "build_backbone", tiny.build_backbone)
    config = Config(
        batch_size=len(dataset.pretrain) // 2,  # two steps read nearly all of them
        queue_size=512,
        hidden_dim=8,
        embedding_dim=4,
        width=4,
        image_size=8,
        epochs=1,
        warmup_epochs=0,
    )
    pretrain(dataset, tmp_path, config, verbose=False, log=lambda line: None)
    assert (tmp_path / "encoder.keras").exists()


def test_a_folder_of_nothing_else_is_one_line(tmp_path, dataset):
    for path in dataset.skipped:
        name = path.rsplit("/", 1)[1]
        (tmp_path / name).write_bytes(FILES[name])
    with pytest.raises(UsageError, match="No readable image") as caught:
        load_dataset("folder", str(tmp_path), check=True, log=lambda line: None)
    assert "\n" not in str(caught.value)


@pytest.fixture(scope="module")
def serve():
    images = keras.Input([8, 8, 3])
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    return ServingModule(keras.Model(images, pooled), 8).serve_bytes


@pytest.mark.long
def test_the_server_answers_or_names_the_image(serve, dataset):
    """One at a time between two good ones; those that are refused, all at once too."""
    good = FILES["is-png.png"]
    alone = serve(tf.constant([good]))["embedding"].numpy()
    refused, read = [], {path.decode().rsplit("/", 1)[1] for path in dataset.files()}
    for name, content in FILES.items():
        try:
            answer = serve(tf.constant([good, content, good]))["embedding"].numpy()
            assert np.isfinite(answer).all(), name
            np.testing.assert_allclose(answer[[0, 2]], alone[[0, 0]], atol=1e-4)
            assert name in read, name
        except tf.errors.InvalidArgumentError as error:
            refused.append(name)
            assert "image_bytes at [1] " in str(error), name
    # What the check reads, the server reads, unless it is too large.
    assert {name for name in refused if name in read} <= {"many-frames.gif"}
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        serve(tf.constant([FILES[name] for name in refused]))
    assert re.search(r"image_bytes at \[0 1 2", str(caught.value))
    assert serve(tf.constant([good]))["embedding"].shape == (1, 3)


@pytest.mark.parametrize("name", PLAIN)
def test_what_pillow_reads_has_its_colours(name, serve):
    """The mean colour of the central square, of images of no extreme shape."""
    image = Image.open(io.BytesIO(FILES[name]))
    if max(image.size) > 100 or image.mode.startswith("I"):
        pytest.skip("its centre is not its mean, or Pillow clips 16 bits")
    left, top = ((side - min(image.size) * 7 / 8) / 2 for side in image.size)
    width, height = image.size
    square = image.convert("RGB").crop((left, top, width - left, height - top))
    expected = np.asarray(square, np.float32).mean(axis=(0, 1))
    found = serve(tf.constant([FILES[name]]))["embedding"][0]
    np.testing.assert_allclose(found, expected, atol=8)
