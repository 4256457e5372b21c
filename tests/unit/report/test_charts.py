"""Axes and shapes of the hand-made SVG."""

from __future__ import annotations

import xml.etree.ElementTree as ElementTree

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.report.charts import Scale, Svg, standalone, stepped


def test_a_scale_maps_its_ends_and_its_middle():
    assert [Scale(0, 10, 100, 300)(value) for value in (0, 5, 10)] == [100, 200, 300]
    assert Scale(0, 1, 300, 100)(0.25) == 250
    assert Scale(1, 10_000, 0, 100, log=True)(100) == pytest.approx(50)
    assert Scale(3, 3, 0, 100)(3) == 50


@given(st.floats(-1e5, 1e5), st.floats(1e-4, 1e5))
def test_ticks_of_a_linear_scale_are_few_even_and_inside(low, width):
    ticks = Scale(low, low + width, 0, 100).ticks()
    assert 2 <= len(ticks) <= 8
    rounding = 1e-9 * max(1, abs(low), width)
    assert min(ticks) >= low - rounding
    assert max(ticks) <= low + width + rounding
    assert np.allclose(np.diff(ticks), ticks[1] - ticks[0], rtol=1e-6)


@given(st.floats(-6, 5), st.floats(0.5, 8))
def test_ticks_of_a_logarithmic_scale_are_few_rising_and_inside(power, decades):
    low, high = 10**power, 10 ** (power + decades)
    ticks = Scale(low, high, 0, 100, log=True).ticks()
    assert 1 <= len(ticks) <= 9
    assert ticks == sorted(set(ticks))
    assert all(low * 0.998 <= tick <= high * 1.002 for tick in ticks)


def test_a_stepped_outline_encloses_the_counts():
    counts, edges = np.array([2, 0, 4]), np.array([0.0, 1, 2, 3])
    points = stepped(counts, edges, Scale(0, 3, 0, 30), base=100, height=40)
    x, y = np.array(points).T
    area = 0.5 * abs(np.dot(x, np.roll(y, 1)) - np.dot(y, np.roll(x, 1)))
    assert area == pytest.approx(10 * 40 * (2 / 4 + 0 + 1))
    assert points[0] == (0, 100)
    assert points[-1] == (30, 100)
    assert stepped(np.zeros(3), edges, Scale(0, 3, 0, 30), 100, 40)[1] == (0, 100)


def test_text_in_a_picture_is_escaped_and_the_file_stands_alone():
    svg = Svg(10, 10, 'a "title" & <more>')
    svg.text(1, 2, "<script>&")
    svg.add("circle", "dot", hint="1 < 2", cx=0.123456, cy=-0.0001, r=3)
    root = ElementTree.fromstring(standalone(svg.render()))
    assert root.tag == "{http://www.w3.org/2000/svg}svg"
    assert root.attrib["aria-label"] == 'a "title" & <more>'
    text = next(element for element in root.iter() if element.tag.endswith("}text"))
    assert text.text == "<script>&"
    circle = next(element for element in root.iter() if element.tag.endswith("}circle"))
    assert (circle.attrib["cx"], circle[0].text) == ("0.12", "1 < 2")
    assert "--feature" in next(element for element in root.iter() if element.tag.endswith("}style")).text


@pytest.mark.parametrize(
    ("value", "text"), [(1e-5, "10⁻⁵"), (0.001, "0.001"), (0.25, "0.25"), (-0.1, "−0.1"), (1500, "1\u202f500")]
)
def test_ticks_read_as_people_write_them(value, text):
    svg = Svg(10, 10, "")
    svg.x_axis(Scale(value, value, 0, 10), 5)
    assert f">{text}</text>" in svg.render()
