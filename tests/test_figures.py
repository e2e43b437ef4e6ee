"""Figures as a reader of the page gets them: text, colours of the page, and no more."""

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest

from ressl_keras.evaluation import figures

HOSTILE = '<script>alert("1")</script> & $x_2$ é'


def texts(svg):
    """The words in a figure, which has to be well-formed."""
    elements = ElementTree.fromstring(svg).iter()
    return [each.text.strip() for each in elements if each.tag.endswith("}text")]


def test_curves_tell_where_they_begin_and_end():
    lines = {"one entropy": [(10, 3.0), (20, 1.25)], "other": [(10, 2.0), (30, 4.0)]}
    svg = figures.curves("c", "Both", lines, "nats", guide=2.5)
    assert ElementTree.fromstring(svg).get("aria-label") == (
        "Both over steps: one entropy from 3 to 1.25 nats; other from 2 to 4 nats, at "
        "step 30."
    )
    assert {"step", "nats", "one entropy", "other"} <= set(texts(svg))


def test_a_single_point_is_drawn():
    (first, second) = (
        figures.curves("c", "x", {"x": points}) for points in ([(1, 2.0)], [(1, 7.0)])
    )
    assert first != second and first.count("<use") > 4


def test_what_happened_in_a_run_is_marked_and_told():
    lines = {"loss": [(0, 4.0), (100, 6.0)]}
    svg = figures.curves("c", "Loss", lines, mark=(50, "Relation from here"))
    assert "Relation from here at step 50." in ElementTree.fromstring(svg).get(
        "aria-label"
    )
    assert "Relation from here" in texts(svg)
    assert "Relation" not in figures.curves("c", "Loss", lines)


@pytest.mark.parametrize(
    "values, options, low, high",
    [
        # Noise of a tenth of a per cent lies flat on an axis of ten.
        ([0.10, 0.14], {"least": 10, "zero": True}, 0, 10.5),
        ([30.0, 50.0], {"least": 10, "zero": True}, 0, 52.5),
        ([60.0, 61.0], {"least": 10}, 55, 66),
        ([5.0, 7.0], {"least": 0.5}, 4.9, 7.1),
        ([98.0, 99.5], {"least": 10, "most": 100}, 89, 100.3),
        ([1.0, 2.0], {"least": 10}, 0, 7),  # never below zero without need
        ([-1.0, 3.0], {"zero": True}, -1.2, 3.2),
        ([float("nan"), 2.0, float("inf")], {"least": 2}, 0.9, 3.1),
        ([float("nan")], {"zero": True, "least": 1}, 0, 1.05),
    ],
)
def test_an_axis_is_no_shorter_than_what_matters(values, options, low, high):
    found = figures.value_range(values, **options)
    assert found == pytest.approx((low, high), abs=0.15)


@pytest.mark.parametrize("value", [0.0, 1e-9, 12345.0, -3.0])
def test_a_constant_has_an_axis_around_it(value):
    low, high = figures.value_range([value, value])
    assert low <= value < high or low < value <= high
    assert low < high


def test_more_curves_than_colours_differ_in_their_dashes():
    lines = {f"run {i}": [(1, 1.0 * i), (2, 2.0 * i)] for i in range(9)}
    svg = figures.curves("c", "Runs", lines)
    assert {f"run {i}" for i in range(9)} <= set(texts(svg))
    assert "stroke-dasharray" in svg


def test_figures_of_a_page_share_no_names():
    svgs = [figures.curves(name, "x", {"x": [(1, 1.0)]}) for name in ("a", "b")]
    names = [
        {each.get("id") for each in ElementTree.fromstring(svg).iter()} - {None}
        for svg in svgs
    ]
    assert names[0] and not names[0] & names[1]


def test_the_confusion_matrix_has_its_counts_in_their_places():
    counts = np.array([[5, 0, 2], [11, 7, 0], [0, 3, 13]])
    svg = figures.confusion("c", counts, ["a", "b", "c"])
    assert "60.98 %" in ElementTree.fromstring(svg).get("aria-label")  # 25 of 41
    found = [int(text) for text in texts(svg) if text.isdigit()]
    assert found == [5, 2, 11, 7, 3, 13]  # row by row, no zeros
    assert texts(svg)[:3] == ["a", "b", "c"]


@pytest.mark.parametrize("classes", [2, 30, 60])
def test_names_of_any_kind_and_many_classes_are_drawn(classes):
    names = [HOSTILE] + ["名" * 50] * (classes - 1)
    svg = figures.confusion("c", np.eye(classes, dtype=int), names)
    shown = texts(svg)
    assert "<script" not in svg and "$" not in "".join(shown).replace(HOSTILE, "")
    assert (figures.shortened(HOSTILE) in shown) == (classes <= 40)


def test_classes_differ_in_colour_or_shape():
    keys = [figures.key(label)[:2] for label in range(figures.MOST_CLASSES)]
    assert len(set(keys)) == figures.MOST_CLASSES
    points = np.random.default_rng(0).uniform(size=[50, 2])
    svg = figures.scatter("m", points, np.arange(50) % 10)
    assert "50 images of 10 classes" in svg and "data:image/png" in svg


def test_ink_is_the_colour_of_the_pages_text():
    svg = figures.curves("c", "x", {"x": [(1, 1.0), (2, 2.0)]})
    assert "currentColor" in svg and "#010203" not in svg and "#000000" not in svg
