"""Decoding images, and only the part of them that crops need."""

import dataclasses
import functools
import io

import numpy as np
import tensorflow as tf

from ressl_keras.augmentation import image_ops
from ressl_keras.data import orientation as exif

_TIFF = (b"II*\0", b"MM\0*", b"II+\0", b"MM\0+")
_BITS = 258  # the tag of a TIFF file for the bits of each channel
# Modes of Pillow with more than 8 bits.
_DEEP_MODES = ("I", "F", "I;16", "I;16L", "I;16B", "I;16N")


@dataclasses.dataclass(frozen=True)
class Decoder:
    """How encoded images become pixels; the same in training, evaluation and serving.

    Attributes:
        exif_orientation: whether images are turned as their EXIF data says.
        value_range: values of images of more than 8 bits that become 0 and 255; None
            takes the smallest and the largest of each image.
        channels: 1 for gray, 3 for colour, 4 for colour and alpha.
    """

    exif_orientation: bool = True
    value_range: tuple[float, float] | None = None
    channels: int = 3

    def orientation(self, encoded):
        """The orientation to apply to the stored pixels, from 1 to 8."""
        if not self.exif_orientation:
            return tf.constant(1)
        return exif.read_orientation(encoded)


DEFAULT = Decoder()


def decode(encoded, decoder=DEFAULT, portable=False):
    """An encoded image as pixels, in a graph.

    JPEG, PNG, GIF, BMP and WebP; of an animation the first image. Colours become gray,
    or gray becomes colours, as the decoder's channels say; an alpha channel is dropped,
    or is 255 where a file has none. More than 8 bits are scaled to 0-255.

    Args:
        encoded: scalar string tensor, the bytes of the file.
        decoder: `Decoder`.
        portable: whether the graph must run without Python. If not, Pillow decodes
            TIFF.

    Returns:
        uint8 tensor [height, width, channels].
    """
    return _traced(decoder, portable)(encoded)


@functools.cache
def _traced(decoder, portable):
    """A function of an encoded image that is traced once, for all pipelines."""

    # AutoGraph finds nothing to convert and takes most of the time of tracing.
    @tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
    def decoded(encoded):
        return _decode(encoded, decoder, portable)

    return decoded


def _decode(encoded, decoder, portable):
    image = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _decode_plain(encoded, 3),
        lambda: _decode_other(encoded, decoder, portable),
    )
    image = _in_channels(image, decoder.channels)
    if not decoder.exif_orientation:
        return image
    return _upright(image, decoder.orientation(encoded))


