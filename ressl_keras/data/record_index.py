"""Where the images of sharded files are: an index, built once and kept."""

import concurrent.futures
import contextlib
import dataclasses
import hashlib
import json
import os
import tarfile
import time
import uuid
import zipfile
import zlib

import numpy as np
import tensorflow as tf

from ressl_keras.data.folders import SUFFIXES
from ressl_keras.errors import TEMPORARY, UsageError, printable
from ressl_keras.files import cached

# Keys of the `tf.train.Example` of an image, as TensorFlow Datasets names them.
IMAGE, LABEL = "image", "label"
# The same of an image's name: that of `ressl-pack`, and that of ImageNet.
NAME, _FILE_NAME = "name", "file_name"
# The label of an image that has none.
UNLABELLED = -1
# Of a TFRecord: eight bytes of length and four of checksum before the data, and four
# of checksum behind.
_BEFORE, _BEHIND = 12, 4
_TAR_BLOCK = 512
_VERSION = 2
_DAMAGES = (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile, zlib.error)


@dataclasses.dataclass
class RecordIndex:
    """The place of every image in some shards, 24 bytes an image and its name.

    Attributes:
        paths: list of the shards' paths.
        shards: int32 array [count] of indices into `paths`.
        offsets: int64 array [count], first byte of the encoded image in its shard.
        lengths: int32 array [count], bytes of the encoded image.
        labels: int64 array [count]; `UNLABELLED` for an image without a label.
        names: bytes array [count], names of the files that were packed; empty ones
            where the shards do not say.
    """

    paths: list
    shards: np.ndarray
    offsets: np.ndarray
    lengths: np.ndarray
    labels: np.ndarray
    names: np.ndarray

    def __len__(self):
        return len(self.offsets)


def read_index(paths, name, log=print, clock=time.monotonic, every=10.0):
    """The index of some shards, from the file that an earlier call left, or built.

    The file is valid for shards of the same names, sizes and times of change. It is
    beside the shards, or in the user's cache folder where they cannot be written.

    Args:
        paths: list of paths of the shards in their order, all in one folder: TFRecord
            files of `tf.train.Example`, or `.tar` files.
        name: of the set of images, part of the file's name.
        log: called with a line of text about the progress.
        clock: function that returns seconds.
        every: seconds between two lines of progress.

    Returns:
        A `RecordIndex`. Images are in the order of the shards and of their records.

    Raises:
        UsageError: if a shard cannot be read, is damaged, or holds something else.
    """
    identity = _identity(paths)
    places = _places(os.path.dirname(paths[0]), name)
    for place in places:
        with contextlib.suppress(*_DAMAGES):
            return _load(place, paths, identity)
    index = build(paths, log, clock, every)
    for place in places:
        with contextlib.suppress(OSError):
            _save(place, index, identity)
            break
    return index


def _identity(paths):
    """A text that differs where the shards do."""
    try:
        found = [(os.path.basename(path), os.stat(path)) for path in paths]
    except OSError as error:
        raise UsageError(
            f"The shard {printable(error.filename)} cannot be read: {error.strerror}."
        ) from error
    shards = [[name, status.st_size, status.st_mtime_ns] for name, status in found]
    return json.dumps([_VERSION, shards])


def _places(folder, name):
    """Where an index may be, the first choice first."""
    digest = hashlib.sha256(os.fsencode(os.path.abspath(folder))).hexdigest()[:16]
    beside = os.path.join(folder, f"ressl-index-{name}.npz")
    elsewhere = cached(f"{digest}-{name}.npz")
    # Root may write everywhere, but leaves alone what is not meant to be written.
    writable = os.stat(folder).st_mode & 0o222
    there = writable or os.path.exists(beside)
    return [beside, elsewhere] if there else [elsewhere]


def _load(place, paths, identity):
    """The index in a file.

    Raises:
        ValueError: if it is of other shards; what `_DAMAGES` names if it is damaged.
    """
    with np.load(place) as file:  # its checksums find every damaged byte
        if str(file["identity"]) != identity:
            raise ValueError("of other shards")
        columns = [
            file[field.name]
            for field in dataclasses.fields(RecordIndex)
            if field.name != "paths"
        ]
    return RecordIndex(list(paths), *columns)


def _save(place, index, identity):
    """Writes an index aside and renames it; several workers may do so at once."""
    folder, name = os.path.split(place)
    os.makedirs(folder, exist_ok=True)
    temporary = os.path.join(folder, f"{TEMPORARY}{uuid.uuid4().hex[:8]}-{name}")
    columns = dataclasses.asdict(index)
    del columns["paths"]
    try:
        np.savez(temporary, identity=np.array(identity), **columns)
        os.replace(temporary, place)
    finally:
        with contextlib.suppress(OSError):
            os.remove(temporary)


