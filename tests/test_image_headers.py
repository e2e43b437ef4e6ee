"""Sizes as the headers declare them, and large images refused before decoding."""

import io
import os
import struct
import subprocess
import sys
import zlib

import keras
import numpy as np
import pytest
import tensorflow as tf
from conftest import ROOT
from PIL import Image

from ressl_keras.data import image_headers
from ressl_keras.data.image_headers import pixel_count
from ressl_keras.data.pipeline import center_crop
from ressl_keras.encoders.serving import ServingModule

# As the pipeline calls it; traced once.
traced_count = tf.function(pixel_count, input_signature=[tf.TensorSpec([], tf.string)])


def saved(image, kind, **options):
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def chunk(name, content):
    checksum = zlib.crc32(name + content)
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    )


def declared_png(width, height):
    """A PNG that declares a size and has no pixels."""
    header = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IEND", b"")


@pytest.mark.parametrize("size", [(1, 1), (7, 300), (300, 7), (640, 480)])
@pytest.mark.parametrize(
    "kind, options",
    [
        ("PNG", {}),
        ("JPEG", {}),
        ("JPEG", {"progressive": True, "exif": b"Exif\0\0" + bytes(500)}),
        ("GIF", {}),
        ("BMP", {}),
        ("WEBP", {}),
        ("WEBP", {"lossless": True}),
        ("WEBP", {"exif": b"Exif\0\0" + bytes(50)}),
    ],
)
def test_a_still_image_has_the_pixels_that_pillow_wrote(kind, options, size):
    image = Image.effect_noise(size, 50).convert("RGB")
    count = traced_count(saved(image, kind, **options))
    assert int(count) == size[0] * size[1]


