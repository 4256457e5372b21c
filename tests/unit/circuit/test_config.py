"""Options out of range fail at once, each with its name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mis_lab.circuit.config import CircuitConfig
from mis_lab.core.errors import ConfigError


@pytest.mark.parametrize("name", ["n_steps", "sizes", "n_random", "n_bootstrap", "n_shown", "batch_size"])
def test_numbers_of_things_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"circuit.{name}=0: at least 1"):
        CircuitConfig(**{name: 0})


@pytest.mark.parametrize("name", ["n_discovery", "n_evaluation"])
def test_zero_images_means_all_and_less_is_an_error(name: str) -> None:
    CircuitConfig(**{name: 0})
    with pytest.raises(ConfigError, match=rf"circuit.{name}=-1 is negative.*Use 0 for all"):
        CircuitConfig(**{name: -1})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_min_effect_is_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=r"circuit\.min_effect"):
        CircuitConfig(min_effect=value)


def test_options_load_without_torch() -> None:
    code = "import sys, mis_lab.circuit.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
