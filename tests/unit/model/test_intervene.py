from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor, nn

from mis_lab.model.config import Tokens
from mis_lab.model.intervene import fan_out, intervene, watch
from mis_lab.model.sites import Site, resolve_sites

TIMM = "timm.create_model"
VIT = {"model_name": "vit_tiny_patch16_224", "img_size": 64, "depth": 2, "num_classes": 10}


@pytest.fixture(scope="module")
def small(loaded):
    """0 conv, 1 in-place ReLU, 2 conv, 3 batch norm, 4 in-place SiLU, 5 and 6 pooling, 7 linear, in float64."""
    template = loaded("torch.nn.Conv2d", 8, {"in_channels": 3, "out_channels": 2, "kernel_size": 3})
    with torch.random.fork_rng():
        torch.manual_seed(0)
        module = nn.Sequential(
            nn.Conv2d(3, 4, 3, padding=1),
            nn.ReLU(inplace=True),
            nn.Conv2d(4, 5, 3, stride=2),
            nn.BatchNorm2d(5),
            nn.SiLU(inplace=True),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(5, 6),
        )
    module = module.double().eval().requires_grad_(False).to(memory_format=torch.channels_last)
    return replace(template, module=module, n_classes=6)


@pytest.fixture
def images(small, images_for) -> Tensor:
    return small.to_input(images_for(small, 3).double())


@pytest.fixture
def sites() -> tuple[Site, ...]:
    return Site("0", "bchw", 4, 64, (8, 8)), Site("3", "bchw", 5, 9, (3, 3)), Site("4", "bchw", 5, 9, (3, 3))


def no_hooks(model) -> bool:
    return not any(part._forward_hooks for part in model.module.modules())


def as_vectors(output: Tensor) -> Tensor:
    return output.flatten(2).transpose(1, 2)


def as_map(x_bpd: Tensor, like: Tensor) -> Tensor:
    return x_bpd.transpose(1, 2).reshape(like.shape)


def test_functions_that_return_what_they_got_change_no_bit_and_no_gradient(small, sites, images):
    def gradient() -> tuple[Tensor, Tensor]:
        x = images.clone().requires_grad_()
        logits = small.module(x)
        return logits, torch.autograd.grad(logits.square().sum(), x)[0]

    plain = gradient()
    with intervene(small, {site: lambda x_bpd: x_bpd for site in sites}):
        touched = gradient()
    assert torch.equal(plain[0], touched[0])
    assert torch.equal(plain[1], touched[1])


def test_replacements_at_several_sites_are_the_network_composed_by_hand(small, sites, images):
    scale = torch.tensor(1.5, dtype=torch.float64, requires_grad=True)
    offset = torch.tensor(0.3, dtype=torch.float64, requires_grad=True)
    with intervene(small, {sites[0]: lambda x_bpd: x_bpd * scale, sites[1]: lambda x_bpd: x_bpd.tanh() - offset}):
        found = small.module(images)
    part = list(small.module)
    x = part[2](torch.relu(part[0](images) * scale))
    x = part[3](x).tanh() - offset
    expected = part[7](part[6](part[5](nn.functional.silu(x))))
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    for parameter in (scale, offset):
        by_hand = torch.autograd.grad(expected.square().sum(), parameter, retain_graph=True)[0]
        through = torch.autograd.grad(found.square().sum(), parameter, retain_graph=True)[0]
        torch.testing.assert_close(through, by_hand, rtol=1e-10, atol=1e-12)
        assert through != 0


@pytest.mark.parametrize("identity", [True, False])
def test_in_place_modules_write_neither_into_what_a_function_got_nor_into_what_it_gave(small, sites, images, identity):
    got, given = {}, {}

    def function(path: str):
        def keep(x_bpd: Tensor) -> Tensor:
            new_bpd = x_bpd if identity else x_bpd - 0.25
            got[path], given[path] = (x_bpd, x_bpd.clone()), (new_bpd, new_bpd.clone())
            return new_bpd

        return keep

    with torch.no_grad(), intervene(small, {site: function(site.path) for site in sites}):
        small.module(images)
    assert got["0"][0].min() < 0
    for held in (got, given):
        for tensor, copy in held.values():
            assert torch.equal(tensor, copy)


def test_a_constant_for_all_positions_may_be_an_expanded_tensor(small, sites, images):
    row = torch.arange(5, dtype=torch.float64)
    with torch.no_grad(), intervene(small, {sites[1]: lambda x_bpd: row.expand_as(x_bpd)}):
        found = small.module(images)
        expected = small.module[7](nn.functional.silu(row)).expand(3, 6)
    torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-12)
    assert torch.equal(row, torch.arange(5, dtype=torch.float64))


def test_hooks_go_when_the_block_ends_and_when_it_fails(small, sites, images):
    plain = small.module(images)
    with intervene(small, {sites[0]: torch.zeros_like}):
        assert not torch.equal(small.module(images), plain)
    assert no_hooks(small)
    wrong = intervene(small, {sites[0]: lambda x_bpd: x_bpd[:, 1:]})
    with pytest.raises(ValueError, match=r"site 0 needs vectors \(3, 64, 4\), not \(3, 63, 4\)"), wrong:
        small.module(images)
    assert no_hooks(small)
    with pytest.raises(KeyError), watch(small, sites):
        raise KeyError("of the caller")
    assert no_hooks(small)
    assert torch.equal(small.module(images), plain)


