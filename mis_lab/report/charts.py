"""Small SVG charts with hand-made axes: text stays text, and colours follow the page's light or dark style.

Colours are style classes (``k-feature``, ``k-neuron``, ...) defined once in templates/chart.css; nothing here knows a
colour. Numbers are written with a fixed number of digits, so equal data give equal bytes.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from html import escape
from importlib.resources import files
from typing import SupportsFloat

import numpy as np
from markupsafe import Markup

from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.wording import MINUS, count, superscript


@dataclass(frozen=True)
class Scale:
    """Data values [low, high] to pixels [start, end]; `log` for a base-10 logarithmic axis."""

    low: float
    high: float
    start: float
    end: float
    log: bool = False

    def __call__(self, value: SupportsFloat) -> float:
        low, high, at = self.low, self.high, float(value)
        if self.log:
            low, high, at = math.log10(low), math.log10(high), math.log10(at)
        share = (at - low) / (high - low) if high > low else 0.5
        return self.start + share * (self.end - self.start)

    def ticks(self, about: int = 5) -> list[float]:
        """Round values inside the scale: powers of ten (and 2, 5 when those are few), or steps of 1, 2, 2.5, 5."""
        if self.log:
            first, last = math.floor(math.log10(self.low)), math.ceil(math.log10(self.high))
            for digits in ((1,), (1, 3), (1, 2, 5)):
                found = [d * 10.0**p for p in range(first, last + 1) for d in digits]
                found = [value for value in found if self.low * 0.999 <= value <= self.high * 1.001]
                if len(found) >= 3:
                    break
            every = max(1, math.ceil(len(found) / (about + 2)))
            return found[::every]
        raw = (self.high - self.low) / about
        if raw <= 0:
            return [self.low]
        power = 10.0 ** math.floor(math.log10(raw))
        step = next(nice * power for nice in (1, 2, 2.5, 5, 10) if nice * power >= raw * 0.999)
        first = math.ceil(self.low / step - 1e-9)
        last = math.floor(self.high / step + 1e-9)
        return [round(k * step, 12) + 0.0 for k in range(first, last + 1)]


class Svg:
    """One picture.

    Args:
        width, height: in pixels of its own; it shrinks with the page and never grows.
        title: said by screen readers, and on hovering.
        role: ``group`` for a picture whose parts can be focused, else ``img``.
        css: further style classes.
    """

    def __init__(self, width: int, height: int, title: str, role: str = "img", css: str = "") -> None:
        self.width, self.height, self.title, self.role, self.css = width, height, title, role, css
        self._parts: list[str] = []

    def add(self, tag: str, css: str = "", text: str | None = None, hint: str = "", **attributes: float | str) -> None:
        """Add an element; `hint` appears on hovering. Attribute names take ``_`` for ``-``."""
        inside = (f"<title>{escape(hint)}</title>" if hint else "") + (escape(text) if text is not None else "")
        given = _attributes(css, attributes)
        self._parts.append(f"<{tag}{given}>{inside}</{tag}>" if inside else f"<{tag}{given}/>")

    @contextmanager
    def group(self, css: str, **attributes: float | str) -> Iterator[None]:
        """What is added inside belongs together."""
        self._parts.append(f"<g{_attributes(css, attributes)}>")
        yield
        self._parts.append("</g>")

    def line(self, x1: float, y1: float, x2: float, y2: float, css: str) -> None:
        self.add("line", css, x1=x1, y1=y1, x2=x2, y2=y2)

    def text(
        self, x: float, y: float, text: str, css: str = "tick", anchor: str = "middle", **more: float | str
    ) -> None:
        self.add("text", css, text, "", x=x, y=y, text_anchor=anchor, **more)

    def path(self, points: Sequence[tuple[float, float]], css: str, closed: bool = False, hint: str = "") -> None:
        """A line through `points`, or an area when `closed`."""
        d = "M" + "L".join(f"{_plain(x)} {_plain(y)}" for x, y in points) + ("Z" if closed else "")
        self.add("path", css, hint=hint, d=d)

    def axis_label(self, x: float, y: float, term: str, anchor: str = "middle") -> None:
        """The name of an axis: the label of a glossary entry."""
        self.text(x, y, GLOSSARY[term].axis_label, "axis-label", anchor, data_term=term)

    def x_axis(self, scale: Scale, y: float, grid_to: float | None = None, about: int = 5) -> None:
        """Ticks with numbers below `y`, grid lines up to `grid_to`."""
        for value in scale.ticks(about):
            x = scale(value)
            if grid_to is not None:
                self.line(x, y, x, grid_to, "grid")
            self.text(x, y + 15, _tick(value))
        self.line(scale.start, y, scale.end, y, "axis")

    def y_axis(self, scale: Scale, x: float, grid_to: float | None = None, about: int = 5) -> None:
        """Ticks with numbers left of `x`, grid lines to `grid_to`."""
        for value in scale.ticks(about):
            y = scale(value)
            if grid_to is not None:
                self.line(x, y, grid_to, y, "grid")
            self.text(x - 6, y + 4, _tick(value), anchor="end")

    def render(self) -> Markup:
        """The ``<svg>`` element."""
        css = " ".join(["chart", *(["wide"] if self.width > 500 else []), *([self.css] if self.css else [])])
        size = f'viewBox="0 0 {self.width} {self.height}" width="{self.width}" height="{self.height}"'
        head = f'<svg class="{css}" {size} role="{self.role}" aria-label="{escape(self.title)}">'
        return Markup(head + "".join(self._parts) + "</svg>")


def stepped(counts: np.ndarray, edges: np.ndarray, x: Scale, base: float, height: float) -> list[tuple[float, float]]:
    """Outline of a histogram: points from the base line up, along the bars, and back down."""
    largest = counts.max() if counts.size and counts.max() > 0 else 1
    points = [(x(float(edges[0])), base)]
    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
        top = base - height * float(n) / largest
        points += [(x(float(low)), top), (x(float(high)), top)]
    return [*points, (x(float(edges[-1])), base)]


def _attributes(css: str, attributes: Mapping[str, float | str]) -> str:
    given = "".join(
        f' {name.replace("_", "-")}="{_plain(value) if isinstance(value, int | float) else escape(str(value))}"'
        for name, value in attributes.items()
    )
    return (f' class="{css}"' if css else "") + given


def _plain(value: float) -> str:
    return f"{value:.2f}".rstrip("0").rstrip(".") or "0"


def _tick(value: float) -> str:
    power = math.log10(abs(value)) if value else 0.0
    if power < -3.5 and math.isclose(power, round(power)):
        return f"10{superscript(round(power))}"
    return count(round(value)) if abs(value) >= 1000 else f"{value:.4g}".replace("-", MINUS)


def standalone(svg: str) -> str:
    """An ``<svg>`` element as a file of its own: namespace, colours and a background inside."""
    style = files("mis_lab.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    head, rest = svg.split(">", 1)
    paper = '<rect class="paper" width="100%" height="100%"/>'
    return f'{head} xmlns="http://www.w3.org/2000/svg"><style>{style}</style>{paper}{rest}\n'
