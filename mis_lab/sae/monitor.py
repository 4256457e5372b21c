"""Evaluation in the course of training: before the first step, after the last, and evenly in between."""

# N held-out vectors  D site width  F features

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.sae.base import Autoencoder

CHUNK_VECTORS = 1024


class Monitor:
    """Quality on held-out vectors at a few steps, and which features were dead then.

    Args:
        x_nd: raw held-out vectors (whole images (N, P, D) for an SAE that reads maps).
        n_steps: steps of the whole run.
        n_evaluations: evaluations in all.

    Attributes:
        history: name → values, ``step`` (steps taken by then) among the names: fvu about the held-out vectors' own
            mean, l0, and ``silent_share``, the share of features that fire on none of them.
        dead: steps taken → features dead in training by then.
    """

    def __init__(self, x_nd: Tensor, n_steps: int, n_evaluations: int) -> None:
        self.x_nd = x_nd
        self.steps = {round(share * n_steps) for share in torch.linspace(0, 1, n_evaluations).tolist()}
        self.history: dict[str, list[float]] = {}
        self.dead: dict[int, Tensor] = {}

    def is_due(self, step: int) -> bool:
        return step in self.steps

    @torch.no_grad()
    def look(self, sae: Autoencoder, step: int, dead_f: Tensor) -> dict[str, float]:
        """Evaluate after `step` steps; returns what there is to log."""
        error, n_active = 0.0, 0
        fired_f = torch.zeros(sae.n_features, dtype=torch.bool, device=dead_f.device)
        target_nd = sae.target(self.x_nd).flatten(0, -2)
        mean_d = target_nd.double().mean(0)
        for x_cd in self.x_nd.split(CHUNK_VECTORS):
            reconstruction_cd, codes_cf = sae(sae.source(x_cd))
            error += float((sae.target(x_cd) - reconstruction_cd).double().square().sum())
            active_cf = (codes_cf != 0).flatten(0, -2)
            n_active += int(active_cf.sum())
            fired_f |= active_cf.any(0)
        spread = float((target_nd.double() - mean_d).square().sum())
        numbers = {
            "fvu": error / spread if spread else float("nan"),
            "l0": n_active / len(target_nd),
            "silent_share": float((~fired_f).double().mean()),
        }
        for name, number in {"step": float(step), **numbers}.items():
            self.history.setdefault(name, []).append(number)
        self.dead[step] = dead_f.nonzero().squeeze(1).cpu()
        return {f"held_out/{name}": number for name, number in numbers.items()}

    def state(self) -> dict[str, Tensor]:
        state = {f"history/{name}": torch.tensor(values, dtype=torch.float64) for name, values in self.history.items()}
        return state | {f"dead/{step}": features for step, features in self.dead.items()}

    def restore(self, state: dict[str, Tensor]) -> None:
        for key, value in state.items():
            kind, _, name = key.partition("/")
            if kind == "history":
                self.history[name] = value.tolist()
            else:
                self.dead[int(name)] = value
        self.dead = dict(sorted(self.dead.items()))