def build(paths, log=print, clock=time.monotonic, every=10.0):
    """The same, from the shards themselves, which are read several at a time."""
    parts, said, images = [], clock(), 0
    with concurrent.futures.ThreadPoolExecutor(min(os.cpu_count() or 1, 16)) as pool:
        try:
            for part in pool.map(_index_shard, paths):
                parts.append(part)
                images += len(part[0])
                if clock() - said >= every:
                    said = clock()
                    log(
                        f"Indexed {images:,} images in {len(parts):,} of "
                        f"{len(paths):,} shards."
                    )
        except BaseException:
            pool.shutdown(cancel_futures=True)
            raise
    counts = [len(offsets) for offsets, *_ in parts]
    columns = map(np.concatenate, zip(*parts))
    shards = np.repeat(np.arange(len(paths), dtype=np.int32), counts)
    return RecordIndex(list(paths), shards, *columns)


def _index_shard(path):
    """Offsets, lengths, labels and names of the images of one shard, four arrays."""
    places = _places_in_tar if path.endswith(".tar") else _places_in_records
    columns = zip(*places(path))
    kinds = ("int64", "int32", "int64", "S")
    return [np.array(next(columns, ()), kind) for kind in kinds]


def _places_in_records(path):
    """Iterates over (offset, length, label, name) of a TFRecord file of examples."""
    start = number = 0
    with tf.device("CPU"):
        # Checks the checksum of every record. Single records would take longer to pass
        # to Python than to read.
        records = tf.data.TFRecordDataset(path, buffer_size=2**20).batch(32).prefetch(1)
    try:
        for batch in records.as_numpy_iterator():
            for record in batch:
                offset, *facts = _parse_example(record, path, number)
                yield start + _BEFORE + offset, *facts
                start += _BEFORE + len(record) + _BEHIND
                number += 1
    except (tf.errors.DataLossError, tf.errors.OutOfRangeError) as error:
        raise _damaged(path, f"after byte {start:,}") from error
    except tf.errors.OpError as error:
        raise UsageError(
            f"{printable(path)} cannot be read: {error.message}"
        ) from error


def _parse_example(record, path, number):
    """Offset, length, label and name of the image in a `tf.train.Example`'s bytes."""
    try:
        features = tf.train.Example.FromString(record).features.feature
        (image,) = features[IMAGE].bytes_list.value
    except Exception as error:  # protobuf's own, which it does not make public
        raise UsageError(
            f"{printable(path)}: record {number} is no example with one '{IMAGE}'."
        ) from error
    labels = features[LABEL].int64_list.value
    names = [*features[NAME].bytes_list.value, *features[_FILE_NAME].bytes_list.value]
    label, name = labels[0] if labels else UNLABELLED, names[0] if names else b""
    return _find(image, record), len(image), label, name


def _find(image, record):
    """Where the bytes of an image begin in its record; equal bytes will do.

    `bytes.index` of the whole image takes as long as reading it.
    """
    start = record.index(image[:64])
    while not record.startswith(image, start):
        start = record.index(image[:64], start + 1)
    return start


def _places_in_tar(path):
    """Iterates over (offset, length, label, name) of a tar file in WebDataset's layout.

    Members with the same path up to the first dot of the name are one sample: an image,
    and its label as a number in `.cls` or under `label` or `cls` in `.json`.
    """
    key = image = None
    label, named = UNLABELLED, b""
    for member, data in _members(path):
        folder, name = os.path.split(member.name)
        if name.startswith("."):  # what a Mac adds
            continue
        stem, _, ending = name.partition(".")
        ending = f".{ending.lower()}"
        if (folder, stem) != key:
            if image:
                yield *image, label, named
            key, image, label = (folder, stem), None, UNLABELLED
        if ending in SUFFIXES and not image:
            image = member.offset_data, member.size
            named = os.fsencode(member.name)
        elif ending in (".cls", ".json"):
            label = _parse_label(data(), ending, f"{printable(path)}: {name}", label)
    if image:
        yield *image, label, named


def _members(path):
    """Iterates over the files of a tar file, each with a function to its bytes."""
    try:
        size = os.path.getsize(path)
        with tarfile.open(path, "r:") as archive:
            places = {}
            for member in archive:
                if member.offset_data + member.size > size:
                    raise tarfile.ReadError("unexpected end of data")
                if member.islnk() and member.linkname in places:  # the same file again
                    member.offset_data, member.size = places[member.linkname]
                    member.type = tarfile.REGTYPE
                if member.isreg():
                    places[member.name] = member.offset_data, member.size
                    yield member, lambda m=member: archive.extractfile(m).read()
        with open(path, "rb") as file:
            file.seek(-_TAR_BLOCK, os.SEEK_END)
            if file.read().strip(b"\0"):
                raise tarfile.ReadError("no end mark")
    except tarfile.TarError as error:
        raise _damaged(path, f"({error})") from error
    except OSError as error:
        raise UsageError(
            f"{printable(path)} cannot be read: {error.strerror}."
        ) from error


def _parse_label(data, ending, what, before):
    """The label in a file's bytes; of JSON without a number, `before`."""
    try:
        if ending == ".cls":
            return int(data)
        facts = json.loads(data)
    except ValueError as error:
        raise UsageError(f"{what} holds no class number.") from error
    facts = facts if isinstance(facts, dict) else {}
    label = facts.get("label", facts.get("cls"))
    try:
        return int(label)
    except (TypeError, ValueError):
        return before


def _damaged(path, where):
    return UsageError(
        f"The shard {printable(path)} is damaged or cut {where}. Copy, prepare or pack "
        "it again."
    )
