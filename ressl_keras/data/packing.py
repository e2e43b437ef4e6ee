"""Packing a data set's images into a few large files."""

import io
import os
import tarfile
import time

import tensorflow as tf
from PIL import ExifTags, Image

from ressl_keras.data.images import LARGEST_KEPT, files_of
from ressl_keras.data.packed import DESCRIPTION, TEST, TRAIN
from ressl_keras.data.plain import plain
from ressl_keras.data.record_index import (
    IMAGE,
    LABEL,
    NAME,
    UNLABELLED,
    read_index,
)
from ressl_keras.errors import TEMPORARY, UsageError, naming_disk_errors, printable
from ressl_keras.files import read_json, replace_on_disk, write_json

# Images that are read ahead of the writer.
_AHEAD = 16


def pack(
    dataset,
    root,
    output,
    kind="tfrecord",
    shard_bytes=2**28,
    checked=True,
    log=print,
    every=10.0,
):
    """Writes the images of a data set, their files unchanged, into shards.

    The shards have other names until all are complete, so that what was interrupted is
    never taken for a whole.

    Args:
        dataset: `Dataset` of images that are read from files.
        root: folder that the names of the images are relative to.
        output: folder to write into; made if absent, else empty.
        kind: `tfrecord`, of `tf.train.Example` with `image`, `label` and `name`, or
            `tar` in WebDataset's layout: `000000000.jpg` and `000000000.cls`.
        shard_bytes: size that a shard is closed at.
        checked: whether all images are known to be readable. If they have one small
            size, too, whoever reads the shards may keep them in memory.
        log: called with a line of text about the progress.
        every: seconds between two lines of progress.

    Returns:
        Dict from the set, `train` or `test`, to its number of images.

    Raises:
        UsageError: if the folder holds something, or an image cannot be read.
    """
    prepare(output)
    sets = {TRAIN: (dataset.pretrain, _labels_to_learn(dataset))}
    if dataset.test is not None:
        sets[TEST] = dataset.test, dataset.test.labels
    described, counts = {}, {}
    with naming_disk_errors(output):
        for name, (images, labels) in sets.items():
            progress = _Progress(name, len(images), log, every)
            writer = _Writer(_KINDS[kind], output, name, shard_bytes)
            size = _CommonSize()
            samples = size.watch(_samples(images, labels, root))
            counts[name] = writer.write(progress.watch(samples))
            described[name] = {
                "count": counts[name],
                "size": size.found if checked else None,
                "shards": writer.shards,
            }
        facts = {
            "format": kind,
            "class_names": dataset.class_names,
            "skipped": len(dataset.skipped),
            "sets": described,
        }
        _finish(output, facts)
        for name, found in described.items():
            paths = [os.path.join(output, shard) for shard in found["shards"]]
            read_index(paths, name, log)
    return counts


def prepare(output):
    """Makes the folder; removes what an interrupted call left.

    Raises:
        UsageError: if it cannot be written or holds something else.
    """
    try:
        os.makedirs(output, exist_ok=True)
        held = os.listdir(output)
        begun = read_json(os.path.join(output, TEMPORARY + DESCRIPTION))
        named = [s for found in begun.get("sets", {}).values() for s in found["shards"]]
        others = [n for n in held if not n.startswith(TEMPORARY) and n not in named]
        if DESCRIPTION in held:
            raise UsageError(
                f"{printable(output)} is packed already; give another --output."
            )
        if others:
            raise UsageError(
                f"{printable(output)} is not empty: it has {printable(others[0])}. "
                "Give another --output."
            )
        for name in held:
            os.remove(os.path.join(output, name))
    except OSError as error:
        raise UsageError(
            f"The folder {printable(output)} cannot be written: {error.strerror}."
        ) from error


def _labels_to_learn(dataset):
    """Labels of all images to learn from, or None; some may have none."""
    if dataset.train is None or dataset.train is dataset.pretrain:
        return dataset.pretrain.labels if dataset.train is not None else None
    known = dict(zip(files_of(dataset.train), dataset.train.labels))
    return [known.get(path, UNLABELLED) for path in files_of(dataset.pretrain)]


