"""``mis-lab circuit compare`` in this process, on circuits made by hand."""

from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

COMMAND = "circuit"
KINDS, N_LIVE = ("feature", "neuron"), 40


@pytest.fixture
def make_run(tmp_path: Path) -> Callable[..., Path]:
    """make(name, order, keeps, images, sae): a finished run, its circuits' nodes in this order, half of them keeping so
    much."""
    import torch

    from mis_lab.circuit.circuit import Circuit
    from mis_lab.circuit.faithfulness import Curve
    from mis_lab.circuit.result import CircuitResult, KindResult
    from mis_lab.core.files import write_json
    from mis_lab.core.store import Recipe, Store

    store = Store(tmp_path / "store")

    def activations(data: str) -> str:
        """Key of the site's activations on a data set; gone from the store where it has no name."""
        if not data:
            return "gone"
        recipe = Recipe("activations", 1, {}, {"weights": "w", "data": data})
        return store.get(recipe, lambda folder: write_json(folder / "metadata.json", {"site": {"path": "site"}})).key

    def make(
        name: str,
        order: np.ndarray,
        keeps: float = 0.5,
        images: tuple[str, ...] = ("a", "b", "c"),
        sae: str = "one",
        method: str = "atp",
        data: str = "",
    ) -> Path:
        def of(kind: str) -> KindResult:
            groups_n = np.arange(len(images))
            # The network moves each image's objective by 1, 2, 3 ...; half of the nodes keep the share `keeps`.
            values = np.array([[0.0], [keeps], [1.0]]) * (1 + groups_n) + 0.01 * groups_n[::-1] * [[0], [1], [0]]
            curve = Curve(kind, np.array([0, N_LIVE // 2, N_LIVE]), values, values[None] * 0.9, values[-1], groups_n)
            effect = torch.linspace(1, -0.5, len(order), dtype=torch.float64)
            nodes, sites = torch.from_numpy(order.copy()), torch.zeros(len(order), dtype=torch.int64)
            circuit = Circuit(kind, {"site": 2 * N_LIVE}, False, sites, nodes, effect, effect.abs(), nodes)
            return KindResult(circuit, (), curve, torch.ones(3, 4))

        none, image = torch.zeros(1, dtype=torch.int64), torch.zeros(3, 2, 2, dtype=torch.float64)
        settings = {"edges_per_node": 5, "method": method}
        found = CircuitResult(of("feature"), of("neuron"), ("x",), images, none, none, image, settings)
        inputs = {"activations/site": activations(data), "sae/site": sae}
        key = store.get(Recipe("circuit", 1, {"name": name}, inputs), found.write).key
        told = {"paths": {"store": str(store.root)}}
        result = {"artifacts": {"circuit": key}, "config": told, "overrides": [f"name={name}", "seed=0"]}
        write_json(tmp_path / name / "result.json", result)
        return tmp_path / name

    return make


def table(lines: list[str], title: str) -> list[list[str]]:
    """Rows below a title."""
    start = next(number for number, line in enumerate(lines) if line.startswith(title))
    rows = lines[start + 2 :]
    end = next((number for number, line in enumerate(rows) if not line or line.startswith(("note", "also"))), len(rows))
    return [row.split() for row in rows[:end]]


def test_circuits_of_runs_stand_side_by_side(mis_lab, make_run, tmp_path: Path) -> None:
    order = np.arange(N_LIVE)
    first = make_run("first", order, keeps=0.8)
    swapped = make_run("swapped", np.concatenate([order[20:], order[:20]]), keeps=0.5)
    lines = mis_lab("compare", first, swapped, "--nodes", "40,10", "--out", tmp_path / "out" / "tables.csv")
    told = table(lines, "circuits of each run")
    assert [row[:3] for row in told] == [
        [kind, f"name={name}", "40"] for name in ("first", "swapped") for kind in KINDS
    ]
    # Between shares 0, ½ and 1: (1 + 0.2) / 4 + 0.2 / 4, with the little that images differ by.
    assert float(told[0][3]) == pytest.approx(0.35, abs=0.01)
    differences = table(lines, "CMD of name=first less")
    assert [row[:2] for row in differences] == [[kind, "name=swapped"] for kind in KINDS]
    assert float(differences[0][2]) == pytest.approx(-0.15, abs=1e-9)
    shared = table(lines, "nodes that circuits of one size share with name=first")
    assert shared == [
        [kind, "name=swapped", *row]
        for kind in KINDS
        for row in (["10", "0", "0.000", "2.500"], ["40", "40", "1.000", "40.000"])
    ]
    alike = table(lines, "effects of the nodes")
    assert [row[:3] for row in alike] == [[kind, "name=swapped", "40"] for kind in KINDS]
    expected = np.corrcoef(np.arange(N_LIVE), np.roll(np.arange(N_LIVE), 20))[0, 1]
    assert float(alike[0][3]) == pytest.approx(expected, abs=1e-3)
    assert lines[-1] == f"also in {tmp_path / 'out' / 'tables.csv'}"
    with open(tmp_path / "out" / "tables.csv", newline="", encoding="utf-8") as file:
        assert sum(row == ["kind", "run", "difference", "low", "high"] for row in csv.reader(file)) == 1


def test_what_cannot_be_compared_is_noted(mis_lab, make_run) -> None:
    order = np.arange(N_LIVE)
    runs = [
        make_run("first", order),
        make_run("other_sae", order, sae="two"),
        make_run("elsewhere", order, images=("d", "e")),
    ]
    lines = mis_lab("compare", *runs, "--nodes", "10")
    assert "note: name=other_sae: its features are other units or at other sites, so none are shared" in lines
    assert "note: name=elsewhere: evaluated on other images, so no difference has an interval" in lines
    assert {tuple(row[:2]) for row in table(lines, "CMD of")} == {(kind, "name=other_sae") for kind in KINDS}
    assert [row[:2] for row in table(lines, "nodes that circuits")] == [
        ["neuron", "name=other_sae"], ["feature", "name=elsewhere"], ["neuron", "name=elsewhere"],
    ]  # fmt: skip


def test_neurons_of_a_network_are_the_same_on_other_data(mis_lab, make_run) -> None:
    order = np.arange(N_LIVE)
    lines = mis_lab("compare", make_run("first", order, data="one"), make_run("other", order, data="two"))
    assert "note: name=other: evaluated on other images, so no difference has an interval" in lines
    assert [row[:3] for row in table(lines, "nodes that circuits")] == [
        [kind, "name=other", size] for kind in KINDS for size in ("10", "30")
    ]


def test_chance_knows_which_nodes_are_live_in_both(mis_lab, make_run) -> None:
    lines = mis_lab(
        "compare", make_run("first", np.arange(40)), make_run("other", np.arange(30, 70)), "--nodes", "10,20"
    )
    # Ten of forty nodes are live in both: of k drawn from either, k²·10 / 40² are the same.
    assert [row[-1] for row in table(lines, "nodes that circuits")[:2]] == ["0.625", "2.500"]
    assert table(lines, "effects of the nodes")[0][2] == "10"


def test_effects_without_signs_are_compared_by_size(mis_lab, make_run) -> None:
    order = np.arange(N_LIVE)
    lines = mis_lab("compare", make_run("first", order), make_run("other", order, method="atp_absolute"))
    for row in table(lines, "effects of the nodes"):
        assert row[2:] == ["40", "1.000", "1.000", "nan"]


def test_wrong_sizes_and_runs_without_a_circuit_are_told(mis_lab, make_run, made_run) -> None:
    run = make_run("first", np.arange(N_LIVE))
    for told in ("ten", "0", "10,"):
        assert f"--nodes {told}" in mis_lab("compare", run, run, "--nodes", told, expect=2)[0]
    assert "has no circuit" in mis_lab("compare", run, made_run().folder, expect=2)[0]
