"""Tables of what an SAE's features are like: classes, shared space, and what became of dead features."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mis_lab.report.data import SiteSae
from mis_lab.report.figures import kind_class
from mis_lab.report.sae_data import TrainingCourse
from mis_lab.report.sae_figures import DIRECTION_CSS, DIRECTION_WORDS
from mis_lab.report.tables import Cell, Column, Table, number_cell, word_cell
from mis_lab.report.wording import KINDS, NOTHING, count, fixed, named, number, percent
from mis_lab.sae.dead import overlap_table

MOST_SETS = 8  # of revived features, rows and columns of their table


def classes_table(saes: Sequence[SiteSae]) -> Table:
    """Of how many classes features and neurons tell, medians over living units."""
    rows = []
    for sae in saes:
        for one in sae.selectivity:
            n_units, n_dead = int(one.histogram.sum()), int(one.histogram[0])
            entropy, gini = (_median(values) for values in (one.entropy_u, one.gini_u))
            kind = Cell(named(KINDS, one.kind), named(KINDS, one.kind), f"word kind {kind_class(one.kind)}")
            rows.append(
                [
                    word_cell(sae.site, "word code"),
                    kind,
                    number_cell(one.n_classes, count(one.n_classes)),
                    number_cell(n_dead / n_units, percent(n_dead / n_units)),
                    number_cell(one.median_classes, number(one.median_classes)),
                    number_cell(entropy, fixed(entropy)),
                    number_cell(gini, fixed(gini)),
                ]
            )
    terms = ("n_classes", "dead_units_share", "median_active_classes", "class_entropy", "class_gini")
    columns = [Column(label="Site"), Column(label="Kind"), *(Column(term) for term in terms)]
    return Table("table-classes", "Of how many classes units tell", columns, rows)


def _median(values: np.ndarray) -> float:
    known = values[np.isfinite(values)]
    return float(np.median(known)) if known.size else float("nan")


def superposition_table(saes: Sequence[SiteSae]) -> Table:
    """How many directions share how many dimensions, and how well they keep out of each other's way."""
    rows = []
    for sae in saes:
        for what, one in sae.superposition.items():
            rows.append(
                [
                    word_cell(sae.site, "word code"),
                    word_cell(DIRECTION_WORDS[what], f"word kind {DIRECTION_CSS[what]}"),
                    number_cell(one.n_directions, count(one.n_directions)),
                    number_cell(one.n_dimensions, count(one.n_dimensions)),
                    number_cell(one.median_dimensionality, fixed(one.median_dimensionality, 3)),
                    number_cell(one.coherence, fixed(one.coherence)),
                    number_cell(one.effective_rank, number(one.effective_rank)),
                ]
            )
    terms = ("n_directions", "n_dimensions", "median_dimensionality", "coherence", "effective_rank")
    columns = [Column(label="Site"), Column(label="Directions"), *(Column(term) for term in terms)]
    return Table("table-superposition", "How directions share space", columns, rows)


def revived_table(site: str, course: TrainingCourse) -> Table | None:
    """Of the features revived after a step (a row), the share that were also revived after another (a column), or were
    dead at the last evaluation; None unless some were revived."""
    sets = [(step, features) for step, features in course.fates.revived.items() if features]
    if not sets:
        return None
    if len(sets) > MOST_SETS:  # evenly spread, first and last among them
        sets = [sets[place] for place in np.linspace(0, len(sets) - 1, MOST_SETS).round().astype(int).tolist()]
    last = max(course.fates.dead, default=None)
    columns = [(f"also at {count(step)}", features) for step, features in sets]
    if last is not None:
        columns.append((f"dead at {count(last)}", course.fates.dead[last]))
    shares = overlap_table([features for _, features in sets], [features for _, features in columns])
    rows = []
    for (step, features), values in zip(sets, shares.tolist(), strict=True):
        cells = [
            Cell(NOTHING, NOTHING) if name == f"also at {count(step)}" else number_cell(value, percent(value))
            for (name, _), value in zip(columns, values, strict=True)
        ]
        rows.append([number_cell(step, count(step)), number_cell(len(features), count(len(features))), *cells])
    head = [Column("revived_step"), Column("n_revived"), *(Column("overlap_share", name) for name, _ in columns)]
    return Table(
        f"table-revived-{site}",
        "Of the features revived after a step, the share that were revived at another, or dead at the end",
        head,
        rows,
    )
