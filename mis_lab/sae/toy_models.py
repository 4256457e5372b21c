"""Toy models of superposition, whose true features are known: a test of every SAE before it meets a real network.

F sparse features are squeezed into D < F dimensions and read out again, x' = ReLU(WᵀWx + b) (Elhage et al. 2022, "Toy
Models of Superposition"). An SAE trained on the hidden vectors h = Wx should find the columns of W.
"""

# N vectors  F features of the toy world  D hidden dimensions  R restarts

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.base import Sae
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.reconstructions import VectorsInMemory
from mis_lab.sae.stability import match

REPRESENTED = 0.5  # norm above which a toy model represents a feature at all
N_JUDGED = 16  # batches of N_JUDGED_EACH vectors that choose among restarts
N_JUDGED_EACH = 4096


@dataclass(frozen=True)
class ToyModel:
    """A world of sparse features and the model that squeezes them.

    Attributes:
        directions_fd: (F, D), the columns of W: feature i adds x_i · directions_fd[i] to the hidden vector.
        bias_f: (F,) b.
        importance_f: (F,) weights of the squared errors.
        density: probability that a feature is active; then it is uniform in [0, 1].
        loss: mean over vectors of Σ_i importance_i · (x_i − x'_i)².
    """

    directions_fd: Tensor
    bias_f: Tensor
    importance_f: Tensor
    density: float
    loss: float

    @property
    def represented_f(self) -> Tensor:
        """(F,) bool, features of length above ½; the others the model gives up."""
        norm_f: Tensor = self.directions_fd.norm(dim=1)
        return norm_f > REPRESENTED

    def draw(self, n: int, random: torch.Generator) -> Tensor:
        """(n, F) features of a new sample."""
        return _draw((n, len(self.directions_fd)), self.density, random)

    def hidden(self, x_nf: Tensor) -> Tensor:
        """(N, D): h = Wx."""
        return x_nf @ self.directions_fd

    def output(self, h_nd: Tensor) -> Tensor:
        """(N, F): ReLU(Wᵀh + b)."""
        return (h_nd @ self.directions_fd.T + self.bias_f).relu()


def train_toy_model(
    n_features: int,
    n_hidden: int,
    seed: int,
    *,
    density: float = 0.05,
    importance: float | Tensor = 1.0,
    n_steps: int = 2000,
    batch_size: int = 512,
    lr: float = 1e-2,
    n_restarts: int = 8,
) -> ToyModel:
    """Train a toy model; of several trained side by side on the same vectors the one with the lowest loss is kept.

    Args:
        density: probability that a feature is active, 1 − S of the paper.
        importance: weight of feature i as importance^i, or (F,) weights.
        lr: of Adam, falling to 0 linearly.

    Raises:
        ConfigError: when a number is out of range.
    """
    if not (n_features > 0 and n_hidden > 0 and n_steps > 0 and batch_size > 0 and n_restarts > 0 and lr > 0):
        raise ConfigError("a toy model needs positive numbers of features, dimensions, steps, vectors and restarts")
    if not 0 < density <= 1:
        raise ConfigError(f"density={density} of a toy model must lie in (0, 1]")
    importance_f = importance if isinstance(importance, Tensor) else importance ** torch.arange(n_features).float()
    if importance_f.shape != (n_features,) or not (importance_f >= 0).all():
        raise ConfigError(f"a toy model of {n_features} features needs as many importances, none negative")

    start = torch.randn(n_restarts, n_features, n_hidden, generator=generator(seed, "toy model", "start"))
    w_rfd = (start * (2 / (n_features + n_hidden)) ** 0.5).requires_grad_()
    b_rf = torch.zeros(n_restarts, n_features, requires_grad=True)
    optimizer = torch.optim.Adam([w_rfd, b_rf], lr)
    random = generator(seed, "toy model", "training")
    for step in range(n_steps):
        optimizer.param_groups[0]["lr"] = lr * (1 - step / n_steps)
        optimizer.zero_grad()
        loss_r = _losses(w_rfd, b_rf, _draw((batch_size, n_features), density, random), importance_f)
        loss_r.sum().backward()
        optimizer.step()
    with torch.no_grad():
        random = generator(seed, "toy model", "judged")
        judged = (_draw((N_JUDGED_EACH, n_features), density, random) for _ in range(N_JUDGED))
        loss_r = torch.stack([_losses(w_rfd, b_rf, x_nf, importance_f) for x_nf in judged]).mean(0)
        best = int(loss_r.argmin())
    return ToyModel(w_rfd[best].detach(), b_rf[best].detach(), importance_f, density, float(loss_r[best]))


def _losses(w_rfd: Tensor, b_rf: Tensor, x_nf: Tensor, importance_f: Tensor) -> Tensor:
    """(R,) loss of every restart."""
    output_rnf = ((x_nf @ w_rfd) @ w_rfd.mT + b_rf[:, None]).relu()
    return (importance_f * (x_nf - output_rnf).square()).sum(2).mean(1)


def _draw(shape: tuple[int, int], density: float, random: torch.Generator) -> Tensor:
    active = torch.rand(shape, generator=random) < density
    return active * torch.rand(shape, generator=random)


class ToyVectors:
    """Hidden vectors of a toy model as batches to train an SAE on (:class:`mis_lab.sae.base.Vectors`); each batch is
    drawn anew, a function of its step."""

    def __init__(self, model: ToyModel, n_vectors: int, batch_size: int, seed: int) -> None:
        self.model, self.n_vectors, self.batch_size, self.seed = model, n_vectors, batch_size, seed

    @property
    def directions_fd(self) -> Tensor:
        """The true directions: those that the model represents."""
        return self.model.directions_fd[self.model.represented_f]

    def batch(self, step: int) -> Tensor:
        return self._hidden(self.batch_size, "batch", step)

    def sample(self, n: int) -> Tensor:
        return self._hidden(n, "sample")

    def held_out(self, n: int) -> VectorsInMemory:
        """Other vectors, as stored activations."""
        return VectorsInMemory(self._hidden(n, "held out"))

    def _hidden(self, n: int, *scope: str | int) -> Tensor:
        return self.model.hidden(self.model.draw(n, generator(self.seed, "toy vectors", *scope)))


@dataclass(frozen=True)
class Recovery:
    """How much of a known truth an SAE found.

    Attributes:
        name: of the SAE.
        mcc: mean |cosine| of the matched directions.
        recovered: share of the true directions with a |cosine| above .9.
        fvu, l0: on vectors it was not trained on.
        n_true: true directions.
    """

    name: str
    mcc: float
    recovered: float
    fvu: float
    l0: float
    n_true: int


def recovery_table(saes: Mapping[str, Sae], vectors: ToyVectors, n_held_out: int = 4096) -> list[Recovery]:
    """A row for each SAE, by name, all on the same vectors."""
    held_out = vectors.held_out(n_held_out)
    rows = []
    for name, sae in saes.items():
        matching = match(sae.dictionary, vectors.directions_fd)
        quality = evaluate_reconstruction(sae, held_out)
        row = Recovery(name, matching.mcc, matching.recovered_of_b(), quality.fvu, quality.l0, matching.n_b)
        rows.append(row)
    return rows
