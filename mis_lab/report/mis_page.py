"""What the page's template gets of everything beside scores: charts grouped by site and negatives, and tables."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple, TypeVar

from markupsafe import Markup

from mis_lab.report import mis_figures, mis_tables
from mis_lab.report.mis_data import BesideScores, CourseCurve, PairedScores, ScoreCurve
from mis_lab.report.wording import KINDS, MEASURES, NEGATIVES, named

Drawn = TypeVar("Drawn", CourseCurve, PairedScores)


class Chart(NamedTuple):
    """A chart, its site, and what it is of in words."""

    site: str
    svg: Markup
    words: str


class Charts(NamedTuple):
    """Charts under one button: what it says, and they."""

    key: str
    words: str
    charts: Sequence[Chart]


def beside_page(beside: BesideScores, measure: str) -> dict[str, Any]:
    """Names of the template → content; None or empty where there is nothing."""
    return {
        "further_table": mis_tables.further_table(beside.further) if beside.further else None,
        "agreement_charts": [
            Chart(one.site, mis_figures.agreement(one), named(KINDS, one.kind)) for one in beside.agreement
        ],
        "curve_panels": _curve_panels(beside.curves, measure),
        "course_charts": [
            Chart(one.site, mis_figures.course(one), named(NEGATIVES, one.negatives))
            for one in _by_negatives(beside.course)
        ],
        "paired_charts": [
            Chart(one.site, mis_figures.paired(one), named(NEGATIVES, one.negatives))
            for one in _by_negatives(beside.paired)
            if one.measure == measure
        ],
        "pairs_table": mis_tables.pairs_table(beside.pairs) if beside.pairs else None,
        "sites_table": mis_tables.sites_table(beside.over_sites) if beside.over_sites else None,
        "interpretable_table": mis_tables.interpretable_table(beside.interpretable) if beside.interpretable else None,
        "noise_table": mis_tables.noise_table(beside.noise) if beside.noise else None,
    }


def _by_negatives(found: Sequence[Drawn]) -> list[Drawn]:
    """All sites with one kind of negatives, then all with the next: a row of charts each."""
    order = list(dict.fromkeys(one.negatives for one in found))
    return sorted(found, key=lambda one: order.index(one.negatives))


def _curve_panels(curves: Sequence[ScoreCurve], measure: str) -> list[Charts]:
    """One for each setting and kind of negatives."""
    panels = []
    for setting, negatives in dict.fromkeys((one.setting, one.negatives) for one in curves):
        chosen = [one for one in curves if (one.setting, one.negatives) == (setting, negatives)]
        by = {"hardness": "hardness of the query", "quantile": "size of the pool"}[setting]
        words = f"{named(MEASURES, measure)}, {named(NEGATIVES, negatives)}"
        charts = [Chart(site, svg, words) for site, svg in mis_figures.curves(chosen, measure).items()]
        panels.append(Charts(f"{setting}-{negatives}", f"{by.capitalize()}, {negatives}", charts))
    return panels
