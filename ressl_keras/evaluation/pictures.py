"""Pictures of images: tiles, grids with titles, maps of thumbnails."""

import io

import numpy as np
from PIL import Image, ImageDraw, ImageFont

from ressl_keras.data.images import Subset, in_channels
from ressl_keras.data.pipeline import evaluation_batches
from ressl_keras.files import replacing

# From the palette of Okabe and Ito, which people tell apart whatever colours they see.
SAME, OTHER, PLAIN = (0, 158, 115), (213, 94, 0), (160, 160, 160)
# Of text: as dark against white as it is light against black.
_INK = (118, 118, 118, 255)


def squares(images, indices, size):
    """Some images of a set as the squares that an encoder is given.

    Args:
        images: what `evaluation_batches` takes.
        indices: integer array [count].
        size: side in pixels.

    Returns:
        uint8 array [count, size, size, 3].
    """
    chosen = Subset(images, indices)
    batches = list(evaluation_batches(chosen, size))
    return shown(np.round(np.concatenate(batches)).astype(np.uint8))


def shown(pixels):
    """Pixels of one, three or four channels as colours on a screen."""
    return in_channels(pixels, 3)


def framed(image, colour, scale, width=3, margin=2):
    """An image enlarged, in a coloured frame with a white margin.

    Args:
        image: uint8 array [height, width, 3].
        colour: three numbers in 0-255.
        scale: how many pixels of the result a pixel of the image takes, integer.
        width: of the frame, in pixels.
        margin: in pixels.

    Returns:
        uint8 array, larger by `2 * (width + margin)` than the enlarged image.
    """
    image = np.repeat(np.repeat(image, scale, axis=0), scale, axis=1)
    framed = np.full([len(image) + 2 * width, image.shape[1] + 2 * width, 3], colour)
    framed[width:-width, width:-width] = image
    padding = ((margin, margin), (margin, margin), (0, 0))
    return np.pad(framed.astype(np.uint8), padding, constant_values=255)


def scaled(image, factor):
    """An image enlarged pixel by pixel, or made smaller with antialiasing.

    Args:
        image: uint8 array [height, width, 3].
        factor: positive number; from 1 on its whole part counts, so that every pixel
            stays a square.

    Returns:
        A `PIL.Image`.
    """
    image = Image.fromarray(image)
    factor = int(factor) if factor >= 1 else factor
    size = [max(round(side * factor), 1) for side in image.size]
    how = Image.Resampling.NEAREST if factor >= 1 else Image.Resampling.LANCZOS
    return image.resize(size, how)


def fitted(image, side):
    """An image scaled so that it just fits into a square.

    Args:
        image: uint8 array [height, width, 3].
        side: of the square, in pixels.

    Returns:
        A `PIL.Image`.
    """
    return scaled(image, side / max(image.shape[:2]))


def grid(columns, cell=128, gap=8):
    """Columns of pictures with a title above each.

    The ground is transparent and the text of a middle gray, to be read on white and
    on black.

    Args:
        columns: dict from title, of one or several lines, to a list of `PIL.Image`.
        cell: side in pixels of the square that a picture is centred in.
        gap: between two cells, in pixels.

    Returns:
        A `PIL.Image` with an alpha channel.
    """
    font = ImageFont.load_default(13)
    lines = max(title.count("\n") + 1 for title in columns)
    top = 18 * lines + gap
    rows = max(len(pictures) for pictures in columns.values())
    size = (len(columns) * (cell + gap) + gap, top + rows * (cell + gap))
    canvas = Image.new("RGBA", size, (0, 0, 0, 0))
    draw = ImageDraw.Draw(canvas)
    for column, (title, pictures) in enumerate(columns.items()):
        left = gap + column * (cell + gap)
        middle = (left + cell // 2, gap // 2)
        draw.multiline_text(middle, title, _INK, font, anchor="ma", align="center")
        for row, picture in enumerate(pictures):
            x = left + (cell - picture.width) // 2
            y = top + row * (cell + gap) + (cell - picture.height) // 2
            canvas.paste(picture, (x, y))
    return canvas


def indices_apart(points, apart):
    """Indices of points whose pictures do not overlap.

    Args:
        points: float array [count, 2].
        apart: distance, along either axis, that two pictures need.

    Returns:
        List of indices; a point is left out if an earlier one is too near.
    """
    taken = []
    for index, point in enumerate(points):
        distances = np.abs(points[taken] - point).max(axis=1)
        if (distances >= apart).all():
            taken.append(index)
    return taken


def scattered(images, points, side, thumbnail):
    """Pictures, each centred on its point of a square map.

    Args:
        images: uint8 array [count, size, size, 3].
        points: float array [count, 2] in 0-1, from the left and from the bottom.
        side: of the map, in pixels.
        thumbnail: side of the largest picture, in pixels.

    Returns:
        A `PIL.Image` with an alpha channel; the ground is transparent.
    """
    canvas = Image.new("RGBA", (side, side), (0, 0, 0, 0))
    for image, (x, y) in zip(images, points):
        picture = fitted(image, thumbnail)
        free = side - thumbnail
        corner = (round(x * free), round((1 - y) * free))
        canvas.paste(picture, corner)
    return canvas


def encoded(picture, kind="PNG", **options):
    """A picture's bytes as a file of the given kind would have them."""
    buffer = io.BytesIO()
    picture.save(buffer, kind, **options)
    return buffer.getvalue()


def save(picture, path):
    """Writes a PNG file."""
    with replacing(path) as temporary:
        picture.save(temporary, "PNG")


def views_grid(images, viewed, names, cell=128):
    """Images beside their views, one image a row.

    Args:
        images: list of uint8 arrays [height, width, 3].
        viewed: the teacher's views, then the student's: uint8 arrays
            [count, side, side, 3]. All are drawn at one scale, so that a smaller crop
            is a smaller picture.
        names: what kind of view each of them is, such as `weak`.
        cell: side of the largest picture, in pixels.

    Returns:
        A `PIL.Image`.
    """
    columns = {"image": [fitted(shown(image), cell) for image in images]}
    factor = cell / max(view.shape[1] for view in viewed)
    for number, (view, name) in enumerate(zip(viewed, names)):
        whose = "student" if number else "teacher"
        which = f" {number}" if number and len(viewed) > 2 else ""
        title = f"{whose}{which}\n{name}, {view.shape[1]} px"
        columns[title] = [scaled(shown(image), factor) for image in view]
    return grid(columns, cell)
