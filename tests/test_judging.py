"""Evaluations on several devices, of large sets, and interrupted ones."""

import os
import pathlib
import signal
import subprocess
import sys
import threading

import judges
import keras
import numpy as np
import pytest
import tensorflow as tf
from PIL import Image
from test_distribution import start

from ressl_keras import UsageError
from ressl_keras.data.images import EncodedImages, Subset
from ressl_keras.evaluation import (
    classifiers,
    features,
    keeping,
    knn,
    linear,
    neighbours,
)
from ressl_keras.evaluation.features import (
    ONE_DEVICE,
    Resources,
    extract,
    readable_features,
)

PROGRAM = pathlib.Path(__file__).parent / "judges.py"


def judge(folder, strategy, count=0, workers=0):
    command = [sys.executable, PROGRAM, folder, strategy, str(count)]
    for process in start(command, workers):
        _, errors = process.communicate(timeout=300)
        assert process.returncode == 0, errors


def states(folder):
    """All numbers that an evaluation computed: features, and both trainings."""
    found = {"features": np.load(folder / "features.npy")}
    for name in ("linear", "finetune"):
        with np.load(folder / "work" / f"{name}.npz") as kept:
            assert kept["epoch"] == 4
            for key in kept.files:
                if key.startswith("variable"):
                    found[f"{name} {key}"] = kept[key]
    return found


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("judged")
    judges.judge(folder, tf.distribute.get_strategy())
    return states(folder)


@pytest.mark.parametrize(
    "kind, options",
    [
        ("2 devices", {"strategy": "mirrored", "count": 2}),
        ("2 processes", {"strategy": "multi_worker", "workers": 2}),
    ],
)
@pytest.mark.long
def test_on_several_devices_an_encoder_is_judged_as_on_one(
    kind, options, single, tmp_path
):
    judge(tmp_path, **options)
    spread = states(tmp_path)
    assert set(spread) == set(single) and len(single) > 12
    largest = {}
    for name, array in single.items():
        part = name.split()[0]
        difference = float(np.abs(spread[name] - array).max())
        largest[part] = max(largest.get(part, 0), difference)
    print(f"{kind}: largest differences {largest}")
    assert max(largest.values()) <= 1e-5


class Interruption(Exception):
    pass


@pytest.mark.parametrize("name", ["linear", "finetune"])
@pytest.mark.long
def test_an_interrupted_training_goes_on_as_if_it_had_not_been(
    name, single, tmp_path, monkeypatch
):
    """Interrupted in the middle of the third of four epochs."""
    monkeypatch.setattr(keeping, "SECONDS", 0)
    work, lines, encoder = tmp_path / "work", [], judges.encoder()
    resources = Resources(work=str(work), log=lines.append)
    train = {
        "linear": classifiers.online_linear_probe,
        "finetune": classifiers.finetune,
    }

    def run():
        sets = judges.images(80), judges.images(40, 1)
        train[name](encoder, *sets, 4, 16, resources=resources)

    def interrupt(self, batch, logs=None):
        if len(lines) == 2 and batch == 3:
            raise Interruption

    with monkeypatch.context() as patch:
        patch.setattr(keeping.Keeper, "on_train_batch_begin", interrupt)
        with pytest.raises(Interruption):
            run()
    run()
    assert lines[2] == f"{name}: epoch 2 of 4 is kept" and len(lines) == 5
    with np.load(work / f"{name}.npz") as kept:
        for key in kept.files:
            if key.startswith("variable"):
                expected = single[f"{name} {key}"]
                np.testing.assert_array_equal(kept[key], expected, err_msg=key)


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_as_if_it_had_not_been_killed(single, tmp_path):
    """In the third of four epochs of the probe, then in the second of fine-tuning."""
    command = [sys.executable, PROGRAM, tmp_path, "one_device", "0"]
    for epoch, files in (("2", {"linear.npz"}), ("1", {"linear.npz", "finetune.npz"})):
        killed = subprocess.run([*command, epoch], capture_output=True, text=True)
        assert killed.returncode == -signal.SIGKILL, killed.stderr
        assert {path.name for path in (tmp_path / "work").iterdir()} == files
    resumed = subprocess.run(command, capture_output=True, text=True)
    assert resumed.returncode == 0, resumed.stderr
    assert "linear: epoch 4 of 4 is kept" in resumed.stdout
    assert "finetune: epoch 1 of 4 is kept" in resumed.stdout
    for name, array in states(tmp_path).items():
        np.testing.assert_array_equal(array, single[name], err_msg=name)


