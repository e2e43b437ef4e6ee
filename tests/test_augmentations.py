"""Augmentations by name and number, against Pillow, NumPy and Keras."""

import subprocess
import sys

import keras
import numpy as np
import pytest
import tensorflow as tf
import tiny
from conftest import ROOT
from options import parse
from PIL import Image, ImageOps

from ressl_keras import Config, ReSSL, UsageError, build_projector, views
from ressl_keras.augmentation import bundle, layers
from ressl_keras.augmentations import SETS, Augmentation, view_augmentations
from ressl_keras.commands.train import TrainOptions
from ressl_keras.data.datasets import as_dataset
from ressl_keras.data.images import EncodedImages
from ressl_keras.data.pipeline import training_batches
from ressl_keras.training import build
from ressl_keras.training.preview import preview

SEED = tf.constant([3, 4])


@pytest.fixture
def pixels(random):
    return random.integers(0, 256, [64, 6, 6, 3]).astype(np.uint8)


def planes(pixels):
    return tf.constant(pixels.transpose(0, 3, 1, 2) / 255, tf.float32)


def plain(operations):
    """A view without normalisation."""
    return views.View(operations, mean=(0.0,) * 3, std=(1.0,) * 3)


def described(view):
    return [
        {k: v for k, v in op.get_config().items() if k not in ("name", "dtype")}
        for op in view.operations
    ]


def test_the_default_views_are_those_of_the_paper():
    teacher, (student,) = bundle.build_views(32)
    assert described(teacher) == described(views.weak_view(32))
    assert described(student) == described(views.strong_view(32))
    strong, _ = bundle.build_views(32, None, view_augmentations(teacher_view="strong"))
    assert described(strong) == described(student)


def test_solarised_images_are_pillows(pixels):
    found = layers.RandomSolarize(1.0)(planes(pixels), seed=SEED).numpy()
    for image, ours in zip(pixels, found):
        expected = np.asarray(ImageOps.solarize(Image.fromarray(image), 128))
        np.testing.assert_allclose(ours.transpose(1, 2, 0) * 255, expected, atol=1e-3)
    opaque = np.concatenate([pixels, np.full_like(pixels[..., :1], 255)], axis=-1)
    transparent = layers.RandomSolarize(1.0)(planes(opaque), seed=SEED).numpy()
    np.testing.assert_array_equal(transparent[:, :3], found)
    assert (transparent[:, 3] == 1).all()
    some = layers.RandomSolarize(0.3)(planes(pixels), seed=SEED).numpy()
    changed = (some != planes(pixels).numpy()).any(axis=(1, 2, 3)).mean()
    assert 0.1 < changed < 0.5  # five standard deviations are 0.29


def test_turns_are_the_eight_ways_to_lay_a_square(random):
    image = random.uniform(size=[3, 5, 5]).astype(np.float32)
    batch = np.broadcast_to(image, [800, *image.shape])
    found = layers.RandomTurn()(tf.constant(batch), seed=SEED).numpy()
    ways = [
        np.rot90(side, quarter, axes=(1, 2))
        for side in (image, image[:, ::-1])
        for quarter in range(4)
    ]
    equal = np.array([(found == way).all(axis=(1, 2, 3)) for way in ways])
    counts = equal.sum(axis=1)
    assert counts.sum() == 800
    assert np.abs(counts - 100).max() < 5 * 9.4  # of a binomial distribution
    upside = layers.RandomTurn(1.0, 0.0)(tf.constant(batch[:2, :, :3]), seed=SEED)
    np.testing.assert_array_equal(upside, batch[:2, :, 2::-1])


def test_a_set_for_gray_images_leaves_them_gray(random):
    gray = random.integers(0, 256, [16, 8, 8, 1]).astype(np.uint8)
    _, (view,) = bundle.build_views(8, None, view_augmentations("gray"))
    view = plain(view.operations)
    made = view(np.repeat(gray, 3, axis=-1), training=True, seed=SEED).numpy()
    assert np.ptp(made, axis=-1).max() < 1e-5
    assert np.std(made) > 0.05


def test_parameters_are_flags_for_each_view():
    options = parse(
        TrainOptions,
        "--augmentation=overhead",
        "--student_augmentation=hue:0,solarize:0.25",
        "--teacher_augmentation=crop_min:0.5,blur:1",
    )
    teacher, student = options.view_augmentations()
    assert student == Augmentation(vertical_flip=0.5, turn=0.75, hue=0.0, solarize=0.25)
    assert teacher == Augmentation(
        vertical_flip=0.5,
        turn=0.75,
        crop_min=0.5,
        blur=1.0,
        jitter=0.0,
        grayscale=0.0,
    )
    names = [
        type(op).__name__
        for op in build.choose_views(options, build.Plan(32))[0].operations
    ]
    assert names == ["RandomResizedCropAndFlip", "RandomGaussianBlur", "RandomTurn"]


@pytest.mark.parametrize(
    "options, message",
    [
        ({"student_augmentation": ("hu:0",)}, "hu:0: expected name:value.*mean hue"),
        ({"student_augmentation": ("hue",)}, "hue: expected name:value"),
        ({"teacher_augmentation": ("hue:0.6",)}, "hue:0.6: must be a number from 0"),
        ({"teacher_augmentation": ("crop_max:0.1",)}, "crop_min=0.2 is above"),
        ({"augmentation": "graay"}, "photo, gray or overhead; got 'graay'"),
    ],
)
def test_what_is_no_augmentation_is_one_line(options, message):
    with pytest.raises(UsageError, match=message) as caught:
        Config(**options)
    assert "\n" not in str(caught.value)


