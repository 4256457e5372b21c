"""What the benchmarks of scoring at scale share: made-up activations and embeddings, clocks and memory."""

# n images  d width of the embedding  U units  B images of a chunk

from __future__ import annotations

import statistics
import time
from collections.abc import Iterator, Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.core.seeding import generator
from mis_lab.metric.base import Embedding

TEMPERATURE = 0.16  # of DreamSim, so that none is measured


class Stream:
    """Normal activations, made as they are asked for, where a run has stored ones.

    Attributes:
        seconds: CPU seconds that making them took so far.
    """

    n_positions = 1

    def __init__(self, n_images: int, n_units: int, seed: int = 0) -> None:
        self.n_images, self.width, self.site = n_images, n_units, SimpleNamespace(path="stream")
        self.ids = names(n_images)
        self.groups, self._seed, self.seconds = self.ids, seed, 0.0

    def images(self, batch: int) -> Iterator[tuple[range, Tensor]]:
        random = generator(self._seed, "stream")
        for start in range(0, self.n_images, batch):
            indices = range(start, min(start + batch, self.n_images))
            before = time.process_time()
            x_bpd = torch.randn(len(indices), 1, self.width, generator=random)
            self.seconds += time.process_time() - before
            yield indices, x_bpd


class Held(Stream):
    """Activations (n, U) that are there already."""

    def __init__(self, a_nu: Tensor) -> None:
        super().__init__(*a_nu.shape)
        self.a_nu = a_nu

    def images(self, batch: int) -> Iterator[tuple[range, Tensor]]:
        for start in range(0, self.n_images, batch):
            indices = range(start, min(start + batch, self.n_images))
            yield indices, self.a_nu[indices.start : indices.stop, None]


class Spread(NamedTuple):
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def names(n_images: int) -> list[str]:
    return [f"image {image:06d}" for image in range(n_images)]


def random_rows(n_images: int, width: int, seed: int = 0) -> Tensor:
    """(n, d) unit vectors, uniform on the sphere, made in place."""
    rows_nd = torch.randn(n_images, width, generator=generator(seed, "rows"))
    return rows_nd.div_(rows_nd.norm(dim=1, keepdim=True))


def embedding_of(rows_nd: Tensor) -> Embedding:
    return Embedding("simulated", names(len(rows_nd)), "cosine", 1.0, "", rows=rows_nd)


def resident_mib(name: str) -> float:
    """``VmRSS``, the memory held now, or ``VmHWM``, the most ever held by this process (Linux)."""
    lines = Path("/proc/self/status").read_text(encoding="utf-8").splitlines()
    return next(int(line.split()[1]) for line in lines if line.startswith(name + ":")) / 1024


def verdict(what: str, value: float, sign: str, limit: float) -> bool:
    """Print one line of a gate; whether it holds."""
    holds = value <= limit if sign == "<=" else value >= limit
    print(f"{what}: {value:.3g} (gate {sign} {limit:g}) {'PASS' if holds else 'FAIL'}", flush=True)
    return holds
