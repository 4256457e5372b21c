"""Effects against exact ablation where that must be equal, against autograd over the nodes, and against Captum."""

# n images  B images  P positions  D site width  F features  N nodes

from __future__ import annotations

import copy
from dataclasses import replace
from itertools import product

import pytest
import torch
from captum.attr import InternalInfluence, LayerGradientXActivation
from torch import Tensor, nn

from mis_lab.circuit.attribution import InputPath, site_gradients
from mis_lab.circuit.baselines import SiteNodes, mean_image, zero
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.dictionaries import Neurons, SaeFeatures
from mis_lab.circuit.effects import SiteEffects, node_effects
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import RULES
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.sites import Site

# What estimates ablation, node by node; conductance starts elsewhere, and the absolute form has no sign.
OF_ABLATION = [EffectMethod.atp, EffectMethod.ig_inputs, EffectMethod.ig, EffectMethod.exact]


def effects_of(toy, method: EffectMethod, rule=Quadrature.midpoint, n_steps: int = 4, images=None, targets_n=None):
    path = InputPath(mean_image(toy.images), RULES[rule](n_steps))
    images = toy.images if images is None else images
    targets_n = toy.targets_n if targets_n is None else targets_n
    return node_effects(toy.problem, toy.node_sets, images, targets_n, method, path)


# A2 and A3: where the network is linear from the site on, every estimate is exact ablation.


@pytest.mark.parametrize(
    ("method", "rule"),
    [
        *product([EffectMethod.atp, EffectMethod.exact], [Quadrature.midpoint]),
        *product([EffectMethod.ig_inputs, EffectMethod.ig], Quadrature),
    ],
)
def test_linear_network_every_estimate_is_exact_ablation(make_toy, baseline, method, rule) -> None:
    toy = make_toy("linear", baseline=baseline)
    effects = effects_of(toy, method, rule, n_steps=3)
    for kind, path in product(("feature", "neuron"), ("1", "3")):
        torch.testing.assert_close(effects[kind][path].per_image, toy.exact(kind, path), rtol=1e-10, atol=1e-10)
        assert effects[kind][path].attribution_gap < 1e-10


@pytest.mark.parametrize("method", OF_ABLATION)
def test_last_site_with_a_linear_tail_is_exact_in_a_nonlinear_network(make_toy, baseline, kind, method) -> None:
    toy = make_toy("relu", baseline=baseline)
    last = effects_of(toy, method)[kind]["3"]
    torch.testing.assert_close(last.per_image, toy.exact(kind, "3"), rtol=1e-12, atol=1e-12)
    assert last.attribution_gap < 1e-12


# A4: what the gap is.


@pytest.mark.parametrize("method", [EffectMethod.atp, EffectMethod.ig_inputs, EffectMethod.ig])
def test_attribution_gap_is_sum_of_effects_against_ablating_the_whole_site(make_toy, nonlinear, baseline, kind, method):
    toy = make_toy(nonlinear, baseline=baseline)
    effects = effects_of(toy, method)[kind]
    for path, found in effects.items():
        kept = toy.kept(kind)
        kept[path][:] = False
        change = (toy.clean()[0] - toy.objective(kind, kept)).mean()
        assert found.change == pytest.approx(float(change), rel=1e-10)
        total = found.per_image.mean(0).sum()
        assert found.effect_sum == pytest.approx(float(total), rel=1e-10)
        assert found.attribution_gap == pytest.approx(float((total - change).abs() / change.abs()), rel=1e-9)
    first = next(iter(effects.values()))
    assert first.attribution_gap > 1e-4  # gradients do not tell all of a nonlinear network


def test_effects_without_a_sign_have_no_gap(make_toy, kind) -> None:
    for found in effects_of(make_toy(), EffectMethod.atp_absolute)[kind].values():
        assert found.change != 0
        assert found.attribution_gap != found.attribution_gap


@pytest.mark.parametrize("method", EffectMethod)
def test_every_method_works_on_vectors(make_toy, as_model, method) -> None:
    toy = make_toy("linear")
    network = nn.Sequential(nn.Flatten(), nn.Linear(108, 5), nn.ReLU(inplace=True), nn.Linear(5, 4)).double()
    site, sae = Site("2", "bd", 5, 1, (1, 1)), toy.saes["1"]
    toy.problem, toy.saes = Problem(as_model(network), (site,), logit), {"2": sae}
    toy.__post_init__()
    absolute = method is EffectMethod.atp_absolute
    for kind, expected in ((kind, toy.exact(kind, "2")) for kind in ("feature", "neuron")):
        found = effects_of(toy, method)[kind]["2"]
        if method is EffectMethod.conductance:  # starts at the vector of the mean image, not at the mean vector
            assert found.effect_sum == pytest.approx(found.change, rel=1e-9)
        else:
            torch.testing.assert_close(found.per_image, expected.abs() if absolute else expected, rtol=1e-9, atol=1e-12)


