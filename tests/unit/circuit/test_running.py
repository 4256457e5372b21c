"""Circuits run behind the first site, with the values of whole passes."""

from __future__ import annotations

import pytest
import torch

from mis_lab.circuit.running import Batch, objective_of_circuits
from mis_lab.circuit.splice import ablations, nothing_kept
from mis_lab.core.seeding import generator


def some_circuits(toy, kind: str) -> list[dict[str, torch.Tensor]]:
    """Nothing, everything, one site alone, and random ones."""
    nothing = nothing_kept(toy.node_sets[kind])
    everything = {path: ~mask for path, mask in nothing.items()}
    first, *_ = nothing
    random = generator(0, "circuits", kind)
    drawn = [{path: torch.rand(len(mask), generator=random) < 0.5 for path, mask in nothing.items()} for _ in range(3)]
    return [nothing, everything, everything | {first: nothing[first]}, nothing | {first: everything[first]}, *drawn]


@pytest.mark.parametrize("network", ["relu", "before_relu", "tokens"])
def test_values_are_those_of_whole_passes(make_toy, network: str, kind: str) -> None:
    toy = make_toy(network)
    circuits = some_circuits(toy, kind)
    found = objective_of_circuits(toy.problem, toy.node_sets[kind], circuits, toy.images, toy.targets_n)
    for kept, values in zip(circuits, found, strict=True):
        whole = toy.problem.values(toy.all_images, toy.targets_n, ablations(toy.node_sets[kind], kept))
        torch.testing.assert_close(torch.from_numpy(values), whole.detach(), rtol=1e-12, atol=1e-12)


def test_what_stands_before_the_first_site_sees_one_image_a_circuit(make_toy, kind: str) -> None:
    toy = make_toy("relu")
    rows: list[int] = []
    module = toy.problem.model.module
    handle = module.register_forward_pre_hook(lambda _module, args: rows.append(len(args[0])))
    batch = Batch.of(toy.problem, toy.all_images, toy.targets_n)
    rows.clear()
    values_b = batch.values(ablations(toy.node_sets[kind], nothing_kept(toy.node_sets[kind])))
    handle.remove()
    assert rows == [1]
    assert values_b.shape == (len(toy.all_images),)


def test_the_network_itself_runs_as_it_is(make_toy) -> None:
    toy = make_toy("relu", dtype=torch.float32)
    batch = Batch.of(toy.problem, toy.all_images, toy.targets_n)
    assert torch.equal(batch.values({}), toy.problem.values(toy.all_images, toy.targets_n))


def test_a_first_site_that_is_passed_by_has_whole_passes(make_toy, kind: str, monkeypatch) -> None:
    toy = make_toy("relu")
    monkeypatch.setattr("mis_lab.circuit.running.Suffix.of", lambda *_: type("NoCut", (), {"is_cut": False}))
    circuits = some_circuits(toy, kind)
    batch = Batch.of(toy.problem, toy.all_images, toy.targets_n)
    assert batch.first_bpd is None
    for kept in circuits:
        replace = ablations(toy.node_sets[kind], kept)
        assert torch.equal(batch.values(replace), toy.problem.values(toy.all_images, toy.targets_n, replace))
