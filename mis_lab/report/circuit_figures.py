"""Charts about circuits: completeness, distance from the whole, all effects, scores of nodes, activity."""

# K live nodes of a kind  S sizes  T thresholds  F units of a site  C cells of a cloud

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
from markupsafe import Markup

from mis_lab.core.intervals import Interval
from mis_lab.report import circuit_meaning as meaning
from mis_lab.report.charts import stepped
from mis_lab.report.circuit_data import CompletenessCurve, RankedNodes, SiteActivity
from mis_lab.report.data import FaithfulnessCurve
from mis_lab.report.figures import curve_name, kind_class, selection_class
from mis_lab.report.plots import Axis, Plot
from mis_lab.report.wording import KINDS, count, fixed, interval, named, number, percent, plural

NEAR = 0.1  # of the whole network
N_BINS, N_THRESHOLDS, N_SIZES = 24, 40, 24
CELL_PX = 3.0  # points of a cloud within which are one
FARTHEST = 2.5  # |F − 1| that still fits on the chart


class Chart(NamedTuple):
    """A chart, its site ("" for all), the glossary entry it is of, and what the caption adds."""

    site: str
    svg: Markup
    term: str
    words: str


def completeness(curves: Sequence[CompletenessCurve], n_shown: int | None = None) -> Markup:
    """What is left without the circuit against its size, with 95 % intervals; `n_shown` marks the pictured circuit."""
    bounds = np.concatenate([np.concatenate([one.completeness, one.low, one.high]) for one in curves])
    plot = Plot(
        "Completeness: what is left without the circuit, against its size",
        Axis(np.concatenate([one.n_nodes[one.n_nodes > 0] for one in curves]), "n_taken", log=True),
        Axis(np.concatenate([np.clip(bounds, -1.5, 2.5), [0.0, 1.0]]), "completeness", log=False),
        width=420,
        height=250,
    )
    plot.svg.line(plot.x.start, plot.y(0), plot.x.end, plot.y(0), "zero")
    _pictured(plot, n_shown)
    for one in curves:
        found = Interval(*(np.clip(part, plot.y.low, plot.y.high) for part in (one.completeness, one.low, one.high)))
        _curve(plot, one.n_nodes, found, kind_class(one.kind), named(KINDS, one.kind))
    _kinds(plot, [one.kind for one in curves])
    return plot.svg.render()


def distance(curves: Sequence[FaithfulnessCurve], n_shown: int | None = None) -> Markup:
    """|F − 1| against the number of nodes kept."""
    found = [(one, meaning.distance_from_whole(Interval(one.faithfulness, one.low, one.high))) for one in curves]
    highest = np.concatenate([np.minimum(np.asarray(part.estimate), FARTHEST) for _, part in found])
    plot = Plot(
        "Distance of circuits' faithfulness from 1, against their size",
        Axis(np.concatenate([one.n_nodes[one.n_nodes > 0] for one in curves]), "n_nodes", log=True),
        Axis([*highest, NEAR, 1.0], "distance", log=False, from_zero=True),
        width=420,
        height=250,
    )
    plot.svg.line(plot.x.start, plot.y(NEAR), plot.x.end, plot.y(NEAR), "chance")
    _pictured(plot, n_shown, at_foot=True)
    for one, part in found:
        clipped = Interval(*(np.clip(values, 0, plot.y.high) for values in part))
        css = f"{kind_class(one.kind)} {selection_class(one.selection)}"
        _curve(plot, one.n_nodes, clipped, css, curve_name(one), band=one.selection == "effect")
    plot.legend(
        [(curve_name(one), f"{kind_class(one.kind)} {selection_class(one.selection)}", "circle") for one, _ in found]
    )
    return plot.svg.render()


def effect_charts(ranked: Sequence[RankedNodes]) -> list[Chart]:
    """Histograms of |effect| of every site, their medians, and nodes above a threshold."""
    ranked = [one for one in ranked if (one.effect != 0).any()]
    if not ranked:
        return []
    sites = list(dict.fromkeys(site for one in ranked for site in one.sites))
    charts = [
        Chart(site, svg, "effect_bin_share", "by |effect|; lines mark the medians")
        for site in sites
        if (svg := _histogram(ranked, site)) is not None
    ]
    medians = Chart("", _medians(ranked, sites), "median_effect", "at each site, error nodes left out")
    return [*charts, medians, Chart("", _above(ranked), "n_above", "against the threshold, at all sites")]


