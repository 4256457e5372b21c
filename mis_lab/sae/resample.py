"""Resampling: features that stayed silent for a window are started anew.

Bricken et al. 2023, "Towards Monosemanticity" (app. "Neuron resampling"): directions of badly reconstructed vectors.
Toussaint 2024: fresh random rows, on a schedule of windows. Which features it took is kept (``dead_features.json``).
"""

# N vectors  D site width  F features  K features to revive

from __future__ import annotations

import math
from typing import TYPE_CHECKING

import torch
import torch.nn.functional as F
from torch import Tensor

from mis_lab.core.seeding import generator
from mis_lab.sae.base import Autoencoder, Sae, Vectors
from mis_lab.sae.trainer_config import ResamplingConfig, ResamplingKind

if TYPE_CHECKING:
    from mis_lab.sae.training import Training


class Resampler:
    """Revives dead features when they are due.

    Args:
        vectors: where badly reconstructed vectors are looked for.
        seed: of new directions; a function of it and of the step, so that a resumed run draws the same.

    Attributes:
        revived: step → features revived after it, rising.
    """

    def __init__(self, config: ResamplingConfig, vectors: Vectors, seed: int) -> None:
        self.config, self.vectors, self.seed = config, vectors, seed
        self.revived: dict[int, Tensor] = {}

    def window(self, step: int) -> int | None:
        """How many steps features must have been silent for if resampling is due after `step` steps; else None.

        With `every` = n that is n + 1 steps, after 2n + 1, 4n + 1, ... steps.
        """
        n = self.config.every
        if n and step > 1 and (step - 1) % (2 * n) == 0:
            return n + 1
        return self.config.window if step in self.config.at else None

    @torch.no_grad()
    def after(self, training: Training) -> None:
        """Revive what is dead, if it is time to."""
        window = self.window(training.step)
        if window is None:
            return
        vectors_a_step = training.n_seen // training.step
        features = (training.silent_f >= window * vectors_a_step).nonzero().squeeze(1)
        self.revived[training.step] = features.cpu()
        if len(features):
            living_f = torch.ones_like(training.silent_f, dtype=torch.bool)
            living_f[features] = False
            self._revive(training.sae, features, living_f, training.step)
            training.forget_moments(features)
            training.silent_f[features] = 0

    def _revive(self, sae: Autoencoder, features: Tensor, living_f: Tensor, step: int) -> None:
        if not isinstance(sae, Sae):
            sae.revive(features, torch.empty(0), torch.empty(0), torch.empty(0))  # which says that it cannot
            return
        random = generator(self.seed, "resampling", step)
        # Without a living feature there is no norm to go by: rows start as at the beginning, at norm 1.
        any_living = bool(living_f.any())
        norm = float(sae.W_enc[living_f].norm(dim=1).mean()) if any_living else 1.0
        bias = float(sae.b_enc[living_f].abs().mean()) if any_living and self.config.living_bias else 0.0
        if self.config.kind is ResamplingKind.loss:
            atoms_kd = encoder_kd = self._badly_reconstructed(sae, len(features), random)
        else:
            encoder_kd = _kaiming(len(features), sae.width, random).to(sae.W_enc)
            atoms_kd = _kaiming(len(features), sae.atoms.shape[1], random).to(sae.atoms)
        if self.config.encoder_scale:
            encoder_kd = F.normalize(encoder_kd, dim=1) * (self.config.encoder_scale * norm)
        sae.revive(features, encoder_kd, atoms_kd, torch.full_like(sae.b_enc[features], bias))

    def _badly_reconstructed(self, sae: Sae, n: int, random: torch.Generator) -> Tensor:
        """(n, D): vectors less b_dec, drawn with probability ∝ (squared error)²; without repeats where there are n."""
        x_nd = self.vectors.sample(self.config.n_vectors)
        loss_n = (sae.target(x_nd) - sae(sae.source(x_nd)).reconstruction).square().sum(1).double().cpu()
        weights_n = loss_n.square()
        if not float(weights_n.sum()) > 0:  # a perfect reconstruction: any vector is as good
            weights_n = torch.ones_like(weights_n)
        enough = int((weights_n > 0).sum()) >= n
        chosen = torch.multinomial(weights_n, n, replacement=not enough, generator=random)
        return sae.normalise(sae.source(x_nd)[chosen.to(x_nd.device)]) - sae.b_dec

    def state(self) -> dict[str, Tensor]:
        return {str(step): features for step, features in self.revived.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        self.revived = {int(step): features for step, features in sorted(state.items(), key=lambda item: int(item[0]))}


def _kaiming(n: int, fan_in: int, random: torch.Generator) -> Tensor:
    """(n, fan_in) uniform in ±√(6 / fan_in) (He et al. 2015)."""
    return (torch.rand(n, fan_in, generator=random) * 2 - 1) * math.sqrt(6 / fan_in)
