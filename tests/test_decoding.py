"""Decoding no more than the crops need, against Pillow and against the whole image."""

import io
import struct

import numpy as np
import pytest
import tensorflow as tf
from PIL import Image

from ressl_keras.data import decoding

BOXES = [[3, 5, 30, 41], [10, 0, 50, 23], [0, 20, 7, 8]]
SIZES = [16, 24, 16]


@pytest.fixture
def encoded(random):
    """Function from Pillow's options to the bytes of one and the same noise."""
    pixels = random.integers(0, 256, [61, 47, 3]).astype(np.uint8)

    def encode(kind, mode="RGB", **options):
        file = io.BytesIO()
        Image.fromarray(pixels).convert(mode).save(file, kind, **options)
        return file.getvalue()

    return encode


def crops(encoded, flips=(False, True, False)):
    results = decoding.decode_crops(
        tf.constant(encoded), lambda height, width: tf.constant(BOXES), SIZES, flips
    )
    return [result.numpy().astype(int) for result in results]


@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 90, "subsampling": 0}),
        ("JPEG", {"quality": 90, "subsampling": 1}),
        ("JPEG", {"quality": 90, "subsampling": 2}),
        ("JPEG", {"quality": 50, "progressive": True}),
        ("JPEG", {"mode": "L"}),
        ("PNG", {}),
        ("PNG", {"mode": "RGBA"}),
        ("BMP", {}),
        ("GIF", {}),
    ],
)
def test_crops_are_those_that_pillow_cuts_from_the_whole_image(kind, options, encoded):
    file = encoded(kind, **options)
    whole = Image.fromarray(decoding.decode(file).numpy())
    for index, result in enumerate(crops(file)):
        top, left, height, width = BOXES[index]
        crop = whole.crop((left, top, left + width, top + height))
        crop = crop.resize((SIZES[index],) * 2, Image.BILINEAR)
        expected = np.asarray(crop).astype(int)
        expected = expected[:, ::-1] if index == 1 else expected
        assert np.abs(result - expected).max() <= 1


@pytest.mark.parametrize("portable", [False, True])
@pytest.mark.parametrize("mode", ["P", "L"])
def test_a_bitmap_of_8_bits_has_its_colours(mode, portable, encoded):
    file = encoded("BMP", mode)
    found = decoding.decode(tf.constant(file), portable=portable)
    expected = Image.open(io.BytesIO(file)).convert("RGB")
    np.testing.assert_array_equal(found, np.asarray(expected))


def test_deep_colours_that_pillow_cuts_are_an_error_and_not_black(random):
    """A TIFF of three channels of 16 bits, which Pillow reads as eight."""
    values = random.integers(0, 4096, [4, 4, 3]).astype("<u2").tobytes()
    tags = [(256, 4), (257, 4), (262, 2), (273, 8), (277, 3), (278, 4), (279, 96)]
    behind = 8 + len(values)
    entries = [struct.pack("<HHIHH", tag, 3, 1, number, 0) for tag, number in tags]
    entries.insert(2, struct.pack("<HHII", 258, 3, 3, behind))
    entries.insert(3, struct.pack("<HHIHH", 259, 3, 1, 1, 0))
    directory = struct.pack("<H", len(entries)) + b"".join(entries) + b"\0" * 4
    bits = struct.pack("<HHH", 16, 16, 16)
    start = b"II*\0" + struct.pack("<I", behind + len(bits))
    file = start + values + bits + directory
    assert Image.open(io.BytesIO(file)).mode == "RGB"
    with pytest.raises(tf.errors.OpError, match="upper eight bits"):
        decoding.decode(tf.constant(file))


def test_boxes_are_asked_for_with_the_size_of_the_image(encoded):
    for kind in ("JPEG", "PNG"):
        seen = []

        def boxes(height, width, seen=seen):
            seen.append((int(height), int(width)))
            return tf.constant(BOXES[:1])

        decoding.decode_crops(tf.constant(encoded(kind)), boxes, [8], [False])
        assert seen == [(61, 47)]


def test_of_a_jpeg_only_the_window_around_the_boxes_is_decoded(encoded, monkeypatch):
    windows = []
    decode_and_crop = tf.io.decode_and_crop_jpeg

    def recorded(contents, window, **options):
        windows.append(window.numpy().tolist())
        return decode_and_crop(contents, window, **options)

    monkeypatch.setattr(tf.io, "decode_and_crop_jpeg", recorded)
    crops(encoded("JPEG"))
    # From (0, 0) to (60, 46), and one pixel more where the image has one.
    assert windows == [[0, 0, 61, 47]]
    windows.clear()
    decoding.decode_crops(
        encoded("JPEG"), lambda height, width: tf.constant([[20, 10, 9, 8]]), [8], [0]
    )
    assert windows == [[19, 9, 11, 10]]


def test_the_graph_decodes_and_crops_in_one_operation():
    @tf.function
    def read(file):
        return decoding.decode_crops(
            file, lambda height, width: tf.constant(BOXES), SIZES, tf.zeros([3], bool)
        )

    graph = read.get_concrete_function(tf.TensorSpec([], tf.string)).graph
    functions = graph.as_graph_def().library.function
    kinds = [{node.op for node in function.node_def} for function in functions]
    assert any("DecodeAndCropJpeg" in ops for ops in kinds)
    assert not any({"DecodeAndCropJpeg", "DecodeImage"} <= ops for ops in kinds)


def test_a_broken_file_is_an_error(encoded):
    whole = encoded("JPEG")
    for file in (whole[: len(whole) // 2], b"not an image", b""):
        with pytest.raises(tf.errors.InvalidArgumentError):
            crops(file)
