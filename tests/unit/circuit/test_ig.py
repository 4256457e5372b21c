"""Integrated gradients at a site: against Captum, against IG with leaves for nodes, and what they sum to."""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

import pytest
import torch
from captum.attr import IntegratedGradients, LayerIntegratedGradients
from torch import Tensor, nn

from mis_lab.circuit.attribution import CleanBatch, InputPath, summed
from mis_lab.circuit.baselines import SiteNodes, mean_image
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.methods.ig import ig, mean_gradient
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import RULES
from mis_lab.circuit.suffix import Suffix
from mis_lab.core.errors import ConfigError
from mis_lab.model.sites import Site

CAPTUM = {  # Captum keeps Gauss-Legendre's points in float32
    Quadrature.midpoint: ("riemann_middle", 1e-9),
    Quadrature.gauss_legendre: ("gausslegendre", 1e-7),
    Quadrature.left: ("riemann_left", 1e-9),
    Quadrature.right: ("riemann_right", 1e-9),
}


def effects_of(toy, rule=Quadrature.midpoint, n_steps: int = 4):
    path = InputPath(mean_image(toy.images), RULES[rule](n_steps))
    return node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, EffectMethod.ig, path)


class Tail(nn.Module):
    """The network behind a site, as a function of the site's features and error."""

    def __init__(self, toy, path: str, forward) -> None:
        super().__init__()
        self.toy, self.sae, self.go_on = toy, toy.saes[path], forward

    def forward(self, codes_bpf: Tensor, error_bpd: Tensor) -> Tensor:
        return self.go_on(self.sae.decode(codes_bpf) + error_bpd)


def tail(toy, path: str) -> Tail:
    """What follows `path` in the toys of maps and of tokens, written out once more."""
    network = toy.module

    def of_maps(x_bpd: Tensor) -> Tensor:
        side = round(x_bpd.shape[1] ** 0.5)
        return network[int(path) + 1 :](x_bpd.transpose(1, 2).unflatten(2, (side, side)).clone())

    def of_tokens(x_bpd: Tensor) -> Tensor:
        if path == "tokens":
            x_bpd = network.mix(nn.functional.gelu(x_bpd).transpose(1, 2)).transpose(1, 2)
        return network.out(nn.functional.gelu(x_bpd).mean(1))

    return Tail(toy, path, of_tokens if path in ("tokens", "block") else of_maps)


def ends(toy, path: str) -> tuple[tuple[Tensor, Tensor], tuple[Tensor, Tensor]]:
    """Features and error of all images, and what they are when ablated."""
    nodes, x_bpd = toy.node_sets["feature"][path], toy.clean()[1][path].clone()
    codes = toy.saes[path].encode(x_bpd)
    error = x_bpd - toy.saes[path].decode(codes)
    return (codes, error), (nodes.features.expand_as(codes).clone(), nodes.error.expand_as(error).clone())


def as_nodes(of_codes: Tensor, of_error: Tensor) -> Tensor:
    return torch.cat([of_codes.sum(1), of_error.sum((1, 2))[:, None]], dim=1).detach()


@pytest.mark.parametrize("rule", CAPTUM)
@pytest.mark.parametrize(("network", "sae"), [("relu", "topk"), ("before_relu", "relu"), ("tokens", "topk")])
def test_captum_integrates_features_and_error_to_the_same(make_toy, network, sae, rule) -> None:
    toy = make_toy(network, sae=sae)
    method, tolerance = CAPTUM[rule]
    found = effects_of(toy, rule, n_steps=8)
    for path in toy.node_sets["feature"]:
        clean, ablated = ends(toy, path)
        captum = IntegratedGradients(tail(toy, path))
        expected = as_nodes(*captum.attribute(clean, ablated, toy.targets_n, n_steps=8, method=method))
        torch.testing.assert_close(found["feature"][path].per_image, expected, rtol=0, atol=tolerance)


@pytest.mark.filterwarnings("ignore:Multiple layers provided")
@pytest.mark.parametrize("path", ["1", "3"])
def test_against_another_image_it_is_captums_layer_integrated_gradients(make_toy, splice, path) -> None:
    toy = make_toy("relu")
    images, other, targets = toy.images[0], toy.images[1], toy.targets_n[:3]
    spliced = splice(toy, path)
    captum = LayerIntegratedGradients(spliced, [spliced.features, spliced.error])
    other = other[:1].expand_as(images)
    expected = captum.attribute(images, other, target=targets, n_steps=8, method="riemann_middle")
    toy.node_sets = {"feature": {path: at_image(toy, path, other[:1])}}
    batch = CleanBatch.of(toy.problem, images, targets)

    def effects(n_steps: int) -> Tensor:
        input_path = InputPath(other[0], RULES[Quadrature.midpoint](n_steps))
        return ig(toy.problem, batch, toy.node_sets, input_path, summed)["feature"][path]

    torch.testing.assert_close(effects(8), as_nodes(*expected), rtol=0, atol=1e-12)
    # A4: at a site that all passes through, effects sum to m(image) − m(other image).
    change = batch.objective_b - toy.problem.values(other, targets)
    torch.testing.assert_close(effects(200).sum(1), change, rtol=0, atol=1e-2 * float(change.abs().max()))


