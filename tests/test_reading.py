"""One image as the encoder gets it, against Pillow and the functions of evaluation."""

import io

import numpy as np
import pytest
from PIL import Image

from ressl_keras import UsageError, read_image
from ressl_keras.data.images import EncodedImages
from ressl_keras.data.pipeline import evaluation_batches


@pytest.fixture
def photo(tmp_path, random):
    """A photograph of 60 by 40 pixels that is stored lying on its side."""
    coarse = random.integers(0, 256, [8, 12, 3]).astype(np.uint8)
    upright = Image.fromarray(coarse).resize((40, 60), Image.Resampling.BICUBIC)
    exif = Image.Exif()
    exif[274] = 6  # turn right to see it
    path = tmp_path / "photo.png"
    upright.rotate(90, expand=True).save(path, exif=exif)
    return path, np.asarray(upright)


def test_a_whole_image_is_what_pillow_reads(photo):
    path, upright = photo
    np.testing.assert_array_equal(read_image(path), upright)
    np.testing.assert_array_equal(read_image(path.read_bytes()), upright)
    lying = read_image(path, exif_orientation=False)
    np.testing.assert_array_equal(lying, np.asarray(Image.open(path)))


def test_an_image_is_brought_to_size_as_in_evaluation(photo):
    path, upright = photo
    (expected,) = next(iter(evaluation_batches(EncodedImages([str(path)]), 14)))
    found = read_image(path, 14)
    np.testing.assert_array_equal(found, expected)
    # Pillow: the shorter side to 16, bilinear with antialiasing, then the centre.
    resized = Image.fromarray(upright).resize((16, 24), Image.Resampling.BILINEAR)
    square = np.asarray(resized.crop((1, 5, 15, 19)), np.float32)
    assert found.dtype == np.float32 and np.abs(found - square).max() <= 1.01


def test_gray_and_alpha(tmp_path, random):
    pixels = random.integers(0, 256, [9, 8, 4]).astype(np.uint8)
    Image.fromarray(pixels).save(tmp_path / "alpha.png")
    np.testing.assert_array_equal(read_image(tmp_path / "alpha.png"), pixels[..., :3])
    found = read_image(tmp_path / "alpha.png", channels=4)
    np.testing.assert_array_equal(found, pixels)


def test_what_cannot_be_read_is_one_clear_line(tmp_path):
    (tmp_path / "note.jpg").write_text("not an image")
    buffer = io.BytesIO()
    Image.new("L", (3000, 3000)).save(buffer, "PNG")
    for source, message in (
        (tmp_path / "nothing.png", "nothing.png cannot be read: No such file"),
        (tmp_path / "note.jpg", "note.jpg cannot be decoded"),
        (b"", "The image cannot be decoded"),
    ):
        with pytest.raises(UsageError, match=message):
            read_image(source)
    with pytest.raises(UsageError, match="more than 1,000,000 pixels"):
        read_image(buffer.getvalue(), max_pixels=1_000_000)
