from __future__ import annotations

import copy
import gc
import weakref
from dataclasses import replace

import pytest
import torch
from torch import nn

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.capture import Capture, predictions
from mis_lab.model.intervene import intervene
from mis_lab.model.sites import Site, resolve_sites


class Small(nn.Module):
    """Convolutions with what makes trouble: in-place modules, batch statistics, dropout, a late exception."""

    def __init__(self) -> None:
        super().__init__()
        self.conv1, self.bn = nn.Conv2d(3, 4, 3, padding=1), nn.BatchNorm2d(4)
        self.relu = nn.ReLU(inplace=True)
        self.block = nn.Sequential(nn.Conv2d(4, 6, 3, stride=2), nn.ReLU(inplace=True), nn.Dropout(0.5))
        self.head = nn.Linear(6, 5)

    def forward(self, x):
        x = self.relu(self.bn(self.conv1(x)))
        return self.head(self.block(x).mean((2, 3)))


@pytest.fixture(scope="module")
def small(loaded):
    template = loaded("torch.nn.Conv2d", 9, {"in_channels": 3, "out_channels": 2, "kernel_size": 3})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = Small().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return replace(template, module=module, n_classes=5)


@pytest.fixture
def small_sites(small):
    return resolve_sites(small, ["conv1", "bn", "block.0", "block"])


def state_of(module: nn.Module) -> list[object]:
    """Everything that reading must not change."""
    return [
        [(name, part.training, len(part._forward_hooks)) for name, part in module.named_modules()],
        [(name, p.requires_grad, p.grad is None) for name, p in module.named_parameters()],
        [(name, tensor.tolist()) for name, tensor in module.state_dict().items()],
    ]


def test_several_sites_in_any_order_are_what_each_gives_alone(small, small_sites, images_for):
    images = images_for(small, 3)
    shuffled = [small_sites[i] for i in (2, 0, 3, 1)]
    with Capture(small, shuffled) as capture:
        together = capture.run(images)
    assert list(together) == [site.path for site in shuffled]
    for site in small_sites:
        with Capture(small, [site]) as capture:
            assert torch.equal(capture.run(images)[site.path], together[site.path])


def test_in_place_modules_after_a_site_do_not_reach_its_vectors(small, small_sites, images_for):
    """bn is followed by ReLU(inplace=True); block.0 is followed by one inside the site block."""
    images = small.to_input(images_for(small))
    with torch.no_grad():
        before_relu = small.module.bn(small.module.conv1(images))
        before_second = small.module.block[0](before_relu.relu())
    with Capture(small, small_sites) as capture:
        found = capture.run(images)
    assert before_relu.is_contiguous(memory_format=torch.channels_last)  # so that vectors are a view of it
    assert torch.equal(found["bn"], before_relu.flatten(2).transpose(1, 2))
    assert torch.equal(found["block.0"], before_second.flatten(2).transpose(1, 2))
    assert found["bn"].min() < 0


def test_the_pass_stops_at_the_deepest_site(small, small_sites, images_for):
    called = []
    handles = [
        part.register_forward_hook(lambda _m, _a, _o, name=name: called.append(name))
        for name, part in small.module.named_children()
    ]
    with Capture(small, small_sites[:2]) as capture:
        capture.run(images_for(small))
    for handle in handles:
        handle.remove()
    assert called == ["conv1", "bn"]


def test_nothing_is_copied_for_the_deepest_site_of_a_channels_last_network(small, images_for):
    seen = []
    handle = small.module.conv1.register_forward_hook(lambda _m, _a, output: seen.append(output.data_ptr()))
    with Capture(small, resolve_sites(small, ["conv1"])) as capture:
        assert capture.run(images_for(small))["conv1"].data_ptr() == seen[-1]
    handle.remove()


def test_a_captured_pass_leaves_no_intermediate_tensor_to_the_garbage_collector(small, small_sites, images_for):
    references = []
    handle = small.module.relu.register_forward_hook(lambda _m, _a, output: references.append(weakref.ref(output)))
    gc.collect()
    gc.disable()
    try:
        with Capture(small, small_sites) as capture:
            capture.run(images_for(small))
        assert references[0]() is None
    finally:
        gc.enable()
        handle.remove()


