"""What TensorBoard finds in its folder, read as TensorBoard reads it."""

import csv
import io

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from google.protobuf import text_format
from PIL import Image
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator
from tensorboard.plugins import projector

from ressl_keras import views
from ressl_keras.data.images import ArrayImages, EncodedImages
from ressl_keras.training import tensorboard


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    """A model after two epochs of two steps, the folder, and the images shown."""
    folder = tmp_path_factory.mktemp("tensorboard")
    random = np.random.default_rng(0)
    pixels = random.integers(0, 256, [24, 8, 8, 3]).astype(np.uint8)
    images = ArrayImages(pixels, np.arange(24) % 3)
    model = tiny.build_model()
    encoder = keras.Sequential([keras.Input((8, 8, 3)), views.View([]), model.backbone])
    picture = folder / "picture.png"
    Image.fromarray(pixels[0]).save(picture)
    model.fit(
        tf.data.Dataset.from_tensor_slices(pixels[:16]).batch(8, drop_remainder=True),
        epochs=2,
        shuffle=False,
        verbose=0,
        callbacks=[
            tensorboard.Dashboard(
                str(folder), encoder, images, ["a", "b\tb", "c\nc"], picture
            )
        ],
    )
    return folder, pixels, encoder, model


def test_views_and_similarities_are_in_the_events(run):
    folder, _, _, model = run
    events = EventAccumulator(str(folder / "train"), size_guidance={"tensors": 0})
    events.Reload()
    assert set(events.Tags()["tensors"]) == {
        "views",
        "similarities/student",
        "similarities/teacher",
    }
    last = tf.make_ndarray(events.Tensors("similarities/teacher")[-1].tensor_proto)
    assert [event.step for event in events.Tensors("similarities/student")] == [2, 4]
    # Rows of (left, right, count): all pairs of an image and an entry, within -1 to 1.
    assert last[:, 2].sum() == 24 * model.queue.size
    assert last[0, 0] >= -1.001 and last[-1, 1] <= 1.001


def test_the_projector_has_features_labels_and_thumbnails(run):
    folder, pixels, encoder, _ = run
    config = projector.ProjectorConfig()
    text_format.Parse((folder / "projector_config.pbtxt").read_text(), config)
    (embedding,) = config.embeddings
    with open(folder / embedding.tensor_path) as file:
        rows = np.array(list(csv.reader(file, delimiter="\t")), np.float32)
    np.testing.assert_allclose(rows, encoder(pixels), rtol=1e-3, atol=1e-6)
    labels = (folder / embedding.metadata_path).read_text().splitlines()
    assert labels == ["a", "b b", "c c"] * 8
    side = embedding.sprite.single_image_dim[0]
    sprite = np.asarray(Image.open(folder / embedding.sprite.image_path))
    assert sprite.shape == (5 * side, 5 * side, 3)  # 24 images in a square
    last = sprite[4 * side :, 3 * side : 4 * side]  # the 24th, in the fifth row
    mean = pixels[23].mean(axis=(0, 1))
    np.testing.assert_allclose(last.mean(axis=(0, 1)), mean, atol=20)
    assert not sprite[4 * side :, 4 * side :].any()


def test_the_projector_shows_each_images_own_thumbnail(tmp_path):
    """Also behind one that cannot be read."""
    files = []
    for shade in (10, 90, 170, 250):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(file, "PNG")
        files.append(file.getvalue())
    images = EncodedImages([files[0], b"broken", *files[1:]], in_memory=True)
    model = tiny.build_model()
    model.step = tf.Variable(0)
    pixels = keras.Input((8, 8, 3))
    encoder = keras.Model(pixels, keras.layers.GlobalAveragePooling2D()(pixels))
    dashboard = tensorboard.Dashboard(str(tmp_path), encoder, images)
    dashboard.set_model(model)
    dashboard.on_train_begin()
    dashboard.on_epoch_end(0)
    rows = np.loadtxt(tmp_path / "features.tsv")
    sprite = np.asarray(Image.open(tmp_path / "thumbnails.png"))
    side = len(sprite) // 2
    shades = [sprite[y, x, 0] for y in (0, side) for x in (0, side)]
    assert rows[:, 0].tolist() == shades == [10, 90, 170, 250]


@pytest.mark.parametrize("every, steps", [(0, [5, 10]), (2, [2, 4, 5, 6, 8, 10, 10])])
@pytest.mark.long
def test_curves_are_over_steps_and_the_flags_are_text(every, steps, random, tmp_path):
    pixels = random.integers(0, 256, [40, 8, 8, 3]).astype(np.uint8)
    seen = []

    class Losses(keras.callbacks.Callback):
        def on_epoch_end(self, epoch, logs=None):
            seen.append(float(logs["loss"]))

    tiny.build_model().fit(
        tf.data.Dataset.from_tensor_slices(pixels).batch(8, drop_remainder=True),
        epochs=2,
        verbose=0,
        callbacks=[
            tensorboard.StepScalars(tmp_path, every, ["--width=8", "--epochs=2"]),
            Losses(),
        ],
    )
    events = EventAccumulator(str(tmp_path / "train"), size_guidance={"tensors": 0})
    events.Reload()
    points = events.Tensors("loss")
    assert [point.step for point in points] == steps
    ends = {point.step: tf.make_ndarray(point.tensor_proto) for point in points}
    np.testing.assert_allclose([ends[5], ends[10]], seen, rtol=1e-5)
    (text,) = events.Tensors("flags")
    assert b"--width=8\n    --epochs=2" in tf.make_ndarray(text.tensor_proto).item()
