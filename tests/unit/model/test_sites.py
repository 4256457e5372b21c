"""Sites and the table of modules, over families of timm and torchvision by name: random weights, small inputs."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, NamedTuple

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf
from torch import nn

from mis_lab.config import conf_dir
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import content_key
from mis_lab.core.seeding import generator
from mis_lab.model.capture import Capture
from mis_lab.model.config import Layout, Tokens
from mis_lab.model.intervene import intervene
from mis_lab.model.modules import list_modules, n_prefix_tokens, read_layout
from mis_lab.model.sites import Site, resolve_sites

TIMM = "timm.create_model"
SWIN = {"window_size": 4, "embed_dim": 12, "depths": [1, 1], "num_heads": [2, 2]}
TORCHVISION_VIT = {"image_size": 64, "patch_size": 16, "num_layers": 2, "num_heads": 2, "hidden_dim": 24, "mlp_dim": 32}
TORCHVISION_SWIN = {"patch_size": [4, 4]} | SWIN | {"window_size": [4, 4]}


class Family(NamedTuple):
    """A network and what its sites must be: path -> (layout, width, positions, grid, prefix tokens)."""

    target: str
    keywords: dict[str, Any]
    size: int
    sites: dict[str, tuple[str, int, int, tuple[int, int], int]]


FAMILIES = {
    "resnet18": Family(
        "torchvision.models.resnet18",
        {},
        64,
        {
            "conv1": ("bchw", 64, 1024, (32, 32), 0),
            "layer1.0": ("bchw", 64, 256, (16, 16), 0),
            "layer3": ("bchw", 256, 16, (4, 4), 0),
            "avgpool": ("bchw", 512, 1, (1, 1), 0),
            "fc": ("bd", 1000, 1, (1, 1), 0),
        },
    ),
    "timm resnet": Family(TIMM, {"model_name": "test_resnet"}, 64, {"layer2": ("bchw", 48, 64, (8, 8), 0)}),
    "efficientnet": Family(
        TIMM,
        {"model_name": "tf_efficientnet_lite0"},
        64,
        {
            "blocks.2": ("bchw", 40, 64, (8, 8), 0),
            "blocks.6": ("bchw", 320, 4, (2, 2), 0),
            "global_pool": ("bd", 1280, 1, (1, 1), 0),
        },
    ),
    "convnext": Family(TIMM, {"model_name": "test_convnext"}, 64, {"stages.1": ("bchw", 32, 64, (8, 8), 0)}),
    "mobilenet": Family("torchvision.models.mobilenet_v2", {}, 64, {"features.3": ("bchw", 24, 256, (16, 16), 0)}),
    "googlenet": Family(
        "torchvision.models.googlenet",
        {"init_weights": False, "aux_logits": False},
        64,
        {"inception3a": ("bchw", 256, 64, (8, 8), 0), "inception3a.branch2": ("bchw", 128, 64, (8, 8), 0)},
    ),
    "vit": Family(
        TIMM,
        {"model_name": "vit_tiny_patch16_224", "img_size": 64, "depth": 2},
        64,
        {"patch_embed": ("btd", 192, 16, (4, 4), 0), "blocks.1": ("btd", 192, 16, (4, 4), 1)},
    ),
    "vit with registers": Family(
        TIMM,
        {"model_name": "vit_tiny_patch16_224", "img_size": 64, "depth": 1, "reg_tokens": 4},
        64,
        {"blocks.0": ("btd", 192, 16, (4, 4), 5)},
    ),
    "vit of torchvision": Family(
        "torchvision.models.vision_transformer.VisionTransformer",
        TORCHVISION_VIT,
        64,
        {
            "encoder.layers.encoder_layer_1": ("btd", 24, 16, (4, 4), 1),
            "conv_proj": ("bchw", 24, 16, (4, 4), 0),
        },
    ),
    "swin": Family(
        TIMM,
        {"model_name": "swin_tiny_patch4_window7_224", "img_size": 64} | SWIN,
        64,
        {"layers.0.blocks.0": ("bhwc", 12, 256, (16, 16), 0), "layers.1": ("bhwc", 24, 64, (8, 8), 0)},
    ),
    "swin of torchvision": Family(
        "torchvision.models.swin_transformer.SwinTransformer",
        TORCHVISION_SWIN,
        64,
        {"features.1": ("bhwc", 12, 256, (16, 16), 0), "permute": ("bchw", 24, 64, (8, 8), 0)},
    ),
    "vit without class token": Family(
        TIMM,
        {"model_name": "vit_relpos_small_patch16_224", "img_size": 64, "depth": 1, "embed_dim": 96, "num_heads": 3},
        64,
        {"blocks.0": ("btd", 96, 16, (4, 4), 0)},
    ),
    "mlp": Family("mis_lab.model.mlp.Mlp", {"widths": [48, 9, 5]}, 4, {"act1": ("bd", 9, 1, (1, 1), 0)}),
}


@pytest.fixture(params=list(FAMILIES))
def family(request) -> Family:
    return FAMILIES[request.param]


@pytest.fixture
def model(family, loaded):
    return loaded(family.target, family.size, family.keywords)


def test_sites_have_the_layout_and_sizes_of_the_network(family, model):
    for path, (layout, width, n_positions, grid, n_prefix) in family.sites.items():
        tokens = "patches" if layout == "btd" else "all"
        assert resolve_sites(model, [path]) == (Site(path, layout, width, n_positions, grid, n_prefix, tokens),)


def test_captured_vectors_are_what_a_plain_forward_hook_sees(family, model, images_for):
    images, seen = model.to_input(images_for(model)), {}
    modules = {path: model.module.get_submodule(path) for path in family.sites}
    handles = [
        module.register_forward_hook(lambda _m, _a, output, path=path: seen.update({path: output.clone()}))
        for path, module in modules.items()
    ]
    try:
        with torch.inference_mode():
            model.module(images)
    finally:
        for handle in handles:
            handle.remove()
    sites = resolve_sites(model, list(family.sites))
    with Capture(model, sites) as capture:
        found = capture.run(images)
    assert list(found) == list(family.sites)
    for site in sites:
        x_bpd = found[site.path]
        assert x_bpd.shape == (2, site.n_positions, site.width)
        assert x_bpd.is_contiguous()
        assert x_bpd.std() > 0
        output = seen[site.path][1]
        for position in range(site.n_positions):
            row, column = divmod(position, site.grid[1])
            if site.layout == "bchw":
                expected = output[:, row, column]
            elif site.layout == "bhwc":
                expected = output[row, column]
            else:
                expected = output[site.n_prefix + position] if site.layout == "btd" else output
            assert torch.equal(x_bpd[1, position], expected)


def test_the_nine_inception_blocks_of_googlenet(loaded, images_for):
    preset = OmegaConf.load(conf_dir() / "model" / "googlenet.yaml")
    model = loaded(preset.network._target_, 64, FAMILIES["googlenet"].keywords)
    sites = resolve_sites(model, preset.sites)
    blocks = ["3a", "3b", "4a", "4b", "4c", "4d", "4e", "5a", "5b"]
    widths = [256, 480, 512, 512, 512, 528, 832, 832, 1024]
    sides = [8, 8, 4, 4, 4, 4, 4, 2, 2]
    assert [site.path for site in sites] == [f"inception{block}" for block in blocks]
    assert [(site.width, site.grid) for site in sites] == [(w, (h, h)) for w, h in zip(widths, sides, strict=True)]
    with Capture(model, sites) as capture:
        found = capture.run(images_for(model))
    assert [x_bpd.shape for x_bpd in found.values()] == [(2, h * h, w) for w, h in zip(widths, sides, strict=True)]


def test_vectors_go_back_to_where_they_came_from(family, model, images_for):
    """In a real forward pass: to vectors, a copy, and back, at all sites at once, leaves the logits as they were."""
    images = model.to_input(images_for(model))
    sites = resolve_sites(model, list(family.sites))
    with torch.no_grad():
        plain = model.module(images)
        with intervene(model, {site: torch.Tensor.clone for site in sites}):
            assert torch.equal(model.module(images), plain)


def test_the_table_of_modules_lists_every_module_with_the_layout_it_would_have(family, model):
    rows = {row.path: row for row in list_modules(model)}
    assert list(rows) == [path for path, _ in model.module.named_modules(remove_duplicate=False) if path]
    for path, (layout, *_) in family.sites.items():
        assert (rows[path].layout, rows[path].obstacle) == (layout, "")
    for row in rows.values():
        assert bool(row.layout) != bool(row.obstacle)


LAYOUTS = {
    "bchw": lambda h, p, d: (d, h, h),
    "bhwc": lambda h, p, d: (h, h, d),
    "btd": lambda h, p, d: (h * h + p, d),
    "bd": lambda h, p, d: (d,),
}


@settings(max_examples=60)
@given(
    layout=st.sampled_from(sorted(LAYOUTS)),
    tokens=st.sampled_from(list(Tokens)),
    n=st.integers(1, 3),
    h=st.integers(1, 4),
    p=st.integers(0, 3),
    d=st.integers(1, 5),
    channels_last=st.booleans(),
    seed=st.integers(0, 99),
)
def test_to_vectors_and_from_vectors_are_inverse(layout, tokens, n, h, p, d, channels_last, seed):
    output = torch.randn(n, *LAYOUTS[layout](h, p, d), generator=generator(seed))
    if channels_last and output.ndim == 4:
        output = output.to(memory_format=torch.channels_last)
    n_positions, grid = h * h, (h, h)
    if layout == "bd":
        n_positions, grid = 1, (1, 1)
    elif layout == "btd":
        n_positions = {Tokens.all: h * h + p, Tokens.patches: h * h, Tokens.prefix: p}[tokens]
        grid = (1, n_positions)
    site = Site("x", layout, d, n_positions, grid, p, tokens.name if layout == "btd" else "all")
    x_bpd = site.to_vectors(output)
    back = site.from_vectors(x_bpd.clone(), output)
    assert torch.equal(back, output)
    # other vectors: they, and only they, are replaced
    new_bpd = torch.randn(x_bpd.shape, generator=generator(seed + 1))
    replaced = site.from_vectors(new_bpd, output)
    assert torch.equal(site.to_vectors(replaced), new_bpd)
    assert (replaced != output).sum() == new_bpd.numel()
    if layout == "bchw":  # the next convolution finds the memory order it had
        for order in (torch.contiguous_format, torch.channels_last):
            assert replaced.is_contiguous(memory_format=order) == output.is_contiguous(memory_format=order)


@pytest.mark.parametrize(("tokens", "expected"), [("all", 17), ("patches", 16), ("prefix", 1)])
def test_tokens_choose_what_a_sequence_gives(loaded, images_for, tokens, expected):
    model = loaded(TIMM, 64, FAMILIES["vit"].keywords)
    (site,) = resolve_sites(model, ["blocks.0"], tokens=Tokens[tokens])
    assert (site.n_positions, site.tokens, site.n_prefix) == (expected, tokens, 1)
    assert site.grid == ((4, 4) if tokens == "patches" else (1, expected))
    with Capture(model, [site]) as capture:
        assert capture.run(images_for(model))["blocks.0"].shape == (2, expected, 192)


def test_a_site_is_json_and_can_be_the_key_of_a_mapping(loaded):
    model = loaded(TIMM, 64, FAMILIES["vit"].keywords)
    (site,), (again,) = (resolve_sites(model, ["blocks.0"]) for _ in range(2))
    assert {site: 1}[again] == 1
    assert content_key(site) == content_key(again) != content_key(resolve_sites(model, ["blocks.1"])[0])


@pytest.mark.parametrize(
    ("shape", "layout"),
    [
        ((3, 10), "bd"),
        ((3, 17, 64), "btd"),
        ((3, 64, 7, 7), "bchw"),
        ((3, 7, 7, 64), "bhwc"),
        ((3, 7, 7, 7), ""),
        ((3, 64, 1, 1), "bchw"),
        ((3, 3, 17, 64), ""),
    ],
)
def test_layouts_are_read_off_shapes(shape, layout):
    assert read_layout(shape) == layout


def test_as_many_channels_as_rows_is_refused_only_where_maps_have_channels_last(loaded):
    class Last(nn.Module):
        def forward(self, x):
            return x.permute(0, 2, 3, 1)

    convolution = loaded("torch.nn.Conv2d", 4, {"in_channels": 3, "out_channels": 4, "kernel_size": 1})
    assert {row.layout for row in list_modules(replace(convolution, module=nn.Sequential(convolution.module)))} == {
        "bchw"
    }
    mixed = nn.Sequential(convolution.module, Last(), nn.Linear(4, 5))
    model = replace(convolution, module=mixed)
    layouts = {row.path: row.layout for row in list_modules(model)}
    assert layouts == {"0": "", "1": "", "2": "bhwc"}
    with pytest.raises(ConfigError, match=r"\(4, 4, 4\) of 0 does not tell its layout"):
        resolve_sites(model, ["0"])


def test_prefix_tokens_of_a_network_inside_another(loaded):
    assert n_prefix_tokens(nn.Sequential(loaded(TIMM, 64, FAMILIES["vit with registers"].keywords).module)) == 5
    assert n_prefix_tokens(nn.Linear(1, 1)) == 0


class Odd(nn.Module):
    """Modules that cannot be sites, one of a kind."""

    def __init__(self) -> None:
        super().__init__()
        self.shared, self.unused = nn.Identity(), nn.Identity()
        self.pair, self.whole, self.rows, self.five = Pair(), Floor(), Merged(), Five()
        self.flat, self.heads = nn.Flatten(), Heads()

    def forward(self, x):
        a, b = self.pair(self.shared(self.shared(x)))
        self.whole(a)
        self.rows(a)
        self.five(a)
        self.heads(a)
        return self.flat(a + b)


class Pair(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = nn.Identity()

    def forward(self, x):
        return self.first(x), x


class Floor(nn.Module):
    def forward(self, x):
        return x.int()


class Merged(nn.Module):
    def forward(self, x):
        return x.flatten(0, 1)  # windows of Swin: one row a window, not one an image


class Five(nn.Module):
    def forward(self, x):
        return x[..., None]


class Heads(nn.Module):
    def forward(self, x):
        return x[:, :, :2]


@pytest.fixture
def odd(loaded):
    return replace(loaded("torch.nn.Flatten", 4), module=Odd().eval())


@pytest.mark.parametrize(
    ("path", "told"),
    [
        ("unused", "the forward pass does not reach it"),
        ("shared", "calls it 2 times"),
        ("pair", r"\(Pair\).*not a tensor but a tuple.*children: pair\.first"),
        ("whole", "no floating-point numbers"),
        ("rows", r"does not have one row an image"),
        ("five", "5 dimensions"),
        ("heads", r"does not tell its layout.*model\.layout to bchw or bhwc"),
    ],
)
def test_modules_that_cannot_be_sites(odd, path, told):
    with pytest.raises(ConfigError, match=told):
        resolve_sites(odd, [path])
    row = next(row for row in list_modules(odd) if row.path == path)
    assert row.layout == ""
    assert row.obstacle


def test_a_stated_layout_settles_what_the_shape_does_not_tell(odd):
    assert resolve_sites(odd, ["heads"], layout=Layout.bchw)[0].grid == (2, 4)
    assert resolve_sites(odd, ["heads"], layout=Layout.bhwc)[0].grid == (3, 2)


def test_relus_that_a_block_calls_twice_name_the_block(loaded):
    with pytest.raises(ConfigError, match=r"layer1\.0\.relu \(ReLU\).*calls it 2 times.*parents: layer1\.0, layer1\."):
        resolve_sites(loaded("torchvision.models.resnet18", 64, {}), ["layer1.0.relu"])


@pytest.mark.parametrize("path", ["layer1.0.conv3", "blocks", ""])
def test_a_site_that_does_not_exist_names_the_nearest_first(loaded, path):
    with pytest.raises(ConfigError) as caught:
        resolve_sites(loaded("torchvision.models.resnet18", 64, {}), ["layer2", path])
    assert f"there is no module {path}" in str(caught.value)
    assert "looked in the 67 modules of ResNet" in str(caught.value)
    if path == "layer1.0.conv3":
        assert "Nearest: layer1.0.conv" in str(caught.value)


def test_a_layout_the_output_does_not_have(loaded):
    model = loaded("torchvision.models.resnet18", 64, {})
    with pytest.raises(ConfigError, match=r"\(64, 16, 16\) of layer1 is not btd.*model\.layout to bchw or bhwc"):
        resolve_sites(model, ["layer1"], layout=Layout.btd)


def test_tokens_a_sequence_does_not_have(loaded):
    model = loaded(TIMM, 64, FAMILIES["vit without class token"].keywords)
    with pytest.raises(ConfigError, match=r"blocks\.0 has no prefix tokens.*16 tokens, 0 of them prefix"):
        resolve_sites(model, ["blocks.0"], tokens=Tokens.prefix)


def test_vectors_of_another_size(loaded):
    (site,) = resolve_sites(loaded("torchvision.models.resnet18", 64, {}), ["layer1"])
    with pytest.raises(DataError, match=r"layer1 put out \(2, 64, 8, 8\), which is not 256 vectors of 64"):
        site.to_vectors(torch.zeros(2, 64, 8, 8))
    with pytest.raises(ValueError, match=r"layer1 needs vectors \(2, 256, 64\), not \(2, 256, 65\)"):
        site.from_vectors(torch.zeros(2, 256, 65), torch.zeros(2, 64, 16, 16))
