"""Options of activations and image pools (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT


class Precision(Enum):
    float32 = 0
    float16 = 1


class ImageActivation(Enum):
    """How a unit's activation map becomes one number an image: spatial mean or maximum."""

    mean = 0
    max = 1


@dataclass
class ActivationsConfig:
    """Extraction and storage.

    Attributes:
        precision: of the stored numbers; float16 halves the disk.
        shard_mib: size of one shard file.
        batch_size, workers: of the forward passes.
        live: train SAEs on activations that are computed when needed, with nothing of the split ``train`` on disk. Each
            epoch is a pass through the network again, unless all fits into `memory_mib`.
        memory_mib: how much of the activations the loader holds in memory at once to shuffle (the order of
            training depends on it where they do not all fit).
    """

    precision: Precision = Precision.float32
    shard_mib: int = field(default=256, metadata=NO_EFFECT)
    batch_size: int = field(default=64, metadata=NO_EFFECT)
    workers: int = field(default=0, metadata=NO_EFFECT)
    live: bool = False
    memory_mib: int = 2048

    def __post_init__(self) -> None:
        for name in ("shard_mib", "batch_size", "memory_mib"):
            if getattr(self, name) < 1:
                raise ConfigError(f"activations.{name}={getattr(self, name)}: at least 1 is needed")
        if self.workers < 0:
            raise ConfigError(f"activations.workers={self.workers} is negative", fix="Use 0 for none.")
