"""From the stage's result to the page: nodes keep their scores and needs, edges their ends; files beside the page."""

from __future__ import annotations

import shutil
from types import SimpleNamespace

import numpy as np
import pytest
import torch

from mis_lab.circuit.activity import Activity, ActivityBeside
from mis_lab.circuit.circuit import ERROR, Circuit
from mis_lab.circuit.completeness import ComplementCurve
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.graph import OBJECTIVE, Edges
from mis_lab.circuit.minimality import Minimality
from mis_lab.circuit.result import CircuitResult, KindResult, SiteSummary
from mis_lab.core.intervals import Interval
from mis_lab.report.circuit_collect import circuit_details, circuit_view, faithfulness_curves
from mis_lab.report.circuit_files import write_graphviz

SITES = ("a", "b")
N_SHOWN = 4


def edges() -> Edges:
    """From a:2 to b:1 and b:error, from b:1 to the objective, and one from a node that is not pictured (a:0)."""
    rows = {
        "source_site": [0, 0, 1, 0], "source_feature": [2, 2, 1, 0], "target_site": [1, 1, OBJECTIVE, 1],
        "target_feature": [1, ERROR, 0, 1], "total_site": [0, 0], "total_feature": [2, 0], "total_target": [1, 1],
    }  # fmt: skip
    weight = torch.tensor([0.2, -0.3, 0.9, 0.1], dtype=torch.float64)
    numbers = {name: torch.tensor(values) for name, values in rows.items()}
    total = torch.tensor([-0.2, 0.1], dtype=torch.float64)
    return Edges("feature", SITES, {}, 0, 0, **numbers, weight=weight, standard_error=weight.abs() / 10, total=total)


@pytest.fixture(scope="module")
def result() -> CircuitResult:
    def of(kind: str) -> KindResult:
        feature = torch.tensor([1, 2, ERROR if kind == "feature" else 3, 3, 0])
        site = torch.tensor([1, 0, 1, 0, 0])
        effect = torch.tensor([0.9, 0.5, -0.4, 0.2, 0.1], dtype=torch.float64)
        circuit = Circuit(
            kind, dict.fromkeys(SITES, 5), kind == "feature", site, feature, effect, effect.abs() / 10, feature.abs()
        )
        sizes, values = np.array([0, 2, 5]), np.linspace(0, 1, 9).reshape(3, 3)
        curve = Curve(kind, sizes, values, values[None], values[2], np.arange(values.shape[1]))
        whole = np.array([1.0, 2.0, 3.0])
        few = circuit.top(N_SHOWN)
        without = np.stack([whole - 0.5, whole, whole + 0.004, whole - 0.1])
        halves = Activity(8, *(torch.full((4,), 0.5, dtype=torch.float64) for _ in range(4)))
        beside = ActivityBeside(halves, halves)
        return KindResult(
            circuit, tuple(SiteSummary(path, 5, 3, 1.0, 1.1, 0.1, 0.2) for path in SITES), curve,
            torch.ones(N_SHOWN, 3),
            edges=edges() if kind == "feature" else None,
            complement=ComplementCurve(kind, sizes, values[::-1], np.arange(values.shape[1])),
            minimality=Minimality(few, whole, without, moved=-2.0),
            others={"by_change": curve},
            cmd_differences={"by_change": Interval(0.0, -0.1, 0.1)},
            activity={"a": beside},
        )  # fmt: skip

    settings = {"objective": "logit", "target": "prediction", "method": "ig_inputs", "baseline": "mean"}
    targets = torch.zeros(2, dtype=torch.int64)
    image = torch.zeros(3, 2, 2, dtype=torch.float64)
    return CircuitResult(of("feature"), of("neuron"), ("x", "y"), ("z",), targets, targets[:1], image, settings)


