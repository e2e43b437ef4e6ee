"""Shares of labels, and crops to learn from."""

import os

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.model_selection import train_test_split

from ressl_keras import UsageError
from ressl_keras.data import pipeline
from ressl_keras.data.datasets import load_dataset
from ressl_keras.data.images import (
    ArrayImages,
    EncodedImages,
    Subset,
    listed,
    per_class,
    stratified,
)
from ressl_keras.data.pipeline import labelled_crops
from ressl_keras.evaluation_options import EvaluationOptions


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


def test_so_many_of_every_class_are_chosen_by_the_seed(images):
    few, more = per_class(images, 5), per_class(images, 20)
    assert np.bincount(few.labels).tolist() == [5, 5, 5]
    assert np.bincount(more.labels).tolist() == [20, 20, 7]
    assert set(few.indices.numpy()) <= set(more.indices.numpy())
    other = per_class(images, 5, seed=1)
    assert set(few.indices.numpy()) != set(other.indices.numpy())


@pytest.mark.parametrize("kept", [True, False])
def test_a_list_chooses_the_images_it_names(kept, tmp_path):
    """By base name; from files, and from files kept in memory."""
    for number in range(12):
        path = tmp_path / "train" / "ab"[number % 2] / f"image_{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (8, 8), (number, 0, 0)).save(path)
    limit = 2**20 if kept else 0
    dataset = load_dataset("folder", str(tmp_path / "train"), memory_limit=limit)
    images = dataset.train
    assert isinstance(images, ArrayImages) == kept
    labelled = {5: "b", 4: "a", 9: "b", 2: "a", 11: "b", 0: "a"}
    names = [f"somewhere/image_{n}.png" for n in labelled]
    chosen, missing = listed(images, [*names, "image_77.png"])
    batches = np.concatenate(list(pipeline.evaluation_batches(chosen, 8)))
    found = {
        int(pixels[0, 0, 0]): dataset.class_names[label]
        for pixels, label in zip(batches, chosen.labels)
    }
    held_out = {os.path.basename(n) for n in missing} - {"image_77.png"}
    assert found == {
        n: name for n, name in labelled.items() if f"image_{n}.png" not in held_out
    }
    assert len(found) >= 4 and "image_77.png" in missing
    again, _ = listed(Subset(images, np.arange(len(images))[::-1]), names)
    assert len(again) == len(chosen)


def test_a_name_of_several_images_needs_its_folder(tmp_path):
    for name in ("cat/1.png", "dog/1.png", "cat/2.png", "dog/2.png"):
        path = tmp_path / name
        path.parent.mkdir(exist_ok=True)
        Image.new("RGB", (8, 8)).save(path)
    files = sorted(map(str, tmp_path.rglob("*.png")))
    images = EncodedImages(files, np.array([0, 0, 1, 1]))
    chosen, missing = listed(images, ["cat/1.png", "dog/2.png"])
    assert not missing
    assert chosen.indices.numpy().tolist() == [0, 3]
    for names in (["1.png"], ["bird/1.png"]):
        with pytest.raises(UsageError, match=r"1\.png is the name of several"):
            listed(images, names)


def test_a_list_for_images_without_names_is_refused(images):
    with pytest.raises(UsageError, match="have no names"):
        listed(images, ["image.png"])


def test_only_one_choice_of_labels_can_be_made():
    with pytest.raises(UsageError, match="only one of --label_fraction and"):
        EvaluationOptions(label_fraction=0.1, labels_per_class=5)
    with pytest.raises(UsageError, match="--labels_per_class and --label_list"):
        EvaluationOptions(label_list="list.txt", labels_per_class=5)


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


@pytest.mark.parametrize("same_size", [True, False])
@pytest.mark.long
def test_workers_share_the_crops_of_one(same_size, images, random):
    """The parts of two workers are the halves of each batch, pixel by pixel."""
    if not same_size:
        files = [
            tf.io.encode_png(random.integers(0, 256, [9, 8 + i % 3, 3], np.uint8))
            for i in range(24)
        ]
        images = EncodedImages([f.numpy() for f in files], list(range(24)), True)
    whole = list(labelled_crops(images, 8, 2, 4, seed=5))
    for worker in range(2):
        part = labelled_crops(images, 8, 2, 4, seed=5, worker=worker, workers=2)
        for (pixels, labels), (own, own_labels) in zip(whole, part, strict=True):
            half = slice(4 * worker, 4 * worker + 4)
            np.testing.assert_array_equal(own, pixels[half])
            np.testing.assert_array_equal(own_labels, labels[half])
    rest = list(labelled_crops(images, 8, 2, 4, seed=5, first_epoch=1))
    for (pixels, _), (again, _) in zip(whole[len(whole) // 2 :], rest, strict=True):
        np.testing.assert_array_equal(pixels, again)
