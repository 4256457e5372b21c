"""Ablating nodes: nothing and everything to the bit, all else against reconstruction by hand."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.circuit import dictionaries
from mis_lab.circuit.dictionaries import n_nodes
from mis_lab.circuit.splice import ablation, ablations, nothing_kept
from mis_lab.core.errors import DataError


def by_hand(nodes, x_bpd: torch.Tensor, kept_n: torch.Tensor) -> torch.Tensor:
    """Codes and error with the ablated ones replaced, put together again from scratch."""
    d = nodes.dictionary
    codes = d.encode(x_bpd)
    error = x_bpd - d.combine(codes) - d.offset
    mixed = torch.where(kept_n[: d.n_features], codes, nodes.features)
    if d.has_error and not kept_n[-1]:
        error = nodes.error.expand_as(error)
    return d.combine(mixed) + d.offset + error


@pytest.mark.parametrize("sae", ["relu", "topk"])
@pytest.mark.parametrize("network", ["relu", "tokens"])
@pytest.mark.parametrize("error_kept", [True, False])
def test_both_forms_agree_with_a_reconstruction_by_hand(make_toy, baseline, network, sae, error_kept, kind) -> None:
    toy = make_toy(network, sae=sae, baseline=baseline)
    for path, x_bpd in toy.clean()[1].items():
        nodes = toy.node_sets[kind][path]
        for share in (0.0, 0.1, 0.5, 0.9, 1.0):
            kept_n = torch.rand(n_nodes(nodes.dictionary)) < share
            if nodes.dictionary.has_error:
                kept_n[-1] = error_kept
            found = ablation(nodes, kept_n)(x_bpd)
            torch.testing.assert_close(found, by_hand(nodes, x_bpd, kept_n), rtol=1e-10, atol=1e-10)


@given(seed=st.integers(0, 2**32 - 1))
def test_ablating_in_two_steps_is_ablating_at_once_where_codes_are_linear(shared_toy, seed: int) -> None:
    # For neurons, ablations of different nodes commute and add up to one.
    nodes, x_bpd = shared_toy.node_sets["neuron"]["3"], shared_toy.clean()[1]["3"]
    random = torch.Generator().manual_seed(seed)
    a, b = (torch.rand(7, generator=random) < 0.5 for _ in range(2))
    in_turn = ablation(nodes, b)(ablation(nodes, a)(x_bpd))
    assert torch.equal(in_turn, ablation(nodes, a & b)(x_bpd))


def test_everything_kept_hands_on_the_very_tensor(make_toy, kind) -> None:
    toy = make_toy(dtype=torch.float32)
    x_bpd = toy.clean()[1]["3"]
    assert ablation(toy.node_sets[kind]["3"], toy.kept(kind)["3"])(x_bpd) is x_bpd


@pytest.mark.parametrize("network", ["relu", "before_relu", "tokens"])
def test_logits_and_gradients_are_those_of_the_network_when_everything_is_kept(make_toy, network, kind) -> None:
    toy = make_toy(network, dtype=torch.float32)
    images = toy.all_images.requires_grad_()
    # ablations() leaves such sites out, so splice by hand.
    functions = {path: ablation(nodes, toy.kept(kind)[path]) for path, nodes in toy.node_sets[kind].items()}
    assert ablations(toy.node_sets[kind], toy.kept(kind)) == {}
    plain, spliced = toy.problem.values(images, toy.targets_n), toy.problem.values(images, toy.targets_n, functions)
    assert torch.equal(plain, spliced)
    plain_grad, spliced_grad = (torch.autograd.grad(m.sum(), images)[0] for m in (plain, spliced))
    assert torch.equal(plain_grad, spliced_grad)


def test_everything_ablated_puts_the_state_there_to_the_bit(make_toy, baseline, kind) -> None:
    toy = make_toy("tokens", baseline=baseline, dtype=torch.float32)
    x_bpd = toy.clean()[1]["block"] * 1e6  # a subtraction would leave rounding errors of this size behind
    nodes = toy.node_sets[kind]["block"]
    before = nodes.state.clone()
    found = ablation(nodes, nothing_kept({"block": nodes})["block"])(x_bpd)
    assert torch.equal(found, nodes.state.expand_as(x_bpd))
    found.add_(1)  # memory of its own: a module that works in place may follow
    assert torch.equal(nodes.state, before)


def test_error_alone_kept_and_error_alone_ablated(make_toy) -> None:
    toy = make_toy()
    nodes, x_bpd, sae = toy.node_sets["feature"]["3"], toy.clean()[1]["3"], toy.saes["3"]
    error = x_bpd - sae(x_bpd).reconstruction
    alone = torch.zeros(12, dtype=torch.bool)
    alone[-1] = True
    base = sae.decode(nodes.features)
    torch.testing.assert_close(ablation(nodes, alone)(x_bpd), base + error, rtol=1e-10, atol=1e-10)
    expected = sae(x_bpd).reconstruction + nodes.error
    torch.testing.assert_close(ablation(nodes, ~alone)(x_bpd), expected, rtol=1e-10, atol=1e-10)


def test_nodes_are_recomputed_on_the_running_activations(make_toy) -> None:
    # Ablating the first site changes what the second site's features are; kept ones must follow.
    toy = make_toy()
    kept = toy.kept("feature")
    kept["1"][:] = False
    kept["3"][3] = False
    first = ablation(toy.node_sets["feature"]["1"], kept["1"])(toy.clean()[1]["1"])
    maps = first.transpose(1, 2).unflatten(2, (6, 6))
    second = toy.module[3](toy.module[2](maps)).flatten(2).transpose(1, 2)
    replaced = by_hand(toy.node_sets["feature"]["3"], second, kept["3"])
    logits = toy.module[4](replaced.transpose(1, 2).unflatten(2, (3, 3)))
    expected = logits.gather(1, toy.targets_n[:, None]).squeeze(1)
    torch.testing.assert_close(toy.objective("feature", kept), expected, rtol=1e-10, atol=1e-10)


def test_images_in_chunks_give_the_same(make_toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy()
    kept = {path: torch.rand(12) < 0.5 for path in ("1", "3")}
    whole = toy.objective("feature", kept)
    monkeypatch.setattr(dictionaries, "MAX_CODES", 1)
    torch.testing.assert_close(toy.objective("feature", kept), whole, rtol=1e-12, atol=1e-12)


def test_a_dead_feature_ablated_changes_nothing(make_toy) -> None:
    toy = make_toy(sae="topk")
    kept = toy.kept("feature")
    kept["3"][:2] = False  # never fire, so their mean is zero too
    assert torch.equal(toy.objective("feature", kept), toy.objective("feature", toy.kept("feature")))


def test_a_baseline_of_another_shape_is_told(make_toy, kind) -> None:
    toy = make_toy("tokens")
    nodes, x_bpd = toy.node_sets[kind]["block"], toy.clean()[1]["block"]
    some = toy.kept(kind)["block"]
    some[0] = False
    for kept_n in (some, nothing_kept({"block": nodes})["block"]):
        for others in (x_bpd[:, :4], x_bpd[..., :3]):
            with pytest.raises(DataError, match=r"a baseline of shape \(9, 6\) does not fit.*images of the same size"):
                ablation(nodes, kept_n)(others)
