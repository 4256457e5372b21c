"""What the readers of foreign formats share: files read without running anything in them, names and shapes checked."""

# D site width  F features

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any, NamedTuple

import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, StoreError
from mis_lab.core.tensors import read_tensors
from mis_lab.sae.base import Autoencoder, Sae
from mis_lab.sae.config import SaeConfig

SAFETENSORS = ".safetensors"


class Foreign(NamedTuple):
    """An SAE taken over; `site` is where its file says it belongs (empty: not said), `about` what else it tells."""

    sae: Autoencoder
    site: str
    about: Mapping[str, Any]


class State:
    """Tensors of a foreign file, taken by name; what nobody takes is a sign of another architecture.

    Args:
        tensors: by name; floating ones are read as float64, in which everything is folded.
        path: the file, for messages.
    """

    def __init__(self, tensors: Mapping[str, Tensor], path: Path) -> None:
        self._left, self.path = dict(tensors), path

    def __contains__(self, name: str) -> bool:
        return name in self._left

    @property
    def names(self) -> list[str]:
        """What has not been taken yet."""
        return sorted(self._left)

    def take(self, name: str, *shape: int) -> Tensor:
        """The tensor `name`, float64, of this shape (-1: any length).

        Raises:
            StoreError: when there is none, or of another shape.
        """
        if name not in self._left:
            raise StoreError(f"{self.path} has no tensor {name}", looked=", ".join(self.names) or "an empty file")
        tensor = self._left.pop(name)
        expected = tuple(shape)
        fits = tensor.dim() == len(expected) and all(
            want in (-1, have) for want, have in zip(expected, tensor.shape, strict=True)
        )
        if not fits:
            shown = "×".join("any" if want == -1 else str(want) for want in expected) or "a single number"
            raise StoreError(f"{self.path}: {name} is of shape {tuple(tensor.shape)}, not {shown}")
        if not torch.isfinite(tensor).all():
            raise StoreError(f"{self.path}: {name} contains NaN or infinity")
        return tensor.double()

    def finish(self) -> None:
        """Say that nothing may be left.

        Raises:
            StoreError: when something is: the file is of an architecture that this reader does not know.
        """
        if self._left:
            raise StoreError(
                f"{self.path} is of another architecture: nothing here uses its {', '.join(self.names[:6])}"
            )


def read_state(path: Path) -> Mapping[str, Any]:
    """What a tensor file holds: safetensors, or ``torch.save`` of plain containers.

    Raises:
        StoreError: when it is missing, damaged, or holds objects: loading those would run code that came with them.
    """
    if not path.is_file():
        raise StoreError(f"no file {path}")
    if path.suffix == SAFETENSORS:
        return read_tensors(path)
    try:
        held = torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise StoreError(
            f"{path} holds Python objects or is damaged, and is not loaded",
            fix="Where it came from, save module.state_dict() instead, best as safetensors.",
        ) from error
    except (RuntimeError, EOFError, OSError, ValueError, KeyError, IndexError, AttributeError) as error:
        raise StoreError(f"{path} is no readable tensor file ({_first_line(error)})") from error
    if not isinstance(held, Mapping):
        raise StoreError(f"{path} holds a {type(held).__name__}, not a state dict")
    return held


def tensors_of(state: Mapping[str, Any], path: Path) -> State:
    """The state dict in `state`.

    Raises:
        StoreError: when an entry is no tensor.
    """
    for name, value in state.items():
        if not isinstance(value, Tensor):
            raise StoreError(f"{path} is no state dict: {name} is a {type(value).__name__}")
    return State(state, path)


@torch.no_grad()
def make(config: SaeConfig, width: int, **tensors: Tensor) -> Sae:
    """An SAE of ours with these parameters and buffers, as float32; those not given stay as they are made."""
    sae: Sae = build(config, width=width)
    own = sae.state_dict()
    for name, tensor in tensors.items():
        own[name].copy_(tensor)
    return sae.eval().requires_grad_(False)


def inclusive(threshold: Tensor) -> Tensor:
    """Threshold of ``pre > ·`` that keeps what ``pre >= threshold`` keeps of float32, and never what is negative."""
    threshold = threshold.float()
    return torch.nextafter(threshold, torch.full_like(threshold, -torch.inf)).clamp_min(0.0)


class Settings:
    """What a file does not say and the user adds, as ``--set name=value``.

    Raises:
        ConfigError: for a name that the format does not have.
    """

    def __init__(self, format_name: str, given: Mapping[str, str], known: Mapping[str, str]) -> None:
        self._given, self._known, self._format = given, known, format_name
        if unknown := sorted(set(given) - set(known)):
            raise ConfigError(
                f"format {format_name} has no setting {', '.join(unknown)}",
                fix=f"It has {', '.join(known)}." if known else "It has none.",
            )

    def __contains__(self, name: str) -> bool:
        return name in self._given

    def choice(self, name: str, choices: tuple[str, ...], default: str | None) -> str:
        value = self._needed(name) if default is None else self._given.get(name, default)
        if value not in choices:
            raise ConfigError(f"--set {name}={value}", fix=f"Use one of {', '.join(choices)}.")
        return value

    def integer(self, name: str) -> int:
        value = self._needed(name)
        if not value.isdecimal() or int(value) < 1:
            raise ConfigError(f"--set {name}={value}: a positive whole number is needed ({self._known[name]})")
        return int(value)

    def number(self, name: str) -> float:
        value = self._needed(name)
        try:
            number = float(value)
        except ValueError:
            number = float("nan")
        if number - number != 0:  # NaN or infinity
            raise ConfigError(f"--set {name}={value}: a number is needed ({self._known[name]})")
        return number

    def _needed(self, name: str) -> str:
        if name not in self._given:
            raise ConfigError(
                f"a file of {self._format} does not say {name}, {self._known[name]}", fix=f"Add --set {name}=VALUE."
            )
        return self._given[name]


def _first_line(error: BaseException) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