def test_positive_effects_support_the_target(make_toy) -> None:
    toy = make_toy("linear", baseline=zero)
    effects = effects_of(toy, EffectMethod.atp)["neuron"]["3"].per_image
    vectors, weights = toy.clean()[1]["3"], toy.module[4].linear.weight
    expected = vectors.mean(1) * weights[toy.targets_n]  # x_d·w_d is what neuron d adds to the logit
    torch.testing.assert_close(effects, expected, rtol=1e-10, atol=1e-12)


# ig_inputs and atp against autograd through the nodes themselves.


def gradients_over_nodes(toy, path: str, images_bchw: Tensor) -> tuple[Tensor, Tensor]:
    """∂m/∂codes (B, P, F) and ∂m/∂error (B, P, D) with both as leaves."""
    cut = int(path) + 1
    with torch.no_grad():
        maps = toy.module[:cut](images_bchw)
        x_bpd = maps.flatten(2).transpose(1, 2)
        codes = toy.saes[path].encode(x_bpd)
        error = x_bpd - toy.saes[path].decode(codes)
    codes.requires_grad_(), error.requires_grad_()
    x_bpd = toy.saes[path].decode(codes) + error
    logits = toy.module[cut:](x_bpd.transpose(1, 2).unflatten(2, maps.shape[2:]).clone())
    return torch.autograd.grad(logits.gather(1, toy.targets_n[:, None]).sum(), (codes, error))


@pytest.mark.parametrize("rule", Quadrature)
@pytest.mark.parametrize("sae", ["relu", "topk"])
def test_ig_inputs_is_the_mean_gradient_over_the_input_path(make_toy, baseline, sae, rule) -> None:
    toy = make_toy("relu", sae=sae, baseline=baseline)
    found = effects_of(toy, EffectMethod.ig_inputs, rule, n_steps=5)["feature"]
    start = toy.all_images.mean(0)
    for path, x_bpd in toy.clean()[1].items():
        nodes, output = toy.node_sets["feature"][path], toy.saes[path](x_bpd)
        of_codes, of_error = torch.zeros_like(output.codes), torch.zeros_like(x_bpd)
        for alpha, weight in zip(*RULES[rule](5), strict=True):
            grads = gradients_over_nodes(toy, path, start + alpha * (toy.all_images - start))
            of_codes, of_error = of_codes + weight * grads[0], of_error + weight * grads[1]
        expected = torch.cat(
            [
                ((output.codes - nodes.features) * of_codes).sum(1),
                ((x_bpd - output.reconstruction - nodes.error) * of_error).sum((1, 2))[:, None],
            ],
            dim=1,
        )
        torch.testing.assert_close(found[path].per_image, expected, rtol=1e-9, atol=1e-12)


