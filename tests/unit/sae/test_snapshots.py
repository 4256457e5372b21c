"""Copies of an SAE in the course of its training."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError
from mis_lab.sae import io
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.snapshots import snapshots
from mis_lab.sae.train import train
from mis_lab.sae.trainer_config import TrainerConfig

CONFIG = TrainerConfig(n_vectors=64 * 20, batch_size=64, n_snapshots=5, checkpoint_steps=4)


def new_sae() -> torch.nn.Module:
    return build(TopKConfig(n_features=24, k=3), width=8)


def test_the_first_is_the_start_and_the_last_the_sae_itself(vectors: Callable, tmp_path: Path) -> None:
    sae, start = new_sae(), new_sae()
    train(sae, vectors(), CONFIG, 0, tmp_path / "whole", lambda *_: None)
    kept = snapshots(tmp_path / "whole")
    assert list(kept) == [0, 5, 10, 15]
    train(start, vectors(), replace(CONFIG, n_vectors=1, lr=1e-30), 0, tmp_path / "start", lambda *_: None)
    assert torch.allclose(io.load(kept[0]).W_dec, start.W_dec.detach(), atol=1e-6)
    distances = [float((io.load(folder).W_dec - sae.W_dec.detach()).norm()) for folder in kept.values()]
    assert distances == sorted(distances, reverse=True)
    assert distances[-1] > 0


def test_a_copy_is_the_sae_after_so_many_steps(vectors: Callable, tmp_path: Path) -> None:
    at_five = {}

    def log(numbers: dict[str, float], step: int) -> None:
        if step == 4:
            at_five.update({name: tensor.clone() for name, tensor in sae.state_dict().items()})

    sae = new_sae()
    train(sae, vectors(), replace(CONFIG, log_steps=4), 0, tmp_path, log)
    kept = io.load(snapshots(tmp_path)[5]).state_dict()
    assert all(torch.equal(kept[name], tensor) for name, tensor in at_five.items())


def test_a_run_that_goes_on_has_the_copies_of_one_that_was_never_killed(vectors: Callable, tmp_path: Path) -> None:
    class KilledError(Exception):
        pass

    def kill(numbers: dict[str, float], step: int) -> None:
        if step >= 12:
            raise KilledError

    config = replace(CONFIG, log_steps=1)
    train(new_sae(), vectors(), config, 0, tmp_path / "whole", lambda *_: None)
    with pytest.raises(KilledError):
        train(new_sae(), vectors(), config, 0, tmp_path / "killed", kill)
    train(new_sae(), vectors(), config, 0, tmp_path / "killed", lambda *_: None)
    whole, killed = snapshots(tmp_path / "whole"), snapshots(tmp_path / "killed")
    assert list(whole) == list(killed)
    for step, folder in whole.items():
        for name, tensor in io.load(folder).state_dict().items():
            assert torch.equal(tensor, io.load(killed[step]).state_dict()[name])


def test_none_are_kept_unless_asked_for(vectors: Callable, tmp_path: Path) -> None:
    train(new_sae(), vectors(), replace(CONFIG, n_snapshots=0), 0, tmp_path, lambda *_: None)
    assert snapshots(tmp_path) == {}


def test_a_single_copy_is_refused() -> None:
    with pytest.raises(ConfigError, match="n_snapshots=1"):
        TrainerConfig(n_snapshots=1)
