"""SAEs found by folder or by packaged name, and what is said when they are not."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
import torch

import mis_lab.sae
from mis_lab.core.build import build
from mis_lab.core.errors import StoreError
from mis_lab.core.seeding import generator
from mis_lab.sae import io, load_sae
from mis_lab.sae.base import Sae
from mis_lab.sae.config import BatchTopKConfig, ReluConfig
from mis_lab.sae.share.export import halve
from mis_lab.sae.share.load import PRETRAINED, folders_of


def made(seed: int = 0) -> Sae:
    sae: Sae = build(ReluConfig(n_features=20), width=8)
    random = generator(seed, "test")
    sae.initialise(torch.randn(64, 8, generator=random) + 1, random)
    return sae


@pytest.fixture
def pretrained(tmp_path: Path) -> Path:
    """Two names, one with two sites."""
    for number, name in enumerate(("quickstart/blocks.2", "quickstart/blocks.4", "digits/fc1")):
        io.save(made(number), tmp_path / "pretrained" / name)
    return tmp_path / "pretrained"


def test_by_folder_and_by_site(pretrained: Path, untouched_rng: None) -> None:
    x = torch.randn(5, 8, generator=generator(1, "x"))
    expected = made(1).encode(x)
    for where, site in (
        (pretrained / "quickstart" / "blocks.4", None),
        (str(pretrained / "quickstart"), "blocks.4"),
        ("pretrained:quickstart/blocks.4", None),
        ("pretrained:quickstart", "blocks.4"),
    ):
        assert torch.equal(load_sae(where, site, pretrained).encode(x), expected)
    assert torch.equal(load_sae("pretrained:digits", pretrained=pretrained).encode(x), made(2).encode(x))


def test_what_is_loaded_is_frozen_and_float32_whatever_was_stored(tmp_path: Path) -> None:
    sae = build(BatchTopKConfig(n_features=20, k=3), width=8)
    random = generator(0, "test")
    x = torch.randn(64, 8, generator=random) + 1
    sae.initialise(x, random)
    sae.threshold.fill_(0.3)
    exact = sae.encode(x)
    halve(sae, tmp_path)
    io.save(sae, tmp_path)
    assert {name: tensor.dtype for name, tensor in io.read_tensors(tmp_path / io.WEIGHTS).items()} == {
        "W_enc": torch.float16,
        "W_dec": torch.float16,
        **dict.fromkeys(("b_enc", "b_dec", "scale", "variance", "threshold"), torch.float32),
    }
    loaded = load_sae(tmp_path)
    assert not any(parameter.requires_grad for parameter in loaded.parameters())
    assert not loaded.training
    codes = loaded.encode(x)
    assert codes.dtype is torch.float32
    torch.testing.assert_close(codes, exact, rtol=0, atol=5e-3)
    assert not torch.equal(codes, exact)
    assert torch.isfinite(loaded.decode(codes)).all()


@pytest.mark.parametrize(
    ("where", "site", "said"),
    [
        (
            "pretrained:quickstar",
            None,
            "no packaged SAE pretrained:quickstar; .*There are pretrained:quickstart/blocks",
        ),
        ("pretrained:", None, "no packaged SAE pretrained:;"),
        ("pretrained:quickstart", None, "pretrained:quickstart has SAEs of 2 sites. Choose one of blocks.2, blocks.4"),
        ("pretrained:quickstart/blocks.5", None, "2 sites, not of blocks.5. Choose one of blocks.[24], blocks.[24]"),
        ("pretrained:digits/fc2", None, "1 sites, not of fc2. Choose one of fc1"),
        ("nowhere", None, "no SAE in nowhere; looked in nowhere/sae.json. 'mis-lab sae export' writes"),
    ],
)
def test_what_there_is_when_it_is_not_found(pretrained: Path, where: str, site: str | None, said: str) -> None:
    with pytest.raises(StoreError, match=said) as told:
        load_sae(where, site, pretrained)
    assert "\n" not in str(told.value)


def test_without_any_packaged_sae(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="There are none: this copy of mis_lab has no packaged SAEs"):
        load_sae("pretrained:quickstart", pretrained=tmp_path)


def test_cut_short(pretrained: Path) -> None:
    weights = pretrained / "digits" / "fc1" / io.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-30])
    with pytest.raises(StoreError, match=r"sae\.safetensors is damaged"):
        load_sae("pretrained:digits", pretrained=pretrained)


def test_every_packaged_sae_encodes() -> None:
    """Whatever stands in mis_lab/sae/pretrained (in a wheel, or in this folder)."""
    size = 0
    for name in sorted(PRETRAINED.glob("*/")):
        found = folders_of(name)
        assert found, f"{name} holds no SAE"
        for site, folder in found.items():
            sae = load_sae(f"pretrained:{name.name}/{site}")
            x = torch.randn(16, sae.width, generator=generator(0, "x"))
            codes = sae.encode(x)
            assert codes.shape == (16, sae.n_features)
            assert torch.isfinite(sae.decode(codes)).all()
            assert (codes != 0).any()
            assert "provenance" in io.read_json(folder / io.DESCRIPTION)
            assert (folder / "README.md").read_text(encoding="utf-8").startswith("---\n")
            size += sum(path.stat().st_size for path in folder.iterdir())
    assert size < 5 * 2**20


def test_the_package_offers_it_without_importing_torch() -> None:
    code = "import sys, mis_lab.sae; assert 'load_sae' in mis_lab.sae.__all__; print('torch' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout == "False\n"
    with pytest.raises(AttributeError, match="no attribute 'load_sea'"):
        _ = mis_lab.sae.load_sea
