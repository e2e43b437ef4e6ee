"""Figures of a report, as SVG that takes its colours from the page it stands in.

They are small, so that a phone shows a column of them and a wide screen several side
by side.
"""

import html
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
    svg = svg.replace(COLOURS[0], adapting(COLOURS[0]))
    # Names are of the page, and every figure begins with the same ones.
    svg = re.sub(r'(\bid="|url\(#|href="#)', rf"\g<1>{name}-", svg)
    label = html.escape(alt)
    return svg.replace("<svg ", f'<svg role="img" aria-label="{label}" ', 1)


def adapting(colour):
    """A colour as CSS; the blue follows the page, being too dark on a dark one."""
    return f"var(--blue, {colour})" if colour == COLOURS[0] else colour


def curves(
    name, title, lines, unit="", guide=None, mark=None, size=(4.4, 2.5), **range_options
):
    """A few curves over the steps of a run.

    Args:
        name: as in all figures, of letters and digits, unique in the page.
        title: what the curves are.
        lines: dict from name of a curve to its list of (step, value).
        unit: of the values.
        guide: a value to mark by a dashed line, or None.
        mark: (step, words) of something that happened in the run, or None; without
            words a line alone.
        size: width and height in inches of 72 pixels.
        **range_options: further arguments of `value_range`.

    Returns:
        SVG, a string.
    """
    told = []
    for label, points in lines.items():
        first, last = points[0][1], points[-1][1]
        told.append(f"{label} from {first:.4g} to {last:.4g} {unit}".strip())
    last_step = max(points[-1][0] for points in lines.values())
    alt = f"{title} over steps: {'; '.join(told)}, at step {last_step}."
    if mark and mark[1]:
        alt += f" {mark[1]} at step {mark[0]}."
    values = [value for points in lines.values() for _, value in points]
    values += [] if guide is None else [guide]

    def draw(figure):
        axes = figure.add_subplot(xlabel="step", ylabel=unit)
        axes.locator_params(nbins=5)
        axes.set_xlim(0, 1.03 * max(last_step, 1))
        axes.set_ylim(*value_range(values, **range_options))
        for number, (label, points) in enumerate(lines.items()):
            marker = "o" if len(points) < 30 else ""
            colour = COLOURS[number % len(COLOURS)]
            dashes = ("-", "--", ":")[number // len(COLOURS) % 3]
            style = {"marker": marker, "ms": 3, "color": colour, "ls": dashes}
            axes.plot(*zip(*points), **style, label=label)
        if guide is not None:
            axes.axhline(guide, ls="--", lw=0.8, color=_INK, alpha=0.6)
        if mark:
            axes.axvline(mark[0], ls=":", lw=1, color=_INK, alpha=0.8)
            words = {"rotation": 90, "fontsize": 8, "ha": "right", "va": "top"}
            place = {"xy": (mark[0], 1), "xycoords": ("data", "axes fraction")}
            left = {"xytext": (-4, 0), "textcoords": "offset points"}
            axes.annotate(mark[1], **place, **left, **words)
        if len(lines) > 1:
            axes.legend()

    return _drawn(draw, name, size, alt)


def value_range(values, least=0.0, zero=False, most=None):
    """The range of an axis that does not blow noise up.

    Args:
        values: numbers to show; those that are not finite are left out.
        least: the smallest length of the range.
        zero: whether it begins at zero.
        most: the largest possible value, or None.

    Returns:
        Tuple of the lower and the upper end.
    """
    finite = [value for value in values if np.isfinite(value)] or [0.0]
    low, high = min(finite), max(finite)
    positive = low >= 0
    low = min(low, 0.0) if zero else low
    # A range of length zero is no axis.
    missing = max(least, 1e-3 * abs(high), 1e-12) - (high - low)
    if missing > 0:
        low, high = (low, high + missing) if zero else _widened(low, high, missing)
    margin = 0.05 * (high - low)
    low, high = low - (0.0 if zero and low == 0 else margin), high + margin
    if most is not None and high > most and max(finite) <= most:
        low, high = low - (0.0 if zero else high - most), most + 0.02 * (high - low)
    return (max(low, 0.0) if positive else low), high


def _widened(low, high, by):
    return low - by / 2, high + by / 2


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