@pytest.mark.parametrize("count", [2, 4])
@pytest.mark.parametrize("large", [False, True])
def test_features_are_the_same_on_any_number_of_devices(count, large, tmp_path):
    """Also where the last batch cannot be split into equal parts."""
    images = judges.images(101)
    expected, _ = extract(judges.encoder(), images, batch_size=16)
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(count)])
    with strategy.scope():
        encoder = judges.encoder()
    resources = Resources(strategy, work=str(tmp_path), limit=0 if large else 2**30)
    found, _ = readable_features(encoder, images, resources, 16)
    assert isinstance(found, np.memmap) == large
    difference = np.abs(found - expected).max()
    print(f"{count} devices: largest difference {difference}")
    assert found.shape == (101, 4) and difference <= 1e-5


class Counting(keras.layers.Layer):
    """Counts the images it sees and fails once after so many."""

    def __init__(self, most):
        super().__init__()
        self.most, self.seen = most, 0

    def call(self, images):
        def count(images):
            if self.most is not None and self.seen >= self.most:
                raise RuntimeError("out of power")
            self.seen += len(images)
            return images

        counted = tf.numpy_function(count, [images], images.dtype)
        return tf.ensure_shape(counted, images.shape)

    def get_config(self):
        return {}


def test_an_interrupted_extraction_goes_on_with_the_blocks_that_are_missing(
    tmp_path, monkeypatch
):
    monkeypatch.setattr(features, "_BATCHES", 2)  # blocks of 16 images
    images = judges.images(100)
    counting = Counting(most=72)
    encoder = keras.Sequential(
        [keras.Input([8, 8, 3]), counting, keras.layers.Flatten()]
    )
    lines = []
    resources = Resources(cache=str(tmp_path), log=lines.append)
    with pytest.raises(tf.errors.OpError, match="out of power"):
        readable_features(encoder, images, resources, 8)
    (parts,) = filter(pathlib.Path.is_dir, tmp_path.iterdir())
    kept = {path: path.read_bytes() for path in parts.iterdir()}
    assert 0 < len(kept) <= 4
    counting.most, counting.seen = None, 0
    found, _ = readable_features(encoder, images, resources, 8)
    assert lines == [f"{16 * len(kept)} of 100 features are there already."]
    assert counting.seen == 100 - 16 * len(kept)
    (file,) = tmp_path.iterdir()
    whole = tmp_path / "whole"
    readable_features(encoder, images, Resources(cache=str(whole)), 8)
    assert file.read_bytes() == (whole / file.name).read_bytes()
    again, _ = readable_features(encoder, images, resources, 8)
    np.testing.assert_array_equal(again, found)
    assert counting.seen == 200 - 16 * len(kept)


def test_features_at_another_size_are_others(tmp_path):
    """Of an encoder for all sizes, whose file says which it was trained on."""
    encoder = keras.Sequential(
        [keras.Input([None, None, 3]), keras.layers.Conv2D(2, 3)]
    )
    encoder.add(keras.layers.GlobalAveragePooling2D())
    images, found = judges.images(20), []
    for encoder.image_size in (8, 12):
        kept, _ = extract(encoder, images, cache=str(tmp_path))
        np.testing.assert_array_equal(kept, extract(encoder, images)[0])
        found.append(kept)
    assert not np.allclose(*found)


