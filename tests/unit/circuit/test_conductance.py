"""Conductance: against Captum, by its definition node by node, and at every site the same sum."""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

import copy

import pytest
import torch
from captum.attr import LayerConductance, NeuronConductance
from torch import Tensor, nn

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


class Leaves(nn.Module):
    """A toy of maps, with a site's features and error each behind a module of its own."""

    def __init__(self, toy, path: str) -> None:
        super().__init__()
        plain = copy.deepcopy(toy.module)
        for module in (1, 3):
            plain[module] = nn.ReLU()
        self.before, self.after, self.sae = plain[: int(path) + 1], plain[int(path) + 1 :], toy.saes[path]
        self.features, self.error = nn.Identity(), nn.Identity()

    def forward(self, images_bchw: Tensor) -> Tensor:
        maps = self.before(images_bchw)
        x_bpd = maps.flatten(2).transpose(1, 2)
        codes = self.sae.encode(x_bpd)
        codes, error = self.features(codes), self.error(x_bpd - self.sae.decode(codes))
        return self.after((self.sae.decode(codes) + error).transpose(1, 2).unflatten(2, maps.shape[2:]))


@pytest.mark.parametrize("path", ["1", "3"])
def test_is_the_mean_of_captums_layer_conductance_there_and_back(make_toy, path) -> None:
    # Captum takes the gradient at the beginning of each step; on the way back that is its end.
    toy = make_toy("relu")
    leaves = Leaves(toy, path)
    start = toy.all_images.mean(0, keepdim=True).expand_as(toy.all_images)
    expected = []
    for layer in (leaves.features, leaves.error):
        captum = LayerConductance(leaves, layer)
        options = {"target": toy.targets_n, "n_steps": 6, "method": "riemann_trapezoid"}
        there = captum.attribute(toy.all_images, start, **options)
        back = captum.attribute(start, toy.all_images, **options)
        expected.append((there - back).detach() / 2)
    found = effects_of(toy, n_steps=6)["feature"][path].per_image
    torch.testing.assert_close(found[:, :-1], expected[0].sum(1), rtol=1e-9, atol=1e-12)
    torch.testing.assert_close(found[:, -1], expected[1].sum((1, 2)), rtol=1e-9, atol=1e-12)


def test_captums_neuron_conductance_of_all_inputs_converges_to_it(make_toy) -> None:
    toy = make_toy("tokens")
    start = toy.all_images.mean(0, keepdim=True).expand_as(toy.all_images)
    captum = NeuronConductance(toy.module, toy.module.block)
    found = effects_of(toy, n_steps=256)["neuron"]["block"].per_image
    for neuron in range(3):
        options = {"target": toy.targets_n, "n_steps": 24, "method": "gausslegendre"}
        expected = sum(
            captum.attribute(toy.all_images, (position, neuron), start, **options).sum((1, 2, 3))
            for position in range(9)
        )
        torch.testing.assert_close(found[:, neuron], expected, rtol=0, atol=1e-5)


def test_every_site_sums_to_the_same_change_from_the_paths_start(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    start = mean_image(toy.images)
    starting = toy.problem.values(start.expand_as(toy.all_images), toy.targets_n)
    change = float((toy.clean()[0] - starting).mean())
    sums = []
    for found in effects_of(toy, n_steps=512)[kind].values():
        assert found.change == pytest.approx(change, rel=1e-10)
        assert found.attribution_gap < (1e-4 if nonlinear == "tokens" else 2e-2)
        sums.append(found.effect_sum)
    assert sums[0] == pytest.approx(sums[1], rel=2e-2)


def test_with_a_counterfactual_image_it_sums_to_ablating_against_that_image(make_toy, nonlinear) -> None:
    toy = make_toy(nonlinear)
    other = toy.images[2][:1]
    ablated = toy.problem.observe(other, toy.targets_n[:1]).vectors
    found = effects_of(toy, n_steps=64, start=other[0])["neuron"]
    for path, nodes in toy.node_sets["neuron"].items():
        x_pd = ablated[path][0].clone()
        toy.node_sets["neuron"][path] = SiteNodes(nodes.dictionary, x_pd, nodes.error, x_pd)
        without = toy.kept("neuron")
        without[path][:] = False
        change = (toy.clean()[0] - toy.objective("neuron", without)).mean()
        assert found[path].change == pytest.approx(float(change), rel=1e-10)


def test_a_feature_that_is_on_in_the_middle_of_the_path_only_counts(make_toy) -> None:
    toy = make_toy("linear")
    images = torch.stack([toy.images[0][0], -toy.images[0][0]])  # the mean image is zero: codes peak between the ends
    toy.images, toy.targets_n = [images[:1]], toy.targets_n[:1]
    sae = toy.saes["3"]
    x_start, x_end = (toy.problem.observe(image[None], toy.targets_n).vectors["3"] for image in (images[1], images[0]))
    inside = ((x_start + x_end) / 2)[0]
    with torch.no_grad():  # fires near the vectors of the middle, at no end: relu(1 − |distance along the path|)
        direction = (x_end - x_start)[0]
        sae.W_dec[1] = torch.ones(7)
        sae.W_enc[1] = 0
        sae.b_enc[1] = 0
    encode = sae.encode

    def with_bump(x_bpd: Tensor) -> Tensor:
        codes = encode(x_bpd).clone()
        along = ((x_bpd - inside) * direction).sum((-1, -2)) / direction.square().sum()
        codes[..., 1] = (0.25 - along.abs()).clamp(min=0)[..., None]
        return codes

    sae.encode = with_bump
    toy.node_sets = {"feature": {"3": toy.node_sets["feature"]["3"]}}
    found = effects_of(toy, n_steps=8, start=images[1])["feature"]["3"].per_image
    assert with_bump(x_start)[..., 1].abs().max() == with_bump(x_end)[..., 1].abs().max() == 0
    # In a linear network the gradient is constant: what goes up comes down.
    assert found[0, 1].abs() < 1e-12
    assert found[0, 2:].abs().max() > 1e-3


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
