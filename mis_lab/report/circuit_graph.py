"""The circuit as a picture made here: a column of nodes a site, the objective last, edges as curves between them.

It can be followed as it stands; templates/circuit.js lets a reader look at one node, at more edges, at fewer nodes.
"""

# V pictured nodes  E edges between them

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

from mis_lab.report.charts import Svg
from mis_lab.report.circuit_data import CircuitEdge
from mis_lab.report.data import CircuitNode, CircuitView
from mis_lab.report.images import data_uri, thumbnail
from mis_lab.report.wording import KINDS_SINGULAR, count, fixed, interval, named, number, plural

WIDTH, TOP, FOOT = 1110, 46, 34
CARD, OBJECTIVE = 140, 92  # widths
FEW = 12  # nodes of a column up to which there is more room for each
LARGEST_DISC, SMALLEST_DISC = 15.0, 2.0
THICKEST, THINNEST = 8.0, 0.6
AT_FIRST = 3  # edges into each node that are seen at first, and the strongest one out of it
MOST_EDGES = 800
THUMBNAIL_QUALITY = 70


@dataclass(frozen=True)
class Spot:
    """Where the card of a node is: left edge, middle height, size."""

    x: float
    y: float
    width: float
    height: float


def node_title(node: CircuitNode) -> str:
    """A node in words, without its site."""
    return "error" if node.number is None else f"{named(KINDS_SINGULAR, node.kind)} {node.number}"


def node_words(node: CircuitNode) -> str:
    """A node in a sentence: what it is, its effect, its score."""
    score = "" if node.mis is None else f", MIS {fixed(float(node.mis.estimate))} {interval(node.mis)}"
    effect = f"effect {fixed(node.effect, 3, True)} ± {fixed(node.effect_se, 3)}"
    return f"{node_title(node)} of {node.site}: {effect}{score}"


def seen_at_first(edges: Sequence[CircuitEdge], n_into: int = AT_FIRST) -> list[bool]:
    """Of each of `edges` (the strongest first): whether it is among the `n_into` strongest into its target, or the
    strongest out of its source."""
    into: Counter[int | None] = Counter()
    out: Counter[int] = Counter()
    found = []
    for edge in edges:
        into[edge.target] += 1
        out[edge.source] += 1
        found.append(into[edge.target] <= n_into or out[edge.source] == 1)
    return found


def circuit_graph(circuit: CircuitView, edges: Sequence[CircuitEdge]) -> Markup:
    """Nodes as discs (area ∝ |effect|, colour by sign; errors as diamonds) with their top image, and edges.

    Width and colour of an edge tell |weight| and sign. Edges into the objective have a scale of their own: they hold
    all that flows through a node, the others a part of it. The strongest few of each node are seen at first, the
    others wait for the page's script.

    Args:
        edges: the strongest first; beyond :data:`MOST_EDGES` none are drawn.
    """
    edges = edges[:MOST_EDGES]
    spots, height = _layout(circuit)
    goal = Spot(WIDTH - OBJECTIVE, TOP + (height - TOP - FOOT) / 2, OBJECTIVE, 52)
    svg = Svg(
        WIDTH, round(height), f"The circuit: {plural(len(circuit.nodes), 'node')} and {plural(len(edges), 'edge')}",
        "group", "graph",
    )  # fmt: skip
    _titles(svg, circuit, spots)
    with svg.group("edges"):
        _edges(svg, circuit, edges, spots, goal)
    with svg.group("goal"):
        svg.add("rect", "box", x=goal.x, y=goal.y - goal.height / 2, width=goal.width, height=goal.height, rx=10)
        lines = _wrapped(circuit.objective)
        for line, words in enumerate(lines):
            svg.text(goal.x + goal.width / 2, goal.y + 12 + 15 * (line - len(lines) / 2), words, "name")
    into, out = Counter(edge.target for edge in edges), Counter(edge.source for edge in edges)
    largest = max((abs(node.effect) for node in circuit.nodes), default=0.0)
    for place, node in enumerate(circuit.nodes):
        if place in spots:
            told = f"{node_words(node)}; {plural(into[place], 'edge')} in, {count(out[place])} out"
            _node(svg, place, node, spots[place], largest, told)
    _legend(svg, height, bool(edges))
    return svg.render()


def _layout(circuit: CircuitView) -> tuple[dict[int, Spot], float]:
    """Place of a node among all → its spot, and the height of the picture. Columns are centred, largest effects up."""
    columns = [
        sorted(
            (place for place, node in enumerate(circuit.nodes) if node.site == site.site),
            key=lambda place: -abs(circuit.nodes[place].effect),
        )
        for site in circuit.sites
    ]
    longest = max(map(len, columns), default=0)
    card, pitch = (40, 50) if longest <= FEW else (36, 41)
    inner = max(longest, 2) * pitch
    step = (WIDTH - OBJECTIVE) / max(len(columns), 1)
    spots = {}
    for depth, column in enumerate(columns):
        start = TOP + (inner - len(column) * pitch) / 2 + pitch / 2
        for row, place in enumerate(column):
            spots[place] = Spot(depth * step + 1, start + row * pitch, min(CARD, step - 24), card)
    return spots, TOP + inner + FOOT


