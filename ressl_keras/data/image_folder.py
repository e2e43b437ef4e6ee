"""A folder of images as sets of images: from its files, or decoded into memory."""

import dataclasses
import os
import time
import warnings

import numpy as np
import tensorflow as tf

from ressl_keras.data import checking, folders
from ressl_keras.data import labels as labelling
from ressl_keras.data.images import (
    BLOCK,
    LARGEST_KEPT,
    ArrayImages,
    EncodedImages,
    pixel_buffer,
)
from ressl_keras.data.plain import plain
from ressl_keras.errors import UsageError, printable

# Images whose headers say whether all have one size.
_SAMPLE = 256


@dataclasses.dataclass
class ImageFolder:
    """The sets of a folder.

    Attributes:
        pretrain: images to learn from.
        train: the labelled ones among them, or None.
        test: labelled images that are held out, or None.
        class_names: list of strings; empty without labels.
        skipped: dict from path to why it cannot be read, of files that no set has.
    """

    pretrain: object
    train: object = None
    test: object = None
    class_names: list = dataclasses.field(default_factory=list)
    skipped: dict = dataclasses.field(default_factory=dict)


def load_folder(root, check, memory_limit, log, labels, decoder):
    """Lists a folder and decides where its images are kept.

    Nothing is decoded but images that are small and of one size, which go into memory;
    unless `check` asks for it.

    Args:
        root: the folder.
        check: whether to decode every image, and leave out what cannot be read.
        memory_limit: most bytes of decoded images.
        log: called with a line of text.
        labels: as in `labels.assign`, or the path of a table.
        decoder: `decoding.Decoder`.

    Returns:
        An `ImageFolder`.

    Raises:
        UsageError: if there is no readable image.
    """
    if labels not in (labelling.FOLDERS, labelling.NONE):
        labels = labelling.read_table(labels, root or "")
    listing = folders.list_images(root, log, with_sets=labels != labelling.NONE)
    paths = [path for path, _ in [*listing.files, *listing.held_out]]
    sizes = _header_sizes(paths, decoder)
    skipped = {}
    if check or (paths and not sizes):
        sizes, skipped = checking.check(paths, root, decoder, log)
        sizes = set(map(tuple, np.unique(sizes, axis=0).tolist())) - {(0, 0)}
    pixels, rows = None, {}
    if _fits(sizes, len(paths), memory_limit, decoder):
        there = [path for path in paths if path not in skipped]
        pixels, rows, broken = _decoded(there, *sizes, decoder, log)
        skipped |= broken
    readable = _without(listing, skipped)
    if not readable.files:
        raise UsageError(_nothing(root, listing, skipped))
    if not readable.held_out:
        listing = dataclasses.replace(listing, held_out=[])
    # Chosen of all images: those held out are the same whatever could be read.
    found = labelling.assign(listing, labels, log).without(skipped)

    def images(files, class_names=()):
        numbers = {name: number for number, name in enumerate(class_names)}
        labels = None
        if class_names:
            labels = (numbers[name] for _, name in files)
            labels = np.fromiter(labels, np.int64, len(files))
        if pixels is None:
            # Bytes, since a file's name need not be UTF-8.
            sources = [os.fsencode(path) for path, _ in files]
            return EncodedImages(sources, labels, decoder=decoder, root=root)

        def name(index):
            return os.path.relpath(files[index][0], root)

        chosen = [rows[path] for path, _ in files]
        return ArrayImages(_rows(pixels, chosen), labels, name)

    sets = ImageFolder(None, skipped=skipped)
    if found.class_names:
        sets.class_names = list(map(printable, found.class_names))
        sets.train = images(found.train, found.class_names)
        sets.test = images(found.held_out, found.class_names)
    same = found.train == found.pretrain
    sets.pretrain = sets.train if same else images(found.pretrain)
    return sets


def _rows(pixels, chosen):
    """Some rows of a tensor. Those in sequence share its memory, where TensorFlow can:
    from a multiple of 64 bytes on."""
    first = chosen[0] if chosen else 0
    sequence = range(first, first + len(chosen))
    with tf.device("CPU"):
        if chosen == list(sequence):
            return pixels[sequence.start : sequence.stop]
        return tf.gather(pixels, chosen)


def _without(listing, skipped):
    if not skipped:
        return listing
    return dataclasses.replace(
        listing,
        files=[file for file in listing.files if file[0] not in skipped],
        held_out=[file for file in listing.held_out if file[0] not in skipped],
    )


def _nothing(root, listing, skipped):
    found = f" ({len(skipped)} files could not be decoded)" if skipped else ""
    others = f"; {listing.others}" if listing.others else ""
    return (
        f"No readable image under {root}{found}{others}. Known are "
        f"{', '.join(folders.SUFFIXES)}. A public data set is named by --dataset."
    )


def _header_sizes(paths, decoder):
    """Set of (height, width) as the headers of some images have them."""
    some = np.linspace(0, len(paths), min(_SAMPLE, len(paths)), endpoint=False)
    found = {_header_size(paths[int(i)], decoder) for i in some}
    return found - {None}


def _header_size(path, decoder):
    from PIL import ExifTags, Image

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # it warns of large images
            with Image.open(path) as image:
                width, height = image.size
                turned = image.getexif().get(ExifTags.Base.Orientation, 1) >= 5
    except Exception:  # a damaged header can raise anything
        return None
    return (width, height) if turned and decoder.exif_orientation else (height, width)


def _fits(sizes, count, memory_limit, decoder):
    """Whether the images are small, of one size, and together within the limit."""
    if len(sizes) != 1:
        return False
    ((height, width),) = sizes
    if max(height, width) > LARGEST_KEPT:
        return False
    return count * height * width * decoder.channels <= memory_limit


def _decoded(paths, size, decoder, log, clock=time.monotonic, every=10.0):
    """Images of one size, decoded into memory several at a time.

    Returns:
        Tuple of a tensor [count, height, width, channels]; a dict from path to row; and
        one from path to reason of those that cannot be read. The first is None, and
        the others are empty, if an image turns out to have another size.
    """
    encoded = EncodedImages(list(map(os.fsencode, paths)), decoder=decoder)
    shape = [*size, decoder.channels]
    pixels, tensor = pixel_buffer([len(paths), *shape])
    there, said = np.zeros(len(paths), bool), clock()

    def read(index):
        image = encoded.read(index)
        fits = tf.reduce_all(tf.shape(image) == shape)
        image = tf.cond(fits, lambda: image, lambda: tf.zeros(shape, tf.uint8))
        return index, fits, tf.ensure_shape(image, shape)

    images = tf.data.Dataset.range(len(paths)).map(
        plain(read), tf.data.AUTOTUNE, deterministic=False
    )
    # One by one they would take longer to reach Python than to be decoded.
    blocks = images.ignore_errors().batch(BLOCK).prefetch(1)
    for indices, fits, images in blocks.as_numpy_iterator():
        if not fits.all():
            other = paths[indices[~fits].min()]
            log(
                f"{printable(other)} has another size than the others, so the images "
                "are read from their files."
            )
            return None, {}, {}
        pixels[indices], there[indices] = images, True
        if clock() - said >= every:
            said = clock()
            log(f"Read {there.sum():,} of {len(paths):,} images into memory.")
    rows = {path: row for row, path in enumerate(paths)}
    broken = {paths[i]: checking.fault(paths[i]) for i in np.flatnonzero(~there)}
    return tensor, rows, broken
