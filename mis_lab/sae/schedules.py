"""What changes with the step of a training run: learning rate, weight of the sparsity penalty, k."""

from __future__ import annotations

import math

import numpy as np

from mis_lab.sae.trainer_config import TrainerConfig


def learning_rate(config: TrainerConfig, n_features: int, step: int) -> float:
    """Rate of step number `step`: rises linearly over `warmup`, falls linearly to 0 over `decay` at the end.

    Its largest value is `lr`, times √(lr_features / n_features) where `lr_features` is given.
    """
    peak = config.lr * (math.sqrt(config.lr_features / n_features) if config.lr_features else 1.0)
    rise = (step + 1) / max(1.0, config.warmup * config.n_steps)
    fall = (config.n_steps - step) / max(1.0, config.decay * config.n_steps)
    return peak * min(1.0, rise, fall)


def sparsity_factor(config: TrainerConfig, step: int) -> float:
    """Factor of sparsity penalties at step number `step`: by `sparsity_schedule`, constant before its first and after
    its last point; without one it rises linearly from 0 to 1 over `sparsity_warmup`."""
    if config.sparsity_schedule:
        shares, factors = zip(*config.sparsity_schedule, strict=True)
        return float(np.interp(step / config.n_steps, shares, factors))
    n_rising = config.sparsity_warmup * config.n_steps
    return min(1.0, step / n_rising) if n_rising else 1.0


def k_factor(config: TrainerConfig, step: int) -> float:
    """Factor of k at step number `step`: falls linearly from `k_start` to 1 over `k_anneal`."""
    n_falling = config.k_anneal * config.n_steps
    return 1.0 + (config.k_start - 1.0) * max(0.0, 1.0 - step / n_falling) if n_falling else 1.0
