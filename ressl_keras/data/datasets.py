"""Data sets: drawn shapes, folders of images, TensorFlow Datasets."""

import concurrent.futures
import dataclasses
import os

import numpy as np
import tensorflow as tf

from ressl_keras.data import shapes
from ressl_keras.data.decoding import decode
from ressl_keras.data.images import ArrayImages, EncodedImages, StreamedImages
from ressl_keras.errors import UsageError, closest

# Side in pixels of the largest images that are kept in memory decoded. Larger ones take
# more memory than their files, and cropping them costs more than decoding a window.
_LARGEST_KEPT = 128

SUFFIXES = (".jpg", ".jpeg", ".png", ".bmp", ".gif")


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
        skipped: files that could not be read.
    """

    name: str
    pretrain: object
    train: object = None
    test: object = None
    class_names: list = dataclasses.field(default_factory=list)
    skipped: list = dataclasses.field(default_factory=list)

    @property
    def labelled(self):
        return self.train is not None and self.test is not None


def load_dataset(
    name, data_dir=None, download=True, check=True, memory_limit=4 * 2**30
):
    """Loads a data set.

    Args:
        name: `shapes`, which is drawn and needs no files; `folder`, a tree of images;
            or the name of a TFDS data set with images.
        data_dir: the folder, or where TFDS keeps its data.
        download: whether TFDS may download.
        check: for `folder`, whether to decode every image once, to find
            unreadable files before training. Small images of one
            size, of up to 128 pixels, are then kept in memory.
        memory_limit: data sets above this many bytes are streamed, or read from their
            files in every epoch.

    Returns:
        A `Dataset`.

    Raises:
        UsageError: if the data set is unknown, absent, or has no readable image.
    """
    if name == "shapes":
        train = ArrayImages(*shapes.render(8000, seed=0))
        test = ArrayImages(*shapes.render(2000, seed=1))
        return Dataset("shapes", train, train, test, list(shapes.CLASS_NAMES))
    if name == "folder":
        return _load_folder(data_dir, check, memory_limit)
    return _load_tfds(name, data_dir, download, memory_limit)


def _load_folder(root, check, memory_limit):
    files, held_out = _list_splits(root)
    sizes = _sizes([path for path, _ in [*files, *held_out]]) if check else {}
    skipped = {path: None for path, size in sizes.items() if size is None}
    files = [file for file in files if file[0] not in skipped]
    held_out = [file for file in held_out if file[0] not in skipped]
    if not files:
        found = f" ({len(skipped)} files could not be decoded)" if skipped else ""
        raise UsageError(
            f"No readable image under {root}{found}; known are {', '.join(SUFFIXES)}."
        )
    class_names = sorted({class_name for _, class_name in files})
    dataset = Dataset(f"folder {root}", None, skipped=list(skipped))
    if len(class_names) > 1:
        if not held_out:
            # Without a split of its own, every tenth image of the sorted list is held
            # out, in training and in evaluation alike.
            held_out = files[9::10]
            files = [file for i, file in enumerate(files) if i % 10 != 9]
        held_out = [file for file in held_out if file[1] in class_names]
        if held_out:
            dataset.class_names = class_names
    dataset.pretrain = _images_of(files, dataset.class_names, sizes, memory_limit)
    if dataset.class_names:
        dataset.train = dataset.pretrain
        dataset.test = _images_of(held_out, class_names, sizes, memory_limit)
    return dataset


def _list_splits(root):
    """Files to learn from and files held out, lists of (path, class).

    The second is empty where the folder has no such split.
    """
    if not root:
        raise UsageError("--dataset=folder needs --data_dir, the folder of images.")
    if not os.path.isdir(root):
        raise UsageError(f"There is no folder {root}.")
    inside = {entry.name for entry in os.scandir(root) if entry.is_dir()}
    held_out = [name for name in ("test", "val", "validation") if name in inside]
    if "train" in inside and held_out:
        names = ("train", held_out[0])
        return [_list_images(os.path.join(root, name)) for name in names]
    return _list_images(root), []


def _images_of(files, class_names, sizes, memory_limit):
    """The images of (path, class), in memory where they are small and of one size."""
    paths = [path for path, _ in files]
    labels = None
    if class_names:
        labels = [class_names.index(class_name) for _, class_name in files]
    encoded = EncodedImages(paths, labels)
    size, *others = {sizes.get(path) for path in paths}
    if others or not size or max(size) > _LARGEST_KEPT:
        return encoded
    if len(paths) * size[0] * size[1] * 3 > memory_limit:
        return encoded
    return _kept(encoded, size)


def _list_images(root):
    """Sorted (path, class) of the images below a folder: classes are its folders."""
    paths = []
    for folder, _, files in os.walk(root, followlinks=True):
        paths += [
            os.path.join(folder, name)
            for name in files
            if name.lower().endswith(SUFFIXES)
        ]
    found = []
    for path in sorted(paths):
        head, *rest = os.path.relpath(path, root).split(os.sep)
        found.append((path, head if rest else ""))
    return found


def _sizes(paths):
    """Height and width of each image, or None where it cannot be decoded."""

    def size(path):
        try:
            return tuple(decode(tf.io.read_file(path)).shape[:2])
        except tf.errors.OpError:
            return None

    with concurrent.futures.ThreadPoolExecutor(os.cpu_count()) as pool:
        return dict(zip(paths, pool.map(size, paths)))


def _kept(encoded, size):
    """Images of one size, decoded into memory."""
    pixels = np.empty([len(encoded), *size, 3], np.uint8)
    indices = tf.data.Dataset.range(len(encoded))
    decoded = indices.map(encoded.read, tf.data.AUTOTUNE)
    for index, image in enumerate(decoded.as_numpy_iterator()):
        pixels[index] = image
    return ArrayImages(pixels, encoded.labels)


def _load_tfds(name, data_dir, download, memory_limit):
    import tensorflow_datasets as tfds

    try:
        builder = tfds.builder(name, data_dir=data_dir)
    except tfds.core.DatasetNotFoundError as error:
        known = ["shapes", "folder", *tfds.list_builders()]
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
    splits = builder.info.splits
    train_split = "train" if "train" in splits else next(iter(splits))
    pretrain_split = "unlabelled" if "unlabelled" in splits else train_split

    def images(split):
        return _tfds_images(builder, split, memory_limit)

    train = images(train_split)
    pretrain = train if pretrain_split == train_split else images(pretrain_split)
    dataset = Dataset(name, pretrain)
    for split in ("test", "validation"):
        if split in splits and "label" in builder.info.features:
            test = images(split)
            # Public test splits without labels carry -1.
            if test.labels is not None and test.labels.min() >= 0:
                dataset.train, dataset.test = train, test
                dataset.class_names = list(builder.info.features["label"].names)
                break
    return dataset


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


def _tfds_images(builder, split, memory_limit):
    import tensorflow_datasets as tfds

    info, features = builder.info.splits[split], builder.info.features
    has_labels = "label" in features
    shape = features["image"].shape
    if None not in shape and np.prod(shape) * info.num_examples <= memory_limit:
        images = np.empty([info.num_examples, *shape[:2], 3], np.uint8)
        labels = np.empty([info.num_examples], np.int64)
        start = 0
        for batch in builder.as_dataset(split=split).batch(1000).as_numpy_iterator():
            end = start + len(batch["image"])
            images[start:end] = batch["image"]  # gray images broadcast to RGB
            if has_labels:
                labels[start:end] = batch["label"]
            start = end
        return ArrayImages(images, labels if has_labels else None)
    if info.num_bytes > memory_limit:
        return StreamedImages(builder, split)
    records = builder.as_dataset(
        split=split, decoders={"image": tfds.decode.SkipDecoding()}
    )
    encoded, labels = [], []
    for record in records.as_numpy_iterator():
        encoded.append(record["image"])
        if has_labels:
            labels.append(record["label"])
    return EncodedImages(encoded, labels if has_labels else None, in_memory=True)
