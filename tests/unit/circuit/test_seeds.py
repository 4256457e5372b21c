"""Derivatives of codes and errors against autograd through the whole SAE, for every kind of encoder."""

# B images  P positions  D site width  F features  T chosen nodes

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mis_lab.circuit import seeds as module
from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.dictionaries import Neurons, SaeFeatures
from mis_lab.circuit.seeds import Seeds
from mis_lab.model.sites import Site
from mis_lab.sae.architectures.batch_topk import BatchTopKSae
from mis_lab.sae.architectures.gated import GatedSae
from mis_lab.sae.architectures.jump_relu import JumpReluSae
from mis_lab.sae.architectures.neurons import NeuronsSae
from mis_lab.sae.architectures.relu import ReluSae
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.base import Sae
from mis_lab.sae.baseline_config import NeuronsConfig
from mis_lab.sae.config import BatchTopKConfig, GatedConfig, JumpReluConfig, ReluConfig, TopKConfig

SITE = Site("site", "btd", 5, 6, (2, 3))


class SoftSae(ReluSae):
    """Codes that compete: each depends on all pre-activations."""

    def activation(self, pre: Tensor) -> Tensor:
        return pre.relu() * pre.softmax(-1)


class OwnEncoder(ReluSae):
    """An encoder of two layers."""

    def encode(self, x: Tensor) -> Tensor:
        return (self.pre_activations(x).tanh() @ self.W_enc @ self.W_enc.T).relu()


SAES = {
    "relu": lambda: ReluSae(ReluConfig(n_features=9, name="relu"), 5),
    "topk": lambda: TopKSae(TopKConfig(n_features=9, k=2, name="topk"), 5),
    "batch_topk": lambda: BatchTopKSae(BatchTopKConfig(n_features=9, k=2, name="batch_topk"), 5),
    "jump_relu": lambda: JumpReluSae(JumpReluConfig(n_features=9, threshold=0.2, name="jump_relu"), 5),
    "gated": lambda: GatedSae(GatedConfig(n_features=9, name="gated"), 5),
    "neurons": lambda: NeuronsSae(NeuronsConfig(k=2, name="neurons"), 5),
    "soft": lambda: SoftSae(ReluConfig(n_features=9, name="relu"), 5),
    "own": lambda: OwnEncoder(ReluConfig(n_features=9, name="relu"), 5),
}


def drawn(name: str) -> Sae:
    sae = SAES[name]().double()
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.uniform_(-1, 1)
        if hasattr(sae, "threshold"):
            sae.threshold.fill_(0.3)
        sae.scale.fill_(0.7)
    return sae.eval().requires_grad_(False)


def nodes_of(sae: Sae) -> SiteNodes:
    dictionary = SaeFeatures.at(SITE, sae)
    return SiteNodes.of(dictionary, torch.zeros(sae.n_features).double(), torch.zeros(5).double())


def expected(sae: Sae, y_bpd: Tensor, gradient_bpd: Tensor) -> Tensor:
    """(F + 1, B, P, D) by autograd."""
    leaf = y_bpd.clone().requires_grad_()
    codes = sae.encode(leaf)
    of_codes = (gradient_bpd @ sae.dictionary.T) * codes
    sums = [*of_codes.sum((0, 1)), (gradient_bpd * (leaf - sae.decode(codes))).sum()]
    return torch.stack([torch.autograd.grad(one, leaf, retain_graph=True)[0] for one in sums])


