"""The page's charts: score distributions, differences with intervals, SAE density, faithfulness."""

# U units of a kind  F features  S circuit sizes

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import SupportsFloat

import numpy as np
from markupsafe import Markup

from mis_lab.core.files import write_text
from mis_lab.core.intervals import Interval
from mis_lab.report.charts import Scale, Svg, standalone, stepped
from mis_lab.report.data import ComparisonRow, FaithfulnessCurve, KindScores, ReportData, SiteSae
from mis_lab.report.wording import KINDS, MEASURES, NEGATIVES, count, fixed, interval, named, number, plural

KIND_ORDER = ("feature", "neuron", "sparse_neuron", "random_direction", "permuted")
SCORE_BIN = 0.025  # half the step of the hard score at 20 tasks, so that bars are not an accident of rounding
CHANCE = 0.5


def ordered(scores: Sequence[KindScores]) -> list[KindScores]:
    """Features, neurons, controls, then kinds of someone's own."""
    known = {kind: place for place, kind in enumerate(KIND_ORDER)}
    return sorted(scores, key=lambda one: known.get(one.kind, len(known)))


def kind_class(kind: str) -> str:
    """Style class of a kind's colour."""
    return f"k-{kind}" if kind in KIND_ORDER else "k-other"


def score_range(scores: Sequence[KindScores], negatives: Sequence[str], measure: str) -> tuple[float, float]:
    """One axis for all panels: from the lowest score (0.4 at most) to 1, on whole bars."""
    values = [one.of(kind, measure) for one in scores for kind in negatives]
    lowest = min((float(found.min()) for found in values if found.size), default=0.4)
    return SCORE_BIN * np.floor(min(lowest, 0.4) / SCORE_BIN), 1.0


def distributions(
    scores: Sequence[KindScores], site: str, negatives: str, measure: str, limits: tuple[float, float]
) -> Markup:
    """Histograms of the scores of every kind at a site, one above the other, with medians."""
    shown = [one for one in ordered(scores) if one.site == site and one.of(negatives, measure).size]
    row, top, left, right = 46, 26, 136, 54
    width, height = 480, top + row * len(shown) + 40
    words = f"{named(MEASURES, measure)} at {site}, {named(NEGATIVES, negatives)}"
    svg = Svg(width, height, f"Distribution of the {words}")
    x, base = Scale(*limits, left, width - right), top + row * len(shown)
    svg.x_axis(x, base, grid_to=top - 6)
    svg.line(x(CHANCE), base, x(CHANCE), top - 10, "chance")
    svg.text(x(CHANCE), top - 14, "chance")
    svg.text(width - right + 8, top - 14, "median", anchor="start", data_term="median_score")
    edges = np.arange(limits[0] - SCORE_BIN / 2, limits[1] + SCORE_BIN, SCORE_BIN)
    for place, one in enumerate(shown):
        values, foot, css = one.of(negatives, measure), top + row * (place + 1), kind_class(one.kind)
        counts, _ = np.histogram(values, edges)
        points = [(min(max(px, x.start), x.end), py) for px, py in stepped(counts, edges, x, foot, row - 8)]
        median = float(np.median(values))
        hint = f"{named(KINDS, one.kind)}: {count(values.size)} units, median {fixed(median, 3)}"
        svg.path(points, f"area {css}", closed=True, hint=hint)
        svg.line(x(median), foot, x(median), foot - row + 10, f"median {css}")
        svg.text(left - 10, foot - 15, named(KINDS, one.kind), f"row-label {css}", "end")
        svg.text(left - 10, foot - 2, f"{count(values.size)} units", "tick", "end")
        svg.text(width - right + 8, foot - 6, fixed(median), "row-value", "start")
    svg.axis_label((x.start + x.end) / 2, height - 6, measure)
    return svg.render()


