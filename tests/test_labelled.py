"""Shares of labels, and crops to learn from."""

import numpy as np
import pytest
import tensorflow as tf
from sklearn.model_selection import train_test_split

from ressl_keras import UsageError
from ressl_keras.data import pipeline
from ressl_keras.data.images import ArrayImages, EncodedImages, stratified
from ressl_keras.data.pipeline import labelled_crops


@pytest.fixture
def images(random):
    """Three classes of 300, 100 and 7 images; each tells its number."""
    labels = random.permutation(np.repeat([0, 1, 2], [300, 100, 7]))
    pixels = np.zeros([407, 4, 4, 3], np.uint8)
    pixels[..., 0] = (np.arange(407) // 256)[:, np.newaxis, np.newaxis]
    pixels[..., 1] = (np.arange(407) % 256)[:, np.newaxis, np.newaxis]
    return ArrayImages(pixels, labels)


@pytest.mark.parametrize("fraction", [0.1, 0.5])
def test_a_share_holds_the_classes_as_scikit_learn_would(images, fraction):
    chosen = stratified(images, fraction)
    expected, _ = train_test_split(
        images.labels, train_size=fraction, stratify=images.labels, random_state=0
    )
    ours, theirs = np.bincount(chosen.labels), np.bincount(expected)
    assert abs(ours - theirs).max() <= 1


def test_no_class_is_left_out_and_the_seed_decides(images):
    one, same, other = (stratified(images, 0.01, s) for s in (0, 0, 1))
    assert np.bincount(one.labels).tolist() == [3, 1, 1]
    np.testing.assert_array_equal(one.indices, same.indices)
    assert set(one.indices.numpy()) != set(other.indices.numpy())


def test_a_share_reads_its_own_images_with_their_labels(images):
    chosen = stratified(images, 0.1)
    batches = np.concatenate(list(pipeline.evaluation_batches(chosen, 4)))
    numbers = 256 * batches[:, 0, 0, 0].astype(int) + batches[:, 0, 0, 1]
    np.testing.assert_array_equal(numbers, chosen.indices)
    np.testing.assert_array_equal(images.labels[numbers], chosen.labels)


@pytest.mark.parametrize("fraction", [0, -0.1, 1.5])
def test_a_fraction_that_is_none_is_refused(images, fraction):
    with pytest.raises(UsageError, match="label fraction"):
        stratified(images, fraction)
    assert stratified(images, 1.0) is images


def test_crops_carry_the_labels_of_their_images(images):
    batches = list(labelled_crops(images, 100, 2, 3))
    assert len(batches) == 8
    seen = []
    for pixels, labels in batches:
        assert pixels.shape == (100, 3, 3, 3) and pixels.dtype == tf.float32
        # Uniform images: a crop has the colour of its image.
        colours = np.round(pixels[:, 0, 0]).astype(int)
        numbers = 256 * colours[:, 0] + colours[:, 1]
        np.testing.assert_array_equal(images.labels[numbers], labels)
        seen.append(numbers)
    first, second = np.concatenate(seen[:4]), np.concatenate(seen[4:])
    assert len(set(first)) == len(set(second)) == 400
    assert first.tolist() != second.tolist()


def test_images_of_several_sizes_are_cropped_one_by_one(random):
    files = [
        tf.io.encode_png(np.full([8 + i, 12, 3], 10 * i, np.uint8)).numpy()
        for i in range(10)
    ]
    images = EncodedImages(files, list(range(10)), in_memory=True)
    ((pixels, labels),) = labelled_crops(images, 10, 1, 6)
    np.testing.assert_allclose(pixels[:, 3, 3, 0], 10 * labels, atol=1e-3)