@pytest.fixture(scope="module")
def scores() -> dict:
    """Units 2, 1 and 0 of site a, in that order, 0 without a score."""
    soft = Interval(np.array([0.8, 0.7, np.nan]), np.array([0.7, 0.6, np.nan]), np.array([0.9, 0.8, np.nan]))
    units = SimpleNamespace(
        units=torch.tensor([2, 1, 0]), by_negatives={"random": SimpleNamespace(scores=SimpleNamespace(soft=soft))}
    )
    return {("a", "feature"): units}


DATASET = SimpleNamespace(ids=["x", "y", "z"], groups=["one", "two", "three"])


def test_differences_come_with_their_kind(result, scores):
    found = circuit_details(result, scores).cmd_differences
    assert [(one.kind, one.other, one.difference.high) for one in found] == [
        ("feature", "by_change", 0.1),
        ("neuron", "by_change", 0.1),
    ]


def test_nodes_come_with_score_need_and_images(result, scores):
    asked = []

    def top_images(site, kind, units, n_images):
        asked.append((site, kind, tuple(units)))
        return [[] for _ in units]

    view = circuit_view(result, DATASET, scores, top_images)
    assert [(node.site, node.kind, node.number) for node in view.nodes] == [
        ("b", "feature", 1), ("a", "feature", 2), ("b", "error", None), ("a", "feature", 3),
    ]  # fmt: skip
    assert [node.mis for node in view.nodes] == [None, Interval(0.8, 0.7, 0.9), None, None]
    assert [node.minimality for node in view.nodes] == pytest.approx([0.25, 0.0, 0.002, 0.05])
    assert asked == [("b", "feature", (1,)), ("a", "feature", (2, 3))]
    assert [site.coverage for site in view.sites] == [pytest.approx((0.1 + 0.1) / 0.3), None]
    assert (view.n_discovery_groups, view.n_evaluation_groups) == (2, 1)


def test_edges_are_between_pictured_nodes_the_strongest_first(result, scores):
    found = circuit_details(result, scores).edges
    assert [(edge.source, edge.target, edge.weight) for edge in found] == [(0, None, 0.9), (1, 2, -0.3), (1, 0, 0.2)]


def test_all_live_nodes_are_ranked_with_the_scores_there_are(result, scores):
    features, neurons = circuit_details(result, scores).ranked
    assert features.mis.tolist() == pytest.approx([np.nan, 0.8, np.nan, np.nan, np.nan], nan_ok=True)
    assert features.is_error.tolist() == [False, False, True, False, False]
    assert features.level == pytest.approx(0.75)
    assert np.isnan(neurons.level)


def test_completeness_need_and_activity_are_told(result, scores):
    details = circuit_details(result, scores)
    assert [one.kind for one in details.completeness] == ["feature", "neuron"]
    assert details.completeness[0].completeness.tolist() == pytest.approx([1.0, 0.5, 0.0])
    assert details.need.median == pytest.approx((0.002 + 0.05) / 2)
    assert details.need.needless == 0.5
    assert {(one.site, one.kind, one.n_images) for one in details.activity} == {("a", "feature", 8), ("a", "neuron", 8)}


def test_other_circuits_have_curves_beside_random_ones(result):
    found = [(curve.kind, curve.selection) for curve in faithfulness_curves(result)]
    assert found == [(kind, by) for kind in ("feature", "neuron") for by in ("effect", "by_change", "random")]


def test_the_graphviz_text_is_written_where_graphviz_is_missing(result, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "which", lambda name: None)
    assert write_graphviz(result, tmp_path) == {}
    text = (tmp_path / "circuit_feature.dot").read_text(encoding="utf-8")
    assert text.count("penwidth") == 3
    assert "penwidth" not in (tmp_path / "circuit_neuron.dot").read_text(encoding="utf-8")


@pytest.mark.needs("graphviz")
def test_graphviz_draws_the_circuit_beside_the_page(result, tmp_path):
    paths = write_graphviz(result, tmp_path)
    assert set(paths) == {"circuit/feature/graphviz", "circuit/neuron/graphviz"}
    assert "objective" in paths["circuit/feature/graphviz"].read_text(encoding="utf-8")
