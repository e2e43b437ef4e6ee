"""Draws docs/images/method.png: python docs/draw_method.py

The images and their views are drawn shapes. The relations in the picture are computed
as the method does, at its temperatures, but from pixels in place of embeddings.
"""

import pathlib
import sys

import numpy as np
from matplotlib.figure import Figure
from matplotlib.patches import FancyArrowPatch

ROOT = pathlib.Path(__file__).parents[1]
sys.path.insert(0, str(ROOT))

from ressl_keras import strong_view, weak_view  # noqa: E402
from ressl_keras.data import shapes  # noqa: E402

TEACHER, STUDENT = "#3b76c4", "#c9622c"


def main(path):
    images, _ = shapes.render(40, seed=3, size=64)
    image, queue = images[:1], images[1:9]
    seen = {
        "teacher": view(weak_view(64, (0.5, 1.0)), image, 1),
        "student": view(strong_view(64, (0.5, 1.0)), image, 4),
    }
    figure = Figure(figsize=(9, 4.2), dpi=150)
    show(figure, (0.01, 0.36, 0.13, 0.28), image[0], "an image", "black")
    for name, bottom, colour, kind, temperature in (
        ("teacher", 0.62, TEACHER, "weak view", 0.04),
        ("student", 0.06, STUDENT, "strong view", 0.1),
    ):
        show(figure, (0.2, bottom, 0.13, 0.28), seen[name], kind, colour)
        box(figure, 0.43, bottom + 0.14, name, colour)
        relation = softmax(similarities(seen[name], queue) / temperature)
        bars(figure, (0.68, bottom, 0.22, 0.28), relation, f"{name}'s relation", colour)
        arrow(figure, (0.145, 0.5), (0.195, bottom + 0.14), colour)
        arrow(figure, (0.335, bottom + 0.14), (0.385, bottom + 0.14), colour)
        arrow(figure, (0.475, bottom + 0.14), (0.67, bottom + 0.14), colour)
        arrow(figure, (0.55, 0.5), (0.67, bottom + 0.14), "gray")
    for place, old in enumerate(queue):
        show(figure, (0.68 + 0.0275 * place, 0.47, 0.0255, 0.055), old, "", "gray")
    figure.text(0.545, 0.5, "queue of\npast images", ha="right", va="center", size=9)
    arrow(figure, (0.43, 0.56), (0.43, 0.4), "gray", "<|-")
    figure.text(0.425, 0.48, "running\naverage", ha="right", va="center", size=9)
    arrow(figure, (0.915, 0.76), (0.915, 0.2), "black")
    figure.text(0.925, 0.5, "learns to\nagree", va="center", size=9)
    figure.savefig(path, facecolor="white")


def view(layer, images, draw):
    """A view of the first image, as an image again."""
    seen = np.asarray(layer(images, training=True, seed=[0, draw]))[0]
    return np.clip(255 * (seen * layer.std + layer.mean), 0, 255).astype(np.uint8)


def similarities(image, queue):
    """Cosines of centred pixels, one for each image of the queue."""
    pixels = np.stack([image, *queue]).reshape(1 + len(queue), -1).astype(float)
    pixels -= pixels.mean(axis=1, keepdims=True)
    pixels /= np.linalg.norm(pixels, axis=1, keepdims=True)
    return pixels[1:] @ pixels[0]


def softmax(logits):
    exponentials = np.exp(logits - logits.max())
    return exponentials / exponentials.sum()


def show(figure, place, image, title, colour):
    axes = figure.add_axes(place, xticks=[], yticks=[])
    axes.imshow(image)
    axes.set_title(title, size=9, color=colour)
    for spine in axes.spines.values():
        spine.set_color(colour)


def box(figure, x, y, text, colour):
    style = {"boxstyle": "round,pad=0.6", "facecolor": "white", "edgecolor": colour}
    figure.text(x, y, text, ha="center", va="center", color=colour, bbox=style)


def bars(figure, place, heights, title, colour):
    axes = figure.add_axes(place, xticks=[], yticks=[], ylim=(0, 1))
    axes.bar(range(len(heights)), heights, color=colour)
    axes.set_title(title, size=9, color=colour)


def arrow(figure, start, end, colour, style="-|>"):
    figure.add_artist(
        FancyArrowPatch(start, end, arrowstyle=style, mutation_scale=9, color=colour)
    )


if __name__ == "__main__":
    main(sys.argv[1] if len(sys.argv) > 1 else ROOT / "docs" / "images" / "method.png")
