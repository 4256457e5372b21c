"""The picture's text: what it shows, that it invents nothing, and that Graphviz draws it."""

from __future__ import annotations

import re
import shutil
import subprocess

import pytest
import torch

from mis_lab.circuit.circuit import ERROR, Circuit, Node
from mis_lab.circuit.dot import circuit_dot, render_svg
from mis_lab.circuit.graph import OBJECTIVE, Edges


@pytest.fixture
def circuit() -> Circuit:
    """Nodes at two of three sites."""
    return Circuit(
        "feature",
        {"blocks.2": 4, "blocks.4": 4, "blocks.6": 4},
        True,
        site=torch.tensor([2, 0, 2]),
        feature=torch.tensor([1, 3, ERROR]),
        effect=torch.tensor([2.0, -0.5, 0.1]),
        standard_error=torch.tensor([0.1, 0.2, 0.3]),
        n_active=torch.tensor([5, 6, 7]),
    )


def lines_of(dot: str, start: str) -> list[str]:
    return [line.strip() for line in dot.splitlines() if line.strip().startswith(start)]


def test_every_node_is_there_with_its_effect(circuit: Circuit) -> None:
    nodes = lines_of(circuit_dot(circuit), "node_")
    assert len(nodes) == 3
    told = sorted(re.search(r'label="([^"]*)"', node)[1] for node in nodes)
    assert told == [r"error\n+0.1", r"f1\n+2", r"f3\n-0.5"]
    assert sum("triangle" in node for node in nodes) == 1


def test_columns_are_the_sites_in_order(circuit: Circuit) -> None:
    dot = circuit_dot(circuit)
    assert [re.search(r'label="([^"]*)"', site)[1] for site in lines_of(dot, "site_")[:3]] == [
        "blocks.2",
        "blocks.4",
        "blocks.6",
    ]
    groups = dot.split("rank=same;")[1:]
    assert ["f3" in group for group in groups] == [True, False, False]
    assert ["f1" in group for group in groups] == [False, False, True]


def test_no_edge_is_invented(circuit: Circuit) -> None:
    edges = [line for line in circuit_dot(circuit).splitlines() if "->" in line]
    assert len(edges) == 1
    assert "style=invis" in edges[0]
    assert "node_" not in edges[0]
    assert "->" not in circuit_dot(
        Circuit("neuron", {"only": 2}, False, *(torch.zeros(1, dtype=torch.int64) for _ in range(5)))
    )


def test_sign_is_hue_and_size_is_area(circuit: Circuit) -> None:
    nodes = {re.search(r'label="(\w+)', line)[1]: line for line in lines_of(circuit_dot(circuit), "node_")}
    width = {name: float(re.search(r'width="([\d.]+)"', line)[1]) for name, line in nodes.items()}
    assert width["f1"] > width["f3"] > width["error"]
    red, _, blue = (int(re.search(r'fillcolor="#(\w{6})"', nodes["f1"])[1][i : i + 2], 16) for i in (0, 2, 4))
    assert blue > red  # supports
    red, _, blue = (int(re.search(r'fillcolor="#(\w{6})"', nodes["f3"])[1][i : i + 2], 16) for i in (0, 2, 4))
    assert red > blue  # opposes


def test_no_effect_at_all_can_be_drawn(circuit: Circuit) -> None:
    assert circuit_dot(circuit.top(0)).count("node_") == 0
    circuit.effect.zero_()
    assert 'width="0.450"' in circuit_dot(circuit)


@pytest.mark.needs("graphviz")
def test_graphviz_draws_it_even_with_odd_labels(circuit: Circuit) -> None:
    svg = render_svg(circuit_dot(circuit, {Node("blocks.6", 1): 'a "quoted" \\ <label> & more'}))
    assert svg is not None
    assert "quoted" in svg
    assert svg.count("<polygon") >= 1
    titles = [float(x) for x in re.findall(r'<text[^>]*x="([-\d.]+)"[^>]*>blocks', svg)]
    assert titles == sorted(titles)
    assert "<path" not in svg  # an edge that shows


def test_without_graphviz_there_is_no_svg(circuit: Circuit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert render_svg(circuit_dot(circuit)) is None


def test_graphviz_failing_is_no_error(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    def fail(*args: object, **options: object) -> None:
        raise subprocess.CalledProcessError(1, "dot")

    monkeypatch.setattr(shutil, "which", lambda name: "/usr/bin/dot")
    monkeypatch.setattr(subprocess, "run", fail)
    assert render_svg("digraph {}") is None
    assert "could not draw" in caplog.text


def edges_of(weights: list[float], sources: list[int], targets: list[int]) -> Edges:
    """From features 3 of the first site to nodes of the last (site 2), or the objective (site -1)."""
    n = len(weights)
    rows = {name: torch.zeros(0, dtype=torch.int64) for name in ("total_site", "total_feature", "total_target")}
    return Edges(
        "feature", ("blocks.2", "blocks.4", "blocks.6"), {}, 0, 0, source_site=torch.tensor(sources),
        source_feature=torch.tensor([3 if site == 0 else 1 for site in sources]),
        target_site=torch.tensor([OBJECTIVE if target == 9 else 2 for target in targets]),
        target_feature=torch.tensor([0 if target == 9 else target for target in targets]),
        weight=torch.tensor(weights, dtype=torch.float64), standard_error=torch.zeros(n, dtype=torch.float64),
        total=torch.zeros(0, dtype=torch.float64), **rows,
    )  # fmt: skip


def test_edges_have_width_by_weight_and_hue_by_sign(circuit: Circuit) -> None:
    dot = circuit_dot(circuit, edges=edges_of([0.2, -0.4, 2.0], [0, 0, 2], [1, ERROR, 9]))
    drawn = {
        tuple(re.findall(r"(node_\d|objective)", line)): (
            float(re.search(r'penwidth="([\d.]+)"', line)[1]), re.search(r' \[color="#(\w{6})"', line)[1],
        )
        for line in dot.splitlines()
        if "penwidth" in line
    }  # fmt: skip
    assert set(drawn) == {("node_1", "node_0"), ("node_1", "node_2"), ("node_0", "objective")}
    assert drawn["node_0", "objective"][0] == pytest.approx(6.0)
    assert drawn["node_1", "node_2"][0] == pytest.approx(0.4 + 0.2 * 5.6)
    red, _, blue = (int(drawn["node_1", "node_2"][1][i : i + 2], 16) for i in (0, 2, 4))
    assert red > blue  # opposes


def test_edges_of_nodes_that_are_not_there_are_left_out(circuit: Circuit) -> None:
    dot = circuit_dot(circuit, edges=edges_of([0.2, 0.1], [0, 0], [1, 2]))
    assert dot.count("penwidth") == 1
    assert "objective" not in dot


@pytest.mark.needs("graphviz")
def test_graphviz_draws_edges_between_the_columns(circuit: Circuit) -> None:
    svg = render_svg(circuit_dot(circuit, edges=edges_of([0.2, -0.4, 2.0], [0, 0, 2], [1, ERROR, 9])))
    assert svg is not None
    assert svg.count("<path") == 3
    titles = [float(x) for x in re.findall(r'<text[^>]*x="([-\d.]+)"[^>]*>(?:blocks|objective)', svg)]
    assert titles == sorted(titles)
