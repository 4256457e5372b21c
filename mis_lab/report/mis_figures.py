"""Charts of scores beyond their distributions: features against their partner neurons, scores against the hardness of
tasks and against training, and how measures agree."""

# A features with a partner  S settings or steps  M measures  C cells of a cloud

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from markupsafe import Markup

from mis_lab.core.intervals import Interval
from mis_lab.mis.curves import HARDNESS, QUANTILE
from mis_lab.report.charts import Svg
from mis_lab.report.figures import CHANCE, KIND_ORDER, kind_class
from mis_lab.report.mis_data import AgreementMatrix, CourseCurve, PairedScores, ScoreCurve
from mis_lab.report.plots import Axis, Plot
from mis_lab.report.wording import KINDS, MEASURES, NEGATIVES, count, fixed, interval, named, number, percent, plural

CORRELATIONS = ((0.3, "far", "r < 0.3"), (0.6, "middle", "r 0.3 to 0.6"), (np.inf, "near", "r ≥ 0.6"))
FINEST = 200  # cells of a cloud along each axis, within which points are one
DOT, LARGEST_DOT = 2.6, 10.0
MEANS = {"soft": "mean_soft", "hard": "mean_hard"}  # glossary entries
SETTINGS = {HARDNESS: "query_percentile", QUANTILE: "pool_quantile"}
MEASURE_WORDS = (
    MEASURES
    | {
        "monosemanticity": "MonoSemanticity",
        "monosemanticity_active": "… active images",
        "monosemanticity_top": "… top images",
        "coherence": "coherence of the top",
        "class_purity": "purity of the top",
    }
    | {f"{measure}/{negatives}": f"{measure}, {negatives}" for measure in ("soft", "hard") for negatives in NEGATIVES}
)
CELL, LETTER = 46, 7.4  # pixels


def paired(pairs: PairedScores) -> Markup:
    """A point a feature: its score over that of its best-correlated neuron, fainter for a lower correlation.

    Features above the diagonal score higher than their neuron. Lines mark the medians; equal points are one, larger.
    """
    both = np.isfinite(pairs.feature_score) & np.isfinite(pairs.neuron_score)
    parts = (pairs.neuron_score, pairs.feature_score, pairs.correlation)
    x, y, r = (np.asarray(part, dtype=np.float64)[both] for part in parts)
    ends = [*x, *y, CHANCE]
    ticks = [(value, f"{value:g}") for value in Axis(ends, "paired_score", log=False).scale(0, 1).ticks(4)]
    plot = Plot(
        f"{named(MEASURES, pairs.measure)} of {plural(len(x), 'feature')} and their best-correlated neurons at"
        f" {pairs.site}, {named(NEGATIVES, pairs.negatives)}",
        Axis(ends, "partner_score", log=False, ticks=ticks),
        Axis(ends, "paired_score", log=False),
        height=344,
    )
    svg, low, high = plot.svg, plot.x.low, plot.x.high
    svg.text(plot.x.end, 14, named(MEASURES, pairs.measure), "tick", "end")
    plot.line([low, high], [low, high], "equal")
    bands = np.searchsorted([limit for limit, _, _ in CORRELATIONS[:-1]], np.nan_to_num(r, nan=-1.0), side="right")
    step = (high - low) / FINEST
    places = np.stack([np.round((x - low) / step), np.round((y - low) / step), bands], 1)
    cells_c3, n_c = np.unique(places, axis=0, return_counts=True)
    for (across, up, band), n in zip(cells_c3, n_c.tolist(), strict=True):
        at_x, at_y = low + across * step, low + up * step
        hint = f"{plural(n, 'feature')} at {fixed(at_y)}, neuron at {fixed(at_x)}"
        css = f"k-feature cloud {CORRELATIONS[int(band)][1]}"
        plot.point(at_x, at_y, css, hint, min(DOT * n**0.5, LARGEST_DOT))
    if len(x):
        at_x, at_y = float(np.median(x)), float(np.median(y))
        svg.line(plot.x(at_x), plot.y.start, plot.x(at_x), plot.y.end, "rank k-neuron")
        svg.line(plot.x.start, plot.y(at_y), plot.x.end, plot.y(at_y), "rank k-feature")
        side, anchor = (5, "start") if plot.x(at_x) < (plot.x.start + 2 * plot.x.end) / 3 else (-5, "end")
        svg.text(plot.x(at_x) + side, plot.y.start - 6, f"median {fixed(at_x)}", "tick halo", anchor)
        svg.text(plot.x.start + 5, plot.y(at_y) - 5, f"median {fixed(at_y)}", "tick halo", "start")
        above = float(np.where(y == x, 0.5, y > x).mean())
        svg.text(plot.x.start + 5, plot.y.end + 12, f"{percent(above)} above", "tick halo", "start")
    plot.legend([(words, f"k-feature cloud {css}", "circle") for _, css, words in CORRELATIONS])
    return svg.render()


