"""SAEs on disk: whole, of known classes only, and told in one line when not."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mis_lab.core import build as building
from mis_lab.core.build import build
from mis_lab.core.errors import StoreError
from mis_lab.core.seeding import generator
from mis_lab.sae import io
from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.config import ExternalSaeConfig, ReluConfig, ReluForm, TopKConfig


@pytest.fixture
def folder(x_nd: Tensor, tmp_path: Path) -> Path:
    sae = build(TopKConfig(n_features=20, k=3), width=8)
    sae.initialise(x_nd, generator(0))
    io.save(sae, tmp_path)
    return tmp_path


def described(folder: Path, **changed: Any) -> None:
    path = folder / io.DESCRIPTION
    path.write_text(json.dumps(json.loads(path.read_text()) | changed))


def test_the_description_is_plain_json(folder: Path) -> None:
    told = json.loads((folder / "sae.json").read_text())
    assert told["target"] == "mis_lab.sae.architectures.topk.TopKSae"
    assert (told["version"], told["width"], told["n_features"]) == (1, 8, 20)
    assert told["config"]["k"] == 3


def test_enums_and_precision_come_back(x_nd: Tensor, tmp_path: Path) -> None:
    sae = build(ReluConfig(form=ReluForm.thesis, expansion=2), width=8).double()
    sae.initialise(x_nd.double(), generator(0))
    io.save(sae, tmp_path)
    loaded = io.load(tmp_path)
    assert loaded.config.form is ReluForm.thesis
    assert loaded.W_dec.dtype is torch.float64
    assert torch.equal(loaded.scale, sae.scale)


class Own(Sae):
    """An SAE of one's own, without a configuration dataclass."""

    def __init__(self, width: int, n_features: int, threshold: float = 0.1) -> None:
        super().__init__({"n_features": n_features, "threshold": threshold}, width, n_features)
        self.threshold = threshold

    def activation(self, pre: Tensor) -> Tensor:
        return pre * (pre > self.threshold)

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        raise NotImplementedError


def test_an_sae_of_ones_own_comes_back(x_nd: Tensor, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(building, "ALLOWED", [*building.ALLOWED, "own_saes."])
    monkeypatch.setattr(io, "locate", lambda target: {"own_saes.Own": Own}[target])
    monkeypatch.setattr(building, "locate", lambda target: {"own_saes.Own": Own}[target])
    config = ExternalSaeConfig(_target_="own_saes.Own", name="own", kwargs={"n_features": 12, "threshold": 0.3})
    sae = build(config, width=8)
    sae.initialise(x_nd, generator(0))
    io.save(sae, tmp_path)
    described(tmp_path, target="own_saes.Own")
    loaded = io.load(tmp_path)
    assert loaded.threshold == 0.3
    assert torch.equal(loaded.encode(x_nd), sae.encode(x_nd))


def test_missing(tmp_path: Path) -> None:
    with pytest.raises(StoreError, match="no SAE in"):
        io.load(tmp_path / "nowhere")


def test_weights_missing(folder: Path) -> None:
    (folder / io.WEIGHTS).unlink()
    with pytest.raises(StoreError, match=r"no tensor file .*sae\.safetensors"):
        io.load(folder)


@pytest.mark.parametrize("name", [io.WEIGHTS, io.DESCRIPTION])
def test_cut_short(folder: Path, name: str) -> None:
    path = folder / name
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(StoreError, match=r"sae\.(json is not readable|safetensors is damaged)") as told:
        io.load(folder)
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("changed", "said"),
    [
        ({"version": 99}, "version 99, this mis_lab reads 1"),
        ({"target": "os.system"}, "os.system is not allowed"),
        ({"target": "mis_lab.sae.architectures.topk.NoSuch"}, "no NoSuch there"),
        ({"target": "torch.nn.Linear"}, "torch.nn.Linear is no SAE architecture"),
        ({"target": "mis_lab.sae.architectures.relu.ReluSae"}, "ReluSae has no option aux_k, aux_weight, k, multi_k"),
        ({"width": 9}, "size mismatch"),
        ({"config": {"n_features": 21, "k": 3}}, "size mismatch"),
        ({"config": {"n_features": 20, "k": 30}}, r"sae\.k=30 is more"),
        ({"config": {"n_features": 20, "kk": 3}}, "TopKSae has no option kk"),
    ],
)
def test_descriptions_that_do_not_fit(folder: Path, changed: dict[str, Any], said: str) -> None:
    described(folder, **changed)
    with pytest.raises(StoreError, match=said) as told:
        io.load(folder)
    assert "\n" not in str(told.value)


def test_description_without_an_entry(folder: Path) -> None:
    path = folder / io.DESCRIPTION
    path.write_text(json.dumps({"version": 1}))
    with pytest.raises(StoreError, match="KeyError: 'target'"):
        io.load(folder)