@pytest.mark.parametrize("comment", [b"", b"," * 700])
@pytest.mark.parametrize("frames", [2, 3, 4, 10])
def test_an_animation_counts_a_third_of_its_frames(frames, comment):
    """Each frame is one byte a pixel where it is kept, three where it is returned."""
    images = [Image.effect_noise((50, 40), 20 + i) for i in range(frames)]
    options = {"save_all": True, "append_images": images[1:], "comment": comment}
    encoded = saved(images[0], "GIF", **options)
    assert Image.open(io.BytesIO(encoded)).n_frames == frames
    assert int(pixel_count(encoded)) == max(2000, 2000 * frames // 3)


@pytest.mark.parametrize(
    "part", [b"\x21\xf9\x00", b"\x21\xf9" + b"\x01," * 3 + b"\x00"]
)
def test_a_gif_of_too_many_parts_is_too_large_for_any_limit(part, monkeypatch):
    """Each takes microseconds, and a file of some megabytes has a million."""
    start = b"GIF89a" + struct.pack("<HHBBB", 8, 8, 0, 0, 0)
    monkeypatch.setattr(image_headers, "_MOST_PARTS", 100)
    assert int(pixel_count(start + 10 * part)) == 0
    assert int(pixel_count(start + 30 * part)) == np.iinfo(np.int64).max


@pytest.mark.parametrize("length", [0, 1, 3, 8, 13, 20, 26, 60, 500, 1500])
@pytest.mark.parametrize("kind", ["PNG", "GIF", "BMP"])
def test_a_file_that_ends_early_declares_what_it_has(kind, length):
    encoded = saved(Image.effect_noise((50, 40), 50), kind)[:length]
    assert int(pixel_count(encoded)) in (0, 2000)


@pytest.mark.parametrize("sides", [(16000, 16000), (2**31 - 1, 2), (65535, 65535)])
def test_a_header_is_believed_whatever_follows(sides):
    width, height = sides
    assert int(pixel_count(declared_png(width, height))) == width * height
    bitmap = bytearray(saved(Image.new("RGB", (2, 2)), "BMP"))
    bitmap[18:26] = struct.pack("<ii", width, -height)
    assert int(pixel_count(bytes(bitmap))) == width * height


@pytest.fixture(scope="module")
def serve():
    images = keras.Input([8, 8, 3])
    pooled = keras.layers.GlobalAveragePooling2D()(images)
    encoder = keras.Model(images, pooled)
    return ServingModule(encoder, 8, max_pixels=1000).serve_bytes


@pytest.mark.long
def test_images_above_the_limit_are_named_apart_from_undecodable_ones(serve):
    small = saved(Image.new("RGB", (25, 40)), "PNG")
    large = [
        saved(Image.new("RGB", (7, 143)), k) for k in ("PNG", "JPEG", "GIF", "BMP")
    ]
    assert serve(tf.constant([small, small]))["embedding"].shape == (2, 3)
    with pytest.raises(tf.errors.InvalidArgumentError) as caught:
        serve(tf.constant([small, *large]))
    assert "image_bytes at [1 2 3 4] have more than 1,000 pixels" in str(caught.value)
    with pytest.raises(
        tf.errors.InvalidArgumentError, match=r"at \[1\] cannot be deco"
    ):
        serve(tf.constant([small, b"nothing", small]))
    assert serve(tf.constant([small]))["embedding"].shape == (1, 3)


PROGRAM = """
import resource, keras, tensorflow as tf
from ressl_keras.encoders.serving import ServingModule
images = keras.Input([8, 8, 3])
pooled = keras.layers.GlobalAveragePooling2D()(images)
serve = ServingModule(keras.Model(images, pooled), 8, {limit}).serve_bytes
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
serve(tf.constant([tf.io.encode_png(tf.zeros([20, 20, 3], tf.uint8)).numpy()]))
before = peak()
try:
    serve(tf.constant([open("large.png", "rb").read()] * 4))
    print("answered")
except tf.errors.InvalidArgumentError:
    print("refused")
print((peak() - before) // 1024)
"""


@pytest.mark.parametrize(
    "limit, answer, megabytes",
    [("", "refused", 20), ("max_pixels=2**27", "answered", 900)],
)
@pytest.mark.long
def test_memory_stays_in_proportion_to_what_is_decoded(
    limit, answer, megabytes, tmp_path
):
    """Four images of 8,192 pixels a side are 768 MiB; in floats they were 3 GiB."""
    row = zlib.compress(bytes(1 + 3 * 8192) * 8193, 9)
    header = struct.pack(">IIBBBBB", 8192, 8193, 8, 2, 0, 0, 0)
    png = b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", header) + chunk(b"IDAT", row)
    (tmp_path / "large.png").write_bytes(png + chunk(b"IEND", b""))
    command = [sys.executable, "-c", PROGRAM.format(limit=limit)]
    done = subprocess.run(
        command,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
        capture_output=True,
        text=True,
    )
    found, peak = done.stdout.split()
    print(f"{found}, {peak} MiB above the start")
    assert found == answer and int(peak) < megabytes


@pytest.mark.parametrize("size", [8, 32, 96])
def test_the_central_square_is_that_of_the_image_in_floats(size, random):
    """TensorFlow resizes the whole, and its centre is cut out."""
    for height, width in [(5, 9), (33, 31), (64, 400), (333, 500), (1500, 1100)]:
        image = random.integers(0, 256, [height, width, 3]).astype(np.uint8)
        shorter = round(size * 8 / 7)
        scale = shorter / min(height, width)
        shape = [round(height * scale), round(width * scale)]
        whole = tf.image.resize(tf.cast(image, tf.float32), shape, antialias=True)
        top, left = ((side - size) // 2 for side in shape)
        expected = whole[top : top + size, left : left + size]
        found = center_crop(tf.constant(image), size)
        assert found.dtype == tf.float32
        np.testing.assert_allclose(found, expected, atol=0.01)  # of 255, in float32
        floats = center_crop(tf.cast(image, tf.float32), size)
        np.testing.assert_array_equal(found, floats)
