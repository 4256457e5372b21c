"""Charts of a sweep: trade-offs with their fronts, effects of options, paths of training, densities.

SAEs that differ in their seed alone are one point, their mean, with the standard deviation over seeds as whiskers.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.plots import SHAPES, Axis, Plot
from mis_lab.report.sae_data import STEP
from mis_lab.report.sweep import MEASURES, Sweep, SweptSae, as_number, by_setting, has_course, pareto_front
from mis_lab.report.wording import count, number, plural

N_COLOURS = 8
MOST_TICKS = 7
TRADE_OFFS = {"fvu": False, "recovered_mean": True}  # against L0; whether high is good
AGAINST = ("fvu", "l1", "l0")  # drawn against every option
EACH_OTHER = (("l1", "fvu"), ("l0", "l1"))  # FVU against L0 is a trade-off
LINEAR = ("recovered_zero", "recovered_mean", "agreement", "mis_median", "mis_mean")
L0 = "l0"


class Style(NamedTuple):
    """How a group of SAEs is drawn: its name, style class and shape of marks."""

    label: str
    css: str
    shape: str


class Point(NamedTuple):
    """SAEs of one setting: mean and standard deviation over seeds either way."""

    saes: Sequence[SweptSae]
    x: float
    y: float
    std_x: float
    std_y: float


@dataclass(frozen=True)
class SweepChart:
    """A chart of the sweep.

    Attributes:
        name: of its file.
        section: of the page: ``pareto``, ``options``, ``course`` or ``densities``.
        block: heading within the section (an option), empty for none.
        site: where.
        svg: the chart.
        legend: what its colours mean; empty where there is one group.
    """

    name: str
    section: str
    block: str
    site: str
    svg: Markup
    legend: Sequence[Style]


def charts(sweep: Sweep, with_legend: bool = False) -> list[SweepChart]:
    """Every chart that the sweep has data for; `with_legend` inside, for files that stand alone."""
    found = []
    styles = architecture_styles(sweep)
    legend = list(styles.values()) if len(styles) > 1 else []

    def add(section: str, block: str, name: str, site: str, plot: Plot | None, legend: Sequence[Style]) -> None:
        if plot is None:
            return
        if with_legend and legend:
            plot.legend([(style.label, style.css, style.shape) for style in legend])
        found.append(SweepChart(f"{name}_{site}", section, block, site, plot.svg.render(), legend))

    for measure, high in TRADE_OFFS.items():
        for site in sweep.sites:
            add("pareto", "", f"pareto_{measure}", site, pareto(sweep, site, measure, high), legend)
    for option in sweep.options:
        groups = other_styles(sweep, option)
        told = list(groups.values()) if len(groups) > 1 else []
        for site in sweep.sites:
            for measure in AGAINST:
                plot = against_option(sweep, site, option, measure, groups)
                add("options", option, f"{option}_{measure}", site, plot, told)
    for x, y in EACH_OTHER if len(sweep.saes) > len(sweep.sites) else ():
        for site in sweep.sites:
            add("options", "each other", f"{x}_{y}", site, relation(sweep, site, x, y), legend)
    paths = course_styles(sweep)
    told = list(paths.values()) if len(paths) > 1 else []
    for site in sweep.sites:
        add("course", "", "course", site, course(sweep, site, paths), told)
    for site in sweep.sites:
        add("densities", "", "densities", site, densities(sweep, site), legend)
    return found


def architecture_styles(sweep: Sweep) -> dict[str, Style]:
    """Architecture → its style."""
    return {name: _style(name, place) for place, name in enumerate(sweep.architectures)}


def other_styles(sweep: Sweep, option: str) -> dict[str, Style]:
    """Values of all options but one, in words → style; architectures, where no other option differs."""
    saes = [sae for sae in sweep.saes if sae.options[option]]
    return _styles(sweep, saes, option)


def course_styles(sweep: Sweep) -> dict[str, Style]:
    """Values of all options, in words → style; architectures, where colours would not do."""
    found = _styles(sweep, [sae for sae in sweep.saes if has_course(sae)])
    return found if len(found) <= N_COLOURS else architecture_styles(sweep)


def _styles(sweep: Sweep, saes: Sequence[SweptSae], but: str = "") -> dict[str, Style]:
    """What :func:`others` says of the SAEs → style, in the order of the options' values."""
    found = {others(sae, but): sae.options for sae in saes}

    def places(label: str) -> list[int]:
        order = {name: [*values, ""] for name, values in sweep.options.items() if name != but}
        return [values.index(found[label][name]) for name, values in order.items()]

    labels = sorted(found, key=lambda label: (places(label), label))
    return {label: _style(label, place) for place, label in enumerate(labels)}


