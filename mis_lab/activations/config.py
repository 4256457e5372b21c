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
        memory_mib: how much of the activations the loader holds in memory at once to shuffle.
    """

    precision: Precision = Precision.float32
    shard_mib: int = field(default=256, metadata=NO_EFFECT)
    batch_size: int = field(default=64, metadata=NO_EFFECT)
    workers: int = field(default=0, metadata=NO_EFFECT)
    memory_mib: int = 2048

    def __post_init__(self) -> None:
        if min(self.shard_mib, self.batch_size, self.memory_mib) < 1 or self.workers < 0:
            raise ConfigError(f"activations needs positive sizes, got {self}")