def test_the_same_features_are_extracted_by_one_of_two_processes(tmp_path):
    """The second, which begins in the middle of the first, waits for it."""
    images, waiting, found, seen = judges.images(40), threading.Event(), [], []

    def extract_again():
        resources = Resources(cache=str(tmp_path), log=lambda line: waiting.set())
        found.append(readable_features(encoder, images, resources, 8)[0])

    def look(batch):
        if not seen:
            second.start()
            assert waiting.wait(timeout=60)
        seen.extend(batch)
        return batch

    class Looking(keras.layers.Layer):
        def call(self, batch):
            looked = tf.numpy_function(look, [batch], batch.dtype)
            return tf.ensure_shape(looked, batch.shape)

    encoder = keras.Sequential(
        [keras.Input([8, 8, 3]), Looking(), keras.layers.Flatten()]
    )
    second = threading.Thread(target=extract_again)
    first, _ = readable_features(encoder, images, Resources(cache=str(tmp_path)), 8)
    second.join(timeout=60)
    np.testing.assert_array_equal(*found, first)
    assert len(seen) == 40 and len(list(tmp_path.iterdir())) == 1


def test_a_file_that_is_gone_is_left_out_with_a_cache_too(tmp_path):
    files = []
    for shade in (10, 20, 30):
        files.append(str(tmp_path / f"{shade}.png"))
        Image.new("RGB", (8, 8), (shade,) * 3).save(files[-1])
    os.remove(files[1])
    images = EncodedImages(files)
    resources = Resources(cache=str(tmp_path / "cache"))
    found, left = readable_features(judges.encoder(), images, resources)
    assert left.indices.numpy().tolist() == [0, 2] and len(found) == 2


def test_a_state_of_other_labels_is_not_taken_up(tmp_path):
    train, encoder, lines = judges.images(64), judges.encoder(), []
    resources = Resources(work=str(tmp_path), log=lines.append)
    for labels in (train.labels, train.labels, train.labels[::-1], train.labels + 1):
        train.labels = labels
        classifiers.finetune(encoder, train, train, 1, resources=resources)
    assert sum("is kept" in line for line in lines) == 1


def test_early_stopping_learns_from_the_only_image_of_a_class():
    images = judges.images(41)
    images.labels = np.repeat([0, 1, 2], [20, 20, 1])
    train, held_out = classifiers._held_out(images, 0, ONE_DEVICE)
    assert np.bincount(train.labels).tolist() == [18, 18, 1]
    assert np.bincount(held_out.labels).tolist() == [2, 2]


class Unreadable:
    """What a set of images says of those that could not be read."""

    def __init__(self, indices):
        self.found = np.array(indices)

    def indices(self):
        return self.found


@pytest.mark.parametrize("cached", [False, True])
def test_unreadable_images_have_neither_features_nor_labels(
    cached, tmp_path, monkeypatch
):
    monkeypatch.setattr(features, "_BATCHES", 2)
    images, encoder, lines = judges.images(60), judges.encoder(), []
    whole, _ = extract(encoder, images)
    images.unreadable = Unreadable([3, 17, 59])
    cache = str(tmp_path) if cached else None
    resources = Resources(cache=cache, log=lines.append)
    for _ in range(2):  # the second time from the cache
        found, left = readable_features(encoder, images, resources, 8)
        np.testing.assert_allclose(found, np.delete(whole, [3, 17, 59], 0), atol=1e-6)
        np.testing.assert_array_equal(
            left.labels, np.delete(images.labels, [3, 17, 59])
        )
        images.unreadable = Unreadable([] if cached else [3, 17, 59])
    assert lines == 2 * ["3 unreadable images are left out."]


@pytest.fixture
def clouds(tmp_path):
    """Features in memory and the same as memory maps, with labels."""
    random = np.random.default_rng(0)
    centres = random.normal(size=[10, 32]) * 0.5
    labels = random.integers(0, 10, 2400)
    rows = (centres[labels] + random.normal(size=[2400, 32])).astype(np.float32)
    np.save(tmp_path / "train.npy", rows[:2000])
    np.save(tmp_path / "test.npy", rows[2000:])
    train, test = (
        np.load(tmp_path / f"{name}.npy", mmap_mode="r") for name in ("train", "test")
    )
    memory = rows[:2000], labels[:2000], rows[2000:], labels[2000:]
    return memory, (train, labels[:2000], test, labels[2000:])


