"""Images in sharded files, TFRecord or tar, each read by its index."""

import dataclasses
import json
import os
import re
import resource
import threading
import weakref

import numpy as np
import tensorflow as tf

from ressl_keras.data import checking, decoding, folders
from ressl_keras.data.images import DEFAULT_SIZE
from ressl_keras.data.record_index import UNLABELLED, read_index
from ressl_keras.errors import TEMPORARY, UsageError, printable

# What `pack` writes beside the shards.
DESCRIPTION = "packed.json"
TRAIN, TEST = "train", "test"
# NumPy strips zeros from the end of bytes, so another byte stands there. An array of
# objects would keep them, but TensorFlow never frees what such an array holds.
_END = b"."
# Shards that stay open, beside what else a process needs.
_MOST_OPEN = 512


class PackedImages:
    """Images of any size in a few large files, decoded when they are read.

    Images are read at any index, so the order of training is that of a folder. Those
    that cannot be decoded are noted in `unreadable`, a `checking.Unreadable`.

    Args:
        index: `record_index.RecordIndex`.
        decoder: `decoding.Decoder`.
        common_size: side in pixels that the images are used at unless another is given.
    """

    same_size = False

    def __init__(self, index, decoder=decoding.DEFAULT, common_size=DEFAULT_SIZE):
        self.index, self.decoder, self.common_size = index, decoder, common_size
        labelled = (index.labels != UNLABELLED).any()
        self.labels = index.labels if labelled else None
        self._shards = _Shards(index.paths)
        self.unreadable = checking.Unreadable(self.place)

    def __len__(self):
        return len(self.index)

    @property
    def channels(self):
        """Channels of the images."""
        return self.decoder.channels

    @property
    def storage(self):
        """Where the images are stored, in words."""
        shards = len(self.index.paths)
        return f"read from {shards:,} shard{'s' if shards > 1 else ''}"

    def encoded(self, index):
        """The bytes of the image at an index, in a graph."""
        found = tf.numpy_function(self._read, [index], tf.string, stateful=False)
        found = tf.ensure_shape(found, [])
        return tf.strings.substr(found, 0, tf.strings.length(found) - len(_END))

    def read(self, index):
        """The decoded image at an index, uint8 [height, width, channels]."""
        return decoding.decode(self.encoded(index), self.decoder)

    def name(self, index):
        """The name of the file that was packed, or None."""
        return os.fsdecode(self.index.names[index]) or None

    def place(self, index):
        """Where the image at an index is, in words."""
        path = self.index.paths[self.index.shards[index]]
        return f"{path}, byte {self.index.offsets[index]}"

    def contents(self):
        """Iterates over bytes that differ where the images could."""
        yield repr(self.decoder).encode()
        for path in self.index.paths:
            status = os.stat(path)
            facts = f" {status.st_size} {status.st_mtime_ns} "
            yield os.fsencode(path) + facts.encode()
        yield self.index.offsets.tobytes()

    def _read(self, index):
        records = self.index
        shard, length = int(records.shards[index]), int(records.lengths[index])
        encoded = self._shards.read(shard, length, int(records.offsets[index]))
        if len(encoded) < length:
            raise EOFError(f"{self.place(index)}: the file is shorter than it was.")
        return np.bytes_(encoded + _END)


