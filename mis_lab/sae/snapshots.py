"""Copies of an SAE in the course of its training: what features were like on the way to what they became."""

from __future__ import annotations

import shutil
from pathlib import Path

from mis_lab.sae import io
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.trainer_config import TrainerConfig

FOLDER = "snapshots"


def snapshot_steps(config: TrainerConfig) -> frozenset[int]:
    """Steps taken when a copy is due: evenly spaced, the first 0. The last is the trained SAE itself."""
    n = config.n_snapshots
    return frozenset(round(place * config.n_steps / (n - 1)) for place in range(n - 1)) if n else frozenset()


def save_snapshot(sae: Autoencoder, folder: Path, step: int) -> None:
    """Keep `sae` as it is after `step` steps, in the SAE's own `folder`."""
    io.save(sae, folder / FOLDER / f"{step:08d}")


def snapshots(folder: Path) -> dict[int, Path]:
    """Steps taken → folder of the copy, for all that were kept; steps rise."""
    return {int(path.name): path for path in sorted((folder / FOLDER).glob("[0-9]*"))}


def remove_snapshots(folder: Path) -> None:
    """Remove what a run left that is started anew."""
    shutil.rmtree(folder / FOLDER, ignore_errors=True)
