"""Maps of effects sum to the effects, and lie where the nodes are."""

from __future__ import annotations

import pytest
import torch

from mis_lab.circuit import dictionaries
from mis_lab.circuit.attribution import InputPath, gradient_pass
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.effect_maps import effect_maps
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.quadrature import RULES
from mis_lab.core.errors import ConfigError, DataError

WITH_MAPS = [method for method in EffectMethod if method is not EffectMethod.exact]


def maps_of(toy, kind: str, method: EffectMethod, which):
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](3))
    return effect_maps(toy.problem, toy.node_sets[kind], toy.images, toy.targets_n, method, path, which)


@pytest.mark.parametrize("method", WITH_MAPS)
@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_maps_sum_to_the_effects(make_toy, network, kind, method, monkeypatch) -> None:
    toy = make_toy(network)
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](3))
    whole = node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, method, path)[kind]
    which = {site.path: torch.tensor([4, -1, 2]) for site in toy.problem.sites}
    monkeypatch.setattr(dictionaries, "MAX_CODES", 1)  # an image at a time
    for site_path, maps_nvp in maps_of(toy, kind, method, which).items():
        n_positions = toy.clean()[1][site_path].shape[1]
        assert maps_nvp.shape == (7, 3, n_positions)
        expected = whole[site_path].per_image[:, [4, -1, 2]]
        torch.testing.assert_close(maps_nvp.sum(-1), expected, rtol=1e-9, atol=1e-12)


def test_a_map_is_change_times_gradient_at_each_position(make_toy, nonlinear, baseline) -> None:
    toy = make_toy(nonlinear, baseline=baseline)
    vectors, gradients = gradient_pass(toy.problem, toy.all_images, toy.targets_n)
    for site_path in toy.node_sets["feature"]:
        nodes, sae = toy.node_sets["feature"][site_path], toy.saes[site_path]
        maps_nvp = maps_of(toy, "feature", EffectMethod.atp, {site_path: torch.tensor([5, 11])})[site_path]
        codes, g_bpd = sae.encode(vectors[site_path]), gradients[site_path]
        slope = (g_bpd * nodes.dictionary.atoms[5]).sum(-1)
        moved = codes[..., 5] - nodes.features[..., 5]
        torch.testing.assert_close(maps_nvp[:, 0], moved * slope, rtol=1e-9, atol=1e-12)
        error = vectors[site_path] - sae.decode(codes) - nodes.error
        torch.testing.assert_close(maps_nvp[:, 1], (error * g_bpd).sum(-1), rtol=1e-9, atol=1e-12)


def test_absolute_maps_have_no_sign(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    which = {site.path: torch.arange(3) for site in toy.problem.sites}
    signed = maps_of(toy, kind, EffectMethod.atp, which)
    for site_path, maps_nvp in maps_of(toy, kind, EffectMethod.atp_absolute, which).items():
        torch.testing.assert_close(maps_nvp, signed[site_path].abs() / maps_nvp.shape[-1], rtol=1e-12, atol=0)


def test_exact_effects_have_no_maps(make_toy) -> None:
    with pytest.raises(ConfigError, match="at all positions at once"):
        maps_of(make_toy("relu"), "neuron", EffectMethod.exact, {"1": torch.tensor([0])})


def test_without_images_there_are_no_maps(make_toy) -> None:
    toy = make_toy("relu")
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](3))
    nodes, which = toy.node_sets["neuron"], {"1": torch.tensor([0])}
    with pytest.raises(DataError, match="no images to draw maps of"):
        effect_maps(toy.problem, nodes, [], toy.targets_n[:0], EffectMethod.atp, path, which)
