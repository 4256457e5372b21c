"""The circuit's pictures as files beside the page: every chart as SVG, the graph as Graphviz text and SVG."""

from __future__ import annotations

from pathlib import Path

from markupsafe import Markup

from mis_lab.circuit.dot import circuit_dot, render_svg
from mis_lab.circuit.result import CircuitResult
from mis_lab.core.files import write_text
from mis_lab.report import circuit_figures
from mis_lab.report.charts import standalone
from mis_lab.report.circuit_graph import circuit_graph
from mis_lab.report.data import ReportData


def named_charts(data: ReportData) -> dict[str, Markup]:
    """Name of a file (``circuit/graph``, ``circuit/completeness``, ``circuit/effects_blocks.2``, ...) → chart."""
    details, found = data.circuit_details, {}
    n_shown = len(data.circuit.nodes) if data.circuit else None
    if data.circuit is not None:
        found["circuit/graph"] = circuit_graph(data.circuit, details.edges)
    if details.completeness:
        found["circuit/completeness"] = circuit_figures.completeness(details.completeness, n_shown)
    if data.faithfulness:
        found["circuit/distance"] = circuit_figures.distance(data.faithfulness, n_shown)
    parts = {
        "effects": circuit_figures.effect_charts(details.ranked),
        "scores": circuit_figures.score_charts(details.ranked, data.faithfulness),
        "activity": circuit_figures.activity_charts(details.activity),
    }
    for part, charts in parts.items():
        for number, chart in enumerate(charts):
            found[f"circuit/{part}_{chart.site or number}"] = chart.svg
    return found


def write_circuit_figures(data: ReportData, folder: Path) -> dict[str, Path]:
    """Write them as SVG files that stand alone; name → file."""
    charts = named_charts(data)
    paths = {name: folder / f"{name.replace('/', '_')}.svg" for name in charts}
    for name, svg in charts.items():
        write_text(paths[name], standalone(svg))
    return paths


def write_graphviz(result: CircuitResult, folder: Path) -> dict[str, Path]:
    """The pictured circuit of every kind as Graphviz text and, where Graphviz is installed, as SVG.

    Returns:
        name (``circuit/feature/graphviz``) → SVG file; empty without Graphviz.
    """
    found = {}
    for kind, of_kind in result.kinds.items():
        dot = circuit_dot(of_kind.shown, edges=of_kind.edges)
        write_text(folder / f"circuit_{kind}.dot", dot)
        if (svg := render_svg(dot)) is not None:
            found[f"circuit/{kind}/graphviz"] = folder / f"circuit_{kind}.svg"
            write_text(found[f"circuit/{kind}/graphviz"], svg)
    return found
