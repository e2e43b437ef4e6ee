"""How large an encoded image is, read from its header in a graph, without decoding.

A file of some hundred kilobytes can declare an image of gigabytes.
"""

import tensorflow as tf

# Parts of a GIF that are followed, of up to 255 bytes each, in five seconds. A block
# counts as four, which is what an empty one takes.
_MOST_PARTS = 200_000
_BLOCK = 4


def pixel_count(encoded):
    """Pixels that decoding an image allocates, as its header declares them.

    Of an animation the decoder keeps all frames at one byte a pixel, and one of them
    at three; so it counts as its largest frame, or as a third of all its frames if that
    is more. One of too many parts to follow counts as too large for any limit.

    Args:
        encoded: scalar string tensor, the bytes of a JPEG, PNG, GIF, BMP or WebP file.

    Returns:
        Scalar int64 tensor; 0 for anything else, which the decoder refuses.
    """
    start = tf.strings.substr(encoded, 0, 30)
    length = tf.strings.length(encoded)

    def is_like(signature, at_least):
        same = tf.strings.substr(start, 0, len(signature)) == signature
        return same & (length >= at_least)

    return tf.case(
        [
            (is_like(b"\x89PNG\r\n\x1a\n", 24), lambda: _png_pixels(start)),
            (is_like(b"GIF8", 13), lambda: _gif_pixels(encoded)),
            (is_like(b"BM", 26), lambda: _bmp_pixels(start)),
            (is_like(b"\xff\xd8\xff", 3), lambda: _jpeg_pixels(encoded)),
            (is_like(b"RIFF", 30), lambda: _webp_pixels(start)),
        ],
        default=lambda: tf.constant(0, tf.int64),
    )


def _png_pixels(start):
    sides = _bytes_of(start, 16, 8)
    return _big_endian(sides[:4]) * _big_endian(sides[4:])


def _bmp_pixels(start):
    # A negative height says that the rows come from the top.
    sides = tf.io.decode_raw(tf.strings.substr(start, 18, 8), tf.int32)
    sides = tf.abs(tf.cast(sides, tf.int64))
    return sides[0] * sides[1]


def _webp_pixels(start):
    """Of the canvas: three kinds of first chunk declare it in three ways.

    An animation has one canvas in memory, and TensorFlow decodes its first frame.
    """
    content = _bytes_of(start, 0, 30)
    kind = tf.strings.substr(start, 12, 4)

    def number(first, count, bits):
        digits = content[first : first + count]
        value = tf.reduce_sum(
            digits * tf.constant([2 ** (8 * i) for i in range(count)], tf.int64)
        )
        return value % 2**bits

    lossless = number(21, 4, 32)
    sides = {
        b"VP8 ": (number(26, 2, 14), number(28, 2, 14)),
        b"VP8L": (lossless % 2**14 + 1, lossless // 2**14 % 2**14 + 1),
        b"VP8X": (number(24, 3, 24) + 1, number(27, 3, 24) + 1),
    }
    pixels = [
        tf.where(kind == name, width * height, 0)
        for name, (width, height) in sides.items()
    ]
    return tf.add_n(pixels)


def _jpeg_pixels(encoded):
    shape = tf.cast(tf.io.extract_jpeg_shape(encoded), tf.int64)
    return shape[0] * shape[1]


def _gif_pixels(encoded):
    """Follows the blocks of the file, whose lengths stand before them."""
    # With room behind the end, so that nothing there needs a test of its own.
    content = tf.io.decode_raw(encoded, tf.uint8)
    content = tf.cast(tf.pad(content, [[0, 16]]), tf.int64)
    end = tf.cast(tf.strings.length(encoded), tf.int64)

    def color_table(flags):
        return tf.where(flags >= 128, 3 * 2 ** (flags % 8 + 1), 0)

    def block(position, left, largest, total):
        kind = content[position]
        sides = content[position + 5 : position + 9]
        pixels = (sides[0] + 256 * sides[1]) * (sides[2] + 256 * sides[3])
        is_image, is_extension = kind == 0x2C, kind == 0x21
        pixels = tf.where(is_image, pixels, 0)
        # An image's ten bytes, its colours and one byte more; an extension's two bytes.
        after = position + 11 + color_table(content[position + 9])
        after = tf.where(is_image, after, position + 2)
        # What is neither ends the file.
        after = tf.where(is_image | is_extension, after, end)
        after, left = _after_parts(content, after, end, left - _BLOCK)
        return after, left, tf.maximum(largest, pixels), total + pixels

    first = 13 + color_table(content[10])
    zero, left = tf.constant(0, tf.int64), tf.constant(_MOST_PARTS, tf.int64)
    _, left, largest, total = tf.while_loop(
        lambda position, left, *_: (position < end) & (left > 0),
        block,
        (first, left, zero, zero),
    )
    return tf.where(left > 0, tf.maximum(largest, total // 3), tf.int64.max)


def _after_parts(content, position, end, left):
    """Position behind a chain of parts, each with its length in front, the last 0.

    Returns:
        Tuple of the position and of how many more parts may be followed.
    """

    def more(position, left):
        inside = (position < end) & (left > 0)
        return inside & (content[tf.minimum(position, end)] > 0)

    def follow(position, left):
        return position + content[position] + 1, left - 1

    position, left = tf.while_loop(more, follow, (position, left))
    return position + 1, left


def _bytes_of(text, start, count):
    part = tf.io.decode_raw(tf.strings.substr(text, start, count), tf.uint8)
    return tf.cast(part, tf.int64)


def _big_endian(digits):
    return tf.reduce_sum(digits * tf.constant([2**24, 2**16, 2**8, 1], tf.int64))