def others(sae: SweptSae, option: str = "") -> str:
    """An SAE's values of all swept options but one (of all by default), in words."""
    told = [f"{name}={value}" for name, value in sae.options.items() if name != option and value]
    return ", ".join(told) or sae.architecture


def _style(label: str, place: int) -> Style:
    return Style(label, f"c-{place % N_COLOURS}", SHAPES[place % len(SHAPES)])


def pareto(sweep: Sweep, site: str, measure: str, high_is_good: bool) -> Plot | None:
    """A measure against L0, and the front of the SAEs that no other beats in both."""
    points = _points(sweep.at(site), lambda sae: sae.number(L0), lambda sae: sae.number(measure))
    if not points:
        return None
    plot = _frame(f"{label(measure)} against L0 at {site}", points, _axis(L0), _axis(measure))
    front = pareto_front([(point.x, point.y) for point in points], high_is_good)
    corners = [(points[front[0]].x, points[front[0]].y)]
    for before, after in pairwise(points[place] for place in front):
        corners += [(after.x, before.y), (after.x, after.y)]
    plot.line([x for x, _ in corners], [y for _, y in corners], "front")
    _mark(plot, points, architecture_styles(sweep), lambda sae: sae.architecture, set(front))
    return plot


def relation(sweep: Sweep, site: str, x: str, y: str) -> Plot | None:
    """One measure against another."""
    points = _points(sweep.at(site), lambda sae: sae.number(x), lambda sae: sae.number(y))
    if not points:
        return None
    plot = _frame(f"{label(y)} against {label(x)} at {site}", points, _axis(x), _axis(y))
    _mark(plot, points, architecture_styles(sweep), lambda sae: sae.architecture)
    return plot


def against_option(sweep: Sweep, site: str, option: str, measure: str, styles: Mapping[str, Style]) -> Plot | None:
    """A measure against an option, a line for each combination of the other options; SAEs that have no such option are
    left out."""
    saes = [sae for sae in sweep.at(site) if sae.options[option]]
    values = [value for value in sweep.options[option] if any(sae.options[option] == value for sae in saes)]
    if len(values) < 2:
        return None
    numbers = [as_number(value) for value in values]
    is_number = all(one is not None and np.isfinite(one) for one in numbers)
    places = dict(zip(values, numbers if is_number else range(len(values)), strict=True))
    points = _points(saes, lambda sae: float(places[sae.options[option]] or 0), lambda sae: sae.number(measure))
    if not points:
        return None
    ticks = [(float(place or 0), value) for value, place in places.items()]
    ticks = ticks if not is_number or len(ticks) <= MOST_TICKS else []
    x = Axis((), label=option, ticks=ticks, log=None if is_number else False)
    plot = _frame(f"{label(measure)} against {option} at {site}", points, x, _axis(measure))
    for words, style in styles.items() if is_number else ():
        line = sorted((point.x, point.y) for point in points if others(point.saes[0], option) == words)
        plot.line([px for px, _ in line], [py for _, py in line], f"joined {style.css}")
    _mark(plot, points, styles, lambda sae: others(sae, option))
    return plot


def course(sweep: Sweep, site: str, styles: Mapping[str, Style]) -> Plot | None:
    """FVU against L0 on held-out vectors in the course of training: a path an SAE, a mark at its end."""
    saes = [sae for sae in sweep.at(site) if has_course(sae)]
    if not saes:
        return None
    l0, fvu = (np.concatenate([sae.course[name] for sae in saes]) for name in ("l0", "fvu"))
    plot = Plot(
        f"FVU against L0 in the course of training at {site}", Axis(l0, "course_l0"), Axis(fvu, "course_fvu"),
        height=260,
    )  # fmt: skip
    for sae in saes:
        style = styles.get(others(sae)) or styles[sae.architecture]
        x, y, steps = (sae.course[name].tolist() for name in ("l0", "fvu", STEP))
        plot.line(x, y, f"joined {style.css}", _words([sae]))
        for px, py, step in list(zip(x, y, steps, strict=True))[:-1]:
            hint = f"{_words([sae])}, step {count(int(step))}: L0 {number(px)}, FVU {number(py)}"
            plot.point(px, py, f"small {style.css}", hint, size=1.8)
        hint = f"{_words([sae])}, at the end: L0 {number(x[-1])}, FVU {number(y[-1])}"
        plot.point(x[-1], y[-1], style.css, hint, 4, style.shape)
    return plot