def test_everything_is_as_it_was_also_when_parts_were_in_training_mode(small, small_sites, images_for):
    model = replace(small, module=copy.deepcopy(small.module))
    model.module.bn.train()
    model.module.block.train()
    model.module.head.requires_grad_(True)
    before = state_of(model.module)
    with Capture(model, small_sites) as capture:
        found = capture.run(images_for(model))
    assert state_of(model.module) == before
    with Capture(small, small_sites) as capture:  # and it was read in eval mode
        assert torch.equal(capture.run(images_for(model))["block"], found["block"])
    predictions(model, images_for(model))
    assert state_of(model.module) == before


def test_everything_is_as_it_was_after_an_exception(small, small_sites, images_for):
    before = state_of(small.module)
    with pytest.raises(DataError, match=r"conv1 put out .* which is not 81 vectors"), Capture(small, small_sites) as c:
        c.run(images_for(small)[..., :7, :7])
    assert state_of(small.module) == before
    with pytest.raises(KeyError), Capture(small, small_sites):
        raise KeyError("of the caller")
    assert state_of(small.module) == before


def test_a_site_of_another_network_is_refused_and_leaves_no_trace(small, small_sites):
    model = replace(small, module=copy.deepcopy(small.module).train())
    before = state_of(model.module)
    with (
        pytest.raises(ConfigError, match="no module blocks"),
        Capture(model, (*small_sites, Site("blocks", "bd", 1, 1, (1, 1)))),
    ):
        pass
    assert state_of(model.module) == before


def test_other_passes_within_the_block_run_as_ever_and_a_run_after_an_error_too(small, small_sites, images_for):
    images = images_for(small)
    plain = predictions(small, images)
    with Capture(small, small_sites) as capture:
        first = capture.run(images)
        assert torch.equal(predictions(small, images), plain)
        with pytest.raises(DataError):
            capture.run(images[..., :7, :7])
        assert torch.equal(capture.run(images)["block"], first["block"])


def test_it_runs_inside_its_block_only(small, small_sites, images_for):
    capture = Capture(small, small_sites)
    with pytest.raises(RuntimeError, match="inside the block"):
        capture.run(images_for(small))
    with capture:
        capture.run(images_for(small))
    with pytest.raises(RuntimeError, match="inside the block"):
        capture.run(images_for(small))


@pytest.mark.parametrize("which", [[], [0, 0]])
def test_it_needs_each_site_once(small, small_sites, which):
    with pytest.raises(ValueError, match="at least one site, and each module once"):
        Capture(small, [small_sites[i] for i in which])


class Forgiving(nn.Module):
    """Catches what its parts raise, and skips one of them for bright images."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = nn.Flatten(), nn.Identity()

    def forward(self, x):
        try:
            y = self.first(x)
        except Exception:
            y = x.flatten(1)
        return y if x.max() > 5 else self.second(y)


def test_a_network_that_catches_exceptions_does_not_catch_the_end_of_the_pass(small):
    model = replace(small, module=Forgiving())
    with Capture(model, resolve_sites(model, ["first"])) as capture:
        assert capture.run(torch.ones(2, 3, 9, 9))["first"].shape == (2, 1, 243)


def test_a_site_that_some_images_do_not_reach(small):
    model = replace(small, module=Forgiving())
    with (
        pytest.raises(ConfigError, match=f"forward pass of {model.name} did not reach second"),
        Capture(model, resolve_sites(model, ["first", "second"])) as capture,
    ):
        capture.run(torch.full((2, 3, 9, 9), 6.0))


def test_a_replacement_entered_before_is_seen_one_entered_after_is_not(small, small_sites, images_for):
    images, site = images_for(small), small_sites[1]
    with Capture(small, [site]) as capture:
        plain = capture.run(images)["bn"]
        with intervene(small, {site: lambda x_bpd: x_bpd + 1}):
            assert torch.equal(capture.run(images)["bn"], plain)
    with intervene(small, {site: lambda x_bpd: x_bpd + 1}), Capture(small, [site]) as capture:
        assert torch.equal(capture.run(images)["bn"], plain + 1)


def test_predictions_are_the_forward_pass_without_gradients(small, images_for):
    images = images_for(small)
    logits = predictions(small, images)
    assert torch.equal(logits, small.module(small.to_input(images)))
    assert logits.is_inference()
