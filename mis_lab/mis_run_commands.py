"""``mis-lab mis compare``: units of several finished runs side by side.

Runs that differ in SAE, network or seed are compared as sets of units (controls, seeds); runs that scored the same
units otherwise (another metric, protocol or seed of tasks) by how alike they rank them.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mis_lab.core.errors import ConfigError
from mis_lab.terminal import TextTable, say, with_limits, write_tables

if TYPE_CHECKING:
    from mis_lab.mis.agreement import RankAgreement
    from mis_lab.mis.compare import Comparison
    from mis_lab.mis.unit_scores import UnitScores
    from mis_lab.pipeline.scored import ScoredRun

MEASURES = ("soft", "hard", "delta_over_tau")


@dataclass(frozen=True)
class LabelledScores:
    """Scores of one kind of units of a finished run, with the words that tell it from the others.

    Attributes:
        scores: by site.
        units: site → key of what makes these units; equal keys, equal units.
    """

    label: str
    scores: Mapping[str, UnitScores]
    units: Mapping[str, str]


def add_compare(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The arguments of ``mis-lab mis compare``."""
    parser = actions.add_parser("compare", help="units of several runs: controls, seeds, other metrics")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the run that the others are compared with")
    parser.add_argument("others", type=Path, nargs="+", metavar="RUN_DIR", help="one or several other runs")
    parser.add_argument("--kind", default="feature", help="of the runs' units (default: feature)")
    parser.add_argument("--against", default=None, help="kind of the other runs' units (default: the same)")
    parser.add_argument("--measure", choices=MEASURES, default="soft", help="score (default: soft)")
    parser.add_argument("--store", type=Path, default=None, help="the runs' store, if it moved")
    parser.add_argument("--out", type=Path, default=None, metavar="CSV", help="write the tables there, too")
    parser.add_argument("--figure", type=Path, default=None, metavar="SVG", help="draw the differences there")
    parser.set_defaults(act=compare_runs)


def compare_runs(arguments: argparse.Namespace) -> None:
    """Tables of means, of differences and of rank agreement, with what could not be compared and why."""
    from mis_lab.pipeline.scored import ScoredRun, run_labels

    runs = [ScoredRun(folder, arguments.store) for folder in (arguments.run, *arguments.others)]
    kinds = [arguments.kind, *[arguments.against or arguments.kind] * len(arguments.others)]
    first, *others = [
        _labelled(run, kind, label) for run, kind, label in zip(runs, kinds, run_labels(runs), strict=True)
    ]
    tables = [_means([first, *others], arguments.measure)]
    compared, refused = _differences(first, others, arguments.measure)
    agreements = [] if arguments.against else list(_agreements(first, others, arguments.measure))
    tables += [_difference_table(first, compared), _agreement_table(agreements)]
    write_tables(tables, refused, arguments.out)
    if arguments.figure and compared:
        _draw(first, compared, arguments.figure)
        say(f"drawn in {arguments.figure}")


def _labelled(run: ScoredRun, kind: str, label: str) -> LabelledScores:
    scores = run.of_kind(kind)
    return LabelledScores(label, scores, {site: run.units_key(site, kind) for site in scores})


def _means(runs: Sequence[LabelledScores], measure: str) -> TextTable:
    """Means of every run, and where there are several, their spread over the runs."""
    import numpy as np

    from mis_lab.mis.compare import summarise

    rows: list[list[Any]] = []
    places = dict.fromkeys(
        (site, negatives) for run in runs for site, scores in run.scores.items() for negatives in scores.by_negatives
    )
    for site, negatives in places:
        of_runs = []
        for run in runs:
            if site in run.scores and negatives in run.scores[site].by_negatives:
                told = summarise(run.scores[site], negatives, measure)
                rows.append([site, negatives, run.label, told.n_units, told.n_scored, told.mean, told.median])
                of_runs.append(told.mean)
        if len(of_runs) > 2:
            rows.append([site, negatives, f"sd over {len(of_runs)} runs", "", "", float(np.std(of_runs, ddof=1)), ""])
    return TextTable(f"{measure} of each run", ("site", "negatives", "run", "units", "scored", "mean", "median"), rows)


def _differences(
    first: LabelledScores, others: Sequence[LabelledScores], measure: str
) -> tuple[list[tuple[str, Comparison]], list[str]]:
    """Comparisons by label of the other run, and why some could not be made."""
    from mis_lab.mis.compare import compare_sites

    found, refused = [], []
    for other in others:
        shared = [site for site in first.scores if site in other.scores]
        if not shared:
            refused.append(f"{other.label}: no site in common ({', '.join(other.scores)})")
            continue
        try:
            compared = compare_sites({site: (first.scores[site], other.scores[site]) for site in shared}, measure)
        except ConfigError as error:
            refused.append(f"{other.label}: {error}")
            continue
        found += [(other.label, one) for one in compared]
    return found, refused


def _difference_table(first: LabelledScores, compared: Sequence[tuple[str, Comparison]]) -> TextTable:
    rows = [
        [
            one.site,
            one.negatives,
            label,
            with_limits(one.mean_difference, signed=True),
            f"{one.cliffs_delta.estimate:+.2f}",
            f"{one.p_holm:.2g}",
        ]
        for label, one in compared
    ]
    title = f"{first.label} less the others (mean difference with 95 % interval over units; p: Mann-Whitney, Holm)"
    return TextTable(title, ("site", "negatives", "run", "difference", "Cliff's delta", "p"), rows)


def _agreements(
    first: LabelledScores, others: Sequence[LabelledScores], measure: str
) -> Iterator[tuple[str, str, str, RankAgreement]]:
    """(site, negatives, label, agreement) where another run scored the same units."""
    import numpy as np

    from mis_lab.mis.agreement import rank_agreement

    for other in others:
        for site, scores in first.scores.items():
            if site not in other.scores or not first.units[site] or first.units[site] != other.units[site]:
                continue
            for negatives in scores.by_negatives:
                if negatives in other.scores[site].by_negatives:
                    a, b = (
                        np.asarray(getattr(one.of(negatives).scores, measure).estimate)
                        for one in (scores, other.scores[site])
                    )
                    yield site, negatives, other.label, rank_agreement(a, b, first.label, other.label)


def _agreement_table(found: Sequence[tuple[str, str, str, RankAgreement]]) -> TextTable:
    rows = [
        [
            site,
            negatives,
            label,
            one.n_units,
            with_limits(one.spearman),
            f"{one.kendall.estimate:.3f}",
        ]
        for site, negatives, label, one in found
    ]
    title = "agreement on the same units (rank correlation with 95 % interval over units)"
    return TextTable(title, ("site", "negatives", "run", "units", "Spearman's rho", "Kendall's tau"), rows)


def _draw(first: LabelledScores, compared: Sequence[tuple[str, Comparison]], path: Path) -> None:
    """The differences as a chart: thick bars over units, thin lines over groups of images."""
    from dataclasses import replace

    from mis_lab.core.files import write_text
    from mis_lab.report.charts import standalone
    from mis_lab.report.collect import comparison_row
    from mis_lab.report.figures import differences

    rows = [
        replace(comparison_row(first.label, "the others", one), site=f"{one.site} {label}") for label, one in compared
    ]
    path.parent.mkdir(parents=True, exist_ok=True)
    write_text(path, standalone(differences(rows)))
