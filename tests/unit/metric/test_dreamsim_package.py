"""The real package driven from fabricated checkpoints: the right files and shapes, random numbers (small networks)."""

from __future__ import annotations

import json
import os
import sys
import warnings
from functools import partial
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric.base import embed_dataset
from mis_lab.metric.config import DreamSimConfig
from mis_lab.metric.dreamsim import DreamSim
from mis_lab.metric.dreamsim_files import DINO_CODE, DINOV2_CODE, find_type
from mis_lab.metric.load import load_metric

pytestmark = pytest.mark.slow  # importing the package takes half a minute

WIDTH, HEADS = 24, 2
HUB = """
dependencies = ["torch"]
import torch
import vision_transformer as vits

def {name}(pretrained=True, **kwargs):
    model = vits.small({patch})
    url = "https://dl.fbaipublicfiles.com/{file}"
    model.load_state_dict(torch.hub.load_state_dict_from_url(url=url, map_location="cpu"), strict=True)
    return model
"""
VITS = f"""
from functools import partial
import torch
from utils import same
from dreamsim.feature_extraction.vision_transformer import VisionTransformer

def small(patch):
    return same(VisionTransformer(patch_size=patch, embed_dim={WIDTH}, depth=12, num_heads={HEADS}, qkv_bias=True,
        norm_layer=partial(torch.nn.LayerNorm, eps=1e-6)))
"""


@pytest.fixture(scope="module", autouse=True)
def _imported():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import dreamsim  # noqa: F401


def small_vit(patch_size: int = 16, **_options: object) -> torch.nn.Module:
    from dreamsim.feature_extraction.vision_transformer import VisionTransformer

    norm = partial(torch.nn.LayerNorm, eps=1e-6)
    shape = {"embed_dim": WIDTH, "depth": 12, "num_heads": HEADS, "qkv_bias": True, "norm_layer": norm}
    return VisionTransformer(patch_size=patch_size, **shape)


def randomised(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    """A state dict of numbers that are not near any initial value."""
    return {name: value + 0.1 * torch.randn_like(value) for name, value in module.state_dict().items()}


def fabricate(folder: Path, kind_name: str, vit, width: int, projected: int = 12) -> None:
    """Every file of a type, as the real ones are made up."""
    from dreamsim import dreamsim

    kind = find_type(kind_name)
    (folder / kind.adapter_dir).mkdir(parents=True)
    for backbone in kind.backbones:
        patch = int(backbone[-2:])
        if "clip" in backbone:
            network = vit(patch_size=patch)
            network.pos_drop = torch.nn.LayerNorm(width)
            proj = torch.randn(width, projected) / width**0.5
            torch.save({"state_dict": randomised(network) | {"proj": proj}}, folder / f"{backbone}_pretrain.pth.tar")
        elif backbone == "synclr_vitb16":
            weights = {f"module.visual.{name}": value for name, value in randomised(vit(patch_size=16)).items()}
            torch.save({"model": weights}, folder / "synclr_vit_b_16.pth")
        else:
            fabricate_hub(folder, backbone, patch, vit)
    config = {"r": 4, "lora_alpha": 0.5, "lora_dropout": 0.3, "bias": "none", "target_modules": ["qkv"]}
    (folder / kind.adapter_dir / "adapter_config.json").write_text(json.dumps(config))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        adapted, _ = dreamsim(
            pretrained=False,
            device="cpu",
            cache_dir=str(folder),
            dreamsim_type=kind_name.removesuffix("_patch"),
            use_patch_model=kind.is_patch,
        )
        for name, parameter in adapted.named_parameters():
            if "lora_" in name:
                parameter.copy_(torch.randn_like(parameter))
        adapted.save_pretrained(str(folder / kind.adapter_dir))


def fabricate_hub(folder: Path, backbone: str, patch: int, vit) -> None:
    (folder / "checkpoints").mkdir(exist_ok=True)
    dinov2 = backbone == "dinov2_vitb14"
    code = folder / (DINOV2_CODE if dinov2 else DINO_CODE)
    file = "dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth" if dinov2 else "dino/x/dino_vitbase16_pretrain.pth"
    code.mkdir()
    (code / "utils.py").write_text("def same(thing):\n    return thing\n")
    (code / "vision_transformer.py").write_text(VITS)
    (code / "hubconf.py").write_text(HUB.format(name=backbone, patch=patch, file=file))
    torch.save(randomised(vit(patch_size=patch)), folder / "checkpoints" / Path(file).name)
    shapes = {"mlp.0": (8, WIDTH), "mlp.2": (8, 8), "mlp.4": (8, 8)}
    head = {f"module.head.{name}.weight": torch.randn(shape) for name, shape in shapes.items()}
    head |= {f"module.head.{name}.bias": torch.randn(8) for name in shapes}
    head["module.head.last_layer.weight"] = torch.randn(8, 8)
    torch.save({"student": head}, folder / f"{backbone}_pretrain.pth")


@pytest.fixture
def asked(monkeypatch, tmp_path):
    """Small networks in the package's own loaders; torch hub offline, and what it asked the network for."""
    for loader in ("clip", "open_clip", "synclr"):
        monkeypatch.setattr(f"dreamsim.feature_extraction.load_{loader}_as_dino.vit_base", small_vit)
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "untouched"))

    addresses: list[str] = []

    def refuse(address, *_arguments, **_options):
        addresses.append(address)
        raise URLError("offline")

    monkeypatch.setattr("torch.hub.urlopen", refuse)
    return addresses


