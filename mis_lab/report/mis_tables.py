"""Tables of what stands beside scores: further scores, matched pairs, counts of interpretable units, noise, sites."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from mis_lab.mis.agreement import ReseedNoise
from mis_lab.mis.discovery import InterpretableUnits
from mis_lab.mis.further import FurtherScores
from mis_lab.mis.over_sites import OverSites
from mis_lab.mis.pairs import PairedComparison
from mis_lab.report.tables import Cell, Column, Table, interval_cell, kind_cell, number_cell, word_cell
from mis_lab.report.wording import MEASURES, count, fixed, named, number, p_value, percent

At = tuple[str, str, str]  # site, negatives, measure


def further_table(found: Mapping[tuple[str, str], FurtherScores]) -> Table:
    """Medians of every further score at every site, and what they must be compared with."""
    rows = []
    for (site, kind), scores in found.items():
        medians = {name: _median(values) for name, values in scores.measures().items()}
        above = {
            name: medians[name] - scores.base_rate
            for name in ("monosemanticity", "monosemanticity_active", "coherence")
        }
        rows.append(
            [
                word_cell(site, "word code"),
                kind_cell(kind),
                number_cell(scores.base_rate, number(scores.base_rate)),
                *(number_cell(value, fixed(value, 3, True)) for value in above.values()),
                number_cell(medians["odd_one_out"], fixed(medians["odd_one_out"])),
                number_cell(medians["class_purity"], percent(medians["class_purity"])),
                number_cell(_median(scores.class_entropy.numpy()), fixed(_median(scores.class_entropy.numpy()))),
                number_cell(_median(scores.cross_mis.numpy()), fixed(_median(scores.cross_mis.numpy()))),
                number_cell(scores.duplicate_share, percent(scores.duplicate_share)),
            ]
        )
    terms = (
        "base_rate", "monosemanticity", "monosemanticity_active", "pool_coherence", "odd_one_out", "pool_purity",
        "pool_entropy", "cross_mis", "duplicate_share",
    )  # fmt: skip
    columns = [Column(label="Site"), Column(label="Kind"), *(Column(term) for term in terms)]
    return Table("table-further", "Other scores of the same units, medians", columns, rows)


def pairs_table(found: Mapping[At, PairedComparison]) -> Table:
    """Each feature against the neuron that correlates best with it."""
    rows = [
        [
            *_place(at),
            number_cell(one.n_pairs, count(one.n_pairs)),
            number_cell(one.n_replicates, count(one.n_replicates)),
            interval_cell(one.mean_difference, 3, True),
            interval_cell(one.median_difference, 3, True),
            interval_cell(one.rank_biserial, 2, True),
            number_cell(one.p_value, p_value(one.p_value)),
        ]
        for at, one in found.items()
    ]
    terms = ("n_pairs", "n_partners", "pair_difference", "pair_median_difference", "rank_biserial", "p_signed_rank")
    return Table("table-pairs", "Features less the neurons they correlate with best", _columns(terms), rows)


def sites_table(found: Sequence[OverSites]) -> Table:
    """Features less neurons with the site as the replicate."""
    rows = [
        [
            word_cell(one.negatives),
            word_cell(named(MEASURES, one.measure)),
            number_cell(one.n, count(one.n)),
            interval_cell(one.mean_difference, 3, True),
            number_cell(one.p_value, p_value(one.p_value)),
            number_cell(one.least_p, p_value(one.least_p)),
        ]
        for one in found
    ]
    terms = ("n_compared_sites", "difference_over_sites", "p_over_sites", "least_p")
    columns = [Column(label="Negatives"), Column(label="Measure"), *(Column(term) for term in terms)]
    return Table("table-sites", "Features less neurons, the site as the replicate", columns, rows)


def interpretable_table(found: Sequence[InterpretableUnits]) -> Table:
    """How many units of every kind are not at chance, false discoveries bounded; a column a kind of negatives."""
    negatives = list(dict.fromkeys(one.negatives for one in found))
    by_place: dict[tuple[str, str], dict[str, InterpretableUnits]] = {}
    for one in found:
        by_place.setdefault((one.site, one.kind), {})[one.negatives] = one
    rows = []
    for (site, kind), counted in by_place.items():
        n_units = next(iter(counted.values())).n_units
        cells = [word_cell(site, "word code"), kind_cell(kind), number_cell(n_units, count(n_units))]
        for name in negatives:
            one = counted[name]
            of_tested = f"{count(one.n_interpretable)} of {count(one.n_tested)} ({percent(one.share_of_tested)})"
            cells.append(number_cell(one.share_of_tested, of_tested))
            cells.append(number_cell(one.share_of_all, percent(one.share_of_all)))
        rows.append(cells)
    columns = [Column(label="Site"), Column(label="Kind"), Column("n_units")]
    for name in negatives:
        columns += [Column("n_interpretable", f"Of the tested, {name}"), Column("share_of_all", f"Of all, {name}")]
    return Table("table-interpretable", "Units whose hard score is not chance", columns, rows)


def noise_table(found: Mapping[tuple[str, str, str, str], ReseedNoise]) -> Table:
    """What drawing pools and tasks anew changes; keys are site, kind, negatives, measure."""
    rows = [
        [
            word_cell(site, "word code"),
            kind_cell(kind),
            word_cell(negatives),
            word_cell(named(MEASURES, measure)),
            number_cell(one.n_units, count(one.n_units)),
            number_cell(one.within_sd, fixed(one.within_sd, 3)),
            number_cell(one.between_sd, fixed(one.between_sd, 3)),
            interval_cell(one.icc, 2),
            number_cell(one.mean_sd, fixed(one.mean_sd, 4)),
        ]
        for (site, kind, negatives, measure), one in found.items()
    ]
    terms = ("n_rescored", "within_sd", "between_sd", "icc", "mean_sd")
    columns = [
        *(Column(label=label) for label in ("Site", "Kind", "Negatives", "Measure")),
        *(Column(term) for term in terms),
    ]
    return Table("table-noise", "Scores drawn again with other seeds", columns, rows)


def _place(at: At) -> list[Cell]:
    site, negatives, measure = at
    return [word_cell(site, "word code"), word_cell(negatives), word_cell(named(MEASURES, measure))]


def _columns(terms: Sequence[str]) -> list[Column]:
    return [*(Column(label=label) for label in ("Site", "Negatives", "Measure")), *(Column(term) for term in terms)]


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")
