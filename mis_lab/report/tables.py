"""The page's tables as data: columns that name their glossary entry, cells with a text and a value to sort by."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np

from mis_lab.core.intervals import Interval
from mis_lab.report.data import (
    ComparisonRow,
    KindScores,
    ReportData,
    SiteSae,
)
from mis_lab.report.figures import kind_class, ordered
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.wording import (
    KINDS,
    KINDS_SINGULAR,
    MEASURES,
    NOTHING,
    compact,
    count,
    fixed,
    interval,
    named,
    number,
    p_value,
    percent,
)

MAX_UNIT_ROWS = 20_000


class Column(NamedTuple):
    """A column: `term` is a glossary key, or None for a name that is no number (`label`)."""

    term: str | None = None
    label: str = ""


class Cell(NamedTuple):
    """A cell: what is read, what it sorts by, a style class, and a second line in grey."""

    text: str
    sort: float | str = ""
    css: str = "num"
    more: str = ""


@dataclass(frozen=True)
class Table:
    """A small table, whole in the page.

    Attributes:
        name: element id.
        caption: one sentence.
    """

    name: str
    caption: str
    columns: Sequence[Column]
    rows: Sequence[Sequence[Cell]]


def word_cell(text: str, css: str = "word") -> Cell:
    """A name, sorted as it reads."""
    return Cell(text, text, css)


def number_cell(value: float | None, text: str) -> Cell:
    """A number as `text`, sorted by its value; NaN and None sort last."""
    return Cell(text, NOTHING if value is None or value != value else float(value))


def interval_cell(value: Interval | None, decimals: int = 2, signed: bool = False) -> Cell:
    """An estimate, its interval below."""
    if value is None:
        return Cell(NOTHING, NOTHING)
    estimate = float(value.estimate)
    return number_cell(estimate, fixed(estimate, decimals, signed))._replace(more=interval(value, decimals))


def kind_cell(kind: str) -> Cell:
    """A kind of units in its colour."""
    return Cell(named(KINDS, kind), named(KINDS, kind), f"word kind {kind_class(kind)}")


def sae_table(saes: Sequence[SiteSae]) -> Table:
    """Quality of the SAEs, a row a site; columns nobody measured are left out."""
    used = [term for term in _SAE_COLUMNS if any(getattr(sae, term) is not None for sae in saes)]
    rows = []
    for sae in saes:
        numbers = [(getattr(sae, term), _SAE_COLUMNS[term]) for term in used]
        cells = [
            Cell(NOTHING, NOTHING) if value is None else number_cell(value, words(value)) for value, words in numbers
        ]
        rows.append([word_cell(sae.site, "word code"), word_cell(sae.name), *cells])
    columns = [Column(label="Site"), Column(label="SAE"), *(Column(term) for term in used)]
    return Table("table-sae", "Quality of the SAE at each site", columns, rows)


_SAE_COLUMNS: dict[str, Callable[[Any], str]] = {
    "n_features": count,
    "n_vectors": compact,
    "fvu": fixed,
    "explained_variance": fixed,
    "fvu_held_out": fixed,
    "l0": number,
    "dead_share": percent,
    "ce_clean": number,
    "ce_spliced": number,
    "kl": number,
    "top1_agreement": percent,
    "loss_recovered_zero": fixed,
    "loss_recovered_mean": fixed,
}


def status_table(scores: Sequence[KindScores]) -> Table:
    """How many units have a score, and why the others have none."""
    found = [(one, Counter(one.status)) for one in scores]
    names = [
        name for name in ("ok", "dead", "constant", "too_rare", "too_few_groups") if any(c[name] for _, c in found)
    ]
    rows = [
        [
            word_cell(one.site, "word code"),
            kind_cell(one.kind),
            number_cell(len(one.status), count(len(one.status))),
            *(
                number_cell(c[name], f"{count(c[name])} ({percent(c[name] / len(one.status))})" if c[name] else "0")
                for name in names
            ),
        ]
        for one, c in found
    ]
    columns = [
        Column(label="Site"),
        Column(label="Kind"),
        Column("n_units"),
        *(Column(f"status_{name}") for name in names),
    ]
    return Table("table-status", "Units with and without a score", columns, rows)


def median_table(scores: Sequence[KindScores], negatives: Sequence[str]) -> Table:
    """Median scores of every kind at every site."""
    asked = [(kind, measure) for kind in negatives for measure in MEASURES]
    columns = [Column(label="Site"), Column(label="Kind"), Column("status_ok")]
    columns += [Column(measure, f"{GLOSSARY[measure].label}, {kind}") for kind, measure in asked]
    rows = []
    for one in scores:
        found = [one.of(kind, measure) for kind, measure in asked]
        n_scored = max((len(values) for values in found), default=0)
        medians = [float(np.median(values)) if values.size else None for values in found]
        cells = [number_cell(median, fixed(median)) for median in medians]
        rows.append(
            [word_cell(one.site, "word code"), kind_cell(one.kind), number_cell(n_scored, count(n_scored)), *cells]
        )
    return Table("table-medians", "Medians of the scored units", columns, rows)


def comparison_tables(rows: Sequence[ComparisonRow]) -> list[Table]:
    """Comparisons with intervals and verdicts, a table for each measure and pair of kinds."""
    terms = (
        "n_a", "n_b", "median_a", "median_b", "median_difference", "mean_difference", "mean_difference_groups",
        "difference_with_unscored", "cliffs_delta", "p_holm",
    )  # fmt: skip
    columns = [Column(label="Site"), Column(label="Negatives"), *(Column(term) for term in ("verdict", *terms))]
    found = []
    for measure, a, b in dict.fromkeys((row.measure, row.a, row.b) for row in rows):
        caption = f"{named(MEASURES, measure)}: {named(KINDS, a)} (first) against {named(KINDS, b)} (second)"
        of_pair = [_comparison_cells(row) for row in rows if (row.measure, row.a, row.b) == (measure, a, b)]
        found.append(Table(f"table-comparison-{measure}-{a}-{b}", caption, columns, of_pair))
    return found


def _comparison_cells(row: ComparisonRow) -> list[Cell]:
    return [
        word_cell(row.site, "word code"),
        word_cell(row.negatives),
        _verdict(row),
        number_cell(row.n_a, count(row.n_a)),
        number_cell(row.n_b, count(row.n_b)),
        number_cell(row.median_a, fixed(row.median_a, 3)),
        number_cell(row.median_b, fixed(row.median_b, 3)),
        interval_cell(row.median_difference, 3, True),
        interval_cell(row.mean_difference, 3, True),
        interval_cell(row.mean_difference_groups, 3, True),
        number_cell(row.difference_with_unscored, fixed(row.difference_with_unscored, 3, signed=True)),
        interval_cell(row.cliffs_delta, 2, True),
        number_cell(row.p_holm, p_value(row.p_holm)),
    ]


def _verdict(row: ComparisonRow) -> Cell:
    if row.winner is None:
        return word_cell("unclear")
    more = "" if row.carries_over else "these images only"
    return word_cell(f"{named(KINDS, row.winner)} ahead", f"word kind {kind_class(row.winner)}")._replace(more=more)


def units_json(data: ReportData, shown: Mapping[tuple[str, str, int], str]) -> str:
    """Scores of all units for the table that the page's script fills, as compact JSON safe inside ``<script>``.

    Beyond :data:`MAX_UNIT_ROWS` rows, every site and kind keeps the same share of its units, evenly spaced.

    Args:
        shown: (site, kind, number) → element id, for units that have a card to jump to.
    """
    if data.mis is None:
        return "null"
    scores = [one for site in data.sites for one in ordered([one for one in data.scores if one.site == site.path])]
    total = sum(len(one.numbers) for one in scores)
    measures = [(negatives, measure) for negatives in data.mis.negatives for measure in ("soft", "hard")]
    statuses = list(dict.fromkeys(status for one in scores for status in one.status))
    rows: list[list[int | float | None]] = []
    for block, one in enumerate(scores):
        n_kept = len(one.numbers) if total <= MAX_UNIT_ROWS else len(one.numbers) * MAX_UNIT_ROWS // total
        columns = [np.asarray(one.scores.get(n, {}).get(m, np.full(len(one.numbers), np.nan))) for n, m in measures]
        for at in np.linspace(0, len(one.numbers) - 1, n_kept).round().astype(int).tolist():
            values = [round(float(column[at]), 3) if np.isfinite(column[at]) else None for column in columns]
            rows.append([block, int(one.numbers[at]), statuses.index(one.status[at]), int(one.n_active[at]), *values])
    content = {
        "blocks": [[one.site, named(KINDS_SINGULAR, one.kind), kind_class(one.kind)] for one in scores],
        "statuses": [status.replace("_", " ") for status in statuses],
        "columns": [f"{named(MEASURES, measure)}, {negatives}" for negatives, measure in measures],
        "terms": [measure for _, measure in measures],
        "order": 4 + measures.index(data.mis.headline[::-1]) if data.mis.headline[::-1] in measures else 4,
        "total": total,
        "cards": {
            f"{site}|{named(KINDS_SINGULAR, kind)}|{unit}": element for (site, kind, unit), element in shown.items()
        },
        "rows": rows,
    }
    text = json.dumps(content, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return text.replace("<", "\\u003c")
