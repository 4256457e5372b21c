"""Which device to compute on."""

from __future__ import annotations

import torch

from mis_lab.core.errors import ConfigError


def resolve_device(name: str) -> torch.device:
    """The device for ``auto | cpu | cuda | cuda:N | mps``; ``auto`` takes a GPU when there is one.

    Raises:
        ConfigError: for an unknown name or a device that this machine does not have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise ConfigError(f"device={name} is no device", fix="Use auto, cpu, cuda, cuda:N or mps.") from error
    there = {
        "cuda": torch.cuda.is_available() and (device.index or 0) < torch.cuda.device_count(),
        "mps": torch.backends.mps.is_available(),
        "cpu": True,
    }
    if not there.get(device.type, False):
        found = f"{torch.cuda.device_count()} CUDA devices" if device.type == "cuda" else "this machine"
        raise ConfigError(f"device={name} is not available", looked=found, fix="Use device=auto or device=cpu.")
    return device
