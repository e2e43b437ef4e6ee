"""EXIF orientation: read from an encoded image in a graph, and applied to pixels.

A camera held upright writes the pixels as its sensor lies and the turn as a number from
1 to 8. It is read in a graph, so that a SavedModel does what training does.
"""

import tensorflow as tf

_TAG = 0x0112  # of the orientation among the entries of an EXIF block
_MOST_ENTRIES = 64


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def read_orientation(encoded):
    """The orientation that an image's EXIF data states.

    Args:
        encoded: scalar string tensor, the bytes of a JPEG, PNG or WebP file.

    Returns:
        Scalar int32 tensor from 1 to 8; 1, upright, where nothing valid is stated.
    """
    start = tf.strings.substr(encoded, 0, 12) + b"\0" * 12

    def is_like(signature, at=0):
        return tf.strings.substr(start, at, len(signature)) == signature

    block = tf.case(
        [
            (is_like(b"\xff\xd8"), lambda: _find(encoded, 2, _jpeg_segment)),
            (is_like(b"\x89PNG"), lambda: _find(encoded, 8, _png_chunk)),
            (is_like(b"WEBP", 8), lambda: _find(encoded, 12, _webp_chunk)),
        ],
        default=lambda: tf.constant(-1),
    )
    return tf.cond(block < 0, lambda: 1, lambda: _orientation(encoded, block))


def swaps_sides(orientation):
    """Whether an upright image is as wide as the stored one is high."""
    return orientation >= 5


def upright(pixels, orientation):
    """Turns pixels [height, width, channels] as the orientation says."""
    pixels = tf.cond(
        swaps_sides(orientation),
        lambda: tf.transpose(pixels, [1, 0, 2]),
        lambda: pixels,
    )
    rows, columns = _mirrored(orientation)
    pixels = tf.cond(rows, lambda: pixels[::-1], lambda: pixels)
    return tf.cond(columns, lambda: pixels[:, ::-1], lambda: pixels)


def stored_window(window, sides, orientation):
    """The window of the stored pixels that becomes a window of the upright image.

    Args:
        window: int32 tensor [4] in the upright image: top, left, height, width.
        sides: int32 tensor [2]: height and width of the upright image.
        orientation: scalar from 1 to 8.

    Returns:
        int32 tensor [4].
    """
    top, left, height, width = tf.unstack(window)
    rows, columns = _mirrored(orientation)
    top = tf.where(rows, sides[0] - top - height, top)
    left = tf.where(columns, sides[1] - left - width, left)
    turned = tf.stack([left, top, width, height])
    plain = tf.stack([top, left, height, width])
    return tf.where(swaps_sides(orientation), turned, plain)


def _mirrored(orientation):
    """Whether rows and columns are reversed, after a transposition if there is one."""
    rows = tf.reduce_any(orientation == [3, 4, 7, 8])
    return rows, tf.reduce_any(orientation == [2, 3, 6, 7])


def _find(encoded, position, part):
    """Where the EXIF data of a file begins, or -1 if none is found.

    Args:
        encoded: the file.
        position: where its parts begin.
        part: function of the first ten bytes of a part to whether it holds EXIF data,
            the length of what precedes the data, and the length of the whole part, 0
            behind which none is looked for.
    """
    end = tf.strings.length(encoded)

    def more(position, found):
        return (found < 0) & (position < end)

    def look(position, found):
        holds, before, length = part(_bytes_at(encoded, position, 10))
        found = tf.where(holds, position + before, found)
        return tf.where(length > 0, position + length, end), found

    return tf.while_loop(more, look, (tf.constant(position), tf.constant(-1)))[1]


def _jpeg_segment(head):
    marker, length = head[1], 2 + 256 * head[2] + head[3]
    holds = (marker == 0xE1) & _same(head[4:10], b"Exif\0\0")
    # Applications' segments and comments come before the image.
    passed = (head[0] == 0xFF) & ((marker // 16 == 0xE) | (marker == 0xFE))
    return holds, 10, tf.where(passed, length, 0)


def _png_chunk(head):
    length = ((head[0] * 256 + head[1]) * 256 + head[2]) * 256 + head[3]
    last = _same(head[4:8], b"IDAT") | (length < 0)
    return _same(head[4:8], b"eXIf"), 8, tf.where(last, 0, 12 + length)


def _webp_chunk(head):
    length = ((head[7] * 256 + head[6]) * 256 + head[5]) * 256 + head[4]
    length = tf.where(length < 0, -8, length + length % 2)
    return _same(head[:4], b"EXIF"), 8, 8 + length


def _orientation(encoded, block):
    """The orientation in an EXIF block, which is laid out like a TIFF file."""
    named = _same(_bytes_at(encoded, block, 6), b"Exif\0\0")
    block = tf.where(named, block + 6, block)
    head = _bytes_at(encoded, block, 8)
    little = head[0] == ord("I")

    def number(digits):
        """Of bytes along the last axis, in the block's order."""
        digits = tf.where(little, digits[..., ::-1], digits)
        value = digits[..., 0]
        for place in range(1, digits.shape[-1]):
            value = 256 * value + digits[..., place]
        return value

    entries = block + number(head[4:8])
    count = number(_bytes_at(encoded, entries, 2))
    table = _bytes_at(encoded, entries + 2, 12 * _MOST_ENTRIES)
    table = tf.reshape(table, [_MOST_ENTRIES, 12])
    is_it = (number(table[:, :2]) == _TAG) & (tf.range(_MOST_ENTRIES) < count)
    value = tf.reduce_max(tf.where(is_it, number(table[:, 8:10]), 0))
    return tf.where((value >= 1) & (value <= 8), value, 1)


def _bytes_at(encoded, position, count):
    """Some bytes of a file as int32 [count]; zeros behind its end."""
    position = tf.clip_by_value(position, 0, tf.strings.length(encoded))
    part = tf.strings.substr(encoded, position, count) + b"\0" * count
    part = tf.io.decode_raw(tf.strings.substr(part, 0, count), tf.uint8)
    return tf.cast(tf.ensure_shape(part, [count]), tf.int32)


def _same(digits, text):
    return tf.reduce_all(digits == tf.constant(list(text), tf.int32))