def differences(rows: Sequence[ComparisonRow]) -> Markup:
    """Difference of means at every site: thick bar over units, thin line over groups of images."""
    blocks = list(dict.fromkeys(row.negatives for row in rows))
    sides = (f"← {named(KINDS, rows[0].b)} higher", f"{named(KINDS, rows[0].a)} higher →")
    step, head, half = 26, 26, 154
    # Room for the longest name, and for what stands below.
    left = max(128, round(7.2 * max(len(row.site) for row in rows)) + 20)
    right = max(24, round(6.6 * len(sides[1])) + 24 - half)
    width, height = left + 2 * half + right, head * len(blocks) + step * len(rows) + 44
    svg = Svg(width, height, "Differences of mean scores with 95 % intervals")
    bounds = [abs(v) for row in rows for v in (*row.mean_difference, *(row.mean_difference_groups or ())) if v == v]
    limit = max([0.02, *bounds]) * 1.08
    x, base = Scale(-limit, limit, left, width - right), height - 36
    svg.x_axis(x, base, grid_to=6)
    svg.line(x(0), base, x(0), 4, "zero")
    y = 0.0
    for negatives in blocks:
        y += head
        svg.text(4, y - 6, named(NEGATIVES, negatives), "block-label", "start")
        for row in (row for row in rows if row.negatives == negatives):
            y += step
            centre, css = y - 13, kind_class(row.winner) if row.winner else "k-none"
            units, over_groups = row.mean_difference, row.mean_difference_groups
            hint = f"{row.site}: {fixed(units.estimate, 3, True)}, over units {interval(units, 3, True)}"
            if over_groups is not None and over_groups.low == over_groups.low:
                svg.line(x(over_groups.low), centre, x(over_groups.high), centre, f"whisker {css}")
                hint += f", over groups {interval(over_groups, 3, True)}"
            svg.add(
                "rect", f"bar {css}", x=x(units.low), y=centre - 4, width=x(units.high) - x(units.low), height=8, rx=2
            )
            svg.add("circle", f"dot {css}", hint=hint, cx=x(units.estimate), cy=centre, r=5)
            svg.text(left - 12, centre + 4, row.site, "row-label", "end")
    svg.text(max(x(0) - 20 - 6.2 * len(sides[0]), 4), base + 31, sides[0], "axis-side", "start")
    svg.text(x(0) + 20, base + 31, sides[1], "axis-side", "start")
    return svg.render()


def density(sae: SiteSae) -> Markup:
    """Histogram of the features' densities on a logarithmic axis; dead features as a bar of their own."""
    values = np.asarray(sae.density_f, dtype=np.float64)
    alive, n_dead = values[values > 0], int((values == 0).sum())
    width, height, left, bottom = 340, 180, 44, 40
    svg = Svg(width, height, f"Densities of the {count(values.size)} features at {sae.site}")
    lowest = 10.0 ** np.floor(np.log10(alive.min())) if alive.size else 1e-3
    x = Scale(float(lowest), 1.0, left + 34, width - 12, log=True)
    edges = np.logspace(np.log10(lowest), 0, 1 + 5 * max(1, round(-np.log10(lowest))))
    counts, _ = np.histogram(alive, edges)
    y = Scale(0, max(int(counts.max()), n_dead, 1), height - bottom, 12)
    svg.y_axis(y, left, grid_to=width - 12, about=3)
    svg.x_axis(x, height - bottom, about=4)
    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
        if n:
            hint = f"{count(int(n))} features fire on {number(low, 2)} to {number(high, 2)} of the vectors"
            svg.add(
                "rect",
                "bar k-feature",
                hint=hint,
                x=x(low) + 0.5,
                y=y(n),
                width=x(high) - x(low) - 1,
                height=y(0) - y(n),
            )
    svg.add(
        "rect",
        "bar k-none",
        hint=f"{count(n_dead)} dead features",
        x=left + 6,
        y=y(n_dead),
        width=16,
        height=y(0) - y(n_dead),
    )
    svg.text(left + 14, height - bottom + 15, "0")
    svg.axis_label((left + width) / 2, height - 6, "density")
    return svg.render()


def faithfulness(curves: Sequence[FaithfulnessCurve], n_shown: int | None = None) -> Markup:
    """Faithfulness against the number of nodes kept, with intervals; `n_shown` marks the pictured circuit."""
    width, height, left, bottom, top = 560, 340, 46, 46, 16
    svg = Svg(width, height, "Faithfulness of circuits against their size, on evaluation images")
    sizes = np.concatenate([np.asarray(curve.n_nodes) for curve in curves])
    bounds = np.concatenate([np.concatenate([curve.low, curve.high, curve.faithfulness]) for curve in curves])
    bounds = bounds[np.isfinite(bounds)]
    x = Scale(1, float(max(sizes.max(), 2)), left, width - 20, log=True)
    y = Scale(max(min(-0.05, bounds.min()), -1.5), min(max(1.08, bounds.max() * 1.03), 2.5), height - bottom, top)

    def clipped(value: float) -> float:
        return y(min(max(value, y.low), y.high))

    svg.y_axis(y, left, grid_to=width - 20)
    svg.x_axis(x, height - bottom, grid_to=top)
    for level, words in ((0.0, "every node ablated"), (1.0, "the whole network")):
        svg.line(left, y(level), width - 20, y(level), "zero")
        svg.text(width - 24, y(level) - 5, words, "tick", "end")
    if n_shown is not None:
        svg.line(x(n_shown), height - bottom, x(n_shown), top, "chance")
        svg.text(x(n_shown) + 5, top + 10, f"pictured: {n_shown}", "tick", "start")
    for curve in curves:
        keep = (np.asarray(curve.n_nodes) > 0) & np.isfinite(curve.faithfulness)
        rows = list(
            zip(
                *(np.asarray(part)[keep] for part in (curve.n_nodes, curve.faithfulness, curve.low, curve.high)),
                strict=True,
            )
        )
        css = f"{kind_class(curve.kind)} {selection_class(curve.selection)}"
        known = [(x(n), clipped(low), clipped(high)) for n, _, low, high in rows if np.isfinite(low + high)]
        band = [(at, low) for at, low, _ in known] + [(at, high) for at, _, high in reversed(known)]
        if band:
            svg.path(band, f"band {css}", closed=True)
        svg.path([(x(n), clipped(value)) for n, value, _, _ in rows], f"curve {css}")
        for n, value, low, high in rows:
            limits = interval(Interval(value, low, high))
            hint = f"{curve_name(curve)}: {plural(int(n), 'node')}, {fixed(value)} {limits}"
            svg.add("circle", f"dot {css}", hint=hint, cx=x(n), cy=clipped(value), r=3.2)
    svg.axis_label((left + width - 20) / 2, height - 8, "n_nodes")
    return svg.render()