def _histogram(ranked: Sequence[RankedNodes], site: str) -> Markup | None:
    """Shares of each kind: kinds of very different numbers compare in shape."""
    sizes = {one.kind: _sizes_at(one, site) for one in ranked}
    sizes = {kind: found for kind, found in sizes.items() if found.size}
    if not sizes:
        return None
    every = np.concatenate(list(sizes.values()))
    axis = Axis(every, "effect_size", log=True)
    scale = axis.scale(0, 1)
    edges = np.geomspace(scale.low, scale.high, N_BINS + 1)
    shares = {kind: np.histogram(found, edges)[0] / len(found) for kind, found in sizes.items()}
    highest = Axis([0.0, *(share.max() for share in shares.values())], "effect_bin_share", log=False, from_zero=True)
    plot = Plot(f"|Effects| of live nodes at {site}", axis, highest, height=200)
    for kind, found in sizes.items():
        top = plot.y.start - plot.y(shares[kind].max())
        median = float(np.median(found))
        hint = f"{named(KINDS, kind)}: {plural(len(found), 'node')}, median |effect| {number(median)}"
        points = stepped(shares[kind], edges, plot.x, plot.y.start, top)
        plot.svg.path(points, f"area {kind_class(kind)}", closed=True, hint=hint)
        plot.svg.line(plot.x(median), plot.y.start, plot.x(median), plot.y.end, f"median {kind_class(kind)}")
    _kinds(plot, list(sizes))
    return plot.svg.render()


def _medians(ranked: Sequence[RankedNodes], sites: Sequence[str]) -> Markup:
    found = {one.kind: meaning.median_effects(one) for one in ranked}
    places = list(range(len(sites)))
    plot = Plot(
        "Median |effect| of the live nodes of each site",
        Axis(
            [-0.4, len(sites) - 0.6],
            "",
            label="site",
            log=False,
            ticks=list(zip(map(float, places), sites, strict=True)),
        ),
        Axis([value for of_kind in found.values() for value in of_kind.values()], "median_effect"),
        height=200,
    )
    for kind, of_kind in found.items():
        at = [place for place in places if sites[place] in of_kind]
        values = [of_kind[sites[place]] for place in at]
        plot.line(at, values, f"{kind_class(kind)} joined")
        for place, value in zip(at, values, strict=True):
            plot.point(place, value, kind_class(kind), f"{named(KINDS, kind)} at {sites[place]}: {number(value)}", 4)
    _kinds(plot, list(found))
    return plot.svg.render()


def _above(ranked: Sequence[RankedNodes]) -> Markup:
    sizes = np.concatenate([np.abs(one.effect) for one in ranked])
    thresholds = np.geomspace(sizes[sizes > 0].min(), sizes.max(), N_THRESHOLDS)
    counts = {one.kind: meaning.n_above(one.effect, thresholds) for one in ranked}
    plot = Plot(
        "Nodes of at least some |effect|",
        Axis(thresholds, "effect_threshold", log=True),
        Axis(np.concatenate([np.maximum(n, 1) for n in counts.values()]), "n_above", log=True),
        height=200,
    )
    for kind, n in counts.items():
        plot.line(thresholds.tolist(), n.tolist(), kind_class(kind))
        for threshold, kept in list(zip(thresholds.tolist(), n.tolist(), strict=True))[::4]:
            hint = f"{named(KINDS, kind)}: {count(kept)} with |effect| ≥ {number(threshold)}"
            plot.point(threshold, kept, kind_class(kind), hint)
    _kinds(plot, list(counts))
    return plot.svg.render()


