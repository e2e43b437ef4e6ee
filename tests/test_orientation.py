"""EXIF orientation, 16 bits, WebP and TIFF, against Pillow and NumPy."""

import io

import numpy as np
import pytest
import tensorflow as tf
import tiny
from PIL import Image, ImageOps

from ressl_keras.data import decoding, orientation
from ressl_keras.data.decoding import Decoder
from ressl_keras.data.images import EncodedImages
from ressl_keras.encoders.building import build_encoder
from ressl_keras.encoders.embed import encode
from ressl_keras.encoders.serving import save_saved_model

BOXES = [[3, 5, 30, 31], [10, 0, 35, 23], [0, 20, 7, 8]]
traced = tf.function(decoding.decode, input_signature=[tf.TensorSpec([], tf.string)])
read_orientation = tf.function(
    orientation.read_orientation, input_signature=[tf.TensorSpec([], tf.string)]
)


def decode(file):
    return traced(tf.constant(file))


def saved(image, kind, turn=None, **options):
    """The bytes of a file, with an orientation in its EXIF data."""
    file = io.BytesIO()
    if turn is not None:
        options["exif"] = Image.Exif()
        options["exif"][0x0112] = turn
        options["exif"][0x010F] = "A maker whose name is stored behind the entries"
    image.save(file, kind, **options)
    return file.getvalue()


def opened(encoded):
    return Image.open(io.BytesIO(encoded))


@pytest.fixture
def photo(random):
    """Noise, smooth enough that JPEG keeps it."""
    pixels = random.integers(0, 256, [12, 10, 3]).astype(np.uint8)
    return Image.fromarray(pixels).resize((47, 61), Image.BILINEAR)


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize(
    "kind, options",
    [
        ("JPEG", {"quality": 95, "subsampling": 0}),
        ("PNG", {}),
        ("WEBP", {"lossless": True}),
        ("TIFF", {}),
    ],
)
def test_an_image_stands_as_photo_tools_show_it(kind, options, turn, photo):
    file = saved(photo, kind, turn, **options)
    stored, shown = opened(file), ImageOps.exif_transpose(opened(file))
    near = 12 if kind == "JPEG" else 0  # TensorFlow's transform is fast and coarse
    found = decode(file).numpy().astype(int)
    assert np.abs(found - np.asarray(shown.convert("RGB"))).max() <= near
    plain = decoding.decode(file, Decoder(exif_orientation=False)).numpy().astype(int)
    assert np.abs(plain - np.asarray(stored.convert("RGB"))).max() <= near
    if kind != "TIFF":
        assert int(read_orientation(tf.constant(file))) == turn


@pytest.mark.parametrize("turn", range(1, 9))
@pytest.mark.parametrize("kind", ["JPEG", "PNG"])
def test_crops_are_cut_from_the_upright_image(kind, turn, photo):
    file = saved(photo, kind, turn)
    whole = Image.fromarray(decoding.decode(file).numpy())
    crops = decoding.decode_crops(
        tf.constant(file), lambda *_: tf.constant(BOXES), [8, 12, 8], [False] * 3
    )
    for crop, (top, left, height, width), size in zip(crops, BOXES, [8, 12, 8]):
        expected = whole.crop((left, top, left + width, top + height))
        expected = np.asarray(expected.resize([size, size], Image.BILINEAR))
        assert np.abs(crop.numpy().astype(int) - expected).max() <= 1


@pytest.mark.parametrize("order", [b"II*\0", b"MM\0*"])
def test_both_byte_orders_are_read_and_nonsense_is_upright(order, photo):
    def entry(value, where=8):
        kind = "little" if order[:1] == b"I" else "big"
        tag = b"".join(
            n.to_bytes(size, kind)
            for n, size in ((1, 2), (0x0112, 2), (3, 2), (1, 4), (value, 2), (0, 2))
        )
        return order + where.to_bytes(4, kind) + tag

    for block, expected in [
        (entry(6), 6),
        (entry(0), 1),
        (entry(9), 1),
        (entry(6, where=2**31 - 1), 1),
        (entry(6)[:12], 1),
    ]:
        file = saved(photo, "JPEG", exif=b"Exif\0\0" + block)
        assert int(read_orientation(tf.constant(file))) == expected


JFIF = b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0"
COMMENT = b"\xff\xfe\0\x06note"


@pytest.mark.parametrize(
    "before",
    [
        b"",
        JFIF,
        COMMENT,
        JFIF + COMMENT,
        COMMENT + JFIF,
        JFIF.replace(b"\x10", b"\x12") + b"xx",
    ],
)
def test_exif_data_is_found_behind_other_parts_of_a_jpeg(before, photo):
    start, image = b"\xff\xd8" + before, saved(photo, "JPEG")[2 + len(JFIF) :]
    exif = Image.Exif()
    exif[0x0112] = 6
    block = exif.tobytes()
    part = b"\xff\xe1" + (len(block) + 2).to_bytes(2, "big") + block
    for file, turn in ((start + part + image, 6), (start + image, 1)):
        assert opened(file).getexif().get(0x0112, 1) == turn
        assert int(read_orientation(tf.constant(file))) == turn


