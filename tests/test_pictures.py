"""Pictures of views: the pixels are those that a run's first step sees."""

import io

import numpy as np
import pytest
import tiny
from PIL import Image

from ressl_keras import SGD, ReSSL, views
from ressl_keras.config import Config
from ressl_keras.data import pipeline, shapes
from ressl_keras.data.datasets import Dataset
from ressl_keras.data.images import ArrayImages, EncodedImages
from ressl_keras.evaluation import pictures
from ressl_keras.training.preview import preview

CELL, GAP = 128, 8


def cells(path, rows, columns, side):
    """The pictures of a grid, each without its cell's empty rim: [row][column]."""
    canvas = np.asarray(Image.open(path))
    top = canvas.shape[0] - rows * (CELL + GAP)

    def cut(row, column):
        y, x = top + row * (CELL + GAP), GAP + column * (CELL + GAP)
        cell = canvas[y : y + CELL, x : x + CELL]
        rim = (CELL - side) // 2
        return cell[rim : rim + side, rim : rim + side, :3]

    return [[cut(row, column) for column in range(columns)] for row in range(rows)]


class Recorded(views.View):
    """A view that keeps what it has made."""

    def call(self, images, training=False, seed=None, first=0):
        made = super().call(images, training, seed, first)
        self.made = np.asarray(made)
        return made


def seen_in_training(images, operations, seed, batch_size, **reading):
    """What a first train step takes in: the teacher's view, then the student's."""
    teacher, *students = layers = [Recorded(each) for each in operations]
    model = ReSSL(
        tiny.build_backbone(input_shape=(None, None, 3)),
        teacher_view=teacher,
        student_view=students,
        queue_size=32,
        seed=seed,
    )
    model.compile(SGD(0.1), run_eagerly=True)
    batches = pipeline.training_batches(images, batch_size, seed, 0, 1, **reading)
    model.fit(batches, shuffle=False, verbose=0)
    made = [255 * (layer.made * views.STD + views.MEAN) for layer in layers]
    return [np.round(np.clip(each, 0, 255)).astype(np.uint8) for each in made]


@pytest.mark.long
def test_the_preview_shows_what_the_first_step_sees(tmp_path):
    images = ArrayImages(*shapes.render(80, seed=0))
    dataset = Dataset("shapes", images)
    path = preview(dataset, str(tmp_path), Config(seed=3), count=5)
    crop = [views.RandomResizedCropAndFlip(32)]
    strong = [*crop, *views.photometric_operations()]
    weak, strong = seen_in_training(images, [crop, strong], 3, 20)
    (batch,) = pipeline.training_batches(images, 20, 3, 0, 1)
    for row, (image, teacher, student) in enumerate(cells(path, 5, 3, 128)):
        np.testing.assert_array_equal(image[::4, ::4], batch[row])
        np.testing.assert_array_equal(teacher[::4, ::4], weak[row])
        np.testing.assert_array_equal(student[::4, ::4], strong[row])
    assert not list(tmp_path.glob("*writing*"))


@pytest.fixture
def photographs(tmp_path):
    """Nine JPEG files of several sizes."""
    pixels, _ = shapes.render(9, seed=0, size=64)
    paths = []
    for i, image in enumerate(pixels):
        paths.append(str(tmp_path / f"{i}.jpg"))
        Image.fromarray(image[: 40 + i]).save(paths[-1], quality=95)
    return EncodedImages(paths)


@pytest.mark.long
def test_every_crop_of_images_of_several_sizes_is_shown(photographs, tmp_path):
    path = preview(
        Dataset("mine", photographs),
        str(tmp_path),
        Config(method="moco_v2", image_size=32, crops=(32, 16)),
        count=4,
    )
    strong = views.photometric_operations()
    expected = seen_in_training(
        photographs, [strong, strong, strong], 0, 6, size=32, crops=[32, 16]
    )
    for column, side in ((1, 128), (2, 128), (3, 64)):
        for row, shown in enumerate(cells(path, 4, 4, side)):
            np.testing.assert_array_equal(
                shown[column][::4, ::4], expected[column - 1][row]
            )


def test_pictures_shrink_smoothly_and_grow_pixel_by_pixel():
    board = (np.indices([8, 8]).sum(0) % 2 * 255).astype(np.uint8)
    board = np.repeat(board[..., np.newaxis], 3, axis=-1)
    large = np.asarray(pictures.scaled(board, 3.9))
    np.testing.assert_array_equal(large, board.repeat(3, 0).repeat(3, 1))
    small = np.asarray(pictures.fitted(board, 4))
    assert small.shape == (4, 4, 3)
    assert np.ptp(small[1:-1, 1:-1]) < 40 and 100 < small.mean() < 155


def test_titles_are_legible_on_white_and_on_black():
    picture = pictures.grid({"one\ntwo": [Image.new("RGB", (9, 9))]}, cell=90)
    for ground in (0, 255):
        page = Image.new("RGB", picture.size, (ground,) * 3)
        page.paste(picture, mask=picture)
        title = np.asarray(page)[:40].astype(int)
        assert abs(title - ground).max() > 100


def test_an_encoded_picture_decodes_to_itself():
    pixels = np.arange(48, dtype=np.uint8).reshape(4, 4, 3)
    file = io.BytesIO(pictures.encoded(Image.fromarray(pixels)))
    np.testing.assert_array_equal(np.asarray(Image.open(file)), pixels)
