"""Nearest neighbours and their picture."""

import io

import keras
import numpy as np
import pytest
from PIL import Image
from sklearn.neighbors import NearestNeighbors

from ressl_keras.data.images import ArrayImages, EncodedImages, without_labels
from ressl_keras.evaluation import neighbours


def test_the_nearest_are_those_of_scikit_learn(random):
    queries, bank = random.normal(size=[9, 16]), random.normal(size=[60, 16])
    search = NearestNeighbors(n_neighbors=5, metric="cosine").fit(bank)
    distances, expected = search.kneighbors(queries)
    places, similarities = neighbours.nearest(queries, bank, 5)
    np.testing.assert_array_equal(places, expected)
    np.testing.assert_allclose(similarities, 1 - distances, atol=1e-9)


@pytest.fixture
def encoder():
    """Embeds an image as its mean colour."""
    return keras.Sequential(
        [keras.Input([8, 8, 3]), keras.layers.GlobalAveragePooling2D()]
    )


@pytest.fixture
def images():
    """Twelve images in each of three colours, which are their classes."""
    labels = np.arange(36) % 3
    images = np.full([36, 8, 8, 3], 20, np.uint8)
    images[np.arange(36), :, :, labels] = 200
    return ArrayImages(images, labels)


def test_the_picture_shows_queries_beside_their_neighbours(images, encoder, tmp_path):
    path = str(tmp_path / "neighbours.png")
    agreement = neighbours.picture(encoder, images, images, path, 3, 4, scale=2)
    assert agreement == 100
    picture = np.asarray(Image.open(path))
    tile = 8 * 2 + 2 * 3 + 2 * 2
    assert picture.shape == (3 * tile, 5 * tile + 12, 3)
    for row in range(3):
        for column in range(5):
            x = column * tile + tile // 2 + (12 if column else 0)
            assert picture[row * tile + tile // 2, x].argmax() == row
    assert not list(tmp_path.glob("*writing*"))


def test_unreadable_images_are_neither_queries_nor_neighbours(encoder, tmp_path):
    files = []
    for shade in (0, 100, 200):
        file = io.BytesIO()
        Image.new("RGB", (8, 8), (shade,) * 3).save(file, "PNG")
        files += [file.getvalue(), b"broken"]
    images = EncodedImages(files, in_memory=True)
    path = str(tmp_path / "neighbours.png")
    neighbours.picture(encoder, images, images, path, 6, 8, scale=1)
    drawn = np.asarray(Image.open(path))
    tile = 8 + 2 * 3 + 2 * 2
    assert drawn.shape == (3 * tile, 3 * tile + 12, 3)  # three queries, two others each
    shades = drawn[tile // 2 :: tile, tile // 2, 0]
    assert shades.tolist() == [0, 100, 200]


def test_labels_that_do_not_count_are_not_drawn(images, encoder, tmp_path):
    path = str(tmp_path / "neighbours.png")
    plain = without_labels(images)
    assert neighbours.picture(encoder, plain, plain, path, 3, 4) is None


def test_images_without_labels_can_be_drawn(images, encoder, tmp_path):
    plain = ArrayImages(images.images)
    path = str(tmp_path / "neighbours.png")
    assert neighbours.picture(encoder, plain, plain, path, 3, 4) is None
    assert Image.open(path).size[1] == 3 * (8 * 8 + 10)
