"""A circuit as a picture: Graphviz text, a column of nodes a site, and SVG where Graphviz is installed."""

from __future__ import annotations

import logging
import shutil
import subprocess
from collections.abc import Mapping

from mis_lab.circuit.circuit import ERROR, Circuit, Node
from mis_lab.circuit.graph import Edges

SUPPORTS, OPPOSES = "#2166ac", "#b2182b"  # blue and red stay apart for colour-blind readers
SMALLEST, LARGEST = 0.45, 1.1  # width of a node in inches; the area grows with the effect
THINNEST, THICKEST = 0.4, 6.0  # of an edge in points; the width grows with |weight|
SECONDS_TO_RENDER = 60
logger = logging.getLogger(__name__)


def circuit_dot(circuit: Circuit, labels: Mapping[Node, str] | None = None, edges: Edges | None = None) -> str:
    """Graphviz text of all nodes of `circuit` (take its ``top`` first): a column a site, in order.

    Blue supports the target, red opposes it; strength of the colour and area follow |effect|, an edge's width its
    |weight|. Error nodes are triangles. Invisible edges between the sites' titles keep the columns in order.

    Args:
        labels: what to write on nodes, instead of their numbers.
        edges: those between nodes of `circuit` are drawn (take the ``strongest`` first), and the objective where
            some lead to it.
    """
    largest = float(circuit.effect.abs().max()) if len(circuit) else 0.0
    columns: dict[str, list[str]] = {path: [] for path in circuit.n_nodes}
    rows = zip(circuit.nodes, circuit.effect.tolist(), circuit.standard_error.tolist(), strict=True)
    for number, (node, effect, error) in enumerate(rows):
        share = abs(effect) / largest if largest else 0.0
        width = (SMALLEST**2 + share * (LARGEST**2 - SMALLEST**2)) ** 0.5
        attributes = {
            "label": f"{(labels or {}).get(node, _name(circuit.kind, node))}\n{effect:+.3g}",
            "tooltip": f"{node.site} {_name(circuit.kind, node)}: {effect:+.4g} ± {error:.2g}",
            "shape": "triangle" if node.feature == ERROR else "circle",
            "width": f"{width:.3f}",
            "height": f"{width:.3f}",
            "fillcolor": _shade(SUPPORTS if effect > 0 else OPPOSES, share**0.5),
            "fontcolor": "white" if share > 0.3 else "black",
        }
        columns[node.site].append(f"    node_{number} {_attributes(attributes)};")

    lines = [
        "digraph circuit {",
        "  rankdir=LR; newrank=true; nodesep=0.15; ranksep=0.7; bgcolor=transparent;",
    ]
    lines.append('  node [style=filled, fixedsize=true, color="#888888", fontname=Helvetica, fontsize=9];')
    for number, (path, nodes) in enumerate(columns.items()):
        title = {"label": path, "shape": "plaintext", "style": "", "fixedsize": "false", "fontsize": "11"}
        lines += ["  {", "    rank=same;", f"    site_{number} {_attributes(title)};", *nodes, "  }"]
    if len(columns) > 1:
        lines.append(f"  {' -> '.join(f'site_{number}' for number in range(len(columns)))} [style=invis];")
    if edges is not None:
        lines += _edge_lines(circuit, edges)
    return "\n".join([*lines, "}"]) + "\n"


def _edge_lines(circuit: Circuit, edges: Edges) -> list[str]:
    """The objective and the edges, those that are no edge of two of the circuit's nodes left out."""
    place = {node: f"node_{number}" for number, node in enumerate(circuit.nodes)}
    ends = zip(edges.ends, edges.weight.tolist(), strict=True)
    drawn = [
        (place[source], "objective" if target is None else place[target], weight)
        for (source, target), weight in ends
        if source in place and (target is None or target in place)
    ]
    largest = max((abs(weight) for *_, weight in drawn), default=0.0)
    lines = []
    if any(target == "objective" for _, target, _ in drawn):
        last = len(circuit.n_nodes) - 1
        attributes = _attributes({"label": "objective", "shape": "box", "fixedsize": "false", "fillcolor": "white"})
        lines += [f"  objective {attributes};", f"  site_{last} -> objective [style=invis];"]
    for source, target, weight in drawn:
        share = abs(weight) / largest if largest else 0.0
        colour = _shade(SUPPORTS if weight > 0 else OPPOSES, share**0.5)
        width = f"{THINNEST + share * (THICKEST - THINNEST):.2f}"
        attributes = _attributes({"color": colour, "penwidth": width, "arrowsize": "0.4", "tooltip": f"{weight:+.4g}"})
        lines.append(f"  {source} -> {target} {attributes};")
    return lines


def render_svg(dot_text: str) -> str | None:
    """The picture as SVG text, or None where Graphviz' ``dot`` is missing or fails."""
    program = shutil.which("dot")
    if program is None:
        return None
    try:
        done = subprocess.run(
            [program, "-Tsvg"],
            input=dot_text,
            capture_output=True,
            text=True,
            encoding="utf-8",
            timeout=SECONDS_TO_RENDER,
            check=True,
        )
    except (subprocess.SubprocessError, OSError) as error:
        logger.warning("Graphviz could not draw the circuit (%s)", error)
        return None
    return done.stdout


def _name(kind: str, node: Node) -> str:
    return "error" if node.feature == ERROR else f"{kind[0]}{node.feature}"


def _shade(colour: str, strength: float) -> str:
    """`colour` mixed with white: a `strength` of 0 leaves a tint, 1 the colour itself."""
    strength = 0.15 + 0.85 * strength
    channels = [int(colour[start : start + 2], 16) for start in (1, 3, 5)]
    return "#" + "".join(f"{round(255 - strength * (255 - channel)):02x}" for channel in channels)


def _attributes(values: Mapping[str, str]) -> str:
    def quoted(text: str) -> str:
        return '"' + text.replace("\\", "\\\\").replace('"', '\\"').replace("\n", "\\n") + '"'

    return "[" + ", ".join(f"{name}={quoted(value)}" for name, value in values.items()) + "]"
