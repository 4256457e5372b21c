"""Charts of an SAE's training, of its features' selectivity, and of how its dictionary shares space."""

# F features  K features of the picture  C classes

from __future__ import annotations

import base64
import io
from collections.abc import Mapping, Sequence

import numpy as np
from markupsafe import Markup
from PIL import Image

from mis_lab.report.charts import Scale, Svg
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.plots import Axis, Plot
from mis_lab.report.sae_data import STEP, ClassSelectivity, Superposition, TrainingCourse
from mis_lab.report.wording import KINDS, count, fixed, named, number, percent, plural

# Curves of training by the glossary entry that explains them; any other name is a part of the loss.
CURVE_TERMS = {
    "loss": "training_loss",
    "fvu": "batch_fvu",
    "l0": "batch_l0",
    "gradient_norm": "gradient_norm",
    "learning_rate": "learning_rate",
    "dead_share": "silent_in_training",
    "silent_share": "silent_held_out",
}
ORDER = ("loss", "fvu", "l0")
MOST_BARS = 40
PICTURE_RGB = (214, 92, 20)  # over the page's paper by its opacity, so it suits light and dark


def curve_term(name: str) -> str:
    """Glossary key of a curve of training."""
    return CURVE_TERMS.get(name, "loss_part")


def training_curves(site: str, course: TrainingCourse) -> dict[str, Markup]:
    """Name → a small chart, for every loss and number that training logged and every one of the evaluations."""
    names = [name for name in (*course.losses, *course.evaluations) if name != STEP]
    names = sorted(dict.fromkeys(names), key=lambda name: ORDER.index(name) if name in ORDER else len(ORDER))
    return {name: _curve(site, course, name, 236, 158) for name in names}


def main_curve(course: TrainingCourse) -> str | None:
    """The curve that says most of how training went; None where nothing was logged."""
    return next((name for name in ("fvu", "loss") if name in course.evaluations or name in course.losses), None)


def main_chart(site: str, course: TrainingCourse) -> Markup:
    """:func:`main_curve`, large."""
    return _curve(site, course, main_curve(course) or "fvu", 340, 190)


def _curve(site: str, course: TrainingCourse, name: str, width: int, height: int) -> Markup:
    parts = {"training": course.losses, "held out": course.evaluations}
    series = {
        told: (part[STEP], part[name])
        for told, part in parts.items()
        if name in part and len(part[STEP]) == len(part[name])
    }
    steps, values = (np.concatenate([pair[axis] for pair in series.values()] or [np.zeros(0)]) for axis in (0, 1))
    # The name stands above the chart, for whoever reads the architecture's page.
    plot = Plot(
        f"{name} at {site} in the course of training",
        Axis(steps, "training_step", log=False),
        Axis(values, label=name, from_zero=True),
        width,
        height,
    )
    for told, (x, y) in series.items():
        css = "k-feature" if told == "training" else "k-held s-random"
        plot.line(x.tolist(), y.tolist(), css)
        if told == "held out" or len(x) == 1:
            for step, value in zip(x, y, strict=True):
                plot.point(step, value, css, f"{told}, step {count(int(step))}: {number(value)}")
    return plot.svg.render()


def fates(site: str, course: TrainingCourse) -> Markup:
    """How many features were dead at the evaluations, and how many were started anew after which steps."""
    dead = {step: len(features) for step, features in course.fates.dead.items()}
    revived = {step: len(features) for step, features in course.fates.revived.items()}
    plot = Plot(
        f"Dead and revived features at {site}",
        Axis([*dead, *revived], "training_step", log=False),
        Axis([0, 1, *dead.values(), *revived.values()], "n_dead_features", log=False, from_zero=True),
        width=340,
        height=190,
    )
    for step, n in revived.items():
        plot.svg.line(plot.x(step), plot.y(0), plot.x(step), plot.y(n), "whisker k-revived")
        plot.point(step, n, "k-revived", f"after step {count(step)}: {count(n)} features revived", shape="diamond")
    plot.line(list(dead), list(dead.values()), "k-feature")
    for step, n in dead.items():
        plot.point(step, n, "k-feature", f"step {count(step)}: {count(n)} features dead")
    return plot.svg.render()


def class_histograms(site: str, found: Sequence[ClassSelectivity]) -> dict[str, Markup]:
    """Kind → units by the number of classes they are active on, as a share of the kind, on equal axes."""
    edges = {one.kind: _class_edges(one.n_classes) for one in found}
    shares = {one.kind: _binned(one.histogram, edges[one.kind]) / max(one.histogram.sum(), 1) for one in found}
    top = max((float(values.max()) for values in shares.values()), default=1.0) or 1.0
    charts = {}
    for one in found:
        width, height, left, bottom = 340, 190, 50, 40
        svg = Svg(width, height, f"Active classes of the {named(KINDS, one.kind)} at {site}")
        x = Scale(-0.5, one.n_classes + 0.5, left, width - 14)
        y = Scale(0, top * 1.04, height - bottom, 26)
        svg.y_axis(y, left, grid_to=width - 14, about=3)
        svg.x_axis(x, height - bottom, about=5)
        svg.axis_label(4, 14, "share_of_units", "start")
        svg.axis_label((left + width - 14) / 2, height - 7, "n_active_classes")
        for low, high, share in zip(edges[one.kind][:-1], edges[one.kind][1:], shares[one.kind], strict=True):
            if share:
                classes = plural(int(low), "class", "classes") if high == low + 1 else f"{low} to {high - 1} classes"
                hint = f"{percent(share, 1)} of the {named(KINDS, one.kind)}: {'dead' if low == 0 else classes}"
                css = "bar k-none" if low == 0 else f"bar k-{one.kind}"
                start, end = x(low - 0.5), x(high - 0.5)
                gap = min(0.5, (end - start) / 6)
                svg.add(
                    "rect", css, hint=hint, x=start + gap, y=y(share), width=end - start - 2 * gap,
                    height=y(0) - y(share),
                )  # fmt: skip
        median = one.median_classes
        if np.isfinite(median):
            svg.line(x(median), height - bottom, x(median), 24, f"median k-{one.kind}")
        charts[one.kind] = svg.render()
    return charts


