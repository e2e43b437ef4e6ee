"""Sets of images from arrays and from any `tf.data.Dataset`."""

import numpy as np
import tensorflow as tf

from ressl_keras.data.decoding import Decoder
from ressl_keras.data.images import ArrayImages, EncodedImages, in_channels
from ressl_keras.errors import UsageError

_LIMIT = 4 * 2**30  # bytes


def images_from(
    source: object,
    labels: object = None,
    memory_limit: int = _LIMIT,
    channels: int = 3,
) -> ArrayImages | EncodedImages:
    """A set of images to learn from or to evaluate on.

    Args:
        source: uint8 array [count, height, width, channels] with one, three or four
            channels, or gray without a last axis; a set of images, which is returned as
            it is; or a `tf.data.Dataset` of images or batches of such pixels, alone, in
            a tuple before their labels, or in a dict under `image` with `label`. It is
            read once and kept: decoded if the images have one size, else as PNG.
        labels: integers [count] of an array's images, or None.
        memory_limit: most bytes to keep.
        channels: of the result: 1 for gray, 3 for colour, 4 for colour and alpha.

    Returns:
        A set of images.

    Raises:
        UsageError: if the pixels are no uint8, the shape is another, labels are not
            one integer each, or there is no image or more than the limit allows.

    Example:

    >>> (train, train_labels), (test, test_labels) = keras.datasets.cifar10.load_data()
    >>> pretrain(train, "runs/mine", Config(epochs=20))
    >>> dataset = Dataset(
    ...     "mine",
    ...     pretrain=images_from(train),
    ...     train=images_from(train, train_labels),
    ...     test=images_from(test, test_labels),
    ... )
    """
    if hasattr(source, "read"):
        return source
    if not isinstance(source, tf.data.Dataset):
        pixels = _checked(np.asarray(source), channels)
        if labels is not None:
            labels = np.asarray(labels).reshape(-1)
            if len(labels) != len(pixels):
                raise UsageError(f"{len(pixels)} images, but {len(labels)} labels.")
        return ArrayImages(pixels, labels)
    return _collected(source, memory_limit, channels)


def _checked(pixels, channels):
    """Pixels [count, height, width, channels] of what may have others."""
    if pixels.dtype != np.uint8:
        raise UsageError(
            f"Images must be uint8 in 0-255; got {pixels.dtype}. Scale them to 0-255 "
            "and convert them first."
        )
    pixels = pixels[..., np.newaxis] if pixels.ndim == 3 else pixels
    if pixels.ndim != 4 or pixels.shape[-1] not in (1, 3, 4) or not pixels.size:
        raise UsageError(
            "Images must have the shape [count, height, width, 1, 3 or 4]; got "
            f"{list(pixels.shape)}."
        )
    return in_channels(pixels, channels)


def _collected(dataset, memory_limit, channels):
    parts, labels, sizes, held = [], [], set(), 0
    for element in dataset:
        image, label = _split(element)
        image = image.numpy()
        batch = _checked(image if _batched(dataset) else image[np.newaxis], channels)
        sizes.add(batch.shape[1:3])
        held += batch.nbytes
        if held > memory_limit:
            raise UsageError(
                f"The data set has more than {memory_limit / 2**30:.1f} GiB of pixels; "
                "write the images to a folder and use load_dataset('folder', ...)."
            )
        parts.append(batch)
        if label is not None:
            labels.append(np.reshape(label.numpy(), -1))
            if len(labels[-1]) != len(batch):
                raise UsageError(
                    f"{len(batch)} images, but {len(labels[-1])} labels; a label is "
                    "one integer."
                )
    if not parts:
        raise UsageError("The data set has no images.")
    labels = np.concatenate(labels) if labels else None
    if len(sizes) == 1:
        return ArrayImages(np.concatenate(parts), labels)
    files = [tf.io.encode_png(image).numpy() for part in parts for image in part]
    decoder = Decoder(exif_orientation=False, channels=channels)
    return EncodedImages(files, labels, True, decoder)


def _split(element):
    """Image and label of an element; None for a label that is not there."""
    if isinstance(element, dict):
        return element["image"], element.get("label")
    if isinstance(element, (tuple, list)):
        return element[0], element[1] if len(element) > 1 else None
    return element, None


def _batched(dataset):
    """Whether the elements are batches; gray batches have a last axis of one."""
    rank = _split(dataset.element_spec)[0].shape.rank
    if rank not in (3, 4):
        raise UsageError(
            "The elements must be images [height, width, channels] or batches of them; "
            f"their rank is {rank}."
        )
    return rank == 4