class Photos(ImageDataset):
    def __init__(self, n: int) -> None:
        super().__init__("photos", "score", [f"photos/{index}" for index in range(n)])

    def image(self, index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        return Image.fromarray(rng.integers(0, 256, (5, 7, 3), dtype=np.uint8)).resize((120, 90), 2)


WIDTHS = {"ensemble": WIDTH + 12 + 12, "clip_vitb32": 12, "open_clip_vitb32": 12}


@pytest.mark.parametrize(
    "kind",
    [
        "ensemble",
        "dino_vitb16",
        "clip_vitb32",
        "open_clip_vitb32",
        "synclr_vitb16",
        "dinov2_vitb14",
        "dino_vitb16_patch",
        "dinov2_vitb14_patch",
    ],
)
def test_cosines_are_one_minus_the_packages_distances(tmp_path, kind, capsys, asked):
    from dreamsim import dreamsim

    folder = tmp_path / "files"
    fabricate(folder, kind, small_vit, WIDTH)
    torch.hub.set_dir(str(tmp_path / "untouched"))
    capsys.readouterr()
    asked.clear()
    modules, environment, before = {*sys.modules}, dict(os.environ), torch.random.get_rng_state()
    metric = load_metric(DreamSimConfig(type=kind, folder=str(folder), batch_size=3))
    dataset = Photos(5)
    embedding = embed_dataset(metric, dataset)
    rows_bd = metric.embed([dataset.image(index) for index in range(5)])
    assert not asked, "torch hub asks for a repository's branch even when it is there"
    assert torch.hub.get_dir() == str(tmp_path / "untouched")
    assert not {"utils", "hubconf", "vision_transformer"} & ({*sys.modules} - modules)
    assert dict(os.environ) == environment
    assert torch.equal(torch.random.get_rng_state(), before)
    assert "Using" not in capsys.readouterr().out
    assert rows_bd.shape == (5, WIDTHS.get(kind, WIDTH * (2 if kind.endswith("patch") else 1)))
    assert rows_bd.norm(dim=1).tolist() == pytest.approx([1.0] * 5, abs=1e-6)
    assert torch.allclose(metric.embed([dataset.image(3)])[0], rows_bd[3], atol=1e-5)

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        network, transform = dreamsim(
            device="cpu",
            cache_dir=str(folder),
            dreamsim_type=kind.removesuffix("_patch"),
            use_patch_model=kind.endswith("_patch"),
        )
    inputs = [transform(dataset.image(index)) for index in range(5)]
    for i in range(5):
        for j in range(5):
            with torch.no_grad():
                distance = float(network(inputs[i], inputs[j]))
            assert float(embedding.gram[i, j]) == pytest.approx(1 - distance, abs=1e-5)
    apart = embedding.gram[~torch.eye(5, dtype=torch.bool)]
    assert apart.max() - apart.min() > 1e-3


@pytest.mark.usefixtures("asked")
def test_the_adapter_counts_and_a_damaged_file_is_told(tmp_path):
    fabricate(tmp_path / "files", "open_clip_vitb32", small_vit, WIDTH)
    config = DreamSimConfig(type="open_clip_vitb32", folder=str(tmp_path / "files"))
    images = [Photos(2).image(index) for index in range(2)]
    one = DreamSim(config).embed(images)
    adapter = tmp_path / "files" / "open_clip_vitb32_single_lora" / "adapter_model.safetensors"
    from safetensors.torch import load_file, save_file

    save_file({name: value * 2 for name, value in load_file(adapter).items()}, adapter)
    assert not torch.allclose(DreamSim(config).embed(images), one, atol=1e-3)
    weights = tmp_path / "files" / "open_clip_vitb32_pretrain.pth.tar"
    weights.write_bytes(weights.read_bytes()[:1000])
    with pytest.raises(DataError, match="open_clip_vitb32 cannot be loaded"):
        DreamSim(config).embed(images)


def test_a_network_of_the_real_size(tmp_path, monkeypatch):
    from dreamsim.feature_extraction.vision_transformer import vit_base

    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "untouched"))
    fabricate(tmp_path / "files", "clip_vitb32", vit_base, 768, projected=512)
    metric = DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path / "files")))
    rows_bd = metric.embed([Photos(2).image(index) for index in range(2)])
    assert rows_bd.shape == (2, 512)
    assert rows_bd.norm(dim=1).tolist() == pytest.approx([1.0] * 2, abs=1e-6)
    assert torch.hub.get_dir() == str(tmp_path / "untouched")
