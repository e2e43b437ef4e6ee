"""Image files as the world has them: damaged, cut, lying, odd. Nothing here is random.

`hostile_images` makes some 300 of them. None is larger than 200 kB, and none declares
more than the decoders refuse by themselves or `MAX_PIXELS` does.
"""

import io
import struct
import zlib

import numpy as np
from PIL import Image

_ENDINGS = {"PNG": "png", "JPEG": "jpg", "GIF": "gif", "BMP": "bmp"}
_MAGICS = {
    "png": b"\x89PNG\r\n\x1a\n",
    "jpg": b"\xff\xd8\xff\xe0\x00\x10JFIF\x00",
    "gif": b"GIF89a",
    "bmp": b"BM",
    "webp": b"RIFF\x24\x00\x00\x00WEBPVP8 ",
    "tiff": b"II*\x00",
}


def saved(image, kind, **options):
    """An image file's bytes, by Pillow."""
    buffer = io.BytesIO()
    image.save(buffer, kind, **options)
    return buffer.getvalue()


def picture(width, height, mode="RGB", seed=0):
    """Coarse colours under noise, as Pillow has it."""
    random = np.random.default_rng(seed)
    coarse = random.integers(0, 256, [4, 4, 3]).astype(np.uint8)
    image = Image.fromarray(coarse).resize((width, height), Image.BILINEAR)
    noisy = np.asarray(image) // 2 + random.integers(0, 90, [height, width, 3])
    return Image.fromarray(noisy.astype(np.uint8)).convert(mode)


def chunk(name, content, checksum=None):
    """A chunk of a PNG file."""
    checksum = zlib.crc32(name + content) if checksum is None else checksum
    return (
        struct.pack(">I", len(content)) + name + content + struct.pack(">I", checksum)
    )


def png(width, height, depth=8, colors=2, interlaced=0, rows=b"", more=b""):
    """A PNG file with any header, and rows that need not fit to it."""
    header = struct.pack(">IIBBBBB", width, height, depth, colors, 0, 0, interlaced)
    content = chunk(b"IHDR", header) + more + chunk(b"IDAT", zlib.compress(rows))
    return _MAGICS["png"] + content + chunk(b"IEND", b"")


def hostile_images():
    """Dict from file name to bytes; the name says what is the matter."""
    found = {}
    for part in (_cut, _flipped, _disguised, _declared, _odd, _png_variants):
        found |= part()
    found |= _jpeg_variants() | _gif_variants() | _bmp_variants() | _noise()
    return found


def _wholes():
    images = {kind: saved(picture(40, 30), kind) for kind in _ENDINGS}
    return {_ENDINGS[kind]: content for kind, content in images.items()}


