"""Sites that carry all that follows, sites that do not, and modules that a splice would break."""

from __future__ import annotations

import logging
from dataclasses import replace

import pytest
import torch
from torch import nn

from mis_lab.circuit import dictionaries
from mis_lab.circuit.config import Objective, Topology
from mis_lab.circuit.cut import check_cut, check_saes, check_splice
from mis_lab.circuit.objectives import OBJECTIVES, Problem, kl
from mis_lab.circuit.targets import clean_logits
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.sites import Site

PARTNERS = [3, 5, 6, 0, 1, 2, 4]
MAP = (Site("site", "bchw", 3, 36, (6, 6)),)


class SkipsTheSite(nn.Module):
    """`share` of the output does not pass through `site`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.site, self.read = share, nn.Identity(), nn.Linear(108, 4)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        past = (1 - self.share) * self.read(self.site(2 * x_bchw).flatten(1))
        return past + self.share * self.read(2 * x_bchw.flatten(1))


class WritesInPlace(nn.Module):
    """The module after `site` changes what the site's input shares with its output, and the input is used again."""

    def __init__(self, inplace: bool) -> None:
        super().__init__()
        self.site, self.relu, self.read = nn.Identity(), nn.ReLU(inplace=inplace), nn.Linear(108, 4)

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        before = 2 * x_bchw
        after = self.relu(self.site(before))
        return self.read((before + after).flatten(1))


class Noisy(nn.Module):
    """Another output each time."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.calls = nn.Identity(), 0

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        self.calls += 1
        return self.site(x_bchw).mean((2, 3)) + self.calls


def problem_of(module: nn.Module, as_model, objective=OBJECTIVES[Objective.logit], n_classes: int = 4) -> Problem:
    return Problem(as_model(module.double(), n_classes), MAP, objective)


def data() -> tuple[list[torch.Tensor], list[torch.Tensor], torch.Tensor]:
    images = torch.randn(7, 3, 6, 6, dtype=torch.float64)
    return list(images.split(3)), list(images[PARTNERS].split(3)), torch.randint(4, (7,))


@pytest.mark.parametrize("network", ["relu", "before_relu", "tokens", "linear"])
def test_sites_of_a_chain_are_cut_sets(make_toy, network) -> None:
    toy = make_toy(network)
    partners = list(toy.all_images[PARTNERS].split(3))
    found = check_cut(toy.problem, toy.images, partners, toy.targets_n)
    assert list(found) == [site.path for site in toy.problem.sites]
    assert max(found.values()) < 1e-12
    of_kl = replace(toy.problem, objective=kl)
    assert max(check_cut(of_kl, toy.images, partners, clean_logits(toy.problem.model, toy.images)).values()) < 1e-12


@pytest.mark.parametrize("share", [0.002, 0.25, 1.0])
def test_the_measure_is_the_share_that_passes_by(as_model, share, caplog) -> None:
    # The network is linear, so exactly `share` of every change passes by.
    images, partners, targets_n = data()
    problem = problem_of(SkipsTheSite(share), as_model)
    with caplog.at_level(logging.WARNING):
        found = check_cut(problem, images, partners, targets_n, Topology.parallel)
    assert found["site"] == pytest.approx(share, rel=1e-9)
    assert f"{100 * share:.3g} % of the objective's change passes by it" in caplog.text
    with pytest.raises(ConfigError, match=r"site site of toy is no cut set.*Choose a module"):
        check_cut(problem, images, partners, targets_n)
    assert check_cut(problem, images, partners, targets_n, tolerance=2 * share) == found


def test_partners_equal_to_their_images_leave_it_open(make_toy) -> None:
    toy = make_toy()
    with pytest.raises(DataError, match=r"other images do not change the objective of toy"):
        check_cut(toy.problem, toy.images, toy.images, toy.targets_n)


@pytest.mark.parametrize("network", ["relu", "before_relu", "tokens"])
def test_splicing_the_toys_leaves_them_as_they_are(make_toy, network) -> None:
    toy = make_toy(network, dtype=torch.float32)
    check_splice(toy.problem, toy.images[0])


@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_what_an_sae_misses_is_a_share_of_the_variance(make_toy, network, monkeypatch) -> None:
    toy = make_toy(network)
    monkeypatch.setattr(dictionaries, "MAX_CODES", 1)  # an image at a time
    found = check_saes(toy.problem, toy.saes, toy.all_images)
    for path, x_bpd in toy.clean()[1].items():
        x_nd = x_bpd.flatten(0, 1)
        missed = (x_nd - toy.saes[path](x_nd).reconstruction).square().sum() / (x_nd - x_nd.mean(0)).square().sum()
        assert found[path] == pytest.approx(float(missed), rel=1e-9)
    assert check_saes(toy.problem, {}, toy.all_images) == {}


def test_an_sae_of_other_vectors_of_the_same_width_is_told(make_toy, make_sae, caplog) -> None:
    toy = make_toy("tokens")
    vectors = toy.clean()[1]
    first, last = (site.path for site in toy.problem.sites)
    spread = vectors[first].flatten(0, 1).std(0).norm()
    saes = {first: make_sae("relu", vectors[first] + spread), last: make_sae("relu", vectors[last])}
    for sae in saes.values():  # near the mean of their own vectors, on the side of each vector
        sae.W_dec.mul_(0.1)
    with caplog.at_level(logging.WARNING):
        found = check_saes(toy.problem, saes, toy.all_images)
    assert found[last] < 1 < found[first]
    assert [record.args[0] for record in caplog.records] == [first]
    assert f"misses {100 * found[first]:.3g} % of the variance" in caplog.text
    assert "another site or network" in caplog.text


def test_a_module_that_writes_into_what_the_site_shares_is_told(as_model) -> None:
    images = data()[0]
    check_splice(problem_of(WritesInPlace(False), as_model), images[0])
    with pytest.raises(ConfigError, match=r"splicing at site site of toy moves its output by .*inplace=False"):
        check_splice(problem_of(WritesInPlace(True), as_model), images[0])


def test_a_network_that_draws_is_told(as_model) -> None:
    with pytest.raises(ConfigError, match="two passes of toy over the same images differ"):
        check_splice(problem_of(Noisy(), as_model, n_classes=3), data()[0][0])