def test_one_right_step_is_attribution_patching(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    atp, ig = effects_of(toy, EffectMethod.atp), effects_of(toy, EffectMethod.ig_inputs, Quadrature.right, n_steps=1)
    for path in atp[kind]:
        torch.testing.assert_close(ig[kind][path].per_image, atp[kind][path].per_image, rtol=1e-12, atol=1e-14)


def test_sites_do_not_disturb_each_other(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    together = effects_of(toy, EffectMethod.ig_inputs)[kind]
    for site in toy.problem.sites:
        alone = copy.copy(toy)
        alone.problem = replace(toy.problem, sites=(site,))
        alone.node_sets = {kind: {site.path: toy.node_sets[kind][site.path]}}
        found = effects_of(alone, EffectMethod.ig_inputs)[kind][site.path]
        torch.testing.assert_close(found.per_image, together[site.path].per_image, rtol=1e-12, atol=1e-14)


# Captum.


@pytest.mark.parametrize("path", ["1", "3"])
def test_atp_with_zero_baseline_is_captums_gradient_times_activation(make_toy, splice, path) -> None:
    toy = make_toy("relu", baseline=zero)
    spliced = splice(toy, path)
    captum = LayerGradientXActivation(spliced, [spliced.features, spliced.error])
    features, error = captum.attribute(toy.all_images, target=toy.targets_n)
    expected = torch.cat([features.sum(1), error.sum((1, 2))[:, None]], dim=1)
    found = effects_of(toy, EffectMethod.atp)["feature"][path].per_image
    torch.testing.assert_close(found, expected.detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", ["1", "3"])
def test_neurons_with_zero_baseline_are_captums_gradient_times_activation(make_toy, path) -> None:
    toy = make_toy("relu", baseline=zero)
    plain = copy.deepcopy(toy.module)
    for module in (1, 3):
        plain[module] = nn.ReLU()
    captum = LayerGradientXActivation(plain, plain[int(path)]).attribute(toy.all_images, target=toy.targets_n)
    found = effects_of(toy, EffectMethod.atp)["neuron"][path].per_image
    torch.testing.assert_close(found, captum.sum((2, 3)).detach(), rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("path", ["1", "3"])
def test_ig_inputs_is_captums_internal_influence_times_the_change(make_toy, baseline, path) -> None:
    toy = make_toy("relu", baseline=baseline)
    plain = copy.deepcopy(toy.module)
    for module in (1, 3):
        plain[module] = nn.ReLU()
    start = toy.all_images.mean(0, keepdim=True).expand_as(toy.all_images)
    mean_gradient = InternalInfluence(plain, plain[int(path)]).attribute(
        toy.all_images, start, target=toy.targets_n, n_steps=8, method="riemann_middle"
    )
    g_bpd, x_bpd = mean_gradient.flatten(2).transpose(1, 2).detach(), toy.clean()[1][path]
    found = effects_of(toy, EffectMethod.ig_inputs, n_steps=8)
    expected = ((x_bpd - toy.node_sets["neuron"][path].state) * g_bpd).sum(1)
    torch.testing.assert_close(found["neuron"][path].per_image, expected, rtol=1e-9, atol=1e-12)
    # Whatever the dictionary, its nodes share out ⟨x − state, ḡ⟩.
    total = ((x_bpd - toy.node_sets["feature"][path].state) * g_bpd).sum((1, 2))
    torch.testing.assert_close(found["feature"][path].per_image.sum(1), total, rtol=1e-9, atol=1e-12)


# A7, A11: what must not matter, and what must be zero.


@pytest.mark.parametrize("method", EffectMethod)
@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_do_not_matter(make_toy, nonlinear, method, batch_size) -> None:
    toy = make_toy(nonlinear)
    whole, batched = effects_of(toy, method), effects_of(toy, method, images=toy.all_images.split(batch_size))
    for kind, site in product(whole, toy.problem.sites):
        found, expected = batched[kind][site.path], whole[kind][site.path]
        torch.testing.assert_close(found.per_image, expected.per_image, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.mean, expected.mean, rtol=1e-9, atol=1e-12)
        torch.testing.assert_close(found.standard_error, expected.standard_error, rtol=1e-9, atol=1e-12)
        assert torch.equal(found.n_active, expected.n_active)


def test_order_of_images_permutes_the_rows(make_toy, kind) -> None:
    toy = make_toy("relu")
    order = torch.randperm(7)
    images, targets_n = toy.all_images[order].split(4), toy.targets_n[order]
    found = effects_of(toy, EffectMethod.ig_inputs, images=images, targets_n=targets_n)[kind]
    for path, expected in effects_of(toy, EffectMethod.ig_inputs)[kind].items():
        torch.testing.assert_close(found[path].per_image, expected.per_image[order], rtol=1e-9, atol=1e-12)


def test_order_of_features_permutes_the_columns(make_toy) -> None:
    toy = make_toy("relu")
    expected = effects_of(toy, EffectMethod.ig_inputs)["feature"]["3"].per_image
    order, sae = torch.randperm(11), copy.deepcopy(toy.saes["3"])
    for name in ("W_enc", "b_enc", "W_dec"):
        getattr(sae, name).data = getattr(sae, name).data[order]
    site = toy.problem.sites[1]
    toy.node_sets["feature"]["3"] = toy.baseline(
        replace(toy.problem, sites=(site,)), {"feature": {"3": SaeFeatures.at(site, sae)}}, toy.images
    )["feature"]["3"]
    found = effects_of(toy, EffectMethod.ig_inputs)["feature"]["3"].per_image
    torch.testing.assert_close(found, expected[:, torch.cat([order, torch.tensor([11])])], rtol=1e-9, atol=1e-12)


def test_swapping_clean_and_baseline_flips_the_sign(make_toy) -> None:
    # With one gradient for both ends, E is odd in f − f_b: a node at its baseline adds nothing.
    toy = make_toy("linear", baseline=zero)
    images = toy.all_images[:2]
    x_bpd = toy.problem.observe(images, toy.targets_n[:2]).vectors["3"]

    def effect(image: int, other: int) -> Tensor:
        state = x_bpd[other]
        neurons = Neurons.at(toy.problem.sites[1], images)
        toy.node_sets = {"neuron": {"3": SiteNodes(neurons, state, torch.zeros(7).double(), state)}}
        target = toy.targets_n[:1]
        return effects_of(toy, EffectMethod.atp, images=[images[image : image + 1]], targets_n=target)["neuron"][
            "3"
        ].per_image

    torch.testing.assert_close(effect(0, 1), -effect(1, 0), rtol=1e-10, atol=1e-12)
    assert not effect(0, 0).any()


def test_dead_features_have_no_effect_and_do_not_live(make_toy, nonlinear, baseline) -> None:
    toy = make_toy(nonlinear, sae="topk", baseline=baseline)
    for path, found in effects_of(toy, EffectMethod.ig_inputs)["feature"].items():
        codes = toy.saes[path].encode(toy.clean()[1][path])
        assert not found.per_image[:, :2].any()
        assert torch.equal(found.live[:-1], codes.any(1).any(0))
        assert torch.equal(found.n_active[:-1], codes.any(1).sum(0))
        assert not found.live[:2].any()
        assert found.live[-1]
        assert found.n_active[-1] == 7


def test_a_feature_that_never_leaves_its_mean_does_not_live(make_toy) -> None:
    toy = make_toy("relu", dtype=torch.float32)
    sae = toy.saes["3"]
    with torch.no_grad():
        sae.W_enc[4], sae.b_enc[4] = 0, 0.7  # always on, always the same
    toy.__post_init__()
    found = effects_of(toy, EffectMethod.atp)["feature"]["3"]
    assert not found.live[4]
    assert found.n_active[4] == 7
    assert not found.per_image[:, 4].any()


def test_mean_and_standard_error_are_over_images_in_float64() -> None:
    per_image = torch.tensor([[1.0, -2.0], [3.0, 0.0], [5.0, 4.0]])
    effects = SiteEffects(per_image, torch.tensor([3, 3]), torch.tensor([True, True]), 4.0, has_error=True)
    assert effects.mean.tolist() == pytest.approx([3.0, 2 / 3])
    assert effects.mean.dtype == effects.standard_error.dtype == torch.float64
    assert effects.standard_error.tolist() == pytest.approx([2 / 3**0.5, (28 / 3) ** 0.5 / 3**0.5])
    assert effects.effect_sum == pytest.approx(11 / 3)
    assert effects.attribution_gap == pytest.approx(1 / 12)
    assert effects.error_share == pytest.approx(2 / 11)
    one = replace(effects, per_image=per_image[:1], has_error=False)
    assert one.standard_error.isnan().all()
    assert one.error_share == 0


# A12: a circuit that is known.


class Planted(nn.Module):
    """8 hidden directions at 4 positions; the target logit is a nonlinear function of three of them alone."""

    PLANTED = (1, 4, 6)

    def __init__(self) -> None:
        super().__init__()
        self.read, self.hidden = nn.Linear(12, 8), nn.Identity()
        self.directions = nn.Parameter(torch.linalg.qr(torch.randn(8, 8).double()).Q)

    def forward(self, images_bchw: Tensor) -> Tensor:
        patches = nn.functional.unfold(images_bchw, 3, stride=3).transpose(1, 2)[..., :12]
        x_bpd = self.hidden(self.read(patches).relu() @ self.directions)
        a, b, c = (x_bpd @ self.directions[list(self.PLANTED)].T).mean(1).T
        return torch.stack([a * b + c.square() + a + b, torch.zeros_like(a)], dim=1)


@pytest.mark.parametrize("method", EffectMethod)
def test_planted_circuit_is_found(make_toy, as_model, baseline, method) -> None:
    network = Planted().double()
    site = Site("hidden", "btd", 8, 4, (2, 2))
    toy = make_toy("relu", baseline=baseline)
    toy.problem, toy.targets_n = Problem(as_model(network, 2), (site,), logit), torch.zeros(7, dtype=torch.int64)
    sae = copy.deepcopy(toy.saes["1"])
    sae.width, sae.n_features = 8, 8
    for name, value in {"W_enc": network.directions, "W_dec": network.directions}.items():
        setattr(sae, name, nn.Parameter(value.detach().clone(), requires_grad=False))
    sae.b_enc, sae.b_dec = (nn.Parameter(torch.zeros(8).double(), requires_grad=False) for _ in range(2))
    sae.scale.fill_(1)
    toy.saes = {"hidden": sae}
    toy.__post_init__()
    size = effects_of(toy, method)["feature"]["hidden"].mean.abs()
    planted = torch.zeros(9, dtype=torch.bool)
    planted[list(Planted.PLANTED)] = True
    assert size[planted].min() > 1e-3
    assert size[~planted].max() < 1e-12  # so that AUROC is 1; the error of this dictionary is zero


# A13: nothing is left behind.


@pytest.mark.parametrize("method", EffectMethod)
def test_the_network_is_left_as_it_was(make_toy, method) -> None:
    toy = make_toy("tokens")
    before, random = {name: value.clone() for name, value in toy.module.state_dict().items()}, torch.get_rng_state()
    effects_of(toy, method)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(not module._forward_hooks for module in toy.module.modules())
    assert all(not p.requires_grad and p.grad is None for p in toy.module.parameters())
    assert all(p.grad is None for sae in toy.saes.values() for p in sae.parameters())
    assert not any(module.training for module in toy.module.modules())
    assert all(torch.equal(value, before[name]) for name, value in toy.module.state_dict().items())


def test_works_inside_no_grad_and_inference_mode(make_toy) -> None:
    toy = make_toy("relu")
    expected = site_gradients(toy.problem, toy.images[0], toy.targets_n[:3])
    for off in (torch.no_grad, torch.inference_mode):
        with off():
            found = site_gradients(toy.problem, toy.images[0], toy.targets_n[:3])
        assert all(torch.equal(found[path], expected[path]) for path in expected)


# What a user can get wrong.


def test_batch_norm_in_training_mode_is_refused(as_model) -> None:
    model = as_model(nn.Sequential(nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(108, 4)))
    model.module[0].train()
    with pytest.raises(ConfigError, match=r"training mode \(0\)"):
        Problem(model, (Site("0", "bchw", 3, 36, (6, 6)),), logit)


def test_a_problem_needs_sites_and_class_scores(as_model) -> None:
    model = as_model(nn.Sequential(nn.Flatten(), nn.Linear(108, 4)))
    with pytest.raises(ConfigError, match="at least one site"):
        Problem(model, (), logit)
    with pytest.raises(ConfigError, match=r"not \(image, class\)"):
        Problem(replace(model, n_classes=0), (Site("1", "bd", 4, 1, (1, 1)),), logit)


class SideBranch(nn.Module):
    """`side` is computed and thrown away."""

    def __init__(self) -> None:
        super().__init__()
        self.main, self.side, self.head = nn.Linear(108, 6), nn.Linear(6, 5), nn.Linear(6, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        hidden = self.main(images_bchw.flatten(1))
        self.side(hidden)
        return self.head(hidden)


@pytest.mark.parametrize("with_main", [True, False])
def test_a_site_off_the_way_to_the_objective_is_named(as_model, with_main) -> None:
    sites = (Site("main", "bd", 6, 1, (1, 1)),) * with_main + (Site("side", "bd", 5, 1, (1, 1)),)
    problem = Problem(as_model(SideBranch()), sites, logit)
    with pytest.raises(ConfigError, match="site side is not on the way"):
        site_gradients(problem, torch.randn(2, 3, 6, 6), torch.zeros(2, dtype=torch.int64))


def test_effects_that_are_not_finite_are_told(make_toy) -> None:
    toy = make_toy("relu")
    images = [batch.clone() for batch in toy.images]
    images[1][1] = torch.inf
    with pytest.raises(DataError, match=r"effects at site 1 are not finite on 1 of 7 images, the first at place 4"):
        effects_of(toy, EffectMethod.atp, images=images)


def test_an_empty_set_of_images_is_told(make_toy) -> None:
    toy = make_toy("relu")
    with pytest.raises(DataError, match="no images to find a circuit on"):
        effects_of(toy, EffectMethod.atp, images=[], targets_n=toy.targets_n[:0])
