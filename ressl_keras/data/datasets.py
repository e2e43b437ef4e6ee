"""Data sets: drawn shapes, folders of images, shards, TensorFlow Datasets."""

import dataclasses
import os
from collections.abc import Callable

import numpy as np
import tensorflow as tf

from ressl_keras.data import labels as labelling
from ressl_keras.data import shapes
from ressl_keras.data.decoding import Decoder
from ressl_keras.data.image_folder import load_folder
from ressl_keras.data.images import (
    BLOCK,
    ArrayImages,
    EncodedImages,
    Subset,
    files_of,
    in_channels,
    pixel_buffer,
)
from ressl_keras.data.own import images_from
from ressl_keras.data.packed import PackedImages, read_packed
from ressl_keras.data.plain import plain
from ressl_keras.data.record_index import UNLABELLED, read_index
from ressl_keras.errors import UsageError, closest, printable


@dataclasses.dataclass
class Dataset:
    """The images of a run.

    Attributes:
        name: for people.
        pretrain: images to learn from, without labels.
        train: labelled images that judge the encoder (neighbours, linear probe), or
            None where there are no labels.
        test: labelled images that are never learned from, or None.
        class_names: list of strings; empty where there are no labels.
        skipped: dict from path to reason, of files that could not be read and are in
            none of the sets.
        decoder: `Decoder` that files were decoded with, also those kept in memory;
            None where nothing was.
    """

    name: str
    pretrain: object
    train: object = None
    test: object = None
    class_names: list = dataclasses.field(default_factory=list)
    skipped: dict = dataclasses.field(default_factory=dict)
    decoder: Decoder | None = None

    @property
    def labelled(self):
        return self.train is not None and self.test is not None

    def files(self):
        """Paths of all files that the images are read from, a list of bytes."""
        sets = self.pretrain, self.train, self.test
        return list(dict.fromkeys(path for one in sets for path in files_of(one)))

    def faults(self):
        """Dict from path to reason, of all files that could not be read so far."""
        found = dict(self.skipped)
        for images in (self.pretrain, self.train, self.test):
            unreadable = getattr(images, "unreadable", None)
            found |= unreadable.faults() if unreadable is not None else {}
        return found


def load_dataset(
    name: str,
    data_dir: str | None = None,
    download: bool = True,
    check: bool = False,
    memory_limit: int = 4 * 2**30,
    log: Callable[[str], object] = print,
    labels: str = labelling.FOLDERS,
    exif_orientation: bool = True,
    value_range: tuple[float, float] | None = None,
    channels: int = 3,
) -> Dataset:
    """Loads a data set.

    Args:
        name: `shapes`, which is drawn and needs no files; `folder`, a tree of images;
            `packed`, shards that `ressl-pack` wrote or tar shards in WebDataset's
            layout; or the name of a TFDS data set with images.
        data_dir: the folder, or where TFDS keeps its data.
        download: whether TFDS may download.
        check: for `folder`, whether to decode every image before training, to leave
            out unreadable files. Without it they are replaced while reading.
        memory_limit: sets above this many bytes are read from their files in every
            epoch. Below it, small images of one size, of up to 128 pixels, are kept in
            memory.
        log: called with a line of text: progress of the check, and what of a folder
            is ignored.
        labels: what says the classes of a folder's images: `folders`, its sub-folders;
            `none`, then all images are learned from; or a CSV file of images and
            labels. `none` also ignores the labels of other data sets.
        exif_orientation: whether images are turned as their EXIF data says.
        value_range: values of images of more than 8 bits that become 0 and 255; None
            takes the smallest and the largest of each image.
        channels: of the images: 1 for gray, 3 for colour, 4 for colour and alpha.

    Returns:
        A `Dataset`.

    Raises:
        UsageError: if the data set is unknown, absent, or has no readable image.
    """
    decoder = Decoder(exif_orientation, value_range, channels)
    if name == "folder":
        return _load_folder(data_dir, check, memory_limit, log, labels, decoder)
    if labels not in (labelling.FOLDERS, labelling.NONE):
        raise UsageError(f"--labels={labels} is for --dataset=folder only.")
    if name == "shapes":
        dataset = _draw_shapes(data_dir, channels)
    elif name == "packed":
        dataset = _load_packed(data_dir, memory_limit, decoder, log)
    else:
        dataset = _load_tfds(name, data_dir, download, memory_limit, decoder, log)
    if labels == labelling.NONE:
        dataset.train = dataset.test = None
        dataset.class_names = []
    return dataset


def as_dataset(source: object, channels: int = 3) -> Dataset:
    """A data set of images alone, unless it is one already.

    Args:
        source: `Dataset`, or what `images_from` takes.
        channels: as in `images_from`.
    """
    if isinstance(source, Dataset):
        return source
    return Dataset("own images", images_from(source, channels=channels))


def _draw_shapes(data_dir, channels):
    if data_dir:
        raise UsageError(
            f"--dataset=shapes reads no files, but --data_dir={data_dir} is given; "
            "--dataset=folder reads its images."
        )

    def drawn(count, seed):
        pixels, labels = shapes.render(count, seed)
        return ArrayImages(in_channels(pixels, channels), labels)

    train, test = drawn(8000, seed=0), drawn(2000, seed=1)
    return Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES))


def _load_folder(root, check, memory_limit, log, labels, decoder):
    sets = load_folder(root, check, memory_limit, log, labels, decoder)
    # Not the whole path: the name goes into files that are passed on.
    name = printable(os.path.basename(os.path.abspath(root)))
    return Dataset(f"folder {name}".strip(), **vars(sets), decoder=decoder)