def _decode_other(encoded, decoder, portable):
    """Pixels of an image that is no JPEG, with three or four channels."""
    start = tf.strings.substr(encoded, 0, 29) + b"\0" * 29

    def at(position, *texts):
        part = tf.strings.substr(start, position, len(texts[0]))
        return tf.reduce_any(part == list(texts))

    # The first chunk of a PNG has the bits of a channel at byte 24. WebP has flags at
    # byte 20, of which bit 1 says that there are several images.
    flags = tf.io.decode_raw(tf.strings.substr(start, 20, 1), tf.uint8)[0]
    animated = at(8, b"WEBPVP8X") & (flags // 2 % 2 == 1)
    is_png, is_webp = at(0, b"\x89PNG"), at(8, b"WEBP")
    kinds = [
        (is_png & at(24, b"\x10"), lambda: _decode_deep(encoded, decoder)),
        # TensorFlow decodes animated WebP with an alpha channel only, and other WebP
        # with as many channels as it has.
        (animated, lambda: _decode_plain(encoded, 4)),
        (is_webp, lambda: _decode_plain(encoded, 0)),
        # TensorFlow takes the numbers of colours for shades of gray.
        (at(0, b"BM") & at(28, b"\x08"), lambda: _decode_palette(encoded)),
    ]
    if decoder.channels == 4:
        kinds.append((is_png, lambda: _decode_plain(encoded, 4)))
    if not portable:
        kinds.append((at(0, *_TIFF), lambda: _decode_tiff(encoded, decoder)))
    return tf.case(kinds, default=lambda: _decode_plain(encoded, 3))


def _upright(image, orientation):
    upright = tf.cond(
        orientation == 1, lambda: image, lambda: exif.upright(image, orientation)
    )
    return tf.ensure_shape(upright, [None, None, image.shape[-1]])


def _in_channels(image, channels):
    """Pixels of three or four channels as one, three or four, in a graph."""
    if channels == 3:
        image = image[..., :3]
    elif channels == 1:
        luma = tf.tensordot(tf.cast(image[..., :3], tf.float32), image_ops.LUMA, 1)
        image = tf.cast(tf.round(luma), tf.uint8)[..., tf.newaxis]
    else:
        opaque = 255 * tf.ones_like(image[..., :1])
        image = tf.concat([image, opaque], axis=-1)[..., :4]
    image.set_shape([None, None, channels])
    return image


def _decode_plain(encoded, channels):
    return tf.io.decode_image(encoded, channels=channels, expand_animations=False)


def _decode_palette(encoded):
    """A BMP of 8 bits: its table of colours begins behind the two headers."""
    numbers = tf.io.decode_bmp(encoded)[..., 0]
    size = tf.io.decode_raw(tf.strings.substr(encoded, 14, 4), tf.int32)[0]
    table = tf.strings.substr(encoded, 14 + size, 4 * 256) + b"\0" * 4 * 256
    table = tf.io.decode_raw(tf.strings.substr(table, 0, 4 * 256), tf.uint8)
    colours = tf.reshape(table, [256, 4])[:, 2::-1]  # stored as blue, green, red
    return tf.gather(colours, tf.cast(numbers, tf.int32))


def _decode_deep(encoded, decoder):
    values = tf.io.decode_png(encoded, channels=4, dtype=tf.uint16)
    values = tf.cast(values, tf.float32)
    alpha = tf.cast(tf.round(values[..., 3:] / 257), tf.uint8)
    return tf.concat([_scaled(values[..., :3], decoder), alpha], axis=-1)


def _decode_tiff(encoded, decoder):
    orient, mode = decoder.exif_orientation, "RGBA" if decoder.channels == 4 else "RGB"

    def read(encoded):
        return _read_tiff(encoded, orient, mode)

    values, deep = tf.numpy_function(
        read, [encoded], (tf.float32, tf.bool), stateful=False
    )
    return tf.cond(
        deep, lambda: _scaled(values, decoder), lambda: tf.cast(values, tf.uint8)
    )


def _read_tiff(encoded, orient, mode):
    """Pixels as float32 [height, width, 3 or 4], and whether these are over 8 bits."""
    from PIL import Image, ImageOps

    with Image.open(io.BytesIO(encoded), formats=["TIFF"]) as image:
        bits = image.tag_v2.get(_BITS, (8,))
        if orient:
            image = ImageOps.exif_transpose(image)
        deep = image.mode in _DEEP_MODES
        if not deep and max(bits) > 8:
            raise ValueError("Pillow keeps the upper eight bits of deep colours only.")
        pixels = np.asarray(image if deep else image.convert(mode), np.float32)
    if deep:
        pixels = np.nan_to_num(np.repeat(pixels[..., np.newaxis], 3, axis=-1))
    return pixels, np.bool_(deep)


def _scaled(values, decoder):
    """Values of more than 8 bits as uint8; what is outside of the range is clipped."""
    low, high = decoder.value_range or (tf.reduce_min(values), tf.reduce_max(values))
    span = tf.maximum(tf.cast(high - low, tf.float32), 1e-20)
    return tf.cast(
        tf.round(tf.clip_by_value((values - low) / span, 0, 1) * 255), "uint8"
    )


def decode_crops(encoded, boxes, sizes, flips, decoder=DEFAULT):
    """Crops of an encoded image, resized and flipped, in a graph.

    The pixels equal those of `views.resized_crop` on the whole image, rounded. Of a
    JPEG only the smallest window around all boxes is decoded.

    Args:
        encoded: scalar string tensor, the bytes of an image that `decode` takes.
        boxes: function of the image's height and width to an int32 tensor [crops, 4]:
            top, left, height, width in pixels.
        sizes: list of the sides of the results in pixels.
        flips: bool tensor [crops].
        decoder: `Decoder`.

    Returns:
        List of uint8 tensors [size, size, channels].
    """
    pixels, windows = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _decode_jpeg_window(encoded, boxes, decoder),
        lambda: _decode_whole(encoded, boxes, decoder),
    )
    crops = []
    for index, size in enumerate(sizes):
        top, left, height, width = tf.unstack(windows[index])
        crop = pixels[top : top + height, left : left + width]
        crops.append(_resized(crop, size, flips[index]))
    return crops


