"""Frames hold what is drawn into them."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from mis_lab.report.plots import SHAPES, Axis, Plot

NUMBERS = st.lists(st.floats(-1e6, 1e6, allow_subnormal=False), min_size=1, max_size=6)


@given(NUMBERS)
@example([4.0, 2.2250738585072014e-308])
def test_every_value_lies_on_its_axis(values):
    scale = Axis(values, label="x").scale(50, 300)
    assert all(50 - 1e-6 <= scale(value) <= 300 + 1e-6 for value in values)


def test_an_axis_goes_logarithmic_when_values_are_positive_and_far_apart():
    assert Axis([1, 6], label="x").scale(0, 1).log
    assert not Axis([1, 5], label="x").scale(0, 1).log
    assert not Axis([0, 6], label="x").scale(0, 1).log
    assert not Axis([1, 6], label="x", log=False).scale(0, 1).log
    assert not Axis([-1, 6], label="x", log=True).scale(0, 1).log  # what cannot be
    assert Axis([2, 4], label="x", from_zero=True).scale(0, 1).low == 0
    assert Axis([], label="x").scale(0, 1).low < Axis([np.nan], label="x").scale(0, 1).high


def test_points_that_cannot_be_drawn_are_left_out():
    plot = Plot("p", Axis([1, 100], label="x"), Axis([1, 100], label="y"))
    plot.point(0, 5, "k-feature")
    plot.point(5, np.nan, "k-feature")
    plot.point(5, 5, "k-feature")
    plot.line([1, np.inf, 0, 10], [1, 2, 3, 10], "k-feature")
    plot.line([1], [1], "k-feature")
    plot.spread((5, -1, 11), (5, 5, 5), "k-feature")
    svg = plot.svg.render()
    assert svg.count("<circle") == 1
    assert svg.count('class="curve') == 1
    assert 'class="whisker' not in svg


def test_whiskers_end_where_the_spread_does():
    plot = Plot("p", Axis([0, 10], label="x", log=False), Axis([0, 10], label="y", log=False))
    plot.spread((5, 4, 7), (5, 5, 5), "k-feature")
    root = ElementTree.fromstring(plot.svg.render())
    (whisker,) = [one for one in root.iter("line") if "whisker" in one.attrib["class"]]
    ends = float(whisker.attrib["x1"]), float(whisker.attrib["x2"])
    assert ends == pytest.approx((plot.x(4), plot.x(7)), abs=0.01)


@pytest.mark.parametrize("shape", SHAPES)
def test_marks_of_every_shape_are_centred_and_about_as_large(shape):
    plot = Plot("p", Axis([0, 1], label="x"), Axis([0, 1], label="y"))
    plot.point(0.5, 0.5, "k-feature", shape=shape, size=10)
    (part,) = [part for part in plot.svg._parts if "dot" in part]
    if shape == "circle":
        return
    numbers = ElementTree.fromstring(part).attrib["d"].strip("MZ").split("L")
    corners = np.array([[float(value) for value in pair.split()] for pair in numbers])
    x, y = corners.T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert area == pytest.approx(np.pi * 100, rel=0.2)
    assert x.mean() == pytest.approx(plot.x(0.5), abs=0.1)


def test_a_legend_makes_the_picture_as_much_higher_as_it_needs():
    plot = Plot("p", Axis([0, 1], label="x"), Axis([0, 1], label="y"))
    before = plot.svg.height
    plot.legend([("one", "c-0", "circle")])
    one_row = plot.svg.height
    plot = Plot("p", Axis([0, 1], label="x"), Axis([0, 1], label="y"))
    plot.legend([(f"a long name of group {n}", f"c-{n}", "square") for n in range(4)])
    assert before < one_row < plot.svg.height
    heights = [float(part.split(' y="')[1].split('"')[0]) for part in plot.svg._parts if "a long name" in part]
    assert max(heights) < plot.svg.height
    assert len(set(heights)) > 1