def _kept(encoded, size):
    """Images of one size, decoded into memory."""
    pixels, tensor = pixel_buffer([len(encoded), *size, encoded.channels])
    indices = tf.data.Dataset.range(len(encoded))
    decoded = indices.map(plain(encoded.read), tf.data.AUTOTUNE).batch(BLOCK)
    start = 0
    for block in decoded.as_numpy_iterator():
        pixels[start : start + len(block)] = block
        start += len(block)
    return ArrayImages(tensor, encoded.labels, encoded.name)


def _load_packed(root, memory_limit, decoder, log):
    found = read_packed(root, decoder, log)

    def images(packed, size):
        if size and len(packed) * np.prod(size) * decoder.channels <= memory_limit:
            return _kept(packed, size)
        return packed

    dataset = Dataset(
        f"packed {printable(os.path.basename(os.path.abspath(root)))}",
        images(found.images, found.size),
        class_names=list(map(printable, found.class_names)),
        decoder=decoder,
    )
    if found.test is not None:
        dataset.test = images(found.test, found.test_size)
        labelled = np.flatnonzero(found.images.labels != UNLABELLED)
        whole = len(labelled) == len(found.images)
        dataset.train = (
            dataset.pretrain if whole else Subset(dataset.pretrain, labelled)
        )
    return dataset


def _load_tfds(name, data_dir, download, memory_limit, decoder, log):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["shapes", "folder", "packed", *tfds.list_builders()]
        raise UsageError(
            f"Unknown data set '{name}'. {closest(name, known)}"
        ) from error
    if not builder.info.splits:
        if not download:
            raise UsageError(
                f"Data set {name} is not under {builder.data_path.parent.parent} and "
                "--nodownload forbids fetching it."
            )
        _download(builder)
    if "image" not in (builder.info.features or {}):
        raise UsageError(f"Data set {name} has no images.")
    kind = builder.info.file_format
    if kind is not None and kind.value != "tfrecord":
        raise UsageError(
            f"Data set {name} in {builder.data_path} is prepared as {kind.value}, "
            "which is not read here; prepare it as tfrecord."
        )
    splits = builder.info.splits
    train_split = "train" if "train" in splits else next(iter(splits))
    pretrain_split = "unlabelled" if "unlabelled" in splits else train_split

    def images(split):
        return _tfds_images(builder, split, memory_limit, decoder, log)

    train = images(train_split)
    pretrain = train if pretrain_split == train_split else images(pretrain_split)
    dataset = Dataset(name, pretrain, decoder=decoder)
    if not _has_classes(builder):
        return dataset
    for split in ("test", "validation"):
        if split in splits and split not in (train_split, pretrain_split):
            test = images(split)
            # Public test splits without labels carry -1.
            if test.labels is not None and test.labels.min() >= 0:
                dataset.train, dataset.test = train, test
                dataset.class_names = list(builder.info.features["label"].names)
                break
    if not dataset.labelled:
        log(f"{name} has no labelled split beside {train_split} to evaluate with.")
    return dataset


def _has_classes(builder):
    """Whether the images have labels that are numbers of classes."""
    import tensorflow_datasets as tfds

    features = builder.info.features
    known = "label" in features and features["label"]
    return isinstance(known, tfds.features.ClassLabel)


def _download(builder):
    """Fetches and prepares a data set.

    Raises:
        UsageError: if it cannot be fetched, naming the address and where a prepared
            copy would be looked for.
    """
    import tensorflow_datasets as tfds

    print(f"Downloading data set {builder.name} to {builder.data_path}.", flush=True)
    try:
        builder.download_and_prepare()
    except (OSError, tfds.download.DownloadError) as error:
        request = getattr(error, "request", None)
        source = f" from {request.url}" if request is not None else ""
        raise UsageError(
            f"Data set {builder.name} could not be downloaded{source} "
            f"({type(error).__name__}). A prepared copy would be looked for in "
            f"{builder.data_path}; --data_dir names another folder."
        ) from error


def _tfds_images(builder, split, memory_limit, decoder, log):
    import tensorflow_datasets as tfds

    info, features = builder.info.splits[split], builder.info.features
    has_labels = _has_classes(builder)
    shape, channels = features["image"].shape, decoder.channels
    pixels = None not in shape and np.prod(shape[:2]) * channels * info.num_examples
    if pixels and pixels <= memory_limit:
        images, tensor = pixel_buffer([info.num_examples, *shape[:2], channels])
        labels = np.empty([info.num_examples], np.int64)
        start = 0
        for batch in builder.as_dataset(split=split).batch(BLOCK).as_numpy_iterator():
            end = start + len(batch["image"])
            images[start:end] = in_channels(batch["image"], channels)
            if has_labels:
                labels[start:end] = batch["label"]
            start = end
        return ArrayImages(tensor, labels if has_labels else None)
    if info.num_bytes > memory_limit:
        return _tfds_shards(builder, split, decoder, log)
    records = builder.as_dataset(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    encoded, labels, names = [], [], []
    for record in records.as_numpy_iterator():
        encoded.append(record["image"])
        if has_labels:
            labels.append(record["label"])
        if "file_name" in record:
            names.append(record["file_name"])
    return EncodedImages(
        encoded,
        labels if has_labels else None,
        True,
        decoder,
        names=(lambda index: os.fsdecode(names[index])) if names else None,
    )


def _tfds_shards(builder, split, decoder, log):
    """The images of a split, left in its files."""
    shape = builder.info.features["image"].shape
    paths = list(map(os.fspath, builder.info.splits[split].filepaths))
    index = read_index(paths, split, log)
    if shape[0] is None or shape[0] != shape[1]:
        return PackedImages(index, decoder)
    return PackedImages(index, decoder, common_size=shape[0])
