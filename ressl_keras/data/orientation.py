"""EXIF orientation: read from an encoded image in a graph, and applied to pixels.

A camera held upright writes the pixels as its sensor lies and the turn as a number from
1 to 8. It is read in a graph, so that a SavedModel does what training does.
"""

import tensorflow as tf

_TAG = 0x0112  # of the orientation among the entries of an EXIF block
_MOST_ENTRIES = 64
_MOST_PARTS = 10_000  # of a file, so that a hostile one takes no longer than that
_ANY = -1
# Of JPEG, PNG and WebP: the head of a part that holds EXIF data, and what each byte of
# a head counts in the part's length.
_HEADS = (
    [_ANY, 0xE1, _ANY, _ANY, *b"Exif\0\0"],
    [_ANY, _ANY, _ANY, _ANY, *b"eXIf", _ANY, _ANY],
    [*b"EXIF", _ANY, _ANY, _ANY, _ANY, _ANY, _ANY],
)
_COUNTS = (
    [0, 0, 2**8, 1, 0, 0, 0, 0, 0, 0],
    [2**24, 2**16, 2**8, 1, 0, 0, 0, 0, 0, 0],
    [0, 0, 0, 0, 1, 2**8, 2**16, 2**24, 0, 0],
)
# How files begin in which the image follows the head at once, as most writers leave
# them: a JPEG with the usual head, one without, a PNG. Parts of the file by place.
_WITHOUT_EXIF = (
    [(0, b"\xff\xd8\xff\xe0\0\x10"), (20, b"\xff\xdb"), (0, b"")],
    [(0, b"\xff\xd8\xff\xdb"), (0, b""), (0, b"")],
    [(0, b"\x89PNG"), (8, b"\0\0\0\rIHDR"), (37, b"IDAT")],
)
_START = 41
# Where the first part begins, the bytes of a part beside its length, those before the
# EXIF data, and whether lengths are padded to even ones.
_PLACES = ([2, 2, 10, 0], [8, 12, 8, 0], [12, 8, 8, 1])


@tf.function(input_signature=[tf.TensorSpec([], tf.string)], autograph=False)
def read_orientation(encoded):
    """The orientation that an image's EXIF data states.

    Args:
        encoded: scalar string tensor, the bytes of a JPEG, PNG or WebP file.

    Returns:
        Scalar int32 tensor from 1 to 8; 1, upright, where nothing valid is stated.
    """

    def searched():
        start = tf.strings.substr(encoded, 0, 12) + b"\0" * 12

        def is_like(signature, at=0):
            return tf.strings.substr(start, at, len(signature)) == signature

        kinds = [is_like(b"\xff\xd8"), is_like(b"\x89PNG"), is_like(b"WEBP", 8)]
        block = _find(encoded, tf.reduce_any(kinds), tf.argmax(kinds))
        return tf.cond(block < 0, lambda: 1, lambda: _orientation(encoded, block))

    # The search takes longer than decoding a small image.
    return tf.cond(_states_nothing(encoded), lambda: 1, searched)


def _states_nothing(encoded):
    """Whether a file begins as one in which the image follows the head at once."""
    start = tf.strings.substr(encoded, 0, _START) + b"\0" * _START
    places = [[at for at, _ in parts] for parts in _WITHOUT_EXIF]
    texts = [[text for _, text in parts] for parts in _WITHOUT_EXIF]
    lengths = [list(map(len, parts)) for parts in texts]
    found = tf.strings.substr([[start]], places, lengths) == texts
    return tf.reduce_any(tf.reduce_all(found, axis=1))


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


def _find(encoded, known, kind):
    """Where the EXIF data of a file begins, or -1 if none is found.

    Args:
        encoded: the file.
        known: whether it is a JPEG, PNG or WebP, scalar bool tensor.
        kind: which of the three, scalar integer tensor.
    """
    head_of_exif = tf.gather(_HEADS, kind)
    counts = tf.gather(tf.constant(_COUNTS, tf.int64), kind)
    first, beside, before, padded = tf.unstack(
        tf.gather(tf.constant(_PLACES, tf.int64), kind)
    )
    anything = head_of_exif == _ANY
    end = tf.cast(tf.strings.length(encoded), tf.int64)
    size = len(_HEADS[0])
    content = encoded + b"\0" * size  # so that each head is a whole one

    def more(position, found):
        return (found < 0) & (position < end)

    def look(position, found):
        head = _numbers(tf.strings.substr(content, position, size), size)
        holds = tf.reduce_all(anything | (head == head_of_exif))
        # Four bytes can say more than 32 bits can.
        length = tf.reduce_sum(tf.cast(head, tf.int64) * counts)
        behind = position + length + beside + padded * (length % 2)
        behind = tf.where(_is_last(head, kind), end, tf.minimum(behind, end))
        return behind, tf.where(holds, position + before, found)

    start = tf.where(known, first, end), tf.constant(-1, tf.int64)
    found = tf.while_loop(more, look, start, maximum_iterations=_MOST_PARTS)[1]
    return tf.cast(found, tf.int32)


def _is_last(head, kind):
    """Whether the image itself begins, in a JPEG or a PNG."""
    # Before it a JPEG has segments of applications and comments.
    passed = (head[0] == 0xFF) & ((head[1] // 16 == 0xE) | (head[1] == 0xFE))
    return tf.where(kind == 0, ~passed, (kind == 1) & _same(head[4:8], b"IDAT"))


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
    return _numbers(tf.strings.substr(part, 0, count), count)


def _numbers(text, count):
    """The bytes of a string of known length as int32 [count]."""
    values = tf.io.decode_raw(text, tf.uint8)
    return tf.cast(tf.ensure_shape(values, [count]), tf.int32)


def _same(digits, text):
    return tf.reduce_all(digits == tf.constant(list(text), tf.int32))
