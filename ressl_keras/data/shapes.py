"""A labelled image set that is drawn, not downloaded: patterns of ten shapes.

Every image is a tiling of one shape, light on dark, with random tints, scale, angle
and offset, under noise. The colours say nothing of the class; the shape does.
"""

import numpy as np


def _crossed_bars(u, v):
    narrow, wide = np.minimum(abs(u), abs(v)), np.maximum(abs(u), abs(v))
    return np.maximum(narrow - 0.2, wide - 0.75)


# For each class, a field that is negative inside the shape; u, v in [-1, 1].
_SIGNED_DISTANCES = {
    "disc": lambda u, v: np.hypot(u, v) - 0.6,
    "ring": lambda u, v: abs(np.hypot(u, v) - 0.55) - 0.17,
    "square": lambda u, v: np.maximum(abs(u), abs(v)) - 0.55,
    "frame": lambda u, v: abs(np.maximum(abs(u), abs(v)) - 0.52) - 0.15,
    "triangle": lambda u, v: np.maximum(v * 0.5 + abs(u) * 0.866, -v) - 0.36,
    "plus": _crossed_bars,
    "cross": lambda u, v: _crossed_bars((u + v) / 2**0.5, (u - v) / 2**0.5),
    "star": lambda u, v: np.hypot(u, v) - (0.48 + 0.3 * np.cos(5 * np.arctan2(v, u))),
    "stripes": lambda u, v: abs(u) - 0.42,
    "crescent": lambda u, v: np.maximum(
        np.hypot(u, v) - 0.7, 0.6 - np.hypot(u - 0.35, v)
    ),
}
CLASS_NAMES = tuple(_SIGNED_DISTANCES)


def render(count, seed, size=32):
    """Draws `count` images with balanced classes in random order.

    Args:
        count: number of images.
        seed: integer seed; the same seed draws the same images.
        size: side of the images in pixels.

    Returns:
        Tuple of images, uint8 array [count, size, size, 3], and labels, int64 array
        [count] of indices into `CLASS_NAMES`.
    """
    random = np.random.default_rng(seed)
    labels = random.permutation(np.arange(count) % len(CLASS_NAMES))
    images = np.empty([count, size, size, 3], np.uint8)
    y, x = np.mgrid[:size, :size].astype(np.float32)
    for start in range(0, count, 512):
        part = labels[start : start + 512]
        images[start : start + 512] = _render_part(random, part, x, y, size)
    return images, labels.astype(np.int64)


def _render_part(random, labels, x, y, size):
    def draw(low, high, *shape):
        values = random.uniform(low, high, [len(labels), *shape]).astype(np.float32)
        return values.reshape(len(labels), 1, 1, *shape)

    period = size / draw(1.8, 3.0)  # pixels a tile
    angle = draw(-0.15, 0.15)  # radians
    turned_x = np.cos(angle) * x - np.sin(angle) * y
    turned_y = np.sin(angle) * x + np.cos(angle) * y
    u = 2 * ((turned_x / period + draw(0, 1)) % 1) - 1
    v = 2 * ((turned_y / period + draw(0, 1)) % 1) - 1
    field = np.empty_like(u)
    for label, distance in enumerate(_SIGNED_DISTANCES.values()):
        own = labels == label
        field[own] = distance(u[own], v[own])
    # One pixel is 2/period in the units of u and v: a soft edge of that width.
    cover = np.clip(0.5 - field * period / 2, 0, 1)[..., np.newaxis]
    # Light figures on dark ground, each tinted a little: enough to see, and no more
    # than the colour jitter of the strong view makes of it anyway. With free colours
    # an encoder without labels would sort these plain images by colour.
    one = draw(0.55, 1.0, 1) + draw(-0.08, 0.08, 3)
    other = draw(0.0, 0.35, 1) + draw(-0.08, 0.08, 3)
    pixels = cover * one + (1 - cover) * other
    pixels = pixels + random.normal(0, 0.03, pixels.shape)
    return np.round(np.clip(pixels, 0, 1, out=pixels) * 255)
