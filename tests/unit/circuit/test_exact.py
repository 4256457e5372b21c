"""Exact effects: a forward pass a node by brute force, Captum's FeatureAblation, and how many rows that takes."""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

import pytest
import torch
from captum.attr import FeatureAblation
from torch import Tensor, nn

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.config import EffectMethod, Quadrature
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.methods import exact
from mis_lab.circuit.methods.exact import exact_effects
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import RULES
from mis_lab.core.errors import DataError
from mis_lab.model.sites import Site


def effects_of(toy, images=None):
    path = InputPath(mean_image(toy.images), RULES[Quadrature.midpoint](1))
    images = toy.images if images is None else images
    return node_effects(toy.problem, toy.node_sets, images, toy.targets_n, EffectMethod.exact, path)


@pytest.mark.parametrize("sae", ["relu", "topk"])
def test_is_a_forward_pass_a_node(make_toy, nonlinear, baseline, kind, sae) -> None:
    toy = make_toy(nonlinear, sae=sae, baseline=baseline)
    for path, found in effects_of(toy)[kind].items():
        torch.testing.assert_close(found.per_image, toy.exact(kind, path), rtol=1e-9, atol=1e-12)


class Tail(nn.Module):
    """What follows a site of maps, as a function of its features and error."""

    def __init__(self, toy, path: str) -> None:
        super().__init__()
        self.sae, self.after = toy.saes[path], toy.module[int(path) + 1 :]

    def forward(self, codes_bpf: Tensor, error_bpd: Tensor) -> Tensor:
        x_bpd = self.sae.decode(codes_bpf) + error_bpd
        side = round(x_bpd.shape[1] ** 0.5)
        return self.after(x_bpd.transpose(1, 2).unflatten(2, (side, side)).clone())


@pytest.mark.parametrize("path", ["1", "3"])
def test_is_captums_feature_ablation(make_toy, baseline, path) -> None:
    toy = make_toy("relu", baseline=baseline)
    nodes, x_bpd = toy.node_sets["feature"][path], toy.clean()[1][path].clone()
    codes = toy.saes[path].encode(x_bpd)
    error = x_bpd - toy.saes[path].decode(codes)
    masks = torch.arange(11).expand(1, *codes.shape[1:]), torch.full((1, *error.shape[1:]), 11)
    baselines = nodes.features.expand_as(codes), nodes.error.expand_as(error)
    captum = FeatureAblation(Tail(toy, path)).attribute((codes, error), baselines, toy.targets_n, feature_mask=masks)
    expected = torch.cat([captum[0][:, 0], captum[1][:, 0, :1]], dim=1)
    torch.testing.assert_close(effects_of(toy)["feature"][path].per_image, expected, rtol=1e-9, atol=1e-12)


def test_a_subset_in_any_order_has_the_effects_of_the_whole(make_toy, nonlinear, kind) -> None:
    toy = make_toy(nonlinear)
    nodes = toy.node_sets[kind]
    which = {path: torch.tensor([-1, 3, 0, 4]) for path in list(nodes)[1:]}
    found = exact_effects(toy.problem, nodes, toy.images, toy.targets_n, which)
    assert found.keys() == which.keys()
    whole = effects_of(toy)[kind]
    for path, effects_nv in found.items():
        torch.testing.assert_close(effects_nv, whole[path].per_image[:, which[path]], rtol=1e-9, atol=1e-12)


@pytest.mark.parametrize("n_rows", [5, 1000])
def test_rows_of_a_pass_do_not_matter(make_toy, kind, n_rows, monkeypatch) -> None:
    toy = make_toy("relu")
    toy.node_sets = {kind: toy.node_sets[kind]}
    expected = effects_of(toy)[kind]
    monkeypatch.setattr(exact, "MIN_ROWS", n_rows)
    for images in ([toy.all_images], [*toy.all_images.split(1)]):
        for path, found in effects_of(toy, images)[kind].items():
            torch.testing.assert_close(found.per_image, expected[path].per_image, rtol=1e-9, atol=1e-12)


def test_nodes_at_their_baseline_take_no_row(make_toy, monkeypatch) -> None:
    toy = make_toy("relu", sae="topk")
    monkeypatch.setattr(exact, "MIN_ROWS", 4)
    toy.node_sets = {"feature": {"3": toy.node_sets["feature"]["3"]}}
    nodes = toy.node_sets["feature"]["3"]
    nodes.features[:] = 0  # so that features that do not fire on an image are at their baseline
    fires = (toy.saes["3"].encode(toy.clean()[1]["3"]) != 0).any(1)
    before, behind = [], []
    which = {"3": torch.arange(11)}
    toy.module[3].register_forward_hook(lambda module, args, output: before.append(len(output)))
    toy.module[4].register_forward_hook(lambda module, args, output: behind.append(len(output)))
    found = exact_effects(toy.problem, {"3": nodes}, [toy.all_images], toy.targets_n, which)["3"]
    n_tries = 7 + 3 + 2  # the clean pass, and trying whether the site is a cut
    assert sum(behind) - n_tries == int(fires.sum())
    assert 0 < int(fires.sum()) < fires.numel()
    assert torch.equal(found != 0, fires)
    assert max(behind) <= 7
    # What stands before the site runs once for each image of a pass, not for each row.
    assert sum(before) - (7 + 2 + 2) <= 7 + -(-int(fires.sum()) // 4)


class Around(nn.Module):
    """The site is inside of a residual block: what follows reads more than its output."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.inner, self.head = nn.Conv2d(3, 5, 1), nn.Conv2d(5, 5, 3, padding=1), nn.Linear(5, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        x = self.first(images_bchw)
        return self.head((x + self.inner(x).relu().square()).tanh().mean((2, 3)))


def test_a_site_inside_a_residual_block_works_as_well(make_toy, as_model, kind) -> None:
    toy = make_toy("relu")
    toy.problem = Problem(as_model(Around().double()), (Site("inner", "bchw", 5, 36, (6, 6)),), logit)
    toy.saes = {"inner": toy.saes["1"]}
    toy.__post_init__()
    for images in (toy.images, [*toy.all_images.split(1)]):
        found = effects_of(toy, images)[kind]["inner"].per_image
        torch.testing.assert_close(found, toy.exact(kind, "inner"), rtol=1e-9, atol=1e-12)


def test_single_precision_is_close(make_toy, kind) -> None:
    toy = make_toy("relu", dtype=torch.float32)
    for path, found in effects_of(toy)[kind].items():
        expected = toy.exact(kind, path)
        torch.testing.assert_close(found.per_image, expected, rtol=1e-4, atol=1e-5 * float(expected.abs().max()))


def test_without_images_there_is_nothing_to_ablate_on(make_toy) -> None:
    toy = make_toy("relu")
    with pytest.raises(DataError, match="no images to ablate nodes on"):
        exact_effects(toy.problem, toy.node_sets["neuron"], [], toy.targets_n[:0], {"1": torch.tensor([0])})