def _decode_whole(encoded, boxes, decoder):
    pixels = decode(encoded, decoder)
    height, width, _ = tf.unstack(tf.shape(pixels))
    return pixels, boxes(height, width)


def _decode_jpeg_window(encoded, boxes, decoder):
    orientation = decoder.orientation(encoded)
    sides = tf.io.extract_jpeg_shape(encoded)[:2]
    sides = tf.where(exif.swaps_sides(orientation), sides[::-1], sides)
    windows = boxes(sides[0], sides[1])
    corners = windows[:, :2]
    # JPEG stores colours at half the resolution and interpolates them. With one more
    # pixel to each side, the rest equals the whole image's.
    start = tf.maximum(tf.reduce_min(corners, axis=0) - 1, 0)
    end = tf.reduce_max(corners + windows[:, 2:], axis=0) + 1
    end = tf.minimum(end, sides)
    window = tf.concat([start, end - start], axis=0)
    stored = exif.stored_window(window, sides, orientation)
    pixels = tf.io.decode_and_crop_jpeg(encoded, stored, channels=3)
    pixels = _upright(_in_channels(pixels, decoder.channels), orientation)
    return pixels, tf.concat([corners - start, windows[:, 2:]], axis=1)


def _resized(image, size, flip):
    """Bilinear with antialiasing, rounded: uint8 [h, w, c] to uint8 [size, size, c].

    `tf.image.resize` takes 2.6 times as long, because it forms weighted sums of pixels
    of three numbers when it resizes rows. Here the image is transposed in between and
    both axes are resized as weighted sums of whole rows.
    """
    height, width, _ = tf.unstack(tf.shape(image))
    channels = image.shape[-1]
    columns = _resize_columns(tf.reshape(image, [height, width * channels]), size)
    rows = tf.reshape(tf.transpose(columns), [width, channels * size])
    rows = tf.reshape(_resize_columns(rows, size), [size, channels, size])
    return tf.ensure_shape(_pixels(rows, flip), [size, size, channels])


@image_ops.kernel
def _pixels(rows, flip):
    """Transposes [width, channels, height] to pixels [height, width, channels]."""
    rows = tf.where(flip, rows[::-1], rows)
    return tf.cast(tf.round(tf.transpose(rows, [2, 0, 1])), tf.uint8)


def _resize_columns(image, size):
    """Tensor [length, width] to float32 [size, width]."""
    length, width = tf.unstack(tf.shape(image))
    scale = tf.stack([size / tf.cast(length, tf.float32), 1.0])
    # An image of one column with all of a row in its channels.
    resized = tf.raw_ops.ScaleAndTranslate(
        images=tf.reshape(image, [1, length, 1, width]),
        size=[size, 1],
        scale=scale,
        translation=[0.0, 0.0],
        kernel_type="triangle",
        antialias=True,
    )
    return tf.reshape(resized, [size, width])
