"""The order of reading, the image folder, and the drawn set."""

import pathlib
import shutil

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from sklearn.neighbors import KNeighborsClassifier

from ressl_keras import UsageError, views
from ressl_keras.augmentation import image_ops
from ressl_keras.data import image_folder, pipeline, shapes
from ressl_keras.data.datasets import load_dataset
from ressl_keras.data.images import ArrayImages, pixel_buffer


def numbered(count):
    """Images whose pixels are their number."""
    pixels = np.arange(count, dtype=np.uint8)[:, None, None, None]
    return ArrayImages(np.broadcast_to(pixels, [count, 4, 4, 3]))


def order(images, batch_size, seed, first, last):
    batches = pipeline.training_batches(images, batch_size, seed, first, last)
    return np.array([batch.numpy()[:, 0, 0, 0] for batch in batches])


def test_an_epoch_shows_every_image_once_and_each_epoch_anew():
    epochs = order(numbered(40), 8, 0, 0, 15).reshape(3, 40)
    for epoch in epochs:
        np.testing.assert_array_equal(np.sort(epoch), np.arange(40))
    assert not np.array_equal(epochs[0], epochs[1])
    assert not np.array_equal(epochs[1], epochs[2])


def test_the_incomplete_batch_is_dropped():
    epochs = order(numbered(43), 8, 0, 0, 10).reshape(2, 40)
    assert [len(set(epoch)) for epoch in epochs] == [40, 40]


def test_the_order_is_a_function_of_seed_and_step():
    images = numbered(40)
    whole = order(images, 8, 3, 0, 15)
    np.testing.assert_array_equal(whole, order(images, 8, 3, 0, 15))
    np.testing.assert_array_equal(whole[7:], order(images, 8, 3, 7, 15))
    assert not np.array_equal(whole, order(images, 8, 4, 0, 15))


def test_orders_of_neighbouring_epochs_and_seeds_are_unrelated():
    """Correlations of 20,000 numbers stay within five of their standard deviations."""
    place = tf.range(20000, dtype=tf.int64)
    orders = [
        pipeline.shuffled_order(place, seed, epoch, 20000).numpy()
        for seed, epoch in [(0, 0), (0, 1), (0, 2), (1, 0), (2, 0)]
    ]
    correlations = np.corrcoef(orders)[np.triu_indices(5, 1)]
    assert np.abs(correlations).max() < 5 / np.sqrt(20000)
    neighbours = [np.corrcoef(o[:-1], o[1:])[0, 1] for o in orders]
    assert np.abs(neighbours).max() < 5 / np.sqrt(20000)


@pytest.mark.parametrize("workers", [2, 3])
def test_workers_read_their_shares_of_the_same_global_batches(workers):
    whole = order(numbered(40), 12, 3, 2, 8)
    shares = [
        [
            batch.numpy()[:, 0, 0, 0]
            for batch in pipeline.training_batches(
                numbered(40), 12, 3, 2, 8, worker=worker, workers=workers
            )
        ]
        for worker in range(workers)
    ]
    np.testing.assert_array_equal(np.concatenate(shares, axis=1), whole)


