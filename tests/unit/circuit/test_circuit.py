"""Ranking, taking the top, masks, disk, overlap."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.circuit.circuit import ERROR, Circuit, Node, overlap, rank
from mis_lab.circuit.effects import SiteEffects
from mis_lab.core.errors import StoreError


def effects(means: list[float], live: list[bool] | None = None, has_error: bool = True) -> SiteEffects:
    """Two images whose mean effects are these."""
    per_image = torch.tensor([means, means], dtype=torch.float64) + torch.tensor([[0.1], [-0.1]])
    flags = torch.tensor([True] * len(means) if live is None else live)
    return SiteEffects(per_image, torch.arange(len(means)), flags, 1.0, has_error)


@pytest.fixture
def circuit() -> Circuit:
    """Six live nodes of eight; the error of `late` is the strongest."""
    return rank(
        "feature",
        {
            "early": effects([0.5, -2.0, 0.0, 1.0], [True, True, False, True]),
            "late": effects([2.0, 0.0, -0.3, 9.0], [True, False, True, True]),
        },
    )


def test_nodes_come_by_size_of_effect_and_equal_ones_by_site(circuit: Circuit) -> None:
    assert circuit.nodes == [
        Node("late", ERROR), Node("early", 1), Node("late", 0), Node("early", ERROR), Node("early", 0), Node("late", 2),
    ]  # fmt: skip
    assert circuit.effect.tolist() == pytest.approx([9, -2, 2, 1, 0.5, -0.3])
    assert circuit.standard_error.tolist() == pytest.approx([0.1] * 6)
    assert circuit.n_active.tolist() == [3, 1, 0, 3, 0, 2]
    assert circuit.n_nodes == {"early": 4, "late": 4}


def test_neurons_have_no_error_node() -> None:
    found = rank("neuron", {"site": effects([1.0, 3.0], has_error=False)})
    assert found.nodes == [Node("site", 1), Node("site", 0)]


def test_masks_hold_the_top_and_nothing_else(circuit: Circuit) -> None:
    assert {path: mask.tolist() for path, mask in circuit.top(3).kept().items()} == {
        "early": [False, True, False, False],
        "late": [True, False, False, True],
    }
    assert not any(mask.any() for mask in circuit.top(0).kept().values())


@given(n=st.integers(0, 6), m=st.integers(0, 6))
def test_tops_are_nested(n: int, m: int) -> None:
    whole = rank("feature", {"site": effects([0.3, -0.2, 0.7, 1.1, -4.0, 0.0])})
    small, large = sorted((n, m))
    assert whole.top(large).top(small).nodes == whole.top(small).nodes == whole.nodes[:small]
    assert len(whole.top(n)) == n


def test_shuffled_has_the_same_nodes_with_their_effects(circuit: Circuit) -> None:
    shuffled = circuit.shuffled(torch.Generator().manual_seed(1))
    assert shuffled.nodes != circuit.nodes
    assert dict(zip(shuffled.nodes, shuffled.effect.tolist(), strict=True)) == dict(
        zip(circuit.nodes, circuit.effect.tolist(), strict=True)
    )


def test_disk_gives_it_back(circuit: Circuit, tmp_path) -> None:
    circuit.save(tmp_path / "new")
    again = Circuit.load(tmp_path / "new")
    assert (again.kind, again.n_nodes, again.has_error) == (circuit.kind, circuit.n_nodes, circuit.has_error)
    assert list(again.n_nodes) == list(circuit.n_nodes)
    for name in ("site", "feature", "effect", "standard_error", "n_active"):
        assert torch.equal(getattr(again, name), getattr(circuit, name))
    (tmp_path / "new" / "circuit.safetensors").write_bytes(b"cut short")
    with pytest.raises(StoreError, match="damaged"):
        Circuit.load(tmp_path / "new")


def test_overlap_counts_shared_nodes(circuit: Circuit) -> None:
    assert overlap(circuit, circuit) == (6, 1.0)
    assert overlap(circuit.top(3), circuit.take(torch.tensor([2, 3, 4]))) == (1, 1 / 5)
    assert overlap(circuit.top(0), circuit.top(0)).jaccard == 1
    assert overlap(circuit.top(0), circuit) == (0, 0.0)
    with pytest.raises(ValueError, match="features has no overlap with one of neurons"):
        overlap(circuit, rank("neuron", {"early": effects([1.0], has_error=False)}))