def test_features_in_a_file_are_judged_as_those_in_memory(clouds):
    _, mapped = clouds
    assert isinstance(mapped[0], np.memmap)
    votes = [knn.knn_votes(*each[:3], bank_block=300) for each in clouds]
    np.testing.assert_array_equal(*votes)
    probes = [linear.linear_probe(*each, epochs=20) for each in clouds]
    assert probes[0] == probes[1] and probes[0]["top1"] > 50
    found = [neighbours.nearest(each[2], each[0], 7, block=300) for each in clouds]
    np.testing.assert_array_equal(*(each[0] for each in found))


@pytest.mark.parametrize("block", [1, 7, 300, 1999])
def test_blocks_change_neither_votes_nor_neighbours(clouds, block):
    """Except for rounding: a product of another shape is summed in another order."""
    (train, labels, test, _), _ = clouds
    if block == 1:
        train, labels = train[:60], labels[:60]
    whole = knn.knn_votes(train, labels, test, k=50)
    votes = knn.knn_votes(train, labels, test, k=50, block=113, bank_block=block)
    np.testing.assert_allclose(votes, whole, rtol=1e-4, atol=1e-6)
    whole, _ = neighbours.nearest(test[:9].astype(float), train.astype(float), 5)
    found, _ = neighbours.nearest(
        test[:9].astype(float), train.astype(float), 5, block=block
    )
    np.testing.assert_array_equal(found, whole)


def test_moments_in_blocks_are_those_of_all_rows():
    random = np.random.default_rng(0)
    rows = random.normal(50, [1, 2, 3], [150_000, 3]).astype(np.float32)
    mean, std = linear.moments(rows)
    np.testing.assert_allclose(mean, rows.mean(0, dtype=float), rtol=1e-6)
    np.testing.assert_allclose(std, rows.std(0, dtype=float) + 1e-6, rtol=1e-6)


def test_the_papers_probe_is_that_of_plain_keras(tmp_path):
    """On the same crops; `linear_eval.py` of the authors' repository in Keras."""
    train, test = judges.images(96), judges.images(40, 1)
    encoder = judges.encoder()
    resources = Resources(work=str(tmp_path))
    result = classifiers.online_linear_probe(
        encoder, train, test, 5, 32, 0.3, seed=3, resources=resources
    )
    from ressl_keras.data.pipeline import evaluation_batches, labelled_crops

    crops = labelled_crops(train, 32, 5, 8, seed=3, scale=(0.08, 1.0))
    dense = keras.layers.Dense(
        int(train.labels.max()) + 1,
        kernel_initializer=keras.initializers.RandomNormal(stddev=0.01, seed=3),
        bias_initializer="zeros",
    )
    plain = keras.Sequential([keras.Input([4]), dense])
    decay = keras.optimizers.schedules.CosineDecay(0.3 * 32 / 256, 5 * 3)
    plain.compile(
        keras.optimizers.SGD(decay, momentum=0.9),
        keras.losses.SparseCategoricalCrossentropy(from_logits=True),
    )
    for images, labels in crops:
        plain.train_on_batch(encoder(images, training=False), labels)
    with np.load(tmp_path / "linear.npz") as kept:
        for number, weight in enumerate(plain.get_weights()):
            np.testing.assert_allclose(kept[f"variable{number}"], weight, atol=1e-5)
    (squares,) = evaluation_batches(test, 8)
    scores = plain(encoder(squares, training=False)).numpy()
    assert result == knn.accuracies(scores, test.labels)


def test_the_state_of_other_settings_is_not_taken_up(tmp_path):
    train, encoder = judges.images(64), judges.encoder()
    lines = []
    resources = Resources(work=str(tmp_path), log=lines.append)
    for seed in (0, 0, 1):
        classifiers.online_linear_probe(
            encoder, train, train, 1, 32, seed=seed, resources=resources
        )
    assert sum("is kept" in line for line in lines) == 1
    assert sum("loss" in line for line in lines) == 2


def test_few_images_on_many_devices_are_refused(tmp_path):
    strategy = tf.distribute.MirroredStrategy([f"CPU:{i}" for i in range(4)])
    few = Subset(judges.images(20), [0, 1, 2])
    with pytest.raises(UsageError, match="3 labelled images are too few for 4 devices"):
        classifiers.finetune(judges.encoder(), few, few, resources=Resources(strategy))
