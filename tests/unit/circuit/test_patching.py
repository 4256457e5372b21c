"""States of partner images: the network run on them, to the bit, and ablation by hand in between."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mis_lab.circuit import dictionaries
from mis_lab.circuit.circuit import rank
from mis_lab.circuit.config import CircuitConfig, EffectMethod
from mis_lab.circuit.effects import InputPath, node_effects
from mis_lab.circuit.faithfulness import evaluate
from mis_lab.circuit.patching import PatchedNodes, state_of, with_nodes
from mis_lab.circuit.quadrature import midpoint
from mis_lab.circuit.running import objective_of_circuits
from mis_lab.circuit.splice import ablation, nothing_kept
from mis_lab.core.errors import DataError

PARTNERS = [3, 5, 6, 0, 1, 2, 4]
ITSELF = list(range(7))


def run(toy, nodes, *kept) -> torch.Tensor:
    return torch.tensor(objective_of_circuits(toy.problem, nodes, kept, toy.images, toy.targets_n))


def only(toy, place: int) -> None:
    """Leave one site."""
    toy.problem = replace(toy.problem, sites=toy.problem.sites[place : place + 1])
    toy.__post_init__()


def test_everything_ablated_is_the_network_on_the_partners_to_the_bit(make_toy, kind) -> None:
    toy = make_toy("relu", dtype=torch.float32)
    nodes = toy.patched(kind, PARTNERS)
    found = run(toy, nodes, nothing_kept(nodes))[0]
    expected = []
    for batch, targets_b in zip(nodes.partners, toy.targets_n.split([3, 3, 1]), strict=True):
        expected.append(toy.problem.values(batch, targets_b))
    assert torch.equal(found.float(), torch.cat(expected))


def test_everything_ablated_is_the_network_on_the_partners_for_tokens(make_toy, kind) -> None:
    # Not to the bit: the mean over tokens adds up in the order of memory, which the splice makes contiguous.
    toy = make_toy("tokens")
    nodes = toy.patched(kind, PARTNERS)
    on_partners = toy.problem.values(toy.all_images[PARTNERS], toy.targets_n)
    torch.testing.assert_close(run(toy, nodes, nothing_kept(nodes))[0], on_partners, rtol=1e-12, atol=1e-12)


def test_an_image_as_its_own_partner_changes_nothing(make_toy, kind) -> None:
    toy = make_toy("relu")
    nodes = toy.patched(kind, ITSELF)
    random = torch.Generator().manual_seed(0)
    for share in (0.0, 0.3, 0.8):
        kept = {path: torch.rand(len(m), generator=random) < share for path, m in nothing_kept(nodes).items()}
        torch.testing.assert_close(run(toy, nodes, kept)[0], toy.clean()[0], rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("network", ["relu", "tokens"])
@pytest.mark.parametrize("error_kept", [True, False])
def test_some_ablated_is_a_reconstruction_by_hand(make_toy, network, error_kept, kind, monkeypatch) -> None:
    toy = make_toy(network)
    path = toy.problem.sites[1].path
    x_bpd, dictionary = toy.clean()[1][path].clone(), toy.dictionaries(kind)[path]
    other_bpd = x_bpd[PARTNERS]
    kept_n = torch.rand(len(toy.kept(kind)[path]), generator=torch.Generator().manual_seed(1)) < 0.5
    codes, other_codes = dictionary.encode(x_bpd), dictionary.encode(other_bpd)
    if kind == "neuron":
        expected = torch.where(kept_n, x_bpd, other_bpd)
    else:
        kept_n[-1] = error_kept
        whose = x_bpd if error_kept else other_bpd
        error = whose - toy.saes[path].decode(dictionary.encode(whose))
        expected = toy.saes[path].decode(torch.where(kept_n[:-1], codes, other_codes)) + error
    nodes = state_of(dictionary, other_bpd)
    torch.testing.assert_close(ablation(nodes, kept_n)(x_bpd), expected, rtol=1e-10, atol=1e-10)
    monkeypatch.setattr(dictionaries, "MAX_CODES", 1)  # an image at a time
    torch.testing.assert_close(ablation(nodes, kept_n)(x_bpd), expected, rtol=1e-10, atol=1e-10)
    with pytest.raises(DataError, match="does not fit vectors of shape"):
        [*nodes.chunks(x_bpd[:4])]


@pytest.mark.parametrize("chunked", [False, True])
def test_linear_network_effects_against_a_partner_are_exact_and_sum_to_the_change(
    make_toy, kind, chunked, monkeypatch
) -> None:
    toy = make_toy("linear")
    only(toy, 1)
    if chunked:
        monkeypatch.setattr(dictionaries, "MAX_CODES", 1)
    nodes = toy.patched(kind, PARTNERS)
    path = InputPath(torch.zeros(3, 6, 6), midpoint(2))
    found = node_effects(toy.problem, {kind: nodes}, toy.images, toy.targets_n, EffectMethod.ig_inputs, path)[kind]["3"]
    masks = []
    for node in range(found.per_image.shape[1]):
        masks.append(toy.kept(kind))
        masks[-1]["3"][node] = False
    exact_nb = toy.clean()[0] - run(toy, nodes, *masks)
    torch.testing.assert_close(found.per_image, exact_nb.T, rtol=1e-9, atol=1e-10)
    on_partners = toy.problem.values(toy.all_images[PARTNERS], toy.targets_n)
    assert found.change == pytest.approx(float((toy.clean()[0] - on_partners).mean()), rel=1e-9)
    assert found.effect_sum == pytest.approx(found.change, rel=1e-9)


def test_a_curve_ends_at_the_partners_and_at_the_network(make_toy, kind) -> None:
    toy = make_toy("relu")
    nodes = toy.patched(kind, PARTNERS)
    path = InputPath(torch.zeros(3, 6, 6), midpoint(2))
    found = node_effects(toy.problem, {kind: nodes}, toy.images, toy.targets_n, EffectMethod.ig_inputs, path)
    config = CircuitConfig(sizes=4, n_random=1, min_effect=1e-9)
    curve = evaluate(toy.problem, nodes, rank(kind, found[kind]), toy.images, toy.targets_n, config, 0)
    assert (curve.faithfulness.estimate[0], curve.faithfulness.estimate[-1]) == (0, 1)
    on_partners = toy.problem.values(toy.all_images[PARTNERS], toy.targets_n)
    torch.testing.assert_close(torch.tensor(curve.values[0]), on_partners, rtol=1e-10, atol=1e-12)
    torch.testing.assert_close(torch.tensor(curve.values[-1]), toy.clean()[0], rtol=1e-10, atol=1e-12)


def test_states_can_take_part_in_a_backward_pass(make_toy) -> None:
    toy = make_toy()
    (_, of_batch), *_ = with_nodes(toy.images, {"feature": toy.patched("feature", PARTNERS)})
    for nodes in of_batch["feature"].values():
        weight = torch.ones((), dtype=torch.float64, requires_grad=True)
        (weight * (nodes.state + nodes.error)).sum().backward()
        assert weight.grad == (nodes.state + nodes.error).sum()


def test_partners_that_do_not_match_the_batches_are_told(make_toy) -> None:
    toy = make_toy()
    few = replace(toy.patched("neuron", PARTNERS), partners=toy.images[:2])
    with pytest.raises(ValueError, match="fewer batches of neuron partners"):
        [*with_nodes(toy.images, {"neuron": few})]
    other = PatchedNodes(toy.problem, toy.dictionaries("neuron"), toy.all_images.split(2))
    with pytest.raises(ValueError, match="3 images have 2 partners at site 1"):
        [*with_nodes(toy.images, {"neuron": other})]