@pytest.mark.parametrize("name", SAES)
def test_derivatives_of_every_node_are_those_of_autograd(name, monkeypatch) -> None:
    sae = drawn(name)
    y_bpd, gradient_bpd = torch.randn(3, 6, 5).double(), torch.randn(3, 6, 5).double()
    if name not in ("soft", "own"):  # these do without
        monkeypatch.setattr(module, "_by_autograd", None)
    chosen = torch.tensor([*range(sae.n_features), ERROR])[torch.randperm(sae.n_features + 1)]
    seeds, by_autograd = Seeds(nodes_of(sae), y_bpd, gradient_bpd, chosen), expected(sae, y_bpd, gradient_bpd)
    for place, node in enumerate(chosen.tolist()):
        found = seeds.at(torch.full((3,), place))
        torch.testing.assert_close(found, by_autograd[node], rtol=1e-10, atol=1e-12)
        assert not by_autograd[node][~seeds.active_bt[:, place]].any()
    # Features and error together are the whole site.
    whole = sum(seeds.at(torch.full((3,), place)) for place in range(len(chosen)))
    torch.testing.assert_close(whole, gradient_bpd, rtol=1e-10, atol=1e-12)


def test_derivatives_of_neurons_are_the_gradient() -> None:
    y_bpd, gradient_bpd = torch.randn(2, 6, 5).double(), torch.randn(2, 6, 5).double()
    neurons = Neurons.at(SITE, y_bpd)
    nodes = SiteNodes.of(neurons, torch.zeros(5).double(), torch.zeros(5).double())
    seeds = Seeds(nodes, y_bpd, gradient_bpd, torch.tensor([4, 1]))
    found = seeds.at(torch.tensor([0, 1]))
    assert torch.equal(found[0, :, 4], gradient_bpd[0, :, 4])
    assert torch.equal(found[1, :, 1], gradient_bpd[1, :, 1])
    assert int((found != 0).sum()) == 12


@pytest.mark.parametrize("name", ["topk", "own"])
def test_passes_take_every_active_node_of_every_image_once(name) -> None:
    sae = drawn(name)
    y_bpd, gradient_bpd = torch.randn(4, 6, 5).double(), torch.randn(4, 6, 5).double()
    y_bpd[1] = y_bpd[1, :1]  # one vector everywhere: fewer features
    chosen = torch.tensor([ERROR, 7, 3, 0, 5])
    seeds, by_autograd = Seeds(nodes_of(sae), y_bpd, gradient_bpd, chosen), expected(sae, y_bpd, gradient_bpd)
    passes = seeds.passes()
    assert len(passes) == int(seeds.active_bt.sum(1).max())
    total = torch.zeros_like(by_autograd)
    for places_b in passes:
        found = seeds.at(places_b)
        assert not found[places_b < 0].any()
        for image, place in enumerate(places_b.tolist()):
            if place >= 0:
                total[chosen[place], image] += found[image]
    torch.testing.assert_close(total[chosen], by_autograd[chosen], rtol=1e-10, atol=1e-12)


def test_images_at_once_do_not_matter(monkeypatch) -> None:
    sae = drawn("topk")
    y_bpd, gradient_bpd = torch.randn(5, 6, 5).double(), torch.randn(5, 6, 5).double()
    chosen, places_b = torch.tensor([2, ERROR, 6]), torch.tensor([0, 1, 2, 1, 0])
    whole = Seeds(nodes_of(sae), y_bpd, gradient_bpd, chosen)
    monkeypatch.setattr("mis_lab.circuit.dictionaries.MAX_CODES", 2 * 6 * 9)
    parts = Seeds(nodes_of(sae), y_bpd, gradient_bpd, chosen)
    torch.testing.assert_close(parts.at(places_b), whole.at(places_b), rtol=1e-12, atol=1e-14)
    assert torch.equal(parts.active_bt, whole.active_bt)


def test_weights_are_left_without_gradients() -> None:
    for name in ("relu", "own"):
        sae = drawn(name).requires_grad_(True)
        seeds = Seeds(nodes_of(sae), torch.randn(2, 6, 5).double(), torch.randn(2, 6, 5).double(), torch.tensor([1]))
        seeds.at(torch.zeros(2, dtype=torch.int64))
        assert all(isinstance(p, nn.Parameter) and p.grad is None for p in sae.parameters())