def curve_name(curve: FaithfulnessCurve) -> str:
    """A curve in words."""
    by = {"effect": "by effect", "random": "at random", "by_change": "by change"}.get(curve.selection, curve.selection)
    return f"{named(KINDS, curve.kind)}, {by}"


def selection_class(selection: str) -> str:
    """Style class of how the nodes of a curve were chosen."""
    return f"s-{selection}" if selection in ("effect", "random") else "s-other"


def node_glyph(kind: str, effect: float, largest: float) -> Markup:
    """A node of the pictured circuit: area follows |effect|, colour its sign; an error node is a diamond."""
    svg = Svg(44, 44, f"effect {fixed(effect, 3, True)}")
    radius, css = 5 + 15 * (abs(effect) / largest if largest > 0 else 0) ** 0.5, "pos" if effect >= 0 else "neg"
    if kind == "error":
        r = radius * 1.15
        svg.path([(22, 22 - r), (22 + r, 22), (22, 22 + r), (22 - r, 22)], f"node {css} error", closed=True)
    else:
        svg.add("circle", f"node {css}", cx=22, cy=22, r=radius)
    svg.text(22, 26, "+" if effect >= 0 else "−", "sign")
    return svg.render()


def score_strip(score: Interval) -> Markup:
    """A score with its interval and the place of chance, from 0.25 to 1, small enough for a line of text."""
    svg = Svg(84, 14, f"{fixed(float(score.estimate))} {interval(score)}")
    x = Scale(0.25, 1, 3, 81)

    def at(value: SupportsFloat) -> float:
        return x(min(max(float(value), x.low), x.high))

    svg.line(3, 7, 81, 7, "grid")
    svg.line(x(CHANCE), 2, x(CHANCE), 12, "axis")
    svg.line(at(score.low), 7, at(score.high), 7, "whisker thick")
    svg.add("circle", "dot small", cx=at(score.estimate), cy=7, r=3)
    return svg.render()


def write_figures(data: ReportData, folder: Path) -> dict[str, Path]:
    """Write the run's charts as SVG files that stand alone, for README files and trackers.

    Returns:
        name (``scores/blocks.2/random/soft``, ``differences``, ``faithfulness``, ``density/blocks.2``) → file.
    """
    charts: dict[str, Markup] = {}
    if data.mis is not None:
        for measure in ("soft", "hard"):
            limits = score_range(data.scores, data.mis.negatives, measure)
            for site in data.sites:
                for negatives in data.mis.negatives:
                    name = f"scores/{site.path}/{negatives}/{measure}"
                    charts[name] = distributions(data.scores, site.path, negatives, measure, limits)
    if rows := headline_rows(data):
        charts["differences"] = differences(rows)
    for sae in data.saes:
        if sae.density_f is not None:
            charts[f"density/{sae.site}"] = density(sae)
    if data.faithfulness:
        charts["faithfulness"] = faithfulness(data.faithfulness, len(data.circuit.nodes) if data.circuit else None)
    paths = {name: folder / f"{name.replace('/', '_')}.svg" for name in charts}
    for name, svg in charts.items():
        write_text(paths[name], standalone(svg))
    return paths


def headline_rows(data: ReportData) -> list[ComparisonRow]:
    """Comparisons of features with neurons by the headline measure."""
    if data.mis is None:
        return []
    wanted = (data.mis.headline[0], "feature", "neuron")
    return [row for row in data.comparisons if (row.measure, row.a, row.b) == wanted]
