"""Sets of images: in memory, encoded, and parts of them."""

import collections
import math
import os

import numpy as np
import tensorflow as tf

from ressl_keras.augmentation import image_ops
from ressl_keras.data import checking, decoding
from ressl_keras.errors import UsageError, printable

# Side in pixels that images of different sizes are used at unless another is given.
DEFAULT_SIZE = 224
# Side in pixels of the largest images that are kept in memory decoded. Larger ones take
# more memory than their files, and cropping them costs more than decoding a window.
LARGEST_KEPT = 128
# Images that are read into memory together.
BLOCK = 256
# Bytes at whose multiples TensorFlow needs the memory of a tensor to begin.
_ALIGNMENT = 64


def pixel_buffer(shape):
    """An uninitialised uint8 array, and a tensor of the same memory.

    `tf.constant` makes two copies of an array at once, too many for a data set. Fill
    the array before the tensor is read.

    Args:
        shape: of both.
    """
    count = math.prod(shape)
    memory = np.empty(count + _ALIGNMENT, np.uint8)
    start = -memory.ctypes.data % _ALIGNMENT
    pixels = memory[start : start + count].reshape(shape)
    return pixels, tf.experimental.dlpack.from_dlpack(pixels.__dlpack__())


def _tensor(array):
    """A tensor on the host with the values of a uint8 array."""
    pixels, tensor = pixel_buffer(array.shape)
    np.copyto(pixels, array)
    return tensor


class ArrayImages:
    """Images of one size, held in memory.

    Args:
        images: uint8 array or tensor [count, height, width, channels]. An array is
            copied.
        labels: integer array [count], or None.
        names: function from an index to the image's name, such as a path; or None.
    """

    same_size = True

    def __init__(self, images, labels=None, names=None):
        # On the host, so that a GPU is not filled with the data set. A tensor that a
        # dataset captures is passed by reference, not copied into its graph.
        with tf.device("CPU"):
            self.images = tf.identity(
                images if tf.is_tensor(images) else _tensor(images)
            )
        self.labels = None if labels is None else np.asarray(labels)
        self.names = names

    def __len__(self):
        return len(self.images)

    @property
    def size(self):
        """Height and width in pixels."""
        return tuple(self.images.shape[1:3])

    @property
    def channels(self):
        """Channels of the images."""
        return self.images.shape[-1]

    @property
    def common_size(self):
        """Side in pixels that the images are used at unless another is given."""
        return self.size[0]

    @property
    def storage(self):
        """Where the images are stored, in words."""
        megabytes = self.images.shape.num_elements() / 2**20
        return f"in memory ({megabytes:.0f} MiB)"

    def read(self, index):
        """The image at an index, or the batch at several: uint8, in a graph."""
        return tf.gather(self.images, index)

    def name(self, index):
        """The name of an image for people, or None."""
        return self.names(index) if self.names else None


class EncodedImages:
    """Images of any size, decoded when they are read.

    Args:
        sources: list of file paths, strings or bytes, or of the encoded images
            themselves (bytes).
        labels: integer array [count], or None.
        in_memory: whether `sources` are the images themselves.
        decoder: `decoding.Decoder`.
        root: folder that the images' names are relative to.
        names: function from an index to the name of an image in memory, or None.

    Attributes:
        unreadable: `checking.Unreadable`, the images that could not be read so far.
    """

    same_size = False
    common_size = DEFAULT_SIZE

    def __init__(
        self,
        sources,
        labels=None,
        in_memory=False,
        decoder=decoding.DEFAULT,
        root=None,
        names=None,
    ):
        with tf.device("CPU"):
            self.sources = tf.constant(sources, tf.string)
        self.labels = None if labels is None else np.asarray(labels)
        self.in_memory, self.decoder = in_memory, decoder
        self.root, self.names = root, names
        self.unreadable = checking.Unreadable(self.place, self._fault)

    def __len__(self):
        return len(self.sources)

    @property
    def channels(self):
        """Channels of the images."""
        return self.decoder.channels

    @property
    def storage(self):
        """Where the images are stored, in words."""
        return "encoded in memory" if self.in_memory else "read from files"

    def place(self, index):
        """Where the image at an index is, in words."""
        if self.in_memory:
            return f"image {index}"
        return os.fsdecode(self.sources[index].numpy())

    def _fault(self, index):
        path = None if self.in_memory else self.place(index)
        return checking.fault(path) if path else checking.CANNOT_DECODE

    def encoded(self, index):
        """The bytes of the image at an index, in a graph."""
        source = tf.gather(self.sources, index)
        return source if self.in_memory else tf.io.read_file(source)

    def read(self, index):
        """The decoded image at an index, uint8 [height, width, channels]."""
        return decoding.decode(self.encoded(index), self.decoder)

    def name(self, index):
        """The path of an image's file below the root, or None.

        Without a root only the file's name: the path is nobody else's business.
        """
        if self.in_memory:
            return self.names(index) if self.names else None
        path = os.fsdecode(self.sources[index].numpy())
        inside = self.root and os.path.relpath(path, self.root)
        return inside or os.path.basename(path)


