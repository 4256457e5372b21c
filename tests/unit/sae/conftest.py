"""Stand-ins for the vector loader and for stored activations, in memory."""

# N vectors  B images  P positions  D width  F features

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field

import pytest
import torch
from torch import Tensor

from mis_lab.core.seeding import generator
from mis_lab.core.statistics import Moments
from mis_lab.sae.base import Losses, Sae, StepInfo


@dataclass
class Vectors:
    """Batches of given vectors, a function of the step."""

    x_nd: Tensor
    batch_size: int = 64
    asked: list[int] = field(default_factory=list)

    @property
    def n_vectors(self) -> int:
        return len(self.x_nd)

    def batch(self, step: int) -> Tensor:
        self.asked.append(step)
        order = torch.randperm(len(self.x_nd), generator=generator(step, "order"))
        return self.x_nd[order[: self.batch_size]]

    def sample(self, n: int) -> Tensor:
        return self.x_nd[:n]


class Stored:
    """Vectors of some images."""

    def __init__(self, x_bpd: Tensor, groups: Sequence[str] | None = None) -> None:
        self.x_bpd = x_bpd
        self.n_images, self.n_positions, self.width = x_bpd.shape
        self.groups = list(groups or ["all"] * self.n_images)
        self.moments = Moments()
        self.moments.update(x_bpd.flatten(0, 1))

    def take(self, indices: Sequence[int]) -> Tensor:
        return self.x_bpd[list(indices)].float()


class Affine(Sae):
    """x̂ = gain·x + shift: an "SAE" whose quality is known. Codes are the vectors themselves."""

    def __init__(self, width: int, gain: float = 1.0, shift: float | Tensor = 0.0) -> None:
        super().__init__({}, width, n_features=width)
        with torch.no_grad():
            self.W_enc.copy_(torch.eye(width))
            self.W_dec.copy_(gain * torch.eye(width))
            self.b_dec.copy_(torch.as_tensor(shift).expand(width))

    def encode(self, x: Tensor) -> Tensor:
        return x

    def activation(self, pre: Tensor) -> Tensor:
        return pre

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        raise NotImplementedError


def draw(n: int, width: int, seed: int = 0, offset: float = 2.0) -> Tensor:
    """(n, width): sparse mixtures of twice as many directions as dimensions, and a constant."""
    random = torch.Generator().manual_seed(seed)
    atoms_fd = torch.nn.functional.normalize(torch.randn(2 * width, width, generator=random), dim=1)
    fires_nf = torch.rand(n, 2 * width, generator=random) < 3 / (2 * width)
    codes_nf = fires_nf * torch.rand(n, 2 * width, generator=random).add(0.5)
    return 4 * codes_nf @ atoms_fd + offset


@pytest.fixture(scope="session")
def vectors() -> Callable[..., Vectors]:
    return lambda n=512, width=8, batch_size=64, seed=0: Vectors(draw(n, width, seed), batch_size)


@pytest.fixture(scope="session")
def stored() -> type[Stored]:
    return Stored


@pytest.fixture(scope="session")
def affine() -> type[Affine]:
    return Affine


@pytest.fixture(scope="session")
def x_nd() -> Tensor:
    """(256, 8) raw vectors with a mean and a scale."""
    return draw(256, 8, seed=3)


@pytest.fixture
def step() -> Callable[..., StepInfo]:
    """Step information: nothing dead, full sparsity."""

    def make(sae: Sae, dead: Sequence[int] = (), sparsity: float = 1.0) -> StepInfo:
        dead_f = torch.zeros(sae.n_features, dtype=torch.bool)
        dead_f[list(dead)] = True
        return StepInfo(0, sparsity, dead_f)

    return make
