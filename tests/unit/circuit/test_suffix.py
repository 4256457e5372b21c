"""Rows behind a site are whole passes of the images with the vectors replaced, and a site that is no cut is noticed."""

# B images  R rows  P positions  D site width

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn

from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.suffix import Suffix
from mis_lab.model.sites import Site

ROWS = torch.tensor([2, 0, 0, 1, 2])


def moved(x_rpd: Tensor) -> Tensor:
    return x_rpd * torch.linspace(0.5, 2, len(x_rpd), dtype=x_rpd.dtype)[:, None, None]


def whole_passes(problem: Problem, site: Site, images: Tensor, targets: Tensor) -> Tensor:
    return problem.values(images[ROWS], targets[ROWS], {site.path: moved})


@pytest.mark.parametrize("n_images", [1, 3])
def test_rows_are_passes_of_the_whole_network(make_toy, nonlinear, n_images) -> None:
    toy = make_toy(nonlinear)
    images, targets = toy.images[0], toy.targets_n[:3]
    for site in toy.problem.sites:
        suffix = Suffix.of(toy.problem, site, images[:n_images], targets[:n_images])
        assert suffix.is_cut
        expected = whole_passes(toy.problem, site, images, targets)
        torch.testing.assert_close(suffix.values(images, targets, ROWS, moved), expected, rtol=1e-12, atol=1e-14)
    assert not any(module._forward_hooks for module in toy.module.modules())


class Residual(nn.Module):
    """Adds or concatenates what goes around the site."""

    def __init__(self, concatenates: bool) -> None:
        super().__init__()
        self.concatenates = concatenates
        self.first, self.site, self.head = nn.Linear(108, 6), nn.Linear(6, 6), nn.Linear(12 if concatenates else 6, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        x = self.first(images_bchw.flatten(1)).tanh()
        after = self.site(x).tanh()
        return self.head(torch.cat([x, after], 1) if self.concatenates else (x + after).tanh())


class CountsImages(nn.Module):
    """Shapes its output by the number of images that came in."""

    def __init__(self) -> None:
        super().__init__()
        self.site, self.head = nn.Linear(108, 6), nn.Linear(6, 4)

    def forward(self, images_bchw: Tensor) -> Tensor:
        after = self.site(images_bchw.flatten(1)).tanh()
        return self.head(after.view(len(images_bchw), -1, 6).mean(1))


@pytest.mark.parametrize("network", [lambda: Residual(False), lambda: Residual(True), CountsImages])
@pytest.mark.parametrize("n_images", [1, 3])
def test_a_site_that_is_no_cut_copies_whole_images(as_model, network, n_images) -> None:
    site = Site("site", "bd", 6, 1, (1, 1))
    problem = Problem(as_model(network().double()), (site,), logit)
    images, targets = torch.randn(3, 3, 6, 6).double(), torch.tensor([0, 3, 1])
    suffix = Suffix.of(problem, site, images[:n_images], targets[:n_images])
    assert not suffix.is_cut
    expected = whole_passes(problem, site, images, targets)
    torch.testing.assert_close(suffix.values(images, targets, ROWS, moved), expected, rtol=1e-12, atol=1e-14)


def test_prefix_tokens_go_along_with_each_row(as_model) -> None:
    class Prefixed(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.read, self.block, self.head = nn.Linear(18, 5), nn.Identity(), nn.Linear(5, 4)

        def forward(self, images_bchw: Tensor) -> Tensor:
            return self.head(self.block(self.read(images_bchw.reshape(-1, 6, 18))).tanh().prod(1))

    site = Site("block", "btd", 5, 4, (2, 2), n_prefix=2, tokens="patches")
    problem = Problem(as_model(Prefixed().double()), (site,), logit)
    images, targets = torch.randn(3, 3, 6, 6).double(), torch.tensor([0, 3, 1])
    suffix = Suffix.of(problem, site, images, targets)
    assert suffix.is_cut
    expected = whole_passes(problem, site, images, targets)
    torch.testing.assert_close(suffix.values(images, targets, ROWS, moved), expected, rtol=1e-12, atol=1e-14)
