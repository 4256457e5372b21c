"""The network between two sites against the network itself, in place, tokens, and ways around the source."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError
from mis_lab.model.capture import Capture
from mis_lab.model.config import Tokens
from mis_lab.model.intervene import intervene
from mis_lab.model.segment import Segment
from mis_lab.model.sites import Site, resolve_sites


class Residual(nn.Module):
    """Two residual blocks; in-place modules right behind the sites; counts what goes through the first layer."""

    def __init__(self) -> None:
        super().__init__()
        self.stem, self.relu = nn.Conv2d(3, 4, 3, padding=1), nn.ReLU(inplace=True)
        self.branch, self.block = nn.Conv2d(4, 4, 3, padding=1), nn.Identity()
        self.late, self.end = nn.Conv2d(4, 4, 3, padding=1), nn.Identity()
        self.head = nn.Linear(4, 5)
        self.through: list[int] = []

    def forward(self, x: Tensor) -> Tensor:
        self.through.append(len(x))
        x = self.relu(self.stem(x))
        x = self.relu(self.block(x + self.branch(x)))
        x = self.end(x + self.late(x).tanh())
        return self.head(x.mean((2, 3)))


@pytest.fixture
def residual(loaded):
    template = loaded("torch.nn.Conv2d", 8, {"in_channels": 3, "out_channels": 2, "kernel_size": 3})
    module = Residual().double().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return replace(template, module=module, n_classes=5)


@pytest.fixture
def sites() -> dict[str, Site]:
    return {path: Site(path, "bchw", 4, 64, (8, 8)) for path in ("stem", "branch", "block", "end")}


@pytest.fixture
def images(residual, images_for) -> Tensor:
    return residual.to_input(images_for(residual, 3).double())


def with_source(model, source, x_bpd: Tensor, target, images_bchw: Tensor) -> Tensor:
    """Target vectors of an ordinary pass with the source replaced."""
    with intervene(model, {source: lambda _x: x_bpd}), Capture(model, [target]) as capture:
        return capture.run(images_bchw)[target.path].clone()


@pytest.mark.parametrize("source", ["stem", "branch", "block"])
def test_a_segment_is_the_network_with_the_source_replaced(residual, sites, images, source) -> None:
    source, target = sites[source], sites["end"]
    with Segment(residual, source, target) as segment:
        start = segment.begin(images)
        torch.testing.assert_close(segment.run(start, start.source_bpd), start.target_bpd, rtol=0, atol=0)
        with Capture(residual, [source, target]) as capture:
            found = capture.run(images)
        assert torch.equal(found[source.path], start.source_bpd)
        assert torch.equal(found[target.path], start.target_bpd)
        moved_bpd = torch.cat([start.source_bpd * 2, start.source_bpd - 1])
        found_bpd = segment.run(segment.with_one_image(start), moved_bpd)
    for place, x_bpd in enumerate(moved_bpd.split(3)):
        expected = with_source(residual, source, x_bpd, target, images)
        torch.testing.assert_close(found_bpd.split(3)[place], expected, rtol=1e-12, atol=1e-12)


def test_one_image_is_enough_where_the_source_cuts_the_network_and_nowhere_else(residual, sites, images) -> None:
    for source, n_images in (("stem", 1), ("block", 1), ("branch", 3)):
        with Segment(residual, sites[source], sites["end"]) as segment:
            start = segment.with_one_image(segment.begin(images))
            assert len(start.images_bchw) == n_images
            residual.module.through.clear()
            segment.run(start, torch.cat([start.source_bpd] * 4))
            assert residual.module.through == [1 if n_images == 1 else 12]


def test_one_image_serves_every_batch_of_one(residual, sites, images) -> None:
    with Segment(residual, sites["branch"], sites["end"]) as segment:
        start = segment.with_one_image(segment.begin(images[:1]))
        x_bpd = start.source_bpd + 1
        found = segment.run(start, x_bpd)
    expected = with_source(residual, sites["branch"], x_bpd, sites["end"], images[:1])
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)


def test_gradients_reach_the_source_and_nothing_else(residual, sites, images) -> None:
    residual.module.requires_grad_(True)
    with Segment(residual, sites["block"], sites["end"]) as segment:
        start = segment.begin(images)
        leaf = start.source_bpd.clone().requires_grad_()
        y_bpd = segment.run(start, leaf)
        found = torch.autograd.grad(y_bpd.square().sum(), leaf)[0]
    module, again = residual.module, start.source_bpd.clone().requires_grad_()
    maps = again.transpose(1, 2).unflatten(2, (8, 8)).relu()
    expected = torch.autograd.grad((maps + module.late(maps).tanh()).square().sum(), again)[0]
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert all(p.grad is None for p in residual.module.parameters())


def test_stopped_sites_keep_their_clean_vectors(residual, sites, images) -> None:
    stem, branch, block = sites["stem"], sites["branch"], sites["block"]
    with Segment(residual, stem, block, [branch]) as segment:
        start = segment.begin(images)
        leaf = (start.source_bpd + 0.5).requires_grad_()
        found = segment.run(start, leaf)
        gradient = torch.autograd.grad(found.sum(), leaf)[0]
    torch.testing.assert_close(found.detach(), leaf.detach().relu() + start.held["branch"], rtol=1e-12, atol=1e-12)
    assert torch.equal(gradient, (leaf > 0).double())


def test_prefix_tokens_that_are_no_part_of_the_site_stay_with_their_images(loaded, images_for) -> None:
    keywords = {"model_name": "vit_tiny_patch16_224", "img_size": 32, "depth": 2, "num_classes": 10}
    model = loaded("timm.create_model", 32, keywords)
    first, second = resolve_sites(model, ["blocks.0", "blocks.1"], tokens=Tokens.patches)
    images = model.to_input(images_for(model, 3))
    with Segment(model, first, second) as segment:
        start = segment.with_one_image(segment.begin(images))
        assert len(start.images_bchw) == 1
        with torch.no_grad():
            found = segment.run(start, torch.cat([start.source_bpd, start.source_bpd * 1.5]))
    torch.testing.assert_close(found[:3], start.target_bpd, rtol=1e-4, atol=1e-4)
    expected = with_source(model, first, start.source_bpd * 1.5, second, images)
    torch.testing.assert_close(found[3:], expected, rtol=1e-4, atol=1e-4)


def test_the_network_is_left_as_it_was(residual, sites, images) -> None:
    before = residual.module(images)
    residual.module.branch.train()
    with Segment(residual, sites["stem"], sites["end"], [sites["branch"]]) as segment:
        start = segment.begin(images)
        assert torch.equal(residual.module(images), before)  # hooks sleep
        segment.run(start, start.source_bpd)
    assert residual.module.branch.training
    assert not any(module._forward_hooks for module in residual.module.modules())
    with pytest.raises(RuntimeError, match="inside its block"):
        segment.run(start, start.source_bpd)


def test_sites_out_of_order_and_out_of_reach_are_told(residual, sites, images) -> None:
    with pytest.raises(ValueError, match="each module once"):
        Segment(residual, sites["stem"], sites["stem"])
    with (
        pytest.raises(ConfigError, match=r"site stem of \S+ is reached before block"),
        Segment(residual, sites["block"], sites["stem"]) as segment,
    ):
        segment.begin(images)
    away = replace(sites["end"], path="other")
    residual.module.other = nn.Identity()
    with (
        pytest.raises(ConfigError, match="did not reach other"),
        Segment(residual, sites["stem"], away) as segment,
    ):
        segment.begin(images)