def _cut():
    found = {}
    for ending, content in _wholes().items():
        lengths = {0, 1, 2, 3, 4, 8, 12, 13, 16, 20, 24, 26, 33, 54}
        lengths |= {len(content) * part // 10 for part in range(1, 10)}
        lengths |= {len(content) - 1, len(content) - 2, len(content) - 12}
        for length in sorted(lengths):
            found[f"cut-{length:05}.{ending}"] = content[:length]
    return found


def _flipped():
    found = {}
    for ending, content in _wholes().items():
        for place in (0, 1, 5, 9, 14, 18, 22, 25, 28, 40, len(content) // 2):
            damaged = bytearray(content)
            damaged[place] ^= 0xFF
            found[f"flipped-{place:05}.{ending}"] = bytes(damaged)
    return found


def _disguised():
    """Files under the ending of another kind, or of none."""
    found, wholes = {}, _wholes()
    for ending in wholes:
        for other, content in wholes.items():
            found[f"is-{other}.{ending}"] = content
        found[f"text.{ending}"] = b"not an image\n" * 20
        found[f"page.{ending}"] = b"<!DOCTYPE html><title>404 Not Found</title>"
        found[f"zip.{ending}"] = b"PK\x03\x04" + bytes(200)
        found[f"zeros.{ending}"] = bytes(4096)
        found[f"line-break.{ending}"] = b"\n"
        found[f"twice.{ending}"] = content + content
        found[f"trailing.{ending}"] = content + bytes(range(256)) * 8
        found[f"leading.{ending}"] = b"\0" + content
    return found


def _declared():
    """Headers of sizes that nothing follows, or too little."""
    found = {}
    sides = [(0, 10), (10, 0), (0, 0), (16000, 16000), (65535, 65535), (2**20, 2**20)]
    sides += [(2**31 - 1, 1), (1, 2**31 - 1), (2**32 - 1, 2**32 - 1), (2**31, 2**31)]
    for width, height in sides:
        found[f"declared-{width}x{height}.png"] = png(width, height)
        bitmap = bytearray(saved(picture(2, 2), "BMP"))
        bitmap[18:26] = struct.pack("<II", width, height)
        found[f"declared-{width}x{height}.bmp"] = bytes(bitmap)
        gif = bytearray(saved(picture(2, 2, "P"), "GIF"))
        start = gif.rindex(b",\0\0\0\0\2\0\2\0")
        gif[start + 5 : start + 9] = struct.pack("<HH", width % 2**16, height % 2**16)
        found[f"declared-{width}x{height}.gif"] = bytes(gif)
        jpeg = bytearray(saved(picture(8, 8), "JPEG"))
        start = jpeg.index(b"\xff\xc0")
        jpeg[start + 5 : start + 9] = struct.pack(">HH", height % 2**16, width % 2**16)
        found[f"declared-{width}x{height}.jpg"] = bytes(jpeg)
    found["few-rows.png"] = png(500, 500, rows=bytes(1501) * 3)
    found["bomb.png"] = png(10, 10, rows=bytes(10**7))
    found["more-rows.png"] = png(3, 3, rows=bytes(10) * 300)
    return found


def _odd():
    """Shapes that exist."""
    found = {}
    for kind, ending in _ENDINGS.items():
        for width, height in [(1, 1), (1, 2), (20000, 1), (1, 20000), (3, 700)]:
            image = picture(width, height)
            found[f"shape-{width}x{height}.{ending}"] = saved(image, kind)
    return found


def _png_variants():
    found = {}
    for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16"):
        image = picture(20, 30, "L" if mode == "I;16" else "RGB")
        image = image.convert("I").convert("I;16") if mode == "I;16" else image
        image = image if mode == "I;16" else image.convert(mode)
        name = mode.replace(";", "-")
        found[f"mode-{name}.png"] = saved(image, "PNG")
    found["16-bit.png"] = png(5, 4, depth=16, rows=bytes(31) * 4)
    found["interlaced.png"] = png(4, 4, interlaced=1, rows=bytes(100))
    for depth, colors in [(3, 2), (8, 1), (8, 5), (16, 3), (255, 255)]:
        wrong = png(4, 4, depth=depth, colors=colors, rows=bytes(200))
        found[f"depth-{depth}-colours-{colors}.png"] = wrong
    found["no-palette.png"] = png(4, 4, colors=3, rows=bytes(20))
    text = chunk(b"zTXt", b"key\0\0" + zlib.compress(bytes(10**7)))
    found["text-bomb.png"] = png(4, 4, rows=bytes(13) * 4, more=text)
    profile = chunk(b"iCCP", b"name\0\0" + zlib.compress(bytes(10**6)))
    found["profile-bomb.png"] = png(4, 4, rows=bytes(13) * 4, more=profile)
    unknown = chunk(b"ABCD", b"critical")
    found["unknown-chunk.png"] = png(4, 4, rows=bytes(13) * 4, more=unknown)
    wrong = chunk(b"tEXt", b"key\0value", checksum=7)
    found["wrong-checksum.png"] = png(4, 4, rows=bytes(13) * 4, more=wrong)
    endless = b"\xff\xff\xff\xffIDAT"
    found["endless-chunk.png"] = png(4, 4, rows=b"", more=endless)
    return found


def _jpeg_variants():
    image, found = picture(40, 30), {}
    for mode in ("L", "CMYK"):
        found[f"mode-{mode}.jpg"] = saved(image.convert(mode), "JPEG")
    for sampling in (0, 1, 2):
        whole = saved(image, "JPEG", subsampling=sampling)
        found[f"sampling-{sampling}.jpg"] = whole
    progressive = saved(image, "JPEG", progressive=True)
    found["progressive.jpg"] = progressive
    found["progressive-cut.jpg"] = progressive[: len(progressive) * 2 // 3]
    garbage = b"Exif\0\0" + bytes(range(256)) * 100
    found["exif-garbage.jpg"] = saved(image, "JPEG", exif=garbage)
    whole = saved(image, "JPEG")
    found["exif-lies.jpg"] = whole[:2] + b"\xff\xe1\xff\xff" + whole[2:]
    found["no-tables.jpg"] = whole.replace(b"\xff\xc4", b"\xff\xee")
    found["no-end.jpg"] = whole[:-2]
    found["restarts.jpg"] = whole[:-2] + b"\xff\xd0\xff\xd1" * 50 + b"\xff\xd9"
    found["fill-bytes.jpg"] = whole[:2] + b"\xff" * 5000 + whole[3:]
    found["twelve-bits.jpg"] = whole.replace(
        b"\xff\xc0\x00\x11\x08", b"\xff\xc0\0\x11\x0c"
    )
    found["arithmetic.jpg"] = whole.replace(b"\xff\xc0", b"\xff\xc9")
    found["only-start-and-end.jpg"] = b"\xff\xd8\xff\xd9"
    return found


def _gif_variants():
    frames = [picture(30, 20, "P", seed) for seed in range(5)]
    options = {"save_all": True, "append_images": frames[1:]}
    whole = saved(frames[0], "GIF", **options)
    found = {
        "animated.gif": whole,
        "animated-cut.gif": whole[: len(whole) // 2],
        "animated-transparent.gif": saved(
            frames[0], "GIF", transparency=0, disposal=2, **options
        ),
        "comment.gif": saved(frames[0], "GIF", comment=b"," * 5000),
        "no-image.gif": b"GIF89a" + struct.pack("<HHBBB", 9, 9, 0, 0, 0) + b";",
        "no-palette.gif": b"GIF89a" + struct.pack("<HHBBB", 2, 2, 0, 0, 0) + b",",
        "old.gif": whole.replace(b"GIF89a", b"GIF87a"),
        "endless.gif": whole[:-1] + b"!\xfe" + b"\xff" * 3000,
        "many-frames.gif": whole[:-1] + _large_frame() * 300 + b";",
    }
    outside = bytearray(saved(picture(4, 4, "P"), "GIF"))
    start = outside.rindex(b",\0\0\0\0\4\0\4\0")
    outside[start + 1 : start + 5] = struct.pack("<HH", 60000, 60000)
    found["outside.gif"] = bytes(outside)
    return found


def _large_frame():
    """A frame that declares 50,000 pixels a side and has none."""
    return b"," + struct.pack("<HHHHB", 0, 0, 50000, 50000, 0) + b"\x02\x00"


def _bmp_variants():
    found, whole = {}, saved(picture(6, 5), "BMP")
    for mode in ("1", "L", "P"):
        found[f"mode-{mode}.bmp"] = saved(picture(6, 5, mode), "BMP")
    for name, place, value in (
        ("from-the-top", 22, struct.pack("<i", -5)),
        ("negative-width", 18, struct.pack("<i", -6)),
        ("lowest-height", 22, struct.pack("<i", -(2**31))),
        ("offset-behind", 10, struct.pack("<I", 10**6)),
        ("offset-in-header", 10, struct.pack("<I", 3)),
        ("compressed", 30, struct.pack("<I", 1)),
        ("depth-0", 28, struct.pack("<H", 0)),
        ("depth-16", 28, struct.pack("<H", 16)),
        ("depth-32", 28, struct.pack("<H", 32)),
        ("depth-65535", 28, struct.pack("<H", 65535)),
        ("old-header", 14, struct.pack("<I", 12)),
        ("long-header", 14, struct.pack("<I", 2**31)),
    ):
        found[f"{name}.bmp"] = whole[:place] + value + whole[place + len(value) :]
    return found


def _noise():
    """Random bytes behind the first bytes of each kind of file."""
    random, found = np.random.default_rng(0), {}
    for kind, magic in _MAGICS.items():
        for i, length in enumerate((10, 100, 1000, 20000)):
            content = magic + random.integers(0, 256, length).astype(np.uint8).tobytes()
            found[f"noise-{i}-{kind}.{kind if kind in 'pngjpgbmpgif' else 'jpg'}"] = (
                content
            )
    return found