def _class_edges(n_classes: int) -> np.ndarray:
    """First number of classes of every bar; the dead have a bar of their own."""
    step = -(-n_classes // MOST_BARS)
    return np.array([0, *range(1, n_classes + 1, step), n_classes + 1])


def _binned(histogram: np.ndarray, edges: np.ndarray) -> np.ndarray:
    return np.add.reduceat(histogram.astype(np.float64), edges[:-1])


def overlap_picture(site: str, found: Superposition) -> Markup:
    """|cos| of the pictured features with one another, darker for more alike, a cell a pair."""
    assert found.cosines_kk is not None
    absolute_kk = np.abs(found.cosines_kk)
    n = len(absolute_kk)
    others_kk = absolute_kk - np.diag(np.diag(absolute_kk))
    largest = max(float(np.ceil(others_kk.max() * 10) / 10), 0.1)
    side, left, top, width = 272, 14, 8, 340
    svg = Svg(width, 300, f"Overlaps of {n} features of the dictionary at {site}")
    at = np.unravel_index(int(others_kk.argmax()), others_kk.shape)
    a, b = (found.shown[int(place)] for place in at)
    svg.add(
        "image",
        "pixels",
        hint=f"most alike: features {a} and {b}, |cos| {fixed(float(others_kk.max()))}",
        x=left, y=top, width=side, height=side, preserveAspectRatio="none",
        href=_opacity_uri(np.minimum(absolute_kk / largest, 1)),
    )  # fmt: skip
    svg.add("rect", "frame", x=left, y=top, width=side, height=side)
    y = Scale(0, largest, top + side, top)
    bar = np.linspace(1, 0, 64)[:, None]
    svg.add(
        "image", "pixels", x=width - 44, y=top, width=10, height=side, preserveAspectRatio="none",
        href=_opacity_uri(bar),
    )  # fmt: skip
    svg.add("rect", "frame", x=width - 44, y=top, width=10, height=side)
    for value in y.ticks(4):
        svg.text(width - 30, y(value) + 4, f"{value:.2g}", anchor="start")
    svg.axis_label(left + side / 2, top + side + 16, "cosine")
    return svg.render()


def _opacity_uri(share_hw: np.ndarray) -> str:
    """(H, W) from 0 to 1 as a picture of one colour, opaque at 1."""
    alpha = np.round(255 * share_hw).astype(np.uint8)
    rgb = np.broadcast_to(np.array(PICTURE_RGB, dtype=np.uint8), (*alpha.shape, 3))
    buffer = io.BytesIO()
    Image.fromarray(np.dstack([rgb, alpha])).save(buffer, "PNG", optimize=True)
    return "data:image/png;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def dimensionalities(site: str, found: Superposition) -> Markup:
    """Histogram of how much of a dimension each direction has to itself."""
    values = found.dimensionality_f[np.isfinite(found.dimensionality_f)]
    edges = np.linspace(0, 1, 41)
    counts, _ = np.histogram(values, edges)
    plot = Plot(
        f"Dimensionality of the {count(found.n_directions)} directions at {site}",
        Axis([0, 1], "dimensionality", log=False),
        Axis([0, max(int(counts.max()), 1)], "n_directions_in_bin", log=False, from_zero=True),
        height=190,
    )
    for low, high, n in zip(edges[:-1], edges[1:], counts, strict=True):
        if n:
            plot.svg.add(
                "rect", "bar k-feature", hint=f"{count(int(n))} directions with {fixed(low, 3)} to {fixed(high, 3)}",
                x=plot.x(low) + 0.4, y=plot.y(n), width=plot.x(high) - plot.x(low) - 0.8,
                height=plot.y(0) - plot.y(n),
            )  # fmt: skip
    median = found.median_dimensionality
    if np.isfinite(median):
        plot.svg.line(plot.x(median), plot.y(0), plot.x(median), 26, "median k-feature")
    return plot.svg.render()


def spectrum(site: str, of: Mapping[str, Superposition]) -> Markup:
    """Singular values by rank, the largest of each set of directions at 1; a line marks the effective rank."""
    series = {}
    for what, found in of.items():
        values = found.singular_values[found.singular_values > 0]
        if values.size:
            series[what] = (np.arange(1, len(values) + 1), values / values[0])
    everything = np.concatenate([y for _, y in series.values()] or [np.ones(1)])
    floor = max(float(everything.min()), 1e-4)
    plot = Plot(
        f"Singular values at {site}",
        Axis([1, *(len(x) for x, _ in series.values())], "singular_rank", log=False),
        Axis([floor, 1.0], "singular_value"),
        height=190,
    )
    for what, (x, y) in series.items():
        css = DIRECTION_CSS[what]
        kept = y >= floor
        plot.line(x[kept], y[kept], css, f"{DIRECTION_WORDS[what]}: {len(x)} singular values")
        rank = plot.x(of[what].effective_rank)
        plot.svg.line(rank, plot.y.start, rank, plot.y.end, f"rank {css}")
    return plot.svg.render()


DIRECTION_WORDS = {"dictionary": "SAE dictionary", "weights": "the layer's own weights"}
DIRECTION_CSS = {"dictionary": "k-feature", "weights": "k-neuron"}


def curve_words(name: str) -> str:
    """What a curve of training is, for its caption: its entry's label."""
    return GLOSSARY[curve_term(name)].label
