"""Checkpoints of a training run: everything a step reads or writes, in one file that is there whole or not at all."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

import torch
from torch import Tensor

from mis_lab.core.errors import StoreError
from mis_lab.core.tensors import read_tensors, write_tensors

CHECKPOINT = "checkpoint.safetensors"
_KEY = "key"


def write_checkpoint(folder: Path, state: Mapping[str, Tensor], key: str) -> None:
    """Replace the checkpoint in `folder`; `key` (hexadecimal) says what is being trained."""
    partial = folder / f".{CHECKPOINT}.{os.getpid()}"
    try:
        write_tensors(partial, {**state, _KEY: torch.tensor(list(bytes.fromhex(key)), dtype=torch.uint8)})
        os.replace(partial, folder / CHECKPOINT)
    finally:
        partial.unlink(missing_ok=True)


def read_checkpoint(folder: Path, key: str) -> dict[str, Tensor] | None:
    """The state last written to `folder`; None when there is none.

    Raises:
        StoreError: when the file is damaged, or is of another training run than `key` names.
    """
    path = folder / CHECKPOINT
    if not path.exists():
        return None
    state = read_tensors(path)
    found = bytes(state.pop(_KEY, torch.zeros(0, dtype=torch.uint8)).tolist()).hex()
    if found != key:
        raise StoreError(f"{path} is of another training run", fix="Remove it, or train into another folder.")
    return state


def remove_partial(folder: Path) -> None:
    """Remove what a process left that was killed while it wrote a checkpoint."""
    for path in folder.glob(f".{CHECKPOINT}.*"):
        path.unlink(missing_ok=True)


def remove_checkpoint(folder: Path) -> None:
    """Remove the checkpoint once the result is written."""
    (folder / CHECKPOINT).unlink(missing_ok=True)