def at_image(toy, path: str, image_bchw: Tensor) -> SiteNodes:
    """Nodes that become what they are on one image, position by position."""
    dictionary = toy.node_sets["feature"][path].dictionary
    x_pd = toy.problem.observe(image_bchw, toy.targets_n[:1]).vectors[path][0].clone()
    codes = dictionary.encode(x_pd)
    return SiteNodes.of(dictionary, codes, x_pd - dictionary.combine(codes) - dictionary.offset)


@pytest.mark.parametrize("rule", Quadrature)
def test_is_the_slow_integral_with_neurons_as_leaves(make_toy, baseline, rule) -> None:
    toy = make_toy("tokens", baseline=baseline)
    found = effects_of(toy, rule, n_steps=5)["neuron"]
    for path, x_bpd in toy.clean()[1].items():
        state, expected = toy.node_sets["neuron"][path].state, 0
        for alpha, weight in zip(*RULES[rule](5), strict=True):
            leaf = (state + alpha * (x_bpd - state)).clone().requires_grad_()
            logits = tail(toy, path).go_on(leaf)
            (gradient,) = torch.autograd.grad(logits.gather(1, toy.targets_n[:, None]).sum(), leaf)
            expected = expected + weight * ((x_bpd - state) * gradient).sum(1)
        torch.testing.assert_close(found[path].per_image, expected, rtol=1e-9, atol=1e-12)


# A4: what effects sum to, and how fast.


def gaps(toy, rule: Quadrature, n_steps: int) -> tuple[float, ...]:
    toy.images, toy.node_sets = [toy.all_images], {"feature": toy.node_sets["feature"]}
    return tuple(found.attribution_gap for found in effects_of(toy, rule, n_steps)["feature"].values())


def test_the_gap_shrinks_as_the_rule_promises(make_toy) -> None:
    toy = make_toy("tokens")
    for rule, shrinks in ((Quadrature.left, 4), (Quadrature.midpoint, 16), (Quadrature.trapezoid, 16)):
        for few, many in zip(gaps(toy, rule, 8), gaps(toy, rule, 32), strict=True):
            assert few / many == pytest.approx(shrinks, rel=0.2)
    assert max(gaps(toy, Quadrature.gauss_legendre, 24)) < 1e-9


def test_the_gap_is_small_in_a_network_of_relus(make_toy, baseline) -> None:
    first, last = gaps(make_toy("relu", baseline=baseline), Quadrature.midpoint, 100)
    assert first < 3e-2
    assert last < 1e-12


@pytest.mark.parametrize(
    "rule", [Quadrature.midpoint, Quadrature.trapezoid, Quadrature.gauss_legendre], ids=lambda rule: rule.name
)
def test_swapping_clean_and_baseline_flips_the_sign(make_toy, nonlinear, rule) -> None:
    toy = make_toy(nonlinear)
    images, targets = toy.all_images[:2], toy.targets_n[:1]
    for path in toy.node_sets["feature"]:

        def effect(image: int, other: int, path: str = path) -> Tensor:
            batch = CleanBatch.of(toy.problem, images[image : image + 1], targets)
            nodes = {"feature": {path: at_image(toy, path, images[other : other + 1])}}
            input_path = InputPath(images[other], RULES[rule](4))
            return ig(toy.problem, batch, nodes, input_path, summed)["feature"][path]

        torch.testing.assert_close(effect(0, 1), -effect(1, 0), rtol=1e-9, atol=1e-13)
        assert effect(0, 1).abs().max() > 1e-3
        assert effect(0, 0).abs().max() < 1e-13


# How it is computed.


@pytest.mark.parametrize("n_images", [1, 2, 7])
@pytest.mark.parametrize("n_steps", [1, 3, 16])
def test_no_pass_holds_more_rows_than_the_batch_has_images(make_toy, n_images, n_steps) -> None:
    toy = make_toy("relu")
    sizes = []
    handle = toy.module[4].register_forward_hook(lambda module, args, output: sizes.append(len(output)))
    images, targets = toy.all_images[:n_images], toy.targets_n[:n_images]
    batch = CleanBatch.of(toy.problem, images, targets)
    suffix = Suffix.of(toy.problem, toy.problem.sites[0], images, targets)
    state = toy.node_sets["feature"]["1"].state
    sizes.clear()
    mean_gradient(suffix, batch, state, RULES[Quadrature.midpoint](n_steps))
    handle.remove()
    assert max(sizes) <= n_images
    assert sum(sizes) == n_images * n_steps


def test_kinds_that_end_in_one_state_share_their_passes(make_toy) -> None:
    toy, passes = make_toy("relu"), []
    toy.module[4].register_full_backward_hook(lambda *_: passes.append(1))
    both = toy.node_sets
    counts = []
    for node_sets in ({"neuron": both["neuron"]}, both):
        passes.clear()
        toy.node_sets = node_sets
        effects_of(toy)
        counts.append(len(passes))
    assert counts[0] == counts[1] > 0


class Discarded(nn.Module):
    """What `side` computes is thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.side, self.head = nn.Linear(108, 5), nn.Linear(108, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        self.side(images_bchw.flatten(1))
        return self.head(images_bchw.flatten(1))


def test_a_site_off_the_way_to_the_objective_is_named(make_toy, as_model) -> None:
    toy = make_toy("linear")
    toy.problem = Problem(as_model(Discarded().double()), (Site("side", "bd", 5, 1, (1, 1)),), logit)
    toy.saes = {"side": toy.saes["1"]}
    toy.__post_init__()
    with pytest.raises(ConfigError, match="site side is not on the way"):
        effects_of(toy)
