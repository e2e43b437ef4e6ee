"""Figures of a report, as SVG that takes its colours from the page it stands in.

They are small, so that a phone shows a column of them and a wide screen several side
by side.
"""

import io
import re
import warnings

import matplotlib
import numpy as np
from matplotlib.figure import Figure

# The palette of Okabe and Ito, less its yellow and black, which vanish on white and on
# black. Where there are more classes than colours, the shape of the point says more.
COLOURS = ("#0072b2", "#e69f00", "#009e73", "#d55e00", "#cc79a7", "#56b4e9", "#8c8c8c")
MARKERS = {"o": "●", "^": "▲", "s": "■"}
MOST_CLASSES = len(COLOURS) * len(MARKERS)

_INK = "#010203"  # stands for the colour of the page's text
_STYLE = {
    "axes.edgecolor": _INK,
    "axes.grid": True,
    "axes.labelcolor": _INK,
    "axes.linewidth": 0.6,
    "axes.spines.right": False,
    "axes.spines.top": False,
    "font.family": "sans-serif",
    "font.size": 9,
    "grid.alpha": 0.15,
    "grid.color": _INK,
    "legend.frameon": False,
    "svg.fonttype": "none",  # text stays text
    "text.color": _INK,
    "text.parse_math": False,
    "xtick.color": _INK,
    "ytick.color": _INK,
}


def _drawn(draw, name, size, alt):
    """Draws a figure and returns it as SVG for a page of HTML.

    Args:
        draw: called with a `matplotlib.figure.Figure`.
        name: of letters and digits, another for every figure of the page.
        size: width and height in inches of 72 pixels.
        alt: what there is to see, in words.
    """
    file = io.StringIO()
    style = {**_STYLE, "svg.hashsalt": name}
    with matplotlib.rc_context(style), warnings.catch_warnings():
        # The reader's fonts will have them.
        warnings.filterwarnings("ignore", "Glyph .* missing from font")
        # Not pyplot: no display is needed, and no state is kept.
        figure = Figure(figsize=size, layout="constrained")
        draw(figure)
        nothing = dict.fromkeys(("Creator", "Date", "Format", "Type"))
        figure.savefig(file, format="svg", transparent=True, dpi=144, metadata=nothing)
    svg = file.getvalue()
    svg = svg[svg.index("<svg") :].replace(_INK, "currentColor")
    svg = svg.replace(COLOURS[0], f"var(--blue, {COLOURS[0]})")
    # Names are of the page, and every figure begins with the same ones.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    label = _escaped(alt)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def _escaped(text):
    for character, entity in (("&", "&amp;"), ("<", "&lt;"), ('"', "&quot;")):
        text = text.replace(character, entity)
    return text


def curves(name, title, lines, unit="", guide=None):
    """A few curves over the steps of a run.

    Args:
        name: as in all figures, of letters and digits, unique in the page.
        title: what the curves are.
        lines: dict from name of a curve to its list of (step, value).
        unit: of the values.
        guide: a value to mark by a dashed line, or None.

    Returns:
        SVG, a string.
    """
    told = []
    lines = {label.replace("_", " "): points for label, points in lines.items()}
    for label, points in lines.items():
        first, last = points[0][1], points[-1][1]
        told.append(f"{label} from {first:.4g} to {last:.4g} {unit}".strip())
    last_step = max(points[-1][0] for points in lines.values())
    alt = f"{title} over steps: {'; '.join(told)}, at step {last_step}."

    def draw(figure):
        axes = figure.add_subplot(xlabel="step", ylabel=unit)
        axes.locator_params(nbins=5)
        axes.set_xlim(0, 1.03 * last_step)
        for (label, points), colour in zip(lines.items(), COLOURS):
            marker = "o" if len(points) < 30 else ""
            style = {"marker": marker, "ms": 3, "color": colour, "label": label}
            axes.plot(*zip(*points), **style)
        if guide is not None:
            axes.axhline(guide, ls="--", lw=0.8, color=_INK, alpha=0.6)
        if len(lines) > 1:
            axes.legend()

    return _drawn(draw, name, (4.4, 2.5), alt)


def scatter(name, points, labels):
    """A map of points, each in the colour and shape of its class.

    Args:
        name: as in `curves`.
        points: float array [count, 2].
        labels: integer array [count], below `MOST_CLASSES`.

    Returns:
        SVG, a string.
    """

    size = min(max(20000 / len(points), 14), 60)

    def draw(figure):
        axes = figure.add_subplot(aspect="equal")
        axes.set_axis_off()
        for label in np.unique(labels):
            colour, marker, _ = key(label)
            own = points[labels == label]
            # As pixels: thousands of points would make a large file.
            axes.scatter(
                *own.T, size, colour, marker=marker, linewidths=0, rasterized=True
            )

    classes = len(np.unique(labels))
    alt = f"Map of {len(points)} images of {classes} classes as coloured points."
    return _drawn(draw, name, (6.5, 6.5), alt)


def key(label):
    """Colour, marker and the marker as a character, of a class in `scatter`."""
    marker = list(MARKERS)[label // len(COLOURS)]
    return COLOURS[label % len(COLOURS)], marker, MARKERS[marker]


def confusion(name, counts, class_names):
    """A confusion matrix: of each class's images, how many went to which class.

    Args:
        name: as in `curves`.
        counts: integer array [classes, classes], a row for each true class.
        class_names: list of strings.

    Returns:
        SVG, a string.
    """
    classes = len(counts)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1)
    side = min(max(0.36 * classes, 3), 6) + 1
    right = 100 * np.trace(counts) / max(counts.sum(), 1)
    alt = f"Confusion matrix of {classes} classes; {right:.2f} % lie on the diagonal."

    def draw(figure):
        axes = figure.add_subplot(xlabel="predicted", ylabel="true")
        axes.grid(False)
        blue = np.broadcast_to([0, 0.45, 0.7, 1], [classes, classes, 4]).copy()
        # The root shows small shares; on no more than this the text is legible.
        blue[..., 3] = 0.75 * np.sqrt(shares)
        axes.imshow(blue, interpolation="none")
        names = [shortened(class_name) for class_name in class_names]
        if classes <= 40:
            axes.set_xticks(range(classes), names, rotation=90, fontsize=8)
            axes.set_yticks(range(classes), names, fontsize=8)
        if classes <= 12:
            centred = {"ha": "center", "va": "center", "fontsize": 8}
            for (row, column), count in np.ndenumerate(counts):
                if count:
                    axes.text(column, row, count, **centred)

    return _drawn(draw, name, (side, side), alt)


def shortened(text, length=18):
    """A text cut to a length, with an ellipsis where something is missing."""
    return text if len(text) <= length else text[: length - 1] + "…"
