"""Our side of the comparisons: every architecture under the name of its preset, in one table.

A name is used as soon as ``conf/sae/<name>.yaml`` exists; options come from the presets, so what is measured is what a
user gets.
"""

from __future__ import annotations

from typing import NamedTuple

import hydra

from mis_lab import config


class Architecture(NamedTuple):
    """What the benchmarks must know about an architecture beside its preset.

    Attributes:
        has_k: whether `sae.k` sets the number of active features.
        penalty: option of the sparsity penalty's weight, where that decides.
        options: beside its preset's, where the known dictionary is learnt (recovery.py).
    """

    has_k: bool = False
    penalty: str = ""
    options: tuple[str, ...] = ()


# All that are trained by steps and read single vectors; those without gates come last.
ARCHITECTURES = {
    "relu": Architecture(penalty="l1"),
    "topk": Architecture(has_k=True),
    "batch_topk": Architecture(has_k=True),
    "jump_relu": Architecture(penalty="sparsity"),
    "gated": Architecture(penalty="l1"),
    "matryoshka": Architecture(has_k=True),
    "relu_april": Architecture(penalty="l1"),
    "jump_relu_tanh": Architecture(penalty="sparsity"),
    "archetypal": Architecture(has_k=True),
    "frozen_decoder": Architecture(has_k=True),
}


def available() -> list[str]:
    """Architectures whose preset is there."""
    return [name for name in ARCHITECTURES if (config.conf_dir() / "sae" / f"{name}.yaml").exists()]


def sizes(name: str, n_features: int, k: int) -> list[str]:
    """Overrides that give architecture `name` its number of features and, where it has one, its k."""
    return [f"sae.n_features={n_features}", *([f"sae.k={k}"] if ARCHITECTURES[name].has_k else [])]


def recipe(name: str, *overrides: str) -> config.RunConfig:
    """The presets of `name` and of the trainer (`sae` and `trainer` of a run), with `overrides` on top."""
    config.register()
    with hydra.initialize_config_dir(str(config.conf_dir()), version_base="1.3"):
        return config.validate(hydra.compose("config", [f"sae={name}", *overrides]))
