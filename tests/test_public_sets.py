"""Data sets of TensorFlow Datasets that are left in their files."""

import pathlib

import numpy as np
import pytest
import tensorflow as tf
import tensorflow_datasets as tfds
import tiny
from tensorflow_datasets.core import download

from ressl_keras import UsageError
from ressl_keras.data import pipeline
from ressl_keras.data.datasets import load_dataset
from ressl_keras.evaluation import features, knn

NAMES = ["disc", "ring", "square"]


class Photos(tfds.core.GeneratorBasedBuilder):
    """Noise of several sizes, with a text beside it."""

    VERSION = tfds.core.Version("1.0.0")
    BUILDER_CONFIGS = [
        tfds.core.BuilderConfig(name="labelled"),
        tfds.core.BuilderConfig(name="hidden"),
        tfds.core.BuilderConfig(name="square"),
        tfds.core.BuilderConfig(name="alone"),
        tfds.core.BuilderConfig(name="texts"),
    ]

    def _info(self):
        square = (12, 12, 3) if self.builder_config.name == "square" else None
        classes = tfds.features.ClassLabel(names=NAMES)
        texts = self.builder_config.name == "texts"
        features = {
            "file_name": tfds.features.Text(),
            "image": tfds.features.Image(shape=square, encoding_format="jpeg"),
            "label": tfds.features.Text() if texts else classes,
        }
        return tfds.core.DatasetInfo(
            builder=self, features=tfds.features.FeaturesDict(features)
        )

    def _split_generators(self, manager):
        counts = {"train": 40, "validation": 12}
        if self.builder_config.name == "alone":
            del counts["train"]
        return {name: self._generate_examples(count) for name, count in counts.items()}

    def _generate_examples(self, count):
        random = np.random.default_rng(count)
        for number in range(count):
            square = self.builder_config.name == "square"
            size = [12, 12] if square else random.integers(10, 30, 2)
            pixels = random.integers(0, 256, [*size, 3]).astype(np.uint8)
            hidden = count == 12 and self.builder_config.name == "hidden"
            label = -1 if hidden else number % 3
            if self.builder_config.name == "texts":
                label = NAMES[label]
            yield number, {"file_name": f"{number}", "image": pixels, "label": label}


def prepare(folder, config, **options):
    builder = tfds.builder(f"photos/{config}", data_dir=folder, **options)
    three_files = download.DownloadConfig(num_shards=3)
    builder.download_and_prepare(download_config=three_files)
    return str(folder)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return prepare(tmp_path_factory.mktemp("tfds"), "labelled")


def load(folder, config="labelled"):
    return load_dataset(f"photos/{config}", folder, download=False, memory_limit=0)


@pytest.mark.parametrize("split", ["train", "validation"])
def test_images_and_labels_are_those_of_tfds_in_its_order(split, folder):
    """Its order of one file after the other."""
    dataset = load(folder)
    images = dataset.train if split == "train" else dataset.test
    assert images.storage == "read from 3 shards"
    assert dataset.class_names == NAMES and dataset.pretrain is dataset.train
    records = tfds.load(
        "photos/labelled",
        split=split,
        data_dir=folder,
        read_config=tfds.ReadConfig(interleave_cycle_length=1),
    )
    records = list(records.as_numpy_iterator())
    np.testing.assert_array_equal(
        images.labels, [record["label"] for record in records]
    )
    read = tf.data.Dataset.range(len(images)).map(images.read)
    for ours, record in zip(read.as_numpy_iterator(), records, strict=True):
        np.testing.assert_array_equal(ours, record["image"])


@pytest.mark.parametrize("memory_limit", [0, 2**30])
def test_a_label_that_is_a_text_is_no_class(memory_limit, tmp_path):
    folder = prepare(tmp_path, "texts")
    dataset = load_dataset(
        "photos/texts", folder, download=False, memory_limit=memory_limit
    )
    assert len(dataset.pretrain) == 40 and dataset.pretrain.labels is None
    assert not dataset.labelled
    assert dataset.pretrain.read(0).shape[-1] == 3


@pytest.mark.long
def test_each_epoch_shows_every_image_once_whoever_reads(folder):
    """Two workers of two epochs; a start in the middle of the second."""
    images = load(folder).pretrain
    shown = [
        [
            index
            for step in pipeline.shuffled_indices(40, 8, 0, *steps, worker, workers)
            for index in step.numpy()
        ]
        for worker, workers, steps in [(0, 2, (0, 5)), (1, 2, (0, 5)), (0, 1, (5, 10))]
    ]
    assert sorted(shown[0] + shown[1]) == sorted(shown[2]) == list(range(40))
    whole = pipeline.training_batches(images, 8, 0, 5, 9, size=8)
    late = pipeline.training_batches(images, 8, 0, 8, 9, size=8)
    *_, last = whole
    np.testing.assert_array_equal(next(iter(late))["student"], last["student"])


def test_an_encoder_is_judged_on_them(folder, tmp_path):
    encoder, dataset = tiny.build_backbone(input_shape=(8, 8, 3)), load(folder)
    found = [
        features.extract(encoder, images, cache=str(tmp_path))
        for images in (dataset.train, dataset.test, dataset.train)
    ]
    assert len(list(tmp_path.iterdir())) == 2
    assert 0 <= knn.knn_accuracy(*found[0], *found[1])["top1"] <= 100


def test_what_may_not_be_written_gets_its_index_elsewhere(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    data = pathlib.Path(prepare(tmp_path / "data", "hidden")) / "photos/hidden/1.0.0"
    data.chmod(0o555)
    before = sorted(data.iterdir())
    load(str(tmp_path / "data"), "hidden")
    assert sorted(data.iterdir()) == before
    assert len(list((tmp_path / "cache" / "ressl_keras").iterdir())) == 2


def test_hidden_labels_are_no_labels(tmp_path):
    dataset = load(prepare(tmp_path, "hidden"), "hidden")
    assert len(dataset.pretrain) == 40
    assert not dataset.labelled and dataset.class_names == []


def test_other_kinds_of_files_are_named(tmp_path):
    folder = prepare(tmp_path, "labelled", file_format="array_record")
    with pytest.raises(UsageError, match="prepared as array_record"):
        load(folder)


def test_images_of_one_size_are_used_at_it(tmp_path):
    images = load(prepare(tmp_path, "square"), "square").pretrain
    assert (images.same_size, images.common_size) == (False, 12)
    assert images.read(0).shape == [12, 12, 3]


def test_the_only_split_is_not_held_out_too(tmp_path):
    lines = []
    folder = prepare(tmp_path, "alone")
    dataset = load_dataset("photos/alone", folder, log=lines.append)
    assert len(dataset.pretrain) == 12 and not dataset.labelled
    assert lines == [
        "photos/alone has no labelled split beside validation to evaluate with."
    ]
