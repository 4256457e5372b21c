"""Conductance: against Captum, by its definition node by node, and at every site the same sum."""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

import pytest
import torch
from captum.attr import LayerConductance, NeuronConductance
from torch import Tensor

from mis_lab.circuit.attribution import InputPath, gradient_pass
from mis_lab.circuit.baselines import SiteNodes, mean_image
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.quadrature import RULES


def effects_of(toy, n_steps: int = 4, rule=Quadrature.midpoint, start=None):
    path = InputPath(mean_image(toy.images) if start is None else start, RULES[rule](n_steps))
    return node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, EffectMethod.conductance, path)


@pytest.mark.parametrize("sae", ["relu", "topk"])
def test_is_the_sum_over_steps_node_by_node(make_toy, nonlinear, sae) -> None:
    toy = make_toy(nonlinear, sae=sae)
    found = effects_of(toy, n_steps=3)["feature"]
    start, expected = toy.all_images.mean(0), {}
    for path, nodes in toy.node_sets["feature"].items():
        values, gradients = [], []
        for step in range(4):
            images = start + step / 3 * (toy.all_images - start)
            x_bpd, g_bpd = (of_pass[path] for of_pass in gradient_pass(toy.problem, images, toy.targets_n))
            codes = toy.saes[path].encode(x_bpd)
            values.append(torch.cat([codes, x_bpd - toy.saes[path].decode(codes)], dim=-1))
            gradients.append(torch.cat([g_bpd @ nodes.dictionary.atoms.T, g_bpd], dim=-1))
        flow = sum((gradients[n] + gradients[n + 1]) / 2 * (values[n + 1] - values[n]) for n in range(3)).sum(1)
        expected[path] = torch.cat([flow[:, :11], flow[:, 11:].sum(1, keepdim=True)], dim=1)
        torch.testing.assert_close(found[path].per_image, expected[path], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("path", ["1", "3"])
def test_is_the_mean_of_captums_layer_conductance_there_and_back(make_toy, splice, path) -> None:
    # Captum takes the gradient at the beginning of each step; on the way back that is its end.
    toy = make_toy("relu")
    spliced = splice(toy, path)
    start = toy.all_images.mean(0, keepdim=True).expand_as(toy.all_images)
    expected = []
    for layer in (spliced.features, spliced.error):
        captum = LayerConductance(spliced, layer)
        options = {"target": toy.targets_n, "n_steps": 8, "method": "riemann_trapezoid"}
        there = captum.attribute(toy.all_images, start, **options)
        back = captum.attribute(start, toy.all_images, **options)
        expected.append((there - back).detach() / 2)
    found = effects_of(toy, n_steps=8)["feature"][path].per_image
    torch.testing.assert_close(found[:, :-1], expected[0].sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[:, -1], expected[1].sum((1, 2)), rtol=1e-9, atol=1e-12)


def test_captums_neuron_conductance_of_all_inputs_converges_to_it(make_toy) -> None:
    toy = make_toy("tokens")
    start = toy.all_images.mean(0, keepdim=True).expand_as(toy.all_images)
    captum = NeuronConductance(toy.module, toy.module.block)
    found = effects_of(toy, n_steps=64)["neuron"]["block"].per_image
    for neuron in (0, 4):
        options = {"target": toy.targets_n, "n_steps": 24, "method": "gausslegendre"}
        expected = sum(
            captum.attribute(toy.all_images, (position, neuron), start, **options).sum((1, 2, 3))
            for position in range(9)
        )
        torch.testing.assert_close(found[:, neuron], expected, rtol=0, atol=1e-4)


def test_every_site_sums_to_the_same_change_from_the_paths_start(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    toy.images = [toy.all_images]
    start = mean_image(toy.images)
    starting = toy.problem.values(start.expand_as(toy.all_images), toy.targets_n)
    change = float((toy.clean()[0] - starting).mean())
    sums = []
    for found in effects_of(toy, n_steps=100)[kind].values():
        assert found.change == pytest.approx(change, rel=1e-10)
        assert found.attribution_gap < (1e-4 if nonlinear == "tokens" else 3e-2)
        sums.append(found.effect_sum)
    assert sums[0] == pytest.approx(sums[1], rel=6e-2)


def test_with_a_counterfactual_image_it_sums_to_ablating_against_that_image(make_toy, nonlinear) -> None:
    toy = make_toy(nonlinear)
    other = toy.images[2][:1]
    ablated = toy.problem.observe(other, toy.targets_n[:1]).vectors
    found = effects_of(toy, n_steps=2, start=other[0])["neuron"]
    for path, nodes in toy.node_sets["neuron"].items():
        x_pd = ablated[path][0].clone()
        toy.node_sets["neuron"][path] = SiteNodes(nodes.dictionary, x_pd, nodes.error, x_pd)
        without = toy.kept("neuron")
        without[path][:] = False
        change = (toy.clean()[0] - toy.objective("neuron", without)).mean()
        assert found[path].change == pytest.approx(float(change), rel=1e-10)


def test_a_feature_that_is_on_in_the_middle_of_the_path_only_counts(make_toy, monkeypatch) -> None:
    toy = make_toy("relu")
    toy.images, toy.targets_n = [toy.images[0][:1]], toy.targets_n[:1]
    toy.node_sets = {"feature": {"1": toy.node_sets["feature"]["1"]}}
    sae, start = toy.saes["1"], torch.randn(3, 6, 6, dtype=torch.float64)
    at_start = toy.problem.observe(start[None], toy.targets_n).vectors["1"]
    at_end = toy.problem.observe(toy.images[0], toy.targets_n).vectors["1"]
    encode = sae.encode

    def with_bump(x_bpd: Tensor) -> Tensor:  # feature 0 is otherwise dead
        codes = encode(x_bpd).clone()
        codes[..., 0] = (x_bpd - at_start).norm(dim=-1) * (x_bpd - at_end).norm(dim=-1)
        return codes

    monkeypatch.setattr(sae, "encode", with_bump)
    assert not with_bump(at_start)[..., 0].any()
    assert not with_bump(at_end)[..., 0].any()
    found = effects_of(toy, n_steps=8, start=start)["feature"]["1"]
    assert found.per_image[0, 0].abs() > 1e-3
    assert found.per_image[0, 1] == 0, "the other dead feature"


@pytest.mark.parametrize("rule", Quadrature)
def test_the_number_of_steps_counts_and_the_rule_does_not(make_toy, rule) -> None:
    toy = make_toy("relu")
    found, expected = effects_of(toy, 5, rule)["feature"]["1"], effects_of(toy, 5)["feature"]["1"]
    assert torch.equal(found.per_image, expected.per_image)


@pytest.mark.parametrize(("method", "n_passes"), [(EffectMethod.ig_inputs, 5), (EffectMethod.conductance, 6)])
def test_all_sites_and_kinds_share_a_pass_a_step(make_toy, nonlinear, method, n_passes) -> None:
    toy = make_toy(nonlinear)
    toy.images = [toy.all_images]
    forward, backward = [], []
    head = toy.module[4] if nonlinear != "tokens" else toy.module.out
    head.register_forward_hook(lambda *_: forward.append(torch.is_grad_enabled()))
    head.register_full_backward_hook(lambda *_: backward.append(1))
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](5))
    node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, method, path)
    assert sum(forward) == len(backward) == n_passes