def curves(found: Sequence[ScoreCurve], measure: str) -> dict[str, Markup]:
    """Site → mean score against the hardness of tasks or the quantile of the pool, a line a kind, on equal axes.

    Bands are 95 % intervals over units. Harder tasks are further right.

    Args:
        found: of one setting and one kind of negatives.
        measure: ``soft`` or ``hard``.
    """
    chosen = {(one.setting, one.negatives) for one in found}
    if len(chosen) > 1:
        raise ValueError(f"curves of several settings or negatives in one chart: {sorted(chosen)}")
    order = [*KIND_ORDER, *sorted({one.kind for one in found} - set(KIND_ORDER))]
    means = [part for one in found for part in one.of(measure)]
    y = Axis(np.concatenate([np.ravel(part) for part in means] + [[CHANCE]]), MEANS[measure], log=False)
    charts = {}
    for site in dict.fromkeys(one.site for one in found):
        here = sorted((one for one in found if one.site == site), key=lambda one: order.index(one.kind))
        (setting, negatives) = next(iter(chosen))
        at, x = _setting_axis(here, setting)
        plot = Plot(f"Mean {named(MEASURES, measure)} at {site} by {setting}, {named(NEGATIVES, negatives)}", x, y)
        plot.svg.line(plot.x.start, plot.y(CHANCE), plot.x.end, plot.y(CHANCE), "chance")
        for one in here:
            words = [f"{named(KINDS, one.kind)}, {setting} {number(value)}" for value in one.x.tolist()]
            _curve(
                plot, [at[value] for value in one.x.tolist()], one.of(measure), kind_class(one.kind), words, one.n_units
            )
        plot.legend([(named(KINDS, one.kind), kind_class(one.kind), "circle") for one in here])
        charts[site] = plot.svg.render()
    return charts


def _setting_axis(here: Sequence[ScoreCurve], setting: str) -> tuple[dict[float, float], Axis]:
    """Value of the setting → place on the axis, and the axis: percentiles stand evenly, the easiest first."""
    values = sorted({float(value) for one in here for value in one.x}, reverse=setting == HARDNESS)
    evenly = setting == HARDNESS
    at = {value: float(place) if evenly else value for place, value in enumerate(values)}
    ticks = [(at[value], f"{value:g}") for value in values]
    return at, Axis(list(at.values()), SETTINGS[setting], log=False if evenly else None, ticks=ticks)


def course(found: CourseCurve) -> Markup:
    """Mean score of the features at steps of training, with its interval; the neurons' mean as a dashed level."""
    plot = Plot(
        f"Mean {named(MEASURES, found.measure)} of the features at {found.site} in the course of training,"
        f" {named(NEGATIVES, found.negatives)}",
        Axis(found.steps, "training_step"),
        Axis(
            np.concatenate([*map(np.ravel, found.mean), [found.neuron_mean, CHANCE]]), MEANS[found.measure], log=False
        ),
    )
    svg = plot.svg
    svg.line(plot.x.start, plot.y(CHANCE), plot.x.end, plot.y(CHANCE), "chance")
    if np.isfinite(found.neuron_mean):
        level = [found.neuron_mean] * 2
        plot.line([plot.x.low, plot.x.high], level, "k-neuron s-random", f"neurons: {fixed(found.neuron_mean)}")
    words = [f"features, step {count(int(step))}" for step in found.steps]
    _curve(plot, found.steps.tolist(), found.mean, "k-feature", words, found.n_scored)
    plot.legend([(named(KINDS, kind), kind_class(kind), "circle") for kind in ("feature", "neuron")])
    return svg.render()


def _curve(plot: Plot, x: Sequence[float], mean: Interval, css: str, words: Sequence[str], n: np.ndarray) -> None:
    """A line through the means with a band, and points that say so."""
    estimate, low, high = (np.asarray(part, dtype=np.float64) for part in mean)
    plot.band(x, low.tolist(), high.tolist(), css)
    plot.line(x, estimate.tolist(), css)
    for place, told in enumerate(words):
        limits = interval(Interval(estimate[place], low[place], high[place]))
        hint = f"{told}: {fixed(estimate[place])} {limits}, {plural(int(n[place]), 'unit')}"
        plot.point(x[place], estimate[place], css, hint)


def agreement(matrix: AgreementMatrix) -> Markup:
    """Rank correlations of every two measures as cells, stronger in colour the further from 0, with their numbers."""
    names = [named(MEASURE_WORDS, name) for name in matrix.names]
    longest = LETTER * max(map(len, names), default=0)
    left, top = round(longest) + 16, round(0.6 * longest) + 24
    side = CELL * len(names)
    svg = Svg(
        left + side + round(0.7 * longest) + 8,
        top + side + 30,
        f"Rank correlations of scores of {named(KINDS, matrix.kind)} at {matrix.site}",
    )
    for row, name in enumerate(names):
        svg.text(left - 10, top + CELL * (row + 0.5) + 4, name, anchor="end", css="row-label")
        x, y = left + CELL * (row + 0.5), top - 8
        svg.text(x, y, name, anchor="start", css="row-label", transform=f"rotate(-36 {x:g} {y:g})")
        for column, other in enumerate(names):
            value = float(matrix.spearman[row, column])
            known = bool(np.isfinite(value))
            css = ("pos" if value >= 0 else "neg") if known else "unknown"
            hint = f"{name} and {other}: {fixed(value, 3)}"
            strength = round(0.08 + 0.87 * min(abs(value), 1.0), 3) if known else 1.0
            svg.add(
                "rect", f"cell {css}", hint=hint, x=left + CELL * column + 1, y=top + CELL * row + 1,
                width=CELL - 2, height=CELL - 2, rx=4, fill_opacity=strength,
            )  # fmt: skip
            shade = "cell-value strong" if known and abs(value) > 0.5 else "cell-value"
            svg.text(left + CELL * (column + 0.5), top + CELL * (row + 0.5) + 4, fixed(value), shade)
    svg.axis_label(left + side / 2, top + side + 20, "spearman")
    return svg.render()
