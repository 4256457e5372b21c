"""Reconstruction against sparsity on the quickstart's sites: FVU and recovered loss over L0 for every architecture.

Each point is a setting (k, or the weight of the sparsity penalty) with three seeds: mean, smallest and largest. The
runs are ordinary ones, `mis-lab -m experiment=quickstart sae=... seed=0,1,2`, so what is done is not done again;
numbers are those of held-out photographs. The figure has a column a site.

    python benchmarks/sae/pareto.py [option=value ...] [--only topk relu] [--seeds 0 1 2] [--read] [--figure pareto.svg]
"""

from __future__ import annotations

import argparse
import statistics
import subprocess
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import matplotlib
import measure
import ours
from matplotlib.figure import Figure
from matplotlib.ticker import NullFormatter

from mis_lab.core.files import read_json
from mis_lab.pipeline.run import RESULT

PART = "held_out"
MEASURES = {"fvu": "FVU", "recovered_mean": "loss recovered"}
OPTIONS = {  # the option that sets sparsity, from dense to sparse; fewer points for what trains by dense products
    "relu": ("l1", (0.05, 0.1, 0.25, 0.5)),
    "topk": ("k", (64, 32, 16, 8)),
    "batch_topk": ("k", (64, 32, 16, 8)),
    "jump_relu": ("sparsity", (0.0015, 0.006)),
    "gated": ("l1", (0.15, 0.35)),
    "matryoshka": ("k", (32, 16)),
}


class Point(NamedTuple):
    """One run at one site."""

    sae: str
    setting: float
    site: str
    seed: int
    l0: float
    fvu: float
    recovered_mean: float | None
    dead_share: float


def command(name: str, run_name: str, seeds: Sequence[int], more: Sequence[str]) -> list[str]:
    """The sweep of architecture `name`."""
    option, values = OPTIONS[name]
    words = ["-m", "experiment=quickstart", f"sae={name}", f"sae.{option}={','.join(map(str, values))}"]
    words += [f"seed={','.join(map(str, seeds))}", "stages=[activations,sae,evaluate]", "logger=files"]
    return [sys.executable, "-m", "mis_lab", *words, f"name={run_name}", *more]


def read(folder: Path) -> list[Point]:
    """The points of all finished runs in `folder` whose SAE is in the table."""
    points = []
    for path in sorted(folder.glob(f"*/{RESULT}")):
        result: dict[str, Any] = read_json(path)
        sae, metrics = result["config"]["sae"], result["metrics"]
        if sae["name"] not in OPTIONS:
            continue
        for site in result["config"]["model"]["sites"]:
            numbers = {name: metrics.get(f"evaluate/{site}/{PART}/{name}") for name in ("l0", *MEASURES, "dead_share")}
            points.append(Point(sae["name"], sae[OPTIONS[sae["name"]][0]], site, result["seed"], **numbers))
    return points


def spread(points: Iterable[Point], number: str) -> tuple[float, float, float] | None:
    """Mean, smallest and largest over the seeds; None where it has no value."""
    values = [getattr(point, number) for point in points]
    if not values or None in values:
        return None
    return statistics.fmean(values), min(values), max(values)


def settings(points: Iterable[Point]) -> dict[tuple[str, str, float], list[Point]]:
    """Points by site, architecture and setting, in the order of the table."""
    found: dict[tuple[str, str, float], list[Point]] = {}
    order = sorted(points, key=lambda point: (point.site, list(OPTIONS).index(point.sae), point.setting, point.seed))
    for point in order:
        found.setdefault((point.site, point.sae, point.setting), []).append(point)
    return found


def rows(points: Iterable[Point]) -> list[list[str]]:
    told = []
    for (site, sae, setting), group in settings(points).items():
        cells = [site, sae, f"{OPTIONS[sae][0]} {setting:g}", str(len(group))]
        for number, digits in (("l0", 1), ("fvu", 3), ("recovered_mean", 3), ("dead_share", 3)):
            values = spread(group, number)
            cells.append("" if values is None else "{:.{d}f} ({:.{d}f} to {:.{d}f})".format(*values, d=digits))
        told.append(cells)
    return told


def figure(points: Sequence[Point], path: Path) -> None:
    """A column a site, a row a measure; whiskers are the smallest and largest seed."""
    sites = sorted({point.site for point in points})
    drawing = Figure(figsize=(4.2 * len(sites), 3.4 * len(MEASURES)), layout="constrained")
    axes = drawing.subplots(len(MEASURES), len(sites), squeeze=False, sharex="col")
    for column, site in enumerate(sites):
        for row, (number, title) in enumerate(MEASURES.items()):
            axis = axes[row][column]
            for colour, sae in enumerate(OPTIONS):
                groups = [group for (at, name, _), group in settings(points).items() if (at, name) == (site, sae)]
                found = [(spread(group, "l0"), spread(group, number)) for group in groups]
                pairs = sorted((x, y) for x, y in found if x is not None and y is not None)
                if not pairs:
                    continue
                (xs, ys), colour_name = zip(*pairs, strict=True), f"C{colour}"
                axis.errorbar(
                    [x[0] for x in xs],
                    [y[0] for y in ys],
                    xerr=_whiskers(xs),
                    yerr=_whiskers(ys),
                    color=colour_name,
                    label=sae,
                    marker="o",
                    markersize=3,
                    linewidth=1,
                    capsize=2,
                )
            axis.set_xscale("log")
            axis.set_xticks([3, 10, 30, 100], ["3", "10", "30", "100"])
            axis.xaxis.set_minor_formatter(NullFormatter())
            axis.set_title(f"{title} at {site}", fontsize=10)
            axis.grid(alpha=0.3)
            if row == len(MEASURES) - 1:
                axis.set_xlabel("L0: active features a vector")
    axes[0][0].legend(fontsize=8)
    with matplotlib.rc_context({"svg.hashsalt": "mis_lab", "svg.fonttype": "none"}):
        drawing.savefig(path, **({"metadata": {"Date": None}} if path.suffix == ".svg" else {"dpi": 150}))


def _whiskers(values: Sequence[tuple[float, float, float]]) -> list[list[float]]:
    return [[mean - low for mean, low, _ in values], [high - mean for mean, _, high in values]]


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", nargs="+", choices=list(OPTIONS), default=list(OPTIONS))
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--name", default="pareto", help="of the runs")
    parser.add_argument("--read", action="store_true", help="only read what was run")
    parser.add_argument("--figure", type=Path, help="draw into this .svg or .png")
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    parser.add_argument("overrides", nargs="*", metavar="option=value", help="of all runs")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Point]:
    arguments = parse(argv)
    output = Path(
        ours.recipe("topk", *[word for word in arguments.overrides if word.startswith("paths.")]).paths.output
    )
    for name in arguments.only if not arguments.read else ():
        if name not in ours.available():
            measure.tell(f"missing: {name} has no preset")
            continue
        subprocess.run(command(name, arguments.name, arguments.seeds, arguments.overrides), check=True)
    points = [point for point in read(output / arguments.name) if point.sae in arguments.only]
    columns = ["site", "SAE", "setting", "seeds", "L0", "FVU", "loss recovered", "dead share"]
    measure.tell(measure.table(columns, rows(points)))
    if arguments.figure and points:
        figure(points, arguments.figure)
    measure.write_json(arguments.out, {"points": [point._asdict() for point in points]})
    return points


if __name__ == "__main__":
    main()