@pytest.fixture
def folder(tmp_path, random):
    """Twenty images of several sizes and formats in two classes, and two bad files."""
    for i in range(20):
        place = tmp_path / ("cats" if i % 2 else "dogs")
        place.mkdir(exist_ok=True)
        size = [random.integers(20, 60), random.integers(20, 60)]
        pixels = random.integers(0, 256, [*size, 3]).astype(np.uint8)
        suffix = (".jpg", ".PNG", ".bmp", ".jpeg")[i % 4]
        image = Image.fromarray(pixels)
        if i in (2, 5):
            image = image.convert("L")
        image.save(place / f"{i:02}{suffix}", suffix.upper()[1:].replace("JPG", "JPEG"))
    (tmp_path / "cats" / "text.jpg").write_text("not an image")
    whole = (tmp_path / "cats" / "03.jpeg").read_bytes()
    (tmp_path / "dogs" / "cut.jpeg").write_bytes(whole[: len(whole) // 2])
    (tmp_path / "notes.txt").write_text("ignored")
    return tmp_path


def test_a_folder_gives_classes_a_held_out_tenth_and_the_unreadable(folder):
    dataset = load_dataset("folder", str(folder), check=True)
    assert dataset.class_names == ["cats", "dogs"]
    assert (len(dataset.pretrain), len(dataset.test)) == (18, 2)
    assert sorted(path.split("/")[-1] for path in dataset.skipped) == [
        "cut.jpeg",
        "text.jpg",
    ]
    training = set(dataset.train.sources.numpy())
    assert not training & set(dataset.test.sources.numpy())


def test_a_folder_with_train_and_test_keeps_them_apart(folder, tmp_path):
    root = tmp_path / "split"
    for split in ("train", "test"):
        for name in ("cats", "dogs"):
            (root / split / name).mkdir(parents=True)
    for i, path in enumerate(sorted(folder.glob("[cd]*s/*.bmp"))):
        for name in ("cats", "dogs"):
            split = "test" if i < 2 else "train"
            shutil.copy(path, root / split / name / path.name)
    dataset = load_dataset("folder", str(root))
    for images, split in ((dataset.train, b"/train/"), (dataset.test, b"/test/")):
        assert all(split in path for path in images.sources.numpy())


def test_a_folder_without_subfolders_has_no_labels(folder):
    dataset = load_dataset("folder", str(folder / "cats"), check=True)
    assert not dataset.labelled and len(dataset.pretrain) == 10


def small_images(folder, random, count=4):
    """Images of one small size in a folder; returns their pixels."""
    pixels = random.integers(0, 256, [count, 8, 10, 3]).astype(np.uint8)
    for place, image in enumerate(pixels):
        Image.fromarray(image).save(folder / f"{place:03}.png")
    return pixels


@pytest.mark.parametrize("check", [False, True])
def test_small_images_of_one_size_are_kept_in_memory(check, tmp_path, random):
    pixels = small_images(tmp_path, random)

    def load(**options):
        return load_dataset("folder", str(tmp_path), check=check, **options).pretrain

    images = load()
    np.testing.assert_array_equal(images.images, pixels)
    assert images.storage == "in memory (0 MiB)"
    assert load(memory_limit=pixels.size - 1).storage == "read from files"
    Image.new("RGB", (10, 9)).save(tmp_path / "other.png")
    assert not load().same_size


def test_the_pixels_of_an_array_are_those_of_its_time():
    given = np.zeros([3, 4, 5, 3], np.uint8)
    images = ArrayImages(given)
    given[...] = 9
    assert images.images.shape == given.shape and not images.images.numpy().any()


@pytest.mark.parametrize("shape", [[7, 5, 3, 3], [1, 1, 1, 1], [0, 4, 4, 3]])
def test_what_is_written_into_a_buffer_is_in_its_tensor(shape, random):
    pixels, tensor = pixel_buffer(shape)
    pixels[...] = random.integers(0, 256, shape)
    np.testing.assert_array_equal(tensor, pixels)
    np.testing.assert_array_equal(tf.gather(tensor, range(len(pixels))), pixels)
    assert tensor.device.endswith("CPU:0")


def memory(line):
    """A line of what Linux says of this process's memory, in bytes."""
    status = pathlib.Path("/proc/self/status").read_text()
    return 1024 * int(status.split(f"{line}:")[1].split()[0])


@pytest.mark.skipif(
    not pathlib.Path("/proc/self/clear_refs").exists(), reason="asks Linux"
)
def test_images_are_copied_once():
    """`tf.constant` takes twice the memory of an array beside it."""
    given = np.ones([64, 1024, 1024, 1], np.uint8)
    pathlib.Path("/proc/self/clear_refs").write_text("5")  # the peak starts anew
    before = memory("VmRSS")
    images = ArrayImages(given)
    assert memory("VmHWM") - before < 1.2 * given.nbytes
    assert len(images) == 64


@pytest.mark.parametrize("broken", [False, True])
@pytest.mark.parametrize("held_out", [False, True])
def test_a_folders_sets_are_not_copied(broken, held_out, tmp_path, random, monkeypatch):
    """What is written where the images were decoded is seen in the sets."""
    pixels = random.integers(0, 256, [6, 8, 8, 3]).astype(np.uint8)
    for place, image in enumerate(pixels):
        part = "test" if held_out and place >= 4 else "train"
        folder = tmp_path / part / ("cats" if place < 2 else "dogs")
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"{place:03}.png")
    if broken:
        (tmp_path / "train" / "cats" / "001.png").write_bytes(b"broken")
        pixels = np.delete(pixels, 1, axis=0)
    buffers = []

    def watched(shape):
        buffers.append(pixel_buffer(shape))
        return buffers[-1]

    monkeypatch.setattr(image_folder, "pixel_buffer", watched)
    dataset = load_dataset("folder", str(tmp_path), log=lambda line: None)
    sets = [dataset.train, dataset.test] if held_out else [dataset.pretrain]
    found = [each.images for each in sets]
    np.testing.assert_array_equal(tf.concat(found, 0), pixels)
    ((written, _),) = buffers
    written[...] = 7
    shared = [bool((images.numpy() == 7).all()) for images in found]
    assert shared == [not broken, True][: len(sets)]  # a gap makes a copy necessary


def test_headers_say_what_is_kept_and_what_breaks_the_rule_is_found(
    tmp_path, random, monkeypatch
):
    """One header is looked at; a damaged file is left out, another size ends it."""
    pixels = small_images(tmp_path, random, 20)
    (tmp_path / "005.png").write_bytes((tmp_path / "005.png").read_bytes()[:60])
    monkeypatch.setattr(image_folder, "_SAMPLE", 1)

    def load():
        return load_dataset("folder", str(tmp_path), log=lambda line: None)

    dataset = load()
    kept = np.delete(pixels, 5, axis=0)
    np.testing.assert_array_equal(dataset.pretrain.images, kept)
    assert dataset.skipped == {str(tmp_path / "005.png"): "cannot be decoded"}
    Image.new("RGB", (10, 9)).save(tmp_path / "010.png")
    dataset = load()
    assert len(dataset.pretrain) == 20 and not dataset.pretrain.same_size
    assert not dataset.skipped


def test_a_turned_header_counts_as_the_image_it_becomes(tmp_path):
    turned = Image.Exif()
    turned[0x0112] = 6
    Image.new("RGB", (10, 8), "red").save(tmp_path / "0.jpg", exif=turned)
    Image.new("RGB", (8, 10), "red").save(tmp_path / "1.jpg")
    images = load_dataset("folder", str(tmp_path), log=lambda line: None).pretrain
    assert images.size == (10, 8)
    images = load_dataset("folder", str(tmp_path), exif_orientation=False).pretrain
    assert not images.same_size


def test_large_images_of_one_size_are_read_from_their_files(tmp_path):
    Image.new("RGB", (129, 20)).save(tmp_path / "wide.png")
    assert not load_dataset("folder", str(tmp_path)).pretrain.same_size


@pytest.mark.long
def test_images_of_several_sizes_become_two_crops_fixed_by_the_step(folder):
    images = load_dataset("folder", str(folder)).pretrain
    batches = list(pipeline.training_batches(images, 6, 0, 0, 4, size=16))
    assert [set(batch) for batch in batches] == [{"teacher", "student"}] * 4
    for batch in batches:
        assert batch["teacher"].shape == batch["student"].shape == (6, 16, 16, 3)
        assert batch["teacher"].dtype == tf.uint8
        assert not np.array_equal(batch["teacher"], batch["student"])
    later = list(pipeline.training_batches(images, 6, 0, 2, 4, size=16))
    for one, other in zip(batches[2:], later):
        np.testing.assert_array_equal(one["student"], other["student"])


@pytest.mark.long
def test_several_crops_are_read_as_a_tuple_of_their_sizes(folder):
    """The first is the crop that a single one would be; the others draw for
    themselves."""
    images = load_dataset("folder", str(folder)).pretrain
    single = next(iter(pipeline.training_batches(images, 6, 0, 0, 1, size=16)))
    several = pipeline.training_batches(images, 6, 0, 0, 1, size=16, crops=[16, 16, 8])
    batch = next(iter(several))
    assert [crop.shape[1] for crop in batch["student"]] == [16, 16, 8]
    np.testing.assert_array_equal(batch["teacher"], single["teacher"])
    np.testing.assert_array_equal(batch["student"][0], single["student"])
    assert not np.array_equal(batch["student"][0], batch["student"][1])


@pytest.mark.long
def test_workers_crop_their_shares_as_one_would(folder):
    images = load_dataset("folder", str(folder)).pretrain
    whole = list(pipeline.training_batches(images, 6, 0, 1, 4, size=16))
    shares = [
        list(pipeline.training_batches(images, 6, 0, 1, 4, 16, worker, 2))
        for worker in range(2)
    ]
    for batch, one, other in zip(whole, *shares):
        for name in ("teacher", "student"):
            both = np.concatenate([one[name], other[name]])
            np.testing.assert_array_equal(both, batch[name])


@pytest.mark.long
def test_crops_while_reading_are_the_crops_of_the_view_layer(folder):
    """Same draws, same pixels, up to the rounding to uint8."""
    images = load_dataset("folder", str(folder), check=True).pretrain
    batch = next(iter(pipeline.training_batches(images, 6, 5, 0, 1, size=16)))
    index = pipeline.shuffled_order(tf.range(6, dtype=tf.int64), 5, 0, 18)
    crop = views.RandomResizedCropAndFlip(16)
    for fold, name in ((2, "teacher"), (3, "student")):
        seed = tf.random.experimental.stateless_fold_in([5, 0], fold)
        for place in range(6):
            image = image_ops.to_planes(images.read(index[place])[tf.newaxis])
            expected = 255 * image_ops.to_pixels(crop(image, seed=seed, first=place))[0]
            difference = np.abs(batch[name][place].numpy() - expected.numpy())
            assert difference.max() <= 0.51


def test_evaluation_images_are_central_squares(folder):
    dataset = load_dataset("folder", str(folder), check=True)
    images = np.concatenate(list(pipeline.evaluation_batches(dataset.train, 14)))
    assert images.shape == (18, 14, 14, 3)
    for path, ours in zip(dataset.train.sources.numpy(), images):
        image = Image.open(path.decode()).convert("RGB")
        scale = 16 / min(image.size)
        width, height = (round(side * scale) for side in image.size)
        image = image.resize((width, height), Image.BILINEAR)
        left, top = (width - 14) // 2, (height - 14) // 2
        cut = np.asarray(image.crop((left, top, left + 14, top + 14)))
        assert np.abs(cut.astype(int) - ours).mean() < 2


def test_evaluation_leaves_images_of_the_right_size_alone():
    images = numbered(10)
    batches = list(pipeline.evaluation_batches(images, 4, batch_size=4))
    assert [len(batch) for batch in batches] == [4, 4, 2]
    np.testing.assert_array_equal(np.concatenate(batches), images.images)
    few = np.concatenate(list(pipeline.evaluation_batches(images, 4, count=5)))
    np.testing.assert_array_equal(few[:, 0, 0, 0], [0, 2, 4, 6, 8])


@pytest.mark.parametrize(
    "name, options, message",
    [
        ("cifar11", {}, "Unknown data set 'cifar11'. Did you mean .*cifar10"),
        ("folder", {}, "needs --data_dir"),
        ("folder", {"data_dir": "/nowhere"}, "no folder /nowhere"),
    ],
)
def test_data_that_cannot_be_had_is_one_clear_line(name, options, message):
    with pytest.raises(UsageError, match=message) as caught:
        load_dataset(name, **options)
    assert "\n" not in str(caught.value)


def test_absent_tfds_data_without_download_is_refused(tmp_path):
    with pytest.raises(UsageError, match="--nodownload"):
        load_dataset("mnist", str(tmp_path), download=False)


def test_a_folder_without_readable_images_is_refused(tmp_path):
    with pytest.raises(UsageError, match="No readable image"):
        load_dataset("folder", str(tmp_path))
    (tmp_path / "broken.png").write_text("no")
    with pytest.raises(UsageError, match="1 files could not be decoded"):
        load_dataset("folder", str(tmp_path))


@pytest.mark.long
def test_tfds_data_sets_are_read_with_their_labels(shared):
    dataset = load_dataset("cifar10", str(shared("tfds")), download=False)
    assert (len(dataset.pretrain), len(dataset.test)) == (50000, 10000)
    assert dataset.class_names[3] == "cat" and dataset.pretrain.size == (32, 32)
    np.testing.assert_array_equal(np.bincount(dataset.test.labels), [1000] * 10)


def test_shapes_are_fixed_by_their_seed_and_balanced():
    images, labels = shapes.render(200, seed=0)
    assert images.shape == (200, 32, 32, 3) and images.dtype == np.uint8
    np.testing.assert_array_equal(np.bincount(labels), [20] * 10)
    again, _ = shapes.render.__wrapped__(200, seed=0)  # not those kept for all tests
    np.testing.assert_array_equal(images, again)
    assert not np.array_equal(images, shapes.render(200, seed=1)[0])


def test_colour_alone_does_not_separate_the_shapes():
    """Neighbours by the colour of ground and figure are little better than chance."""

    def colours(images):
        return np.percentile(images.reshape(len(images), -1, 3), [10, 90], axis=1)

    train, train_labels = shapes.render(3000, seed=0)
    test, test_labels = shapes.render(1000, seed=1)
    features = [
        np.moveaxis(colours(images), 0, 1).reshape(len(images), -1)
        for images in (train, test)
    ]
    classifier = KNeighborsClassifier(20).fit(features[0], train_labels)
    assert classifier.score(features[1], test_labels) < 0.3


def test_a_download_that_fails_names_the_address_and_the_place(tmp_path, monkeypatch):
    import requests
    import tensorflow_datasets as tfds

    def fail(*_, **__):
        request = requests.Request("GET", "https://example.org/cifar.tar.gz").prepare()
        raise requests.exceptions.ConnectionError("no route", request=request)

    monkeypatch.setattr(tfds.core.DatasetBuilder, "download_and_prepare", fail)
    with pytest.raises(UsageError) as refused:
        load_dataset("cifar10", str(tmp_path))
    message = str(refused.value)
    assert "could not be downloaded from https://example.org/cifar.tar.gz" in message
    assert f"would be looked for in {tmp_path}/cifar10/" in message
    assert "\n" not in message