def test_two_functions_for_one_module_are_refused(loaded):
    model = loaded(TIMM, 64, VIT)
    patches, prefix = (
        resolve_sites(model, ["blocks.0"], tokens=tokens)[0] for tokens in (Tokens.patches, Tokens.prefix)
    )
    with pytest.raises(ValueError, match="each module once"), intervene(model, {patches: abs, prefix: abs}):
        pass


@pytest.mark.parametrize("tokens", list(Tokens))
def test_tokens_that_are_not_read_stay_as_they_were(loaded, images_for, tokens):
    model = loaded(TIMM, 64, VIT)
    (site,) = resolve_sites(model, ["blocks.0"], tokens=tokens)
    outputs = []
    with torch.no_grad():
        handle = model.module.blocks[1].register_forward_pre_hook(lambda _m, args: outputs.append(args[0]))
        model.module(images_for(model))
        with intervene(model, {site: torch.zeros_like}):
            model.module(images_for(model))
        handle.remove()
    changed = (outputs[0] != outputs[1]).flatten(2).any(2)[0]
    expected = {Tokens.all: range(17), Tokens.patches: range(1, 17), Tokens.prefix: range(1)}[tokens]
    assert changed.nonzero().flatten().tolist() == list(expected)
    assert outputs[1][:, changed].abs().max() == 0


def test_watched_vectors_have_the_derivative_of_what_follows(small, sites, images):
    """Oracle: the network cut at the site, its second half differentiated by torch.autograd.grad."""
    parts = list(small.module)
    with watch(small, sites) as watched:
        logits = small.module(images)
        logits.square().sum().backward()
    assert torch.equal(logits, small.module(images))
    assert list(watched) == [site.path for site in sites]
    for site in sites:
        cut = int(site.path) + 1
        with torch.no_grad():
            x = nn.Sequential(*parts[:cut])(images).clone()
        y = x.requires_grad_().clone()  # in-place modules may not write into a leaf
        expected = torch.autograd.grad(nn.Sequential(*parts[cut:])(y).square().sum(), x)[0]
        assert torch.equal(watched[site.path].detach(), as_vectors(x.detach()))
        torch.testing.assert_close(watched[site.path].grad, as_vectors(expected), rtol=1e-10, atol=1e-12)


def test_watching_passes_gradients_on_to_the_input(small, sites, images):
    x = images.clone().requires_grad_()
    expected = torch.autograd.grad(small.module(x).square().sum(), x)[0]
    with watch(small, sites) as watched:
        found = torch.autograd.grad(small.module(x).square().sum(), [x, watched["0"]])
    assert torch.equal(found[0], expected)
    by_chain = torch.autograd.grad(small.module[0](x), x, as_map(found[1], small.module[0](x)))[0]
    torch.testing.assert_close(by_chain, expected, rtol=1e-10, atol=1e-12)


def test_each_pass_is_watched_anew_and_parameters_get_no_gradient(small, sites, images):
    with watch(small, sites) as watched:
        small.module(images).sum().backward()
        first = watched["3"]
        small.module(2 * images).sum().backward()
        assert watched["3"] is not first
        assert watched["3"].grad is not None
        assert not torch.equal(watched["3"], first)
    assert all(parameter.grad is None for parameter in small.module.parameters())


def test_watching_sees_what_replacements_made(small, sites, images):
    with intervene(small, {sites[1]: torch.zeros_like}), watch(small, [sites[1]]) as watched:
        small.module(images)
    assert watched["3"].abs().max() == 0


@pytest.mark.parametrize("without", [torch.no_grad, torch.inference_mode])
def test_watching_needs_gradients(small, sites, images, without):
    with (
        watch(small, sites),
        without(),
        pytest.raises(RuntimeError, match="watching 0 needs a forward pass with gradients"),
    ):
        small.module(images)


def test_sites_inside_transformers_and_residual_networks_can_be_watched(loaded, images_for):
    for target, keywords, paths in (
        (TIMM, VIT, ["blocks.0", "blocks.1.mlp", "norm"]),
        ("torchvision.models.resnet18", {}, ["layer1.0.bn2", "layer1.0", "layer1", "layer4"]),
    ):
        model = loaded(target, 64, keywords)
        images = images_for(model)
        with watch(model, resolve_sites(model, paths, tokens=Tokens.all)) as watched:
            logits = model.module(model.to_input(images))
            logits[:, 0].sum().backward()
        assert torch.equal(logits, model.module(model.to_input(images)))
        assert all(x_bpd.grad.abs().sum() > 0 for x_bpd in watched.values())


def test_behind_a_fan_out_go_rows_with_vectors_of_their_own(small, sites, images):
    rows = torch.tensor([2, 2, 0, 1, 2])
    factors = torch.linspace(0.1, 2, 5, dtype=torch.float64)[:, None, None]
    for site in sites:
        with torch.no_grad(), intervene(small, {site: lambda x_bpd: x_bpd * factors}):
            expected = small.module(images[rows])
        before = []
        handle = small.module[0].register_forward_hook(lambda module, args, output, b=before: b.append(len(output)))
        with torch.no_grad(), fan_out(small, site, rows, lambda x_rpd: x_rpd * factors):
            found = small.module(images)
        handle.remove()
        torch.testing.assert_close(found, expected, rtol=1e-12, atol=1e-14)
        assert before == [3], "what stands before the site runs once an image"
    assert no_hooks(small)
