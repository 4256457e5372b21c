"""Streaming statistics in float64: any chunking of the same vectors gives the same result to 1e-9 relative.

Chan, Golub and LeVeque (1983), "Algorithms for computing the sample variance": chunks are reduced around their own
mean and merged, so that nothing cancels when the mean is large against the spread.
"""

# B vectors in a chunk  D width

from __future__ import annotations

from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass
class Moments:
    """Count, mean and summed squared deviation per dimension of the vectors seen so far.

    Attributes:
        count: number of vectors.
        mean: (D,) float64.
        squared_deviation: (D,) float64, Σ(x − mean)².
        minimum, maximum: (D,) float64.
    """

    count: int = 0
    mean: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    squared_deviation: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    minimum: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))
    maximum: Tensor = field(default_factory=lambda: torch.zeros(0, dtype=torch.float64))

    def update(self, x_bd: Tensor) -> None:
        """Add vectors (B, D)."""
        if x_bd.shape[0] == 0:
            return
        x = x_bd.detach().to(device="cpu", dtype=torch.float64)
        mean = x.mean(0)
        self.merge(Moments(x.shape[0], mean, (x - mean).square().sum(0), x.amin(0), x.amax(0)))

    def merge(self, other: Moments) -> None:
        """Add what `other` has seen."""
        if other.count == 0:
            return
        if self.count == 0:
            self.count, self.mean, self.squared_deviation = other.count, other.mean, other.squared_deviation
            self.minimum, self.maximum = other.minimum, other.maximum
            return
        count = self.count + other.count
        delta = other.mean - self.mean
        self.mean = self.mean + delta * (other.count / count)
        self.squared_deviation = (
            self.squared_deviation + other.squared_deviation + delta.square() * (self.count * other.count / count)
        )
        self.minimum = torch.minimum(self.minimum, other.minimum)
        self.maximum = torch.maximum(self.maximum, other.maximum)
        self.count = count

    @property
    def variance(self) -> Tensor:
        """(D,) population variance (divides by the count)."""
        return self.squared_deviation / max(self.count, 1)

    def state(self) -> dict[str, Tensor]:
        """Tensors to write; :meth:`from_state` reads them back."""
        return {
            "count": torch.tensor(self.count, dtype=torch.int64),
            "mean": self.mean,
            "squared_deviation": self.squared_deviation,
            "minimum": self.minimum,
            "maximum": self.maximum,
        }

    @classmethod
    def from_state(cls, state: dict[str, Tensor]) -> Moments:
        """Read back what :meth:`state` gave."""
        return cls(int(state["count"]), state["mean"], state["squared_deviation"], state["minimum"], state["maximum"])