def _samples(images, labels, root):
    """Iterates over (name, encoded image, label), in their order."""
    files = files_of(images)
    indices = tf.data.Dataset.range(len(images))
    encoded = indices.map(plain(images.encoded), _AHEAD).prefetch(_AHEAD)
    for index, image in enumerate(encoded.as_numpy_iterator()):
        name = os.path.relpath(os.fsdecode(files[index]), root)
        yield name, image, UNLABELLED if labels is None else int(labels[index])


class _Progress:
    """Says from time to time how many images of a set are packed."""

    def __init__(self, name, count, log, every):
        self.name, self.count, self.log, self.every = name, count, log, every

    def watch(self, samples):
        """The same samples."""
        said = time.monotonic()
        for number, sample in enumerate(samples, 1):
            yield sample
            if time.monotonic() - said >= self.every:
                said = time.monotonic()
                self.log(f"Packed {number:,} of {self.count:,} images of {self.name}.")


class _CommonSize:
    """The height and width of all images, where they have one and are small."""

    def __init__(self):
        self.found, self.seen = None, False

    def watch(self, samples):
        """The same samples."""
        for sample in samples:
            if self.found or not self.seen:
                size = _small_size(sample[1])
                self.found = size if size == self.found or not self.seen else None
                self.seen = True
            yield sample


def _small_size(encoded):
    """Height and width of a small image by its header, a list; else None."""
    try:
        with Image.open(io.BytesIO(encoded)) as image:
            turned = image.getexif().get(ExifTags.Base.Orientation, 1) != 1
            width, height = image.size
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError):
        return None
    fits = not turned and max(width, height) <= LARGEST_KEPT
    return [height, width] if fits else None


class _Writer:
    """Writes samples into shards, one after the other."""

    def __init__(self, kind, folder, name, shard_bytes):
        self.kind, self.folder, self.name = kind, folder, name
        self.shard_bytes, self.shards = shard_bytes, []

    def write(self, samples):
        """Writes all samples; returns their number."""
        number, held, shard = -1, 0, None
        try:
            for number, (name, image, label) in enumerate(samples):
                if shard is None:
                    shard, held = self._open(), 0
                shard.add(number, name, image, label)
                held += len(image)
                if held >= self.shard_bytes:
                    shard = shard.close()
        finally:
            if shard is not None:
                shard.close()
        return number + 1

    def _open(self):
        shard = f"{self.name}-{len(self.shards):06d}.{self.kind.ending}"
        self.shards.append(shard)
        return self.kind(os.path.join(self.folder, TEMPORARY + shard))


class _RecordShard:
    """A TFRecord file of examples."""

    ending = "tfrecord"

    def __init__(self, path):
        self.file = tf.io.TFRecordWriter(path)

    def add(self, number, name, image, label):
        del number
        features = {
            IMAGE: tf.train.Feature(bytes_list=tf.train.BytesList(value=[image])),
            NAME: tf.train.Feature(
                bytes_list=tf.train.BytesList(value=[os.fsencode(name)])
            ),
        }
        if label != UNLABELLED:
            labels = tf.train.Int64List(value=[label])
            features[LABEL] = tf.train.Feature(int64_list=labels)
        example = tf.train.Example(features=tf.train.Features(feature=features))
        self.file.write(example.SerializeToString(deterministic=True))

    def close(self):
        self.file.close()


class _TarShard:
    """A tar file in WebDataset's layout."""

    ending = "tar"

    def __init__(self, path):
        self.file = tarfile.open(path, "w")  # noqa: SIM115, `close` closes it

    def add(self, number, name, image, label):
        self._add(f"{number:09d}{os.path.splitext(name)[1].lower()}", image)
        if label != UNLABELLED:
            self._add(f"{number:09d}.cls", str(label).encode())

    def _add(self, name, data):
        member = tarfile.TarInfo(name)
        member.size = len(data)
        self.file.addfile(member, io.BytesIO(data))

    def close(self):
        self.file.close()


_KINDS = {kind.ending: kind for kind in (_RecordShard, _TarShard)}
KINDS = tuple(_KINDS)


def _finish(output, facts):
    """Gives the shards their names; last of all the file that says what they are."""
    description = os.path.join(output, TEMPORARY + DESCRIPTION)
    write_json(description, facts)
    for found in facts["sets"].values():
        for shard in found["shards"]:
            temporary = os.path.join(output, TEMPORARY + shard)
            replace_on_disk(temporary, os.path.join(output, shard))
    replace_on_disk(description, os.path.join(output, DESCRIPTION))
