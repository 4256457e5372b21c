"""Tables about circuits: what effects explain at each site, circuits of a size, effects beside exact ones."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.circuit.quality import AGAINST, BEST_RANDOM, BY_CHANGE
from mis_lab.core.intervals import Interval
from mis_lab.report.circuit_data import CircuitDetails, CmdDifference, SiteActivity
from mis_lab.report.data import CircuitView, FaithfulnessCurve
from mis_lab.report.figures import curve_name, kind_class
from mis_lab.report.tables import Cell, Column, Table, interval_cell, kind_cell, number_cell, word_cell
from mis_lab.report.wording import KINDS, count, fixed, named, percent

OTHERS = {BY_CHANGE: "ordered by change", BEST_RANDOM: "the best random one"}


def circuit_site_table(circuit: CircuitView) -> Table:
    """Live nodes, attribution gap, error share and, with edges, their coverage, of each site."""
    with_edges = any(site.coverage is not None for site in circuit.sites)
    rows = []
    for site in circuit.sites:
        cells = [
            word_cell(site.site, "word code"),
            number_cell(site.n_live, count(site.n_live)),
            number_cell(site.attribution_gap, percent(site.attribution_gap)),
            number_cell(site.error_share, percent(site.error_share)),
        ]
        if with_edges:
            cells.append(number_cell(site.coverage, percent(site.coverage)))
        rows.append(cells)
    columns = [Column(label="Site"), Column("n_live"), Column("attribution_gap"), Column("error_share")]
    if with_edges:
        columns.append(Column("edge_coverage"))
    return Table("table-circuit", "What effects and edges explain at each site", columns, rows)


def curve_table(curves: Sequence[FaithfulnessCurve], details: CircuitDetails, n_shown: int) -> Table:
    """Each curve at the size nearest to the pictured circuit's, with what was computed beside it."""
    with_areas = any(curve.cpr is not None for curve in curves)
    rows = []
    for curve in curves:
        size, value = curve.at(n_shown)
        cells = [
            Cell(curve_name(curve), curve_name(curve), f"word narrow kind {kind_class(curve.kind)}"),
            number_cell(size, count(size)),
            interval_cell(value),
        ]
        if details.completeness:
            found = details.completeness_at(curve.kind, size) if curve.selection == "effect" else None
            cells.append(number_cell(found and found[1], fixed(found and found[1])))
        if with_areas:
            cells += [interval_cell(curve.cpr), interval_cell(curve.cmd)]
        rows.append(cells)
    columns = [Column(label="Circuits"), Column("n_nodes"), Column("faithfulness")]
    if details.completeness:
        columns.append(Column("completeness"))
    if with_areas:
        columns += [Column("cpr"), Column("cmd")]
    return Table("table-curves", "Circuits about as large as the pictured one", columns, rows)


def difference_table(differences: Sequence[CmdDifference]) -> Table:
    """How much closer to the network circuits are than others of the same size, over all sizes."""
    rows = []
    for one in differences:
        circuits, other = kind_cell(one.kind), word_cell(OTHERS.get(one.other, one.other))
        if one.other in KINDS:
            other = kind_cell(one.other)
        elif AGAINST in one.other:
            own, _, its = one.other.partition(AGAINST)
            circuits, other = word_cell(f"{own}, {named(KINDS, one.kind)}"), word_cell(f"{its}, on images of {own}")
        rows.append([circuits, other, interval_cell(one.difference, signed=True), word_cell(_verdict(one.difference))])
    columns = [Column(label="Circuits"), Column(label="Beside"), Column("cmd_difference"), Column(label="They are")]
    return Table("table-cmd", "Are they closer to the network, over all sizes?", columns, rows)


def _verdict(difference: Interval) -> str:
    low, high = float(difference.low), float(difference.high)
    if not np.isfinite(high - low):
        return "no interval"
    return "closer" if high < 0 else "farther" if low > 0 else "unclear"


def agreement_table(agreement: Sequence[tuple[str, ExactAgreement]]) -> Table:
    """Estimated beside exact effects, on the largest nodes and on others drawn at random."""
    rows = []
    for kind, found in agreement:
        for words, some in (("largest", found.top), ("random", found.random)):
            cells = [number_cell(value, fixed(value)) for value in (some.pearson, some.spearman)]
            share = number_cell(some.same_sign, percent(some.same_sign))
            rows.append(
                [kind_cell(kind), word_cell(words), number_cell(some.n_nodes, count(some.n_nodes)), *cells, share]
            )
    columns = [Column(label="Kind"), Column(label="Nodes")]
    columns += [Column(term) for term in ("n_compared", "exact_pearson", "exact_spearman", "same_sign")]
    return Table("table-exact", "Effects beside what ablating single nodes does", columns, rows)


def activity_table(activity: Sequence[SiteActivity]) -> Table:
    """Dead units on the circuit's images and on all."""
    rows = [
        [
            word_cell(one.site, "word code"),
            kind_cell(one.kind),
            number_cell(one.dead_share, percent(one.dead_share)),
            number_cell(one.all_dead_share, percent(one.all_dead_share)),
            number_cell(one.silent_here, percent(one.silent_here)),
        ]
        for one in activity
    ]
    terms = ("circuit_dead_share", "all_dead_share", "silent_here")
    columns = [Column(label="Site"), Column(label="Kind"), *(Column(term) for term in terms)]
    return Table("table-activity", "Units that stay silent on the circuit's images", columns, rows)