def test_the_command_says_it_in_one_line():
    command = [sys.executable, "train.py", "--student_augmentation=hu:0"]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr.count("\n") == 1
    assert "error: student_augmentation=hu:0: expected name:value" in done.stderr


def test_crops_made_while_reading_follow_the_parameters(random):
    shapes = [(24, 24), (40, 40)]
    made = [random.integers(0, 256, [*s, 3]).astype(np.uint8) for s in shapes]
    files = [tf.io.encode_png(image).numpy() for image in made]
    whole = {"crop_min": 1.0, "ratio_min": 1.0, "ratio_max": 1.0, "flip": 0.0}
    augmentations = Augmentation(**whole), Augmentation(**{**whole, "flip": 1.0})
    ((batch),) = training_batches(
        EncodedImages(files, in_memory=True),
        2, 0, 0, 1, 12, augmentations=augmentations,
    )  # fmt: skip
    expected = [
        np.asarray(Image.fromarray(image).resize([12, 12], Image.BILINEAR))
        for image in made
    ]
    for name, turned in (("teacher", 1), ("student", -1)):
        found = sorted(batch[name].numpy().astype(int).tolist())
        wanted = sorted(image[:, ::turned].astype(int).tolist() for image in expected)
        assert np.abs(np.array(found) - wanted).max() <= 1


@keras.saving.register_keras_serializable("tests")
class Noise(keras.layers.Layer):
    """A layer as a user of Keras writes it."""

    def __init__(self, **kwargs):
        super().__init__(**kwargs)
        self.generator = keras.random.SeedGenerator()

    def call(self, images):
        noise = keras.random.normal(keras.ops.shape(images), seed=self.generator)
        return images + 0.1 * noise


OTHERS = {
    "rotation": lambda: keras.layers.RandomRotation(0.1),
    "contrast": lambda: keras.layers.RandomContrast(0.5, value_range=(0, 1)),
    "pipeline": lambda: keras.layers.Pipeline([
        keras.layers.RandomTranslation(0.3, 0.3),
        keras.layers.RandomZoom(0.3),
    ]),
    "own": Noise,
}  # fmt: skip


@pytest.mark.parametrize("name", OTHERS)
def test_a_layer_from_elsewhere_draws_from_the_seed_of_the_step(name, pixels):
    view = plain([OTHERS[name]()])
    other = tf.constant([3, 5])
    first = view(pixels, training=True, seed=SEED).numpy()
    second = view(pixels, training=True, seed=other).numpy()
    again = view(pixels, training=True, seed=SEED).numpy()
    np.testing.assert_array_equal(first, again)
    assert np.abs(first - second).mean() > 0.01
    assert np.abs(first - pixels / 255).mean() > 0.01
    assert view.compute_output_shape(pixels.shape) == first.shape
    moved = view(pixels, training=True, seed=SEED, first=64).numpy()
    assert np.abs(first - moved).mean() > 0.01
    (mapped,) = (
        tf.data.Dataset.from_tensors(pixels)
        .map(lambda batch: view(batch, training=True, seed=SEED))
        .as_numpy_iterator()
    )
    np.testing.assert_allclose(mapped, first, atol=1e-5)
    copy = views.View.from_config(view.get_config())
    np.testing.assert_allclose(copy(pixels, training=True, seed=SEED), first, atol=1e-5)
    np.testing.assert_allclose(view(pixels), pixels / 255, atol=1e-6)


def test_a_layer_without_randomness_is_applied_as_it_is(pixels):
    view = plain([keras.layers.AveragePooling2D(2)])
    found = view(pixels, training=True, seed=SEED)
    expected = (pixels / 255).reshape(64, 3, 2, 3, 2, 3).mean(axis=(2, 4))
    np.testing.assert_allclose(found, expected, atol=1e-6)
    assert view.compute_output_shape(pixels.shape) == (64, 3, 3, 3)


@pytest.mark.long
def test_a_model_with_such_a_view_repeats_its_steps(pixels):
    def trained():
        keras.utils.set_random_seed(1)
        student = views.View([layers.RandomResizedCropAndFlip(8), OTHERS["rotation"]()])
        model = ReSSL(
            tiny.build_backbone(), build_projector(4, 8, 4), views.weak_view(8),
            student, queue_size=16,
        )  # fmt: skip
        model.compile(keras.optimizers.SGD(0.1), jit_compile=False)
        model.fit(tf.data.Dataset.from_tensor_slices(pixels).batch(16), verbose=0)
        return model

    first, second = trained(), trained()
    for one, other in zip(first.student.weights, second.student.weights):
        np.testing.assert_array_equal(one, other)


@pytest.mark.long
def test_the_preview_shows_the_set_and_a_view_of_ones_own(random, tmp_path):
    noise = random.integers(0, 256, [8, 16, 16, 3]).astype(np.uint8)
    dataset = as_dataset(noise)

    def drawn(**options):
        own = options.pop("own_views", (None, None))
        path = preview(dataset, str(tmp_path), Config(**options), 8, own)
        return np.asarray(Image.open(path)).astype(int)

    photo = drawn()
    for name in set(SETS) - {"photo"}:
        assert np.abs(drawn(augmentation=name) - photo).mean() > 1
    white = keras.layers.Rescaling(0.0, 1.0)
    own = views.View([layers.RandomResizedCropAndFlip(16), white])
    assert drawn(own_views=(None, own)).mean() > photo.mean()