def score_charts(ranked: Sequence[RankedNodes], curves: Sequence[FaithfulnessCurve]) -> list[Chart]:
    """Effects against scores, and mean scores of circuits against their size, threshold and faithfulness."""
    ranked = [one for one in ranked if np.isfinite(one.mis).any()]
    charts = []
    for one in ranked:
        rho, n = meaning.effect_against_score(one)
        words = f"against |effect| of {count(n)} {named(KINDS, one.kind)}, Spearman's ρ {fixed(rho, 2, True)}"
        charts.append(Chart("", _effect_against_score(one), "node_mis", words))
    if ranked:
        every = {one.kind: meaning.scores_of_circuits(one, _sizes(len(one.effect))) for one in ranked}
        levels = {one.kind: one.level for one in ranked}
        by_size = {kind: found.n_nodes for kind, found in every.items()}
        by_threshold = {kind: found.threshold for kind, found in every.items()}
        charts += [
            Chart("", _means(every, by_size, levels, "n_nodes"), "circuit_mis", "against the number of nodes"),
            Chart(
                "", _means(every, by_threshold, levels, "effect_threshold"), "circuit_mis",
                "against the |effect| of the smallest node kept",
            ),
        ]  # fmt: skip
    faithful = {one.kind: one for one in curves if one.selection == "effect"}
    both = {
        one.kind: (faithful[one.kind], meaning.scores_of_circuits(one, faithful[one.kind].n_nodes))
        for one in ranked
        if one.kind in faithful
    }
    if any(np.isfinite(found.mean).any() for _, found in both.values()):
        charts.append(
            Chart("", _score_against_faithfulness(both), "circuit_mis", "against faithfulness, a point a size")
        )
    return charts


def _effect_against_score(one: RankedNodes) -> Markup:
    keep = np.isfinite(one.mis) & (one.effect != 0)
    effect, mis = np.abs(one.effect[keep]), one.mis[keep]
    plot = Plot(
        f"Scores of {named(KINDS, one.kind)} against their |effect|",
        Axis(effect, "effect_size", log=True),
        Axis([*mis, one.level], "node_mis", log=False),
    )
    _cloud(plot, effect, mis, f"{kind_class(one.kind)} cloud middle")
    _level(plot, one.level, kind_class(one.kind), f"mean of all: {fixed(one.level, 3)}")
    return plot.svg.render()


def _means(
    scores: dict[str, meaning.ScoresOfCircuits], x: dict[str, np.ndarray], levels: dict[str, float], term: str
) -> Markup:
    plot = Plot(
        "Mean MIS of circuits",
        Axis([value for values in x.values() for value in values if value > 0], term, log=True),
        Axis(
            [*(value for found in scores.values() for value in found.mean), *levels.values()], "circuit_mis", log=False
        ),
    )
    for kind, found in scores.items():
        css = kind_class(kind)
        _level(plot, levels[kind], css, f"mean of all {named(KINDS, kind)}: {fixed(levels[kind], 3)}")
        plot.line(x[kind].tolist(), found.mean.tolist(), css)
        for at, size, mean, n in zip(x[kind].tolist(), *(found.n_nodes, found.mean, found.n_scored), strict=True):
            hint = f"{named(KINDS, kind)}: {plural(int(size), 'node')}, {count(int(n))} scored, mean {fixed(mean, 3)}"
            plot.point(at, mean, css, hint)
    _kinds(plot, list(scores))
    return plot.svg.render()


def _score_against_faithfulness(both: dict[str, tuple[FaithfulnessCurve, meaning.ScoresOfCircuits]]) -> Markup:
    rows = {
        kind: (np.asarray(curve.faithfulness)[np.isin(curve.n_nodes, found.n_nodes)], found)
        for kind, (curve, found) in both.items()
    }
    plot = Plot(
        "Mean MIS of circuits against their faithfulness",
        Axis([value for values, _ in rows.values() for value in values], "faithfulness", log=False),
        Axis([value for _, found in rows.values() for value in found.mean], "circuit_mis", log=False),
    )
    for kind, (values, found) in rows.items():
        css = kind_class(kind)
        known = np.isfinite(found.mean) & np.isfinite(values)
        plot.line(values[known].tolist(), found.mean[known].tolist(), f"{css} joined")
        for at, mean, size in zip(values.tolist(), found.mean.tolist(), found.n_nodes.tolist(), strict=True):
            hint = f"{named(KINDS, kind)}: {plural(size, 'node')}, faithfulness {fixed(at)}, mean MIS {fixed(mean, 3)}"
            plot.point(at, mean, css, hint)
    _kinds(plot, list(rows))
    return plot.svg.render()