def densities(sweep: Sweep, site: str) -> Plot | None:
    """Mean density by image against mean density by position; the line is where both are equal."""
    points = _points(sweep.at(site), lambda sae: sae.density, lambda sae: sae.image_density)
    if not points:
        return None
    title = f"Density by image against density by position at {site}"
    by_position = [point.x for point in points]  # on the other axis, too, so that the line of equals is in view
    x, y = Axis((), "mean_density", log=True), Axis(by_position, "mean_image_density", log=True)
    plot = _frame(title, points, x, y)
    ends = (max(plot.x.low, plot.y.low), min(plot.x.high, plot.y.high))
    plot.line(ends, ends, "equal")
    styles = architecture_styles(sweep)
    for name, style in styles.items():
        line = sorted((point.x, point.y) for point in points if point.saes[0].architecture == name)
        plot.line([x for x, _ in line], [y for _, y in line], f"joined {style.css}")
    _mark(plot, points, styles, lambda sae: sae.architecture)
    return plot


def _axis(measure: str) -> Axis:
    """Shares that may be negative stay linear whatever their values are, so that sites read alike."""
    return Axis((), MEASURES[measure].term, log=False if measure in LINEAR else None)


def label(measure: str) -> str:
    """A measure as in tables."""
    return GLOSSARY[MEASURES[measure].term].label


Value = Callable[[SweptSae], float]


def _points(saes: Sequence[SweptSae], x: Value, y: Value) -> list[Point]:
    """One point a setting, where both values are known."""
    found = []
    for group in by_setting(saes):
        known = [(x(sae), y(sae)) for sae in group]
        kept = np.array([pair for pair in known if np.isfinite(pair).all()])
        if len(kept):
            std = kept.std(0, ddof=1) if len(kept) > 1 else np.zeros(2)
            found.append(Point(group, *kept.mean(0).tolist(), *std.tolist()))
    return found


def _frame(title: str, points: Sequence[Point], x: Axis, y: Axis) -> Plot:
    """Axes that hold the points with their whiskers, where these do not reach below 0 on a logarithmic one."""

    def values(of: Sequence[tuple[float, float]]) -> list[float]:
        middles = [middle for middle, _ in of]
        ends = [end for middle, std in of for end in (middle - std, middle + std)]
        return [*middles, *(end for end in ends if end > 0 or min(middles) <= 0)]

    return Plot(
        title,
        x._replace(values=values([(point.x, point.std_x) for point in points])),
        y._replace(values=[*y.values, *values([(point.y, point.std_y) for point in points])]),
        height=260,
    )


def _mark(
    plot: Plot,
    points: Sequence[Point],
    styles: Mapping[str, Style],
    group_of: Callable[[SweptSae], str],
    strong: set[int] | None = None,
) -> None:
    """Draw points with whiskers; those whose place is not in `strong` are smaller, where it is given."""
    for place, point in enumerate(points):
        style = styles[group_of(point.saes[0])]
        plot.spread(
            (point.x, point.x - point.std_x, point.x + point.std_x),
            (point.y, point.y - point.std_y, point.y + point.std_y),
            style.css,
        )
        hint = f"{_words(point.saes)}: {_told(point.x, point.std_x)}; {_told(point.y, point.std_y)}"
        size = 3.2 if strong is not None and place not in strong else 4.4
        plot.point(point.x, point.y, style.css, hint, size, style.shape)


def _told(mean: float, std: float) -> str:
    return f"{number(mean)} ± {number(std)}" if std else number(mean)


def _words(saes: Sequence[SweptSae]) -> str:
    """Which SAEs: architecture, swept options, seeds."""
    options = [f"{name}={value}" for name, value in saes[0].options.items() if value]
    seeds = f"seed {saes[0].seed}" if len(saes) == 1 else plural(len(saes), "seed")
    return ", ".join([saes[0].architecture, *options, seeds])