class Subset:
    """Some of the images of a set, in a given order.

    Args:
        images: any set of images.
        indices: integer array [count] of indices into `images`.
    """

    def __init__(self, images, indices):
        self.images, self.same_size = images, images.same_size
        with tf.device("CPU"):
            self.indices = tf.constant(indices, tf.int64)
        self.labels = None if images.labels is None else images.labels[indices]

    def __len__(self):
        return len(self.indices)

    @property
    def unreadable(self):
        """Those of its images that could not be read; None for images in memory."""
        whole = getattr(self.images, "unreadable", None)
        if whole is None:
            return None
        return checking.UnreadablePart(whole, self.indices.numpy())

    @property
    def size(self):
        """Height and width in pixels, for images of one size."""
        return self.images.size

    @property
    def common_size(self):
        """As that of the whole set."""
        return self.images.common_size

    @property
    def channels(self):
        """As that of the whole set."""
        return self.images.channels

    @property
    def decoder(self):
        """As that of the whole set, for encoded images."""
        return self.images.decoder

    def read(self, index):
        """The image at an index, or the batch at several: uint8, in a graph."""
        return self.images.read(tf.gather(self.indices, index))

    def encoded(self, index):
        """The bytes of the image at an index, for encoded images, in a graph."""
        return self.images.encoded(tf.gather(self.indices, index))

    def name(self, index):
        """The name of an image for people, or None."""
        return name_of(self.images, int(self.indices[index]))


def in_channels(pixels, channels):
    """NumPy pixels [..., 1, 3 or 4] as 1, 3 or 4 channels, as `decode` does."""
    given = pixels.shape[-1]
    if given == channels:
        return pixels
    if channels == 1:
        luma = pixels[..., :3].astype(np.float32) @ np.float32(image_ops.LUMA)
        return np.round(luma).astype(np.uint8)[..., np.newaxis]
    if given == 1:
        pixels = np.repeat(pixels, 3, axis=-1)
    opaque = np.full([*pixels.shape[:-1], 1], 255, np.uint8)
    return np.concatenate([pixels, opaque], axis=-1)[..., :channels]


def name_of(images, index):
    """The name of an image of a set for people; None where the set has no names."""
    return images.name(index) if hasattr(images, "name") else None


def without_labels(images):
    """The same images, whose labels do not count."""
    found = Subset(images, np.arange(len(images)))
    found.labels = None
    return found


def files_of(images):
    """Paths of the files that images are read from, a list of bytes; may be empty."""
    read = isinstance(images, EncodedImages) and not images.in_memory
    return list(images.sources.numpy()) if read else []


def stratified(images, fraction, seed=0):
    """The same share of every class, drawn at random.

    Args:
        images: labelled images.
        fraction: share to take, in (0, 1]; of every class at least one image.
        seed: integer seed of the draw.

    Returns:
        `images` themselves for a fraction of 1, else a `Subset`.

    Raises:
        UsageError: if the fraction is not in (0, 1].
    """
    if not 0 < fraction <= 1:
        raise UsageError(f"The label fraction must lie in (0, 1]; got {fraction}.")
    if fraction == 1:
        return images
    return _of_each_class(images, lambda count: max(round(fraction * count), 1), seed)


def per_class(images, count, seed=0):
    """So many images of every class, drawn at random, or all of a smaller class.

    Args:
        images: labelled images.
        count: images of a class.
        seed: integer seed of the draw. More images of one seed include fewer.

    Returns:
        A `Subset`.
    """
    return _of_each_class(images, lambda there: min(count, there), seed)


def _of_each_class(images, share, seed):
    """The first images of every class in a random order; `share` says how many."""
    order = np.random.default_rng(seed).permutation(len(images))
    order = order[np.argsort(images.labels[order], kind="stable")]
    _, starts, counts = np.unique(
        images.labels[order], return_index=True, return_counts=True
    )
    chosen = [order[i : i + share(n)] for i, n in zip(starts, counts)]
    return Subset(images, np.sort(np.concatenate(chosen)))


def listed(images, names):
    """The images whose files a list names.

    Args:
        images: images with names: read from files, or with an attribute `names`.
        names: names of files, such as `n01440764_10074.JPEG`. Folders before them
            count only where several images have the name.

    Returns:
        Tuple of a `Subset` in the order of the images, and the names not found, a list.

    Raises:
        UsageError: if the images have no names, or a name is that of several.
    """
    known = names_of(images)
    if known is None:
        raise UsageError(
            "These images have no names; a list of files is for a folder of images, or "
            "a TensorFlow Datasets set with a feature file_name."
        )
    wanted = collections.defaultdict(list)
    for name in names:
        wanted[os.path.basename(name)].append(name)
    found = collections.defaultdict(list)
    for index, path in enumerate(known):
        if os.path.basename(path) in wanted:
            found[os.path.basename(path)].append(index)
    indices = []
    for name, alike in found.items():
        if len(alike) > 1:
            ends = tuple(f"{os.sep}{named}" for named in wanted[name])
            alike = [i for i in alike if f"{os.sep}{known[i]}".endswith(ends)]
            if len(alike) != len(set(wanted[name])):
                raise UsageError(
                    f"{printable(name)} is the name of several images; the list must "
                    "say their folders."
                )
        indices += alike
    missing = [name for name in wanted if name not in found]
    return Subset(images, np.array(sorted(indices), np.int64)), missing


def names_of(images):
    """Names of the files that images come from, a list; None without names."""
    if isinstance(images, Subset):
        names = names_of(images.images)
        return names and [names[i] for i in images.indices.numpy()]
    names = list(map(os.fsdecode, files_of(images)))
    if not names and name_of(images, 0) is not None:
        names = [images.name(i) for i in range(len(images))]
    return names or None


def spread_indices(images, count=None):
    """Indices of `count` images spread evenly over a set, int64 array.

    Args:
        images: any set of images.
        count: None takes all.
    """
    if count is None or count >= len(images):
        return np.arange(len(images))
    return np.linspace(0, len(images), count, endpoint=False).astype(np.int64)