class _Shards:
    """Files that are read at any place, by several threads at a time.

    Opening costs as much as reading, so the first ones stay open; beyond that number a
    file is opened for every read. None is closed while another thread may read it.
    """

    def __init__(self, paths):
        self.paths, self.files, self.lock = paths, {}, threading.Lock()
        self.most = min(_MOST_OPEN, resource.getrlimit(resource.RLIMIT_NOFILE)[0] // 4)
        weakref.finalize(self, _close, self.files)

    def read(self, shard, length, offset):
        """Up to `length` bytes of a shard."""
        file = self.files.get(shard)
        if file is None:
            file = os.open(self.paths[shard], os.O_RDONLY)
            with self.lock:
                kept = len(self.files) < self.most and shard not in self.files
                if kept:
                    self.files[shard] = file
            if not kept:
                try:
                    return os.pread(file, length, offset)
                finally:
                    os.close(file)
        return os.pread(file, length, offset)


def _close(files):
    for file in files.values():
        os.close(file)


@dataclasses.dataclass
class Packed:
    """The sets of images of a folder of shards.

    Attributes:
        images: `PackedImages` to learn from; some may have no label.
        test: labelled `PackedImages` that are held out, or None.
        class_names: list of strings; empty without labels.
        size: height and width that all images have, where they are small; or None.
        test_size: the same of those that are held out.
    """

    images: PackedImages
    test: PackedImages | None
    class_names: list
    size: tuple | None = None
    test_size: tuple | None = None


def read_packed(root, decoder=decoding.DEFAULT, log=print):
    """The sets of images of a folder of shards.

    Args:
        root: folder that `packing.pack` wrote, or one of tar shards in WebDataset's
            layout, whose names say which are for validation or test.
        decoder: `decoding.Decoder`.
        log: called with a line of text about the progress of indexing.

    Returns:
        `Packed`.

    Raises:
        UsageError: if there are no such shards, or they are damaged.
    """
    sets, class_names = _described(root) or (_tar_sets(root), None)
    found = {
        name: PackedImages(read_index(facts["shards"], name, log), decoder)
        for name, facts in sets.items()
    }
    sizes = {name: facts.get("size") for name, facts in sets.items()}
    train = found[TRAIN]
    if not len(train):
        raise UsageError(f"The shards in {printable(root)} hold no image.")
    others = [name for name in found if name != TRAIN]
    held_out = next((name for name in others if _all_labelled(found[name])), None)
    ignored = [name for name in others if name != held_out]
    if ignored:
        log(f"The shards for {' and '.join(ignored)} are not used.")
    test = found.get(held_out)
    if train.labels is None or test is None:
        return Packed(train, None, [], sizes[TRAIN])
    if class_names is None:
        highest = max(train.labels.max(), test.labels.max())
        class_names = [str(label) for label in range(highest + 1)]
    return Packed(train, test, class_names, sizes[TRAIN], sizes[held_out])


def _all_labelled(images):
    return images.labels is not None and images.labels.min() != UNLABELLED


def _described(root):
    """The sets, a dict from name to facts, and class names of a packed folder."""
    if not root:
        raise UsageError("--dataset=packed needs --data_dir, the folder of shards.")
    if not os.path.isdir(root):
        raise UsageError(f"There is no folder {printable(root)}.")
    path = os.path.join(root, DESCRIPTION)
    if not os.path.exists(path):
        return None
    try:
        with open(path, encoding="utf-8") as file:
            described = json.load(file)
        sets = described["sets"]
        for facts in sets.values():
            facts["shards"] = [os.path.join(root, name) for name in facts["shards"]]
        return {TRAIN: sets[TRAIN], **sets}, list(described["class_names"])
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UsageError(
            f"{printable(path)} cannot be read ({type(error).__name__}); pack the "
            "images again."
        ) from error


def _tar_sets(root):
    """The same sets of a folder of tar shards, by their names."""
    names = sorted(os.listdir(root))
    unfinished = [name for name in names if name.startswith(TEMPORARY)]
    if unfinished:
        raise UsageError(
            f"{printable(root)} was not packed to its end; give the command again."
        )
    sets = {}
    for name in names:
        if name.endswith(".tar"):
            words = re.split(r"[-_.]", name)
            split = next(filter(None, map(folders.split_of, words)), TRAIN)
            sets.setdefault(split, {"shards": []})
            sets[split]["shards"].append(os.path.join(root, name))
    if TRAIN not in sets:
        raise UsageError(
            f"{printable(root)} has no {DESCRIPTION} and no .tar shards to learn from. "
            "ressl-pack writes such a folder."
        )
    held_out = [name for name in (TEST, "validation") if name in sets]
    return {name: sets[name] for name in (TRAIN, *held_out)}
