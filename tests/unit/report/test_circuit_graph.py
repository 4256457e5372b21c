"""The graph draws every node and edge it is given where it belongs, and says what they are."""

from __future__ import annotations

import dataclasses
import math
import xml.etree.ElementTree as ElementTree

import pytest

from mis_lab.report.circuit_data import CircuitEdge
from mis_lab.report.circuit_graph import MOST_EDGES, circuit_graph, node_words, seen_at_first


def parts(svg: str, tag: str, css: str) -> list[ElementTree.Element]:
    root = ElementTree.fromstring(svg)
    return [one for one in root.iter(tag) if css in one.attrib.get("class", "").split()]


@pytest.fixture(scope="module")
def graph(data) -> str:
    return circuit_graph(data.circuit, data.circuit_details.edges)


def test_every_node_is_there_once_in_the_column_of_its_site(data, graph):
    nodes = parts(graph, "g", "graph-node")
    assert sorted(int(node.attrib["data-node"]) for node in nodes) == list(range(len(data.circuit.nodes)))
    at = {}
    for node in nodes:
        told = data.circuit.nodes[int(node.attrib["data-node"])]
        at.setdefault(told.site, set()).add(float(node.find("rect").attrib["x"]))
        assert node.attrib["tabindex"] == "0"
        assert node.attrib["aria-label"].startswith(node_words(told))
    columns = [at[site.site] for site in data.circuit.sites]
    assert all(len(column) == 1 for column in columns)
    assert [min(column) for column in columns] == sorted(min(column) for column in columns)


def test_cards_do_not_lie_on_each_other(data, graph):
    boxes = [node.find("rect").attrib for node in parts(graph, "g", "graph-node")]
    boxes = [tuple(float(box[name]) for name in ("x", "y", "width", "height")) for box in boxes]
    for place, (x, y, width, height) in enumerate(boxes):
        for x2, y2, *_ in boxes[place + 1 :]:
            assert abs(x - x2) >= width or abs(y - y2) >= height


def test_area_follows_the_effect_and_colour_its_sign(data, graph):
    largest = max(abs(node.effect) for node in data.circuit.nodes)
    for node in parts(graph, "g", "graph-node"):
        told = data.circuit.nodes[int(node.attrib["data-node"])]
        disc = next(one for one in node if "disc" in one.attrib.get("class", ""))
        assert ("pos" if told.effect >= 0 else "neg") in disc.attrib["class"].split()
        if told.kind == "error":
            assert disc.tag == "path"
        else:
            area = math.pi * float(disc.attrib["r"]) ** 2
            assert area == pytest.approx(max(math.pi * 15**2 * abs(told.effect) / largest, math.pi * 2**2), abs=1.0)
        assert (node.find("image") is not None) == bool(told.images)


def test_every_edge_joins_its_nodes_and_its_width_follows_its_weight(data, graph):
    edges = data.circuit_details.edges
    drawn = sorted(parts(graph, "path", "edge"), key=lambda one: int(one.attrib["data-rank"]))
    assert len(drawn) == len(edges)
    between = max(abs(edge.weight) for edge in edges if edge.target is not None)
    for path, edge in zip(drawn, edges, strict=True):
        assert path.attrib["data-from"] == str(edge.source)
        assert path.attrib["data-to"] == ("goal" if edge.target is None else str(edge.target))
        assert ("pos" if edge.weight >= 0 else "neg") in path.attrib["class"].split()
        if edge.target is not None:
            assert float(path.attrib["stroke-width"]) == pytest.approx(
                max(8 * abs(edge.weight) / between, 0.6), abs=0.01
            )


def test_the_strongest_into_each_node_and_the_strongest_out_of_it_are_seen_at_first(data):
    edges = data.circuit_details.edges
    seen = [edge for edge, first in zip(edges, seen_at_first(edges), strict=True) if first]
    for source in {edge.source for edge in edges}:
        strongest = max((edge for edge in edges if edge.source == source), key=lambda edge: abs(edge.weight))
        assert strongest in seen
    for target in {edge.target for edge in edges}:
        into = [edge for edge in edges if edge.target == target]
        assert set(into[:3]) <= set(seen)
    assert len(seen) < len(edges)


def test_what_is_seen_at_first_is_what_is_not_marked_extra(data, graph):
    drawn = sorted(parts(graph, "path", "edge"), key=lambda one: int(one.attrib["data-rank"]))
    first = ["extra" not in path.attrib["class"].split() for path in drawn]
    assert first == seen_at_first(data.circuit_details.edges)


def test_a_circuit_without_edges_or_with_far_too_many_can_be_drawn(data):
    assert not parts(circuit_graph(data.circuit, []), "path", "edge")
    many = [CircuitEdge(0, 1, 1.0 / (1 + n), 0.1) for n in range(MOST_EDGES + 5)]
    assert len(parts(circuit_graph(data.circuit, many), "path", "edge")) == MOST_EDGES


@pytest.mark.parametrize("n_sites", [1, 5])
def test_forty_nodes_in_few_or_many_columns_stay_apart(data, n_sites):
    sites = [dataclasses.replace(data.circuit.sites[0], site=f"layer{number}") for number in range(n_sites)]
    nodes = [
        dataclasses.replace(data.circuit.nodes[number % 10], site=f"layer{number % n_sites}") for number in range(40)
    ]
    svg = circuit_graph(dataclasses.replace(data.circuit, sites=sites, nodes=nodes), [])
    assert len(parts(svg, "g", "graph-node")) == 40
    test_cards_do_not_lie_on_each_other(data, svg)
    height = float(ElementTree.fromstring(svg).attrib["height"])
    for node in parts(svg, "g", "graph-node"):
        box = node.find("rect").attrib
        assert float(box["y"]) > 30
        assert float(box["y"]) + float(box["height"]) < height - 20


def test_hostile_names_stay_text(data):
    evil = '"><script>alert(1)</script>'
    circuit = dataclasses.replace(
        data.circuit, objective=evil, sites=[dataclasses.replace(data.circuit.sites[0], site=evil)],
        nodes=[dataclasses.replace(data.circuit.nodes[0], site=evil)],
    )  # fmt: skip
    svg = circuit_graph(circuit, [CircuitEdge(0, None, 1.0, 0.1)])
    assert "<script>" not in svg
    assert len(parts(svg, "path", "edge")) == 1
