"""Tensors on disk as safetensors, and their content hash."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from pathlib import Path

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from mis_lab.core.errors import StoreError
from mis_lab.core.files import full_disk_is_told


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, str] | None = None) -> None:
    """Write named tensors (any device, any layout) to a safetensors file."""
    path.parent.mkdir(parents=True, exist_ok=True)
    ready = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    with full_disk_is_told(path):
        path.touch()
        mode = path.stat().st_mode
        save_file(ready, str(path), metadata=dict(metadata) if metadata else None)
        path.chmod(mode)  # safetensors lets nobody else read; a store may be shared


def read_tensors(path: Path) -> dict[str, Tensor]:
    """Named tensors of a safetensors file, on the CPU.

    Raises:
        StoreError: when the file is missing or truncated.
    """
    if not path.exists():
        raise StoreError(f"no tensor file {path}")
    try:
        return load_file(str(path))
    except SafetensorError as error:
        raise StoreError(
            f"{path} is damaged ({error})", fix="'mis-lab store verify' finds every damaged artifact."
        ) from error


def hash_tensors(tensors: Mapping[str, Tensor]) -> str:
    """sha256 over names, types, shapes and bytes, in the order of the names."""
    digest = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].detach().cpu().contiguous()
        digest.update(f"{name}|{tensor.dtype}|{tuple(tensor.shape)}|".encode())
        digest.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes() if tensor.numel() else b"")
    return digest.hexdigest()
