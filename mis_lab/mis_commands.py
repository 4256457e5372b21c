"""``mis-lab mis``: pictures of scored units, and a published table of reference scores, summed up by layer and put
beside the scores of a run."""

from __future__ import annotations

import argparse
import csv
import dataclasses
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mis_lab.core.errors import EXIT_OK, ConfigError, StoreError, nearest_first
from mis_lab.mis_pictures import add_montage, add_sheet

if TYPE_CHECKING:
    from mis_lab.mis.reference_comparison import ReferenceComparison
    from mis_lab.mis.unit_scores import UnitScores

NEGATIVES = ("bottom", "random")


def mis(argv: list[str]) -> int:
    """``mis-lab mis import | sheet | montage``."""
    parser = argparse.ArgumentParser(prog="mis-lab mis", description="scores of units: pictures, published tables")
    actions = parser.add_subparsers(dest="action", required=True)
    for add in (_add_import, add_sheet, add_montage):
        add(actions)
    arguments = parser.parse_args(argv)
    arguments.act(arguments)
    return EXIT_OK


def _add_import(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    parser = actions.add_parser("import", help="read a published table of scores (CSV), sum it up by layer")
    parser.add_argument("file", type=Path, help="a row a unit: layer, unit, hard, confidence")
    parser.add_argument("--layer", action="append", default=[], help="part of layers' names (repeatable; default: all)")
    parser.add_argument("--model", default="", help="only rows with this model_key")
    parser.add_argument("--out", type=Path, default=None, metavar="CSV", help="write the summary there")
    parser.add_argument("--run", type=Path, default=None, metavar="RUN_DIR", help="compare with this run's scores")
    parser.add_argument("--store", type=Path, default=None, help="that run's store, if it moved")
    parser.add_argument("--kind", default="neuron", help="of the run's units (default: neuron)")
    parser.add_argument("--negatives", choices=NEGATIVES, default=NEGATIVES[0], help="of the run's tasks")
    parser.add_argument("--metric", default="dreamsim", help="of the table (default: dreamsim)")
    parser.add_argument(
        "--site", action="append", default=[], metavar="SITE=LAYER", help="what a site is called there (repeatable)"
    )
    parser.set_defaults(act=_import)


def _import(arguments: argparse.Namespace) -> None:
    layers_of = dict(_pair(word) for word in arguments.site)
    from mis_lab.mis.reference_table import read_table, summarise_layers

    table = read_table(arguments.file, arguments.model)
    summaries = summarise_layers(table, arguments.layer)
    names = [field.name for field in dataclasses.fields(summaries[0])]
    rows = [[getattr(summary, name) for name in names] for summary in summaries]
    _table(names, rows)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.out, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])
        _say(f"also in {arguments.out}")
    if not arguments.run:
        return
    from mis_lab.mis.reference_comparison import compare_with_reference, differing

    found: list[ReferenceComparison] = []
    scored = _scores(arguments.run, arguments.store, arguments.kind)
    unknown = [site for site in layers_of if site not in scored]
    if unknown:
        raise ConfigError(
            f"--site {unknown[0]}: the run scored no {arguments.kind}s there",
            fix=f"It did at {', '.join(nearest_first(unknown[0], scored))}.",
        )
    for site in layers_of or scored:
        layer = layers_of.get(site, site)
        found += compare_with_reference(table, layer, scored[site], arguments.negatives, arguments.metric)
    _say(f"\n{arguments.kind}s of {arguments.run} beside {arguments.file.name} (difference: run less table)")
    _table(
        (
            "site",
            "layer",
            "measure",
            "units",
            "mean",
            "median",
            "table units",
            "mean",
            "median",
            "difference",
            "p",
            "rho",
        ),
        [_row(one) for one in found],
    )
    settings = next(iter(scored.values())).settings
    for told in ("network and images are others", *differing(settings, arguments.negatives, arguments.metric)):
        _say(f"note: {told}")
    if not any(one.measure == "soft" for one in found):
        _say("note: soft scores of different metrics or temperatures are not compared")


def _pair(word: str) -> tuple[str, str]:
    site, equals, layer = word.partition("=")
    if not equals:
        raise ConfigError(f"--site {word}", fix="Write --site SITE=LAYER.")
    return site, layer


def _scores(run_dir: Path, store: Path | None, kind: str) -> dict[str, UnitScores]:
    """Scores of one kind of units of a finished run, by site."""
    from mis_lab.core.files import read_json
    from mis_lab.mis.unit_scores import UnitScores

    path = run_dir / "result.json"
    if not path.is_file():
        raise StoreError(f"{run_dir} is no finished run", looked=path, fix="Give a folder below multirun_outputs/.")
    result: dict[str, Any] = read_json(path)
    root = store or Path(result["config"]["paths"]["store"])
    parts = {name: name.split("/") for name in result["artifacts"] if name.startswith("mis/")}
    wanted = {name.removeprefix("mis/").rpartition("/")[0]: name for name, part in parts.items() if part[-1] == kind}
    if not wanted:
        kinds = ", ".join(sorted({part[-1] for part in parts.values()})) or "no units: run the stage mis"
        raise StoreError(f"the run {run_dir} scored no {kind}s", fix=f"It scored {kinds}.")
    return {site: UnitScores.read(root / "mis" / result["artifacts"][name]) for site, name in wanted.items()}


def _row(one: ReferenceComparison) -> list[Any]:
    difference = one.mean_difference
    return [
        one.site,
        one.layer,
        one.measure,
        one.n_run,
        one.run_mean,
        one.run_median,
        one.n_reference,
        one.reference_mean,
        one.reference_median,
        f"{difference.estimate:+.3f} ({difference.low:+.3f} to {difference.high:+.3f})",
        f"{one.p_value:.2g}",
        one.spearman,
    ]


def _table(header: Sequence[str], rows: Iterable[Sequence[Any]]) -> None:
    lines = [[f"{cell:.3f}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(header))]
    for line in lines:
        _say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def _say(text: str) -> None:
    sys.stdout.write(text + "\n")