def test_lengths_that_sum_to_more_than_32_bits_lead_nowhere():
    """With sums of 32 bits the third leads to the first: it was read for ever."""
    long, none = (2**31 - 10).to_bytes(4, "little"), bytes(4)
    webp = b"RIFF" + long + b"WEBP" + none + long + long + bytes(40)
    png = b"\x89PNG\r\n\x1a\n" + b"\x7f\xff\xff\xf0eXIx" + bytes(40)
    for file in (webp, png, b"\xff\xd8" + b"\xff\xe0\x00\x02" * 20_000):
        assert int(read_orientation(tf.constant(file))) == 1


@pytest.mark.parametrize("kind", ["JPEG", "PNG", "WEBP", "GIF"])
def test_every_beginning_of_a_file_has_an_orientation(kind, photo):
    file = saved(photo, kind, **({} if kind == "GIF" else {"turn": 6}))
    for length in [*range(0, 60, 7), len(file) // 2]:
        assert int(read_orientation(tf.constant(file[:length]))) in (1, 6)


@pytest.mark.parametrize("kind", ["PNG", "TIFF"])
@pytest.mark.parametrize("highest", [65535, 4095, 700])
def test_sixteen_bits_keep_their_range(kind, highest, random):
    values = random.integers(300, highest + 1, [20, 30]).astype(np.uint16)
    values[0, :2] = 300, highest
    file = saved(Image.fromarray(values), kind)
    shares = (values - 300.0) / (highest - 300)
    found = decode(file).numpy()
    assert found.shape == (20, 30, 3)
    assert np.abs(found - 255 * shares[..., None]).max() <= 0.51
    fixed = decoding.decode(file, Decoder(value_range=(500, 600))).numpy()
    expected = 255 * np.clip((values - 500.0) / 100, 0, 1)[..., None]
    assert np.abs(fixed - expected).max() <= 0.51


def test_a_uniform_deep_image_is_black_and_floats_are_read(random):
    flat = Image.fromarray(np.full([4, 5], 900, np.uint16))
    assert not decode(saved(flat, "PNG")).numpy().any()
    floats = random.normal(size=[4, 5]).astype(np.float32)
    found = decode(saved(Image.fromarray(floats), "TIFF")).numpy()[..., 0]
    shares = (floats - floats.min()) / np.ptp(floats)
    assert np.abs(found - 255 * shares).max() <= 0.51


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK"])
def test_tiff_of_any_mode_is_what_pillow_shows(mode, photo):
    file = saved(photo.convert(mode), "TIFF")
    np.testing.assert_array_equal(decode(file), np.asarray(opened(file).convert("RGB")))


@pytest.mark.parametrize("mode", ["RGB", "RGBA"])
def test_webp_still_or_animated_is_its_first_image(mode, photo):
    photo = photo.convert(mode)
    for options in ({}, {"save_all": True, "append_images": [photo.rotate(90)]}):
        file = saved(photo, "WEBP", lossless=True, **options)
        np.testing.assert_array_equal(decode(file), np.asarray(photo.convert("RGB")))


def test_a_portable_graph_holds_no_python_and_refuses_tiff(photo):
    spec = tf.TensorSpec([], tf.string)
    portable = tf.function(lambda file: decoding.decode(file, portable=True))
    graph = portable.get_concrete_function(spec).graph.as_graph_def()
    kinds = {node.op for f in graph.library.function for node in f.node_def}
    assert not {kind for kind in kinds if "PyFunc" in kind}
    with pytest.raises(tf.errors.InvalidArgumentError):
        portable(saved(photo, "TIFF"))


@pytest.mark.long
def test_a_radiograph_has_one_embedding_in_evaluation_and_serving(random, tmp_path):
    """Gray, 12 of 16 bits, turned: against pixels prepared by Pillow and NumPy."""
    values = random.integers(0, 4096, [9, 9]).astype(np.uint16)
    values = np.kron(values, np.ones([4, 4], np.uint16))[:, :30]
    files = [saved(Image.fromarray(values), "PNG", turn) for turn in (1, 6, 3)]
    backbone = tiny.build_backbone(input_shape=(30, 30, 3))
    for layer in backbone.layers:
        layer.set_weights(
            [random.normal(size=w.shape) ** 2 for w in layer.get_weights()]
        )
    encoder = build_encoder(backbone)
    images = EncodedImages(files, in_memory=True)
    evaluated = encode(images, encoder, verbose=0)
    served = tf.saved_model.load(
        save_saved_model(encoder, 30, str(tmp_path), warmup=False)
    )
    answer = served.signatures["serve_bytes"](image_bytes=tf.constant(files))
    np.testing.assert_allclose(answer["embedding"], evaluated, rtol=1e-4)
    for file, found in zip(files, evaluated):
        pixels = np.asarray(ImageOps.exif_transpose(opened(file)), float)
        pixels = np.round(255 * (pixels - pixels.min()) / np.ptp(pixels)).astype(
            np.uint8
        )
        shown = Image.fromarray(pixels).convert("RGB")
        side = round(30 * 8 / 7)
        shape = [round(length * side / min(shown.size)) for length in shown.size]
        shown = np.asarray(shown.resize(shape, Image.BILINEAR))
        top, left = ((length - 30) // 2 for length in shown.shape[:2])
        expected = encoder(shown[None, top : top + 30, left : left + 30].astype(float))
        np.testing.assert_allclose(found, expected[0], rtol=0.02)
