"""Reading one image, as training and evaluation do."""

import os

import numpy as np
import tensorflow as tf

from ressl_keras.config import MAX_PIXELS
from ressl_keras.data.decoding import Decoder, decode
from ressl_keras.data.image_headers import pixel_count
from ressl_keras.data.pipeline import center_crop
from ressl_keras.errors import UsageError, printable


def read_image(
    source: str | os.PathLike | bytes,
    size: int | None = None,
    *,
    exif_orientation: bool = True,
    value_range: tuple[float, float] | None = None,
    channels: int = 3,
    max_pixels: int = MAX_PIXELS,
) -> np.ndarray:
    """Reads an image as an encoder gets it in evaluation and serving.

    The shorter side is resized to 8/7 of `size`, bilinear with antialiasing, and the
    central square is cut out. An image that already has the size is not changed.

    Args:
        source: path of a JPEG, PNG, GIF, BMP, WebP or TIFF file, or its bytes.
        size: side of the result in pixels, such as the encoder's `image_size`; None
            keeps the whole image.
        exif_orientation: whether the image is turned as its EXIF data says.
        value_range: values of an image of more than 8 bits that become 0 and 255; None
            takes its smallest and largest.
        channels: 1 for gray, 3 for colour, 4 for colour and alpha.
        max_pixels: an image with more is refused, before it is decoded.

    Returns:
        float32 array [size, size, channels] in 0-255; without `size` uint8 [height,
        width, channels].

    Raises:
        UsageError: if there is no such file, it cannot be decoded, or is too large.

    Example:

    >>> encoder = load_encoder("runs/mine")
    >>> encoder(read_image("cat.jpg", encoder.image_size)[None]).shape
    TensorShape([1, 128])
    """
    if isinstance(source, bytes):
        name, encoded = "The image", source
    else:
        name = printable(os.fspath(source))
        try:
            with open(source, "rb") as file:
                encoded = file.read()
        except OSError as error:
            raise UsageError(f"{name} cannot be read: {error.strerror}.") from error
    decoder = Decoder(exif_orientation, value_range, channels)
    try:
        with tf.device("CPU"):
            pixels = int(pixel_count(tf.constant(encoded)))
            if pixels > max_pixels:
                raise UsageError(f"{name} has more than {max_pixels:,} pixels.")
            image = decode(tf.constant(encoded), decoder)
            return (image if size is None else center_crop(image, size)).numpy()
    except (tf.errors.InvalidArgumentError, tf.errors.UnknownError) as error:
        raise UsageError(f"{name} cannot be decoded.") from error
