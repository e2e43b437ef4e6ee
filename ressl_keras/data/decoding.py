"""Decoding images, and only the part of them that crops need."""

import tensorflow as tf


def decode(encoded):
    """An encoded image (JPEG, PNG, GIF, BMP) as uint8 [height, width, 3], in a graph.

    Gray becomes RGB and an alpha channel is dropped.
    """
    image = tf.io.decode_image(encoded, channels=3, expand_animations=False)
    image.set_shape([None, None, 3])
    return image


def decode_crops(encoded, boxes, sizes, flips):
    """Crops of an encoded image, resized and flipped, in a graph.

    The pixels equal those of `views.resized_crop` on the whole image, rounded. Of a
    JPEG only the smallest window around all boxes is decoded.

    Args:
        encoded: scalar string tensor, the bytes of a JPEG, PNG, GIF or BMP file.
        boxes: function of the image's height and width to an int32 tensor [crops, 4]:
            top, left, height, width in pixels.
        sizes: list of the sides of the results in pixels.
        flips: bool tensor [crops].

    Returns:
        List of uint8 tensors [size, size, 3].
    """
    pixels, windows = tf.cond(
        tf.io.is_jpeg(encoded),
        lambda: _decode_jpeg_window(encoded, boxes),
        lambda: _decode_whole(encoded, boxes),
    )
    crops = []
    for index, size in enumerate(sizes):
        top, left, height, width = tf.unstack(windows[index])
        crop = pixels[top : top + height, left : left + width]
        crops.append(_resized(crop, size, flips[index]))
    return crops


def _decode_whole(encoded, boxes):
    pixels = decode(encoded)
    height, width, _ = tf.unstack(tf.shape(pixels))
    return pixels, boxes(height, width)


def _decode_jpeg_window(encoded, boxes):
    height, width, _ = tf.unstack(tf.io.extract_jpeg_shape(encoded))
    windows = boxes(height, width)
    corners = windows[:, :2]
    # JPEG stores colours at half the resolution and interpolates them. With one more
    # pixel to each side, the rest equals the whole image's.
    start = tf.maximum(tf.reduce_min(corners, axis=0) - 1, 0)
    end = tf.reduce_max(corners + windows[:, 2:], axis=0) + 1
    end = tf.minimum(end, tf.stack([height, width]))
    window = tf.concat([start, end - start], axis=0)
    pixels = tf.io.decode_and_crop_jpeg(encoded, window, channels=3)
    return pixels, tf.concat([corners - start, windows[:, 2:]], axis=1)


def _resized(image, size, flip):
    """Bilinear with antialiasing, rounded: uint8 [h, w, 3] to uint8 [size, size, 3].

    `tf.image.resize` takes 2.6 times as long, because it forms weighted sums of pixels
    of three numbers when it resizes rows. Here the image is transposed in between and
    both axes are resized as weighted sums of whole rows.
    """
    height, width, _ = tf.unstack(tf.shape(image))
    columns = _resize_columns(tf.reshape(image, [height, width * 3]), size)
    rows = tf.reshape(tf.transpose(columns), [width, 3 * size])
    rows = _resize_columns(rows, size)
    rows = tf.cond(flip, lambda: tf.reverse(rows, [0]), lambda: rows)
    # Transposing float32 is faster than transposing uint8.
    pixels = tf.transpose(tf.reshape(rows, [size, 3, size]), [2, 0, 1])
    return tf.cast(tf.round(pixels), tf.uint8)


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
