"""``mis-lab mis``: pictures of scored units, and a published table of reference scores, summed up by layer and put
beside the scores of a run."""

from __future__ import annotations

import argparse
import csv
import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mis_lab.core.errors import EXIT_OK, ConfigError, nearest_first
from mis_lab.mis_pictures import add_montage, add_sheet
from mis_lab.mis_run_commands import add_compare
from mis_lab.terminal import say, write_table

if TYPE_CHECKING:
    from mis_lab.mis.reference_comparison import ReferenceComparison

NEGATIVES = ("bottom", "random")


def mis(argv: list[str]) -> int:
    """``mis-lab mis import | compare | sheet | montage``."""
    parser = argparse.ArgumentParser(
        prog="mis-lab mis", description="scores of units: comparisons, pictures, published tables"
    )
    actions = parser.add_subparsers(dest="action", required=True)
    for add in (_add_import, add_compare, add_sheet, add_montage):
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
    write_table(names, rows)
    if arguments.out:
        arguments.out.parent.mkdir(parents=True, exist_ok=True)
        with open(arguments.out, "w", newline="", encoding="utf-8") as file:
            csv.writer(file).writerows([names, *rows])
        say(f"also in {arguments.out}")
    if not arguments.run:
        return
    from mis_lab.mis.reference_comparison import compare_with_reference, differing
    from mis_lab.pipeline.scored import ScoredRun

    found: list[ReferenceComparison] = []
    scored = ScoredRun(arguments.run, arguments.store).of_kind(arguments.kind)
    unknown = [site for site in layers_of if site not in scored]
    if unknown:
        raise ConfigError(
            f"--site {unknown[0]}: the run scored no {arguments.kind}s there",
            fix=f"It did at {', '.join(nearest_first(unknown[0], scored))}.",
        )
    for site in layers_of or scored:
        layer = layers_of.get(site, site)
        found += compare_with_reference(table, layer, scored[site], arguments.negatives, arguments.metric)
    say(f"\n{arguments.kind}s of {arguments.run} beside {arguments.file.name} (difference: run less table)")
    write_table(
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
        say(f"note: {told}")
    if not any(one.measure == "soft" for one in found):
        say("note: soft scores of different metrics or temperatures are not compared")


def _pair(word: str) -> tuple[str, str]:
    site, equals, layer = word.partition("=")
    if not equals:
        raise ConfigError(f"--site {word}", fix="Write --site SITE=LAYER.")
    return site, layer


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