def _titles(svg: Svg, circuit: CircuitView, spots: dict[int, Spot]) -> None:
    step = (WIDTH - OBJECTIVE) / max(len(circuit.sites), 1)
    n_here = Counter(circuit.nodes[place].site for place in spots)
    for depth, site in enumerate(circuit.sites):
        svg.text(depth * step + 2, 14, site.site, "column-name", "start")
        words = f"{n_here[site.site]} of {count(site.n_live)} live nodes"
        svg.text(depth * step + 2, 30, words, "tick", "start")
    svg.text(WIDTH - OBJECTIVE, 14, "objective", "column-name", "start")


def _edges(svg: Svg, circuit: CircuitView, edges: Sequence[CircuitEdge], spots: dict[int, Spot], goal: Spot) -> None:
    """Weak ones below strong ones."""
    into_goal, between = (
        max((abs(edge.weight) for edge in edges if (edge.target is None) == ends), default=0.0)
        for ends in (True, False)
    )
    ranked = list(enumerate(zip(edges, seen_at_first(edges), strict=True), start=1))
    for rank, (edge, first) in reversed(ranked):
        end = goal if edge.target is None else spots.get(edge.target)
        start = spots.get(edge.source)
        if start is None or end is None:
            continue
        source = circuit.nodes[edge.source]
        into = "the objective" if edge.target is None else _named(circuit.nodes[edge.target])
        x1, x2 = start.x + start.width, end.x
        bend = max((x2 - x1) / 2, 20)
        largest = into_goal if edge.target is None else between
        share = abs(edge.weight) / largest if largest else 0.0
        svg.add(
            "path",
            f"edge {'pos' if edge.weight >= 0 else 'neg'}{'' if first else ' extra'}",
            hint=f"{_named(source)} → {into}: {_signed(edge.weight)} ± {number(edge.weight_se, 2)}",
            d=f"M{x1:.1f} {start.y:.1f}C{x1 + bend:.1f} {start.y:.1f} {x2 - bend:.1f} {end.y:.1f} {x2:.1f} {end.y:.1f}",
            stroke_width=max(THICKEST * share, THINNEST),
            data_from=edge.source,
            data_to="goal" if edge.target is None else edge.target,
            data_rank=rank,
        )


def _node(svg: Svg, place: int, node: CircuitNode, spot: Spot, largest: float, told: str) -> None:
    """A card: disc, top image, number, effect."""
    radius = max(LARGEST_DISC * (abs(node.effect) / largest if largest else 0.0) ** 0.5, SMALLEST_DISC)
    css = f"disc {'pos' if node.effect >= 0 else 'neg'}"
    top, centre = spot.y - spot.height / 2, spot.x + 20
    mis = {} if node.mis is None else {"style": f"--mis:{_percent_of_range(float(node.mis.estimate))}%"}
    with svg.group("graph-node", tabindex="0", role="img", aria_label=told, data_node=place):
        svg.add("rect", "box", x=spot.x, y=top, width=spot.width, height=spot.height, rx=8)
        if node.kind == "error":
            side = radius * (math.pi / 2) ** 0.5  # a diamond of the disc's area
            corners = [
                (centre, spot.y - side),
                (centre + side, spot.y),
                (centre, spot.y + side),
                (centre - side, spot.y),
            ]
            svg.path(corners, f"{css} error", closed=True)
        else:
            svg.add("circle", css if mis else f"{css} unscored", cx=centre, cy=spot.y, r=radius, **mis)
        px, left = spot.height - 6, spot.x + (44 if node.kind == "error" else 40)
        if node.images:
            uri = data_uri(thumbnail(node.images[0].image, 2 * int(px), 2 * int(px)), THUMBNAIL_QUALITY)
            svg.add("image", "top-image", href=uri, x=left, y=top + 3, width=px, height=px)
            left += px + 6
        svg.text(left, spot.y - 2, "error" if node.number is None else str(node.number), "name", "start")
        svg.text(left, spot.y + 12, fixed(node.effect, 3, True), "tick", "start")


def _legend(svg: Svg, height: float, any_edge: bool) -> None:
    y = height - 12
    x = 10.0
    for css, words in (("pos", "supports the target"), ("neg", "speaks against it")):
        svg.add("circle", f"disc {css}", cx=x, cy=y - 4, r=6)
        svg.text(x + 12, y, words, "tick", "start")
        x += 40 + 6 * len(words)
    svg.path([(x, y - 11), (x + 7, y - 4), (x, y + 3), (x - 7, y - 4)], "disc pos error", closed=True)
    svg.text(x + 13, y, "error of an SAE", "tick", "start")
    x += 132
    words = "area: size of the effect" + (
        "; width of an edge: its weight (into the objective on a scale of its own)" if any_edge else ""
    )
    svg.text(x, y, words, "tick", "start")


def _named(node: CircuitNode) -> str:
    return f"{node_title(node)} of {node.site}"


def _signed(value: float) -> str:
    return f"{'+' if value > 0 else ''}{number(value)}"


def _percent_of_range(mis: float) -> int:
    """0 at chance, 100 at a perfect score."""
    return round(100 * min(max(2 * mis - 1, 0.0), 1.0))


def _wrapped(text: str, most: int = 11, lines: int = 2) -> list[str]:
    """Words on a few lines; what does not fit ends in an ellipsis."""
    found = [""]
    for word in text.replace("_", " ").split():
        if found[-1] and len(found[-1]) + 1 + len(word) > most:
            found.append("")
        found[-1] = f"{found[-1]} {word}".strip()
    if len(found) > lines:
        found[lines - 1] += "…"
    return [line if len(line) <= most + 1 else f"{line[:most]}…" for line in found[:lines]]