def activity_charts(activity: Sequence[SiteActivity]) -> list[Chart]:
    """Density of each unit on the circuit's images against that on all: of features, of neurons without any."""
    kind = "feature" if any(one.kind == "feature" for one in activity) else "neuron"
    charts = []
    for one in activity:
        both = (one.density > 0) & (one.all_density > 0)
        if one.kind == kind and both.any():
            words = (
                f"against that on all {count(one.n_all_images)}; never active: {percent(one.dead_share)} on the "
                f"circuit's {count(one.n_images)} images, {percent(one.all_dead_share)} on all"
            )
            charts.append(Chart(one.site, _densities(one, both), "circuit_density", words))
    return charts


def _densities(one: SiteActivity, both: np.ndarray) -> Markup:
    x, y = one.all_density[both], one.density[both]
    ends = [float(min(x.min(), y.min())), float(max(x.max(), y.max()))]
    plot = Plot(
        f"Density of {named(KINDS, one.kind)} at {one.site} on the circuit's images and on all",
        Axis(ends, "all_density", log=True),
        Axis(ends, "circuit_density", log=True),
        height=260,
    )
    plot.line(ends, ends, "equal")
    _cloud(plot, x, y, f"{kind_class(one.kind)} cloud middle")
    return plot.svg.render()


def _sizes_at(one: RankedNodes, site: str) -> np.ndarray:
    if site not in one.sites:
        return np.empty(0)
    here = np.abs(one.effect[(one.site == list(one.sites).index(site)) & ~one.is_error])
    return here[here > 0]


def _sizes(n: int) -> np.ndarray:
    return np.unique(np.geomspace(1, n, N_SIZES).round().astype(np.int64))


def _curve(plot: Plot, x: np.ndarray, y: Interval, css: str, name: str, band: bool = True) -> None:
    estimate, low, high = (np.asarray(part, dtype=np.float64) for part in y)
    if band:
        plot.band(x.tolist(), low.tolist(), high.tolist(), css)
    plot.line(x.tolist(), estimate.tolist(), css)
    for place, size in enumerate(x.tolist()):
        limits = interval(Interval(estimate[place], low[place], high[place]))
        plot.point(size, estimate[place], css, f"{name}: {plural(size, 'node')}, {fixed(estimate[place])} {limits}")


def _cloud(plot: Plot, x: np.ndarray, y: np.ndarray, css: str) -> None:
    """Points that are all but one on another are one, larger."""
    pixels_n2 = np.array([[plot.x(at), plot.y(up)] for at, up in zip(x.tolist(), y.tolist(), strict=True)])
    _, first, n_c = np.unique(np.round(pixels_n2 / CELL_PX), axis=0, return_index=True, return_counts=True)
    for place, n in zip(first.tolist(), n_c.tolist(), strict=True):
        plot.point(float(x[place]), float(y[place]), css, size=min(2.2 * n**0.5, 8.0))


def _level(plot: Plot, value: float, css: str, words: str) -> None:
    if np.isfinite(value):
        plot.line([plot.x.low, plot.x.high], [value, value], f"{css} s-random", words)


def _pictured(plot: Plot, n_shown: int | None, at_foot: bool = False) -> None:
    if n_shown is not None and plot.x.low <= n_shown <= plot.x.high:
        plot.svg.line(plot.x(n_shown), plot.y.start, plot.x(n_shown), plot.y.end, "chance")
        y = plot.y.start - 6 if at_foot else plot.y.end + 10
        plot.svg.text(plot.x(n_shown) + 4, y, f"pictured: {n_shown}", "tick halo", "start")


def _kinds(plot: Plot, kinds: Sequence[str]) -> None:
    plot.legend([(named(KINDS, kind), kind_class(kind), "circle") for kind in kinds])
