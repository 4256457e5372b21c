"""What the page's template gets of circuits: the graph, a card a node, tables, charts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from markupsafe import Markup

from mis_lab.report import circuit_figures, circuit_tables, figures
from mis_lab.report.circuit_graph import AT_FIRST, MOST_EDGES, circuit_graph, node_title, seen_at_first
from mis_lab.report.data import CircuitNode, CircuitView, FaithfulnessCurve, ReportData
from mis_lab.report.gallery import Shown, TileSet, tile_set
from mis_lab.report.images import SpriteSheet, largest_activation
from mis_lab.report.wording import KINDS, count, fixed, interval, listed, named, percent

NODE_IMAGES = 5


class NodeView(NamedTuple):
    """A node's card: its place among all nodes, style class, small picture, numbers in words, images."""

    place: int
    css: str
    glyph: Markup
    title: str
    effect: str
    mis: str
    minimality: str
    set: TileSet | None


class ColumnView(NamedTuple):
    """The cards of a site."""

    site: str
    words: str
    nodes: Sequence[NodeView]


class GraphView(NamedTuple):
    """The graph and what is said about it.

    `n_edges` of which `n_first` are seen at first; `left_out` are not in the page at all.
    """

    svg: Markup
    n_edges: int
    n_first: int
    left_out: int
    at_first: int
    any_mis: bool


def circuit_page(data: ReportData, shown: Shown, sprites: SpriteSheet) -> dict[str, Any]:
    """Names of the template → content; None or empty where there is nothing."""
    circuit, curves, details = data.circuit, data.faithfulness, data.circuit_details
    n_shown = len(circuit.nodes) if circuit else None
    node_images = min(NODE_IMAGES, max(shown.images, 1)) if shown.units else 0
    need = details.need
    return {
        "graph": _graph(data, circuit) if circuit else None,
        "circuit_columns": circuit_columns(circuit, sprites, node_images) if circuit else [],
        "circuit_table": circuit_tables.circuit_site_table(circuit) if circuit else None,
        "need": {"median": percent(need.median, 1), "needless": percent(need.needless), "below": percent(need.below)}
        if need
        else None,
        "exact_table": circuit_tables.agreement_table(details.agreement) if details.agreement else None,
        "effect_charts": circuit_figures.effect_charts(details.ranked),
        "score_charts": circuit_figures.score_charts(details.ranked, curves),
        "activity_charts": circuit_figures.activity_charts(details.activity),
        "activity_table": circuit_tables.activity_table(details.activity) if details.activity else None,
        "curve_chart": figures.faithfulness(curves, n_shown) if curves else None,
        "curve_legend": [
            (figures.curve_name(curve), f"{figures.kind_class(curve.kind)} {figures.selection_class(curve.selection)}")
            for curve in curves
        ],
        "live_only": _live_only(curves),
        "curve_table": circuit_tables.curve_table(curves, details, n_shown) if curves and n_shown else None,
        "difference_table": circuit_tables.difference_table(details.cmd_differences)
        if details.cmd_differences
        else None,
        "completeness_chart": circuit_figures.completeness(details.completeness, n_shown)
        if details.completeness
        else None,
        "distance_chart": circuit_figures.distance(curves, n_shown) if curves else None,
    }


def _graph(data: ReportData, circuit: CircuitView) -> GraphView:
    edges = data.circuit_details.edges
    drawn = edges[:MOST_EDGES]
    return GraphView(
        circuit_graph(circuit, edges),
        len(drawn),
        sum(seen_at_first(drawn)),
        len(edges) - len(drawn),
        AT_FIRST,
        any(node.mis is not None for node in circuit.nodes),
    )


def circuit_columns(circuit: CircuitView, sprites: SpriteSheet, node_images: int) -> list[ColumnView]:
    """The nodes with their images: a column a site, the largest effects on top."""
    largest = max((abs(node.effect) for node in circuit.nodes), default=1.0)
    columns = []
    for site in circuit.sites:
        here = [(place, node) for place, node in enumerate(circuit.nodes) if node.site == site.site]
        here.sort(key=lambda one: -abs(one[1].effect))
        views = [_node(place, node, largest, sprites, node_images) for place, node in here]
        columns.append(ColumnView(site.site, f"{len(here)} of {count(site.n_live)} live nodes", views))
    return columns


def _node(place: int, node: CircuitNode, largest: float, sprites: SpriteSheet, node_images: int) -> NodeView:
    images, title = node.images[:node_images], node_title(node)
    score = node.mis
    return NodeView(
        place,
        figures.kind_class(node.kind) if node.kind != "error" else "",
        figures.node_glyph(node.kind, node.effect, largest),
        title,
        f"{fixed(node.effect, 3, True)} ± {fixed(node.effect_se, 3)}",
        "" if score is None else f"{fixed(float(score.estimate))} {interval(score)}",
        "" if node.minimality is None else percent(node.minimality, 1),
        tile_set("top", images, largest_activation(images), f"{title} of {node.site}", sprites) if images else None,
    )


def _live_only(curves: Sequence[FaithfulnessCurve]) -> str:
    told = [
        f"{fixed(curve.live_only)} for {named(KINDS, curve.kind)}" for curve in curves if curve.live_only is not None
    ]
    return listed(told) if told else ""
