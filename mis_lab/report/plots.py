"""Points and lines in a frame with two axes, for charts whose ranges come from the data."""

from __future__ import annotations

import math
import sys
from collections.abc import Iterable, Sequence
from typing import NamedTuple

import numpy as np

from mis_lab.report.charts import Scale, Svg
from mis_lab.report.glossary import GLOSSARY

LOG_FROM = 5.0  # ratio of the largest to the smallest value above which an axis is logarithmic
PAD = 0.05
SHAPES = ("circle", "square", "diamond", "triangle")


class Axis(NamedTuple):
    """An axis that holds some values.

    Attributes:
        values: everything drawn along it; what is not finite is left out.
        term: glossary key of its name.
        label: its name where it is no number of the glossary (an option).
        log: None lets the values decide.
        from_zero: a linear axis starts at 0.
        ticks: (value, text) in place of round numbers.
    """

    values: Iterable[float]
    term: str = ""
    label: str = ""
    log: bool | None = None
    from_zero: bool = False
    ticks: Sequence[tuple[float, str]] = ()

    @property
    def name(self) -> str:
        return self.label or GLOSSARY[self.term].axis_label

    def scale(self, start: float, end: float) -> Scale:
        """From the values to pixels, with a little room on either side."""
        values = np.asarray(list(self.values), dtype=np.float64)
        values = values[np.isfinite(values)]
        low, high = (float(values.min()), float(values.max())) if values.size else (0.0, 1.0)
        log = low > 0 and high > LOG_FROM * low if self.log is None else self.log and low > 0
        if log:
            room = 10 ** (PAD * (math.log10(high) - math.log10(low))) if high > low else 1.5  # the ratio may overflow
            return Scale(max(low / room, sys.float_info.min), high * room, start, end, log=True)
        room = PAD * (high - low) or 0.5 * abs(high) or 1.0
        below = 0.0 if self.from_zero and low >= 0 else low - room
        return Scale(below, high + room, start, end)


class Plot:
    """A frame to draw into, its y axis named above it.

    Args:
        title: said by screen readers.
        x, y: what it must hold.
        width, height: in pixels.
    """

    def __init__(self, title: str, x: Axis, y: Axis, width: int = 340, height: int = 220) -> None:
        left, right, top, bottom = 50, 14, 26, 40
        self.svg = Svg(width, height, title)
        self.x, self.y = x.scale(left, width - right), y.scale(height - bottom, top)
        self.svg.y_axis(self.y, left, grid_to=width - right, about=4)
        if x.ticks:
            for value, text in x.ticks:
                self.svg.text(self.x(value), height - bottom + 15, text)
            self.svg.line(left, height - bottom, width - right, height - bottom, "axis")
        else:
            self.svg.x_axis(self.x, height - bottom, about=5)
        self._name(4, 14, y, "start")
        self._name((left + width - right) / 2, height - 7, x, "middle")

    def _name(self, at_x: float, at_y: float, axis: Axis, anchor: str) -> None:
        if axis.label:
            self.svg.text(at_x, at_y, axis.label, "axis-side", anchor)
        else:
            self.svg.axis_label(at_x, at_y, axis.term, anchor)

    def line(self, x: Sequence[float], y: Sequence[float], css: str, hint: str = "") -> None:
        """A line through the points that are on the axes; nothing through fewer than two."""
        points = [(self.x(px), self.y(py)) for px, py in zip(x, y, strict=True) if self.holds(px, py)]
        if len(points) > 1:
            self.svg.path(points, f"curve {css}", hint=hint)

    def band(self, x: Sequence[float], low: Sequence[float], high: Sequence[float], css: str) -> None:
        """The area between two lines, where both are on the axes; nothing through fewer than two points."""
        rows = [
            (self.x(px), self.y(bottom), self.y(top))
            for px, bottom, top in zip(x, low, high, strict=True)
            if self.holds(px, bottom) and self.holds(px, top)
        ]
        if len(rows) > 1:
            outline = [(px, bottom) for px, bottom, _ in rows] + [(px, top) for px, _, top in reversed(rows)]
            self.svg.path(outline, f"band {css}", closed=True)

    def point(self, x: float, y: float, css: str, hint: str = "", size: float = 3.2, shape: str = "circle") -> None:
        """A mark of an area that is the same for every shape."""
        if not self.holds(x, y):
            return
        self._shape(self.x(x), self.y(y), css, hint, size, shape)

    def _shape(self, cx: float, cy: float, css: str, hint: str, size: float, shape: str) -> None:
        if shape == "circle":
            self.svg.add("circle", f"dot {css}", hint=hint, cx=cx, cy=cy, r=size)
        else:
            outline = [(cx + size * dx, cy + size * dy) for dx, dy in _OUTLINES[shape]]
            self.svg.path(outline, f"dot {css}", closed=True, hint=hint)

    def spread(self, x: tuple[float, float, float], y: tuple[float, float, float], css: str) -> None:
        """Whiskers around a point: (middle, low, high) either way, drawn where they have a length."""
        if x[2] > x[1] and self.holds(x[1], y[0]) and self.holds(x[2], y[0]):
            self.svg.line(self.x(x[1]), self.y(y[0]), self.x(x[2]), self.y(y[0]), f"whisker {css}")
        if y[2] > y[1] and self.holds(x[0], y[1]) and self.holds(x[0], y[2]):
            self.svg.line(self.x(x[0]), self.y(y[1]), self.x(x[0]), self.y(y[2]), f"whisker {css}")

    def legend(self, entries: Sequence[tuple[str, str, str]]) -> None:
        """Name groups by (label, style class, shape) below the plot, which grows by as many rows as they need."""
        x, y = 12.0, self.svg.height + 12
        for label, css, shape in entries:
            width = 22 + 6.6 * len(label)
            if x > 12 and x + width > self.svg.width:
                x, y = 12.0, y + 18
            self._shape(x, y - 4, css, "", 4.0, shape)
            self.svg.text(x + 9, y, label, "tick", "start")
            x += width
        self.svg.height = round(y + 10)

    def holds(self, x: float, y: float) -> bool:
        """Whether a point can be drawn: finite, and above 0 on a logarithmic axis."""
        return bool(np.isfinite(x) and np.isfinite(y) and not (self.x.log and x <= 0) and not (self.y.log and y <= 0))


_OUTLINES = {
    "square": [(-0.9, -0.9), (0.9, -0.9), (0.9, 0.9), (-0.9, 0.9)],
    "diamond": [(0, -1.3), (1.3, 0), (0, 1.3), (-1.3, 0)],
    "triangle": [(0, -1.35), (1.2, 0.85), (-1.2, 0.85)],
}
