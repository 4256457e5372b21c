"""Options out of range fail at once, each with its name."""

from __future__ import annotations

import subprocess
import sys

import pytest

from mis_lab.circuit.config import Baseline, CircuitConfig, EdgeMethod, EffectMethod, Objective, Pairing, Target
from mis_lab.core.errors import ConfigError


@pytest.mark.parametrize("name", ["n_steps", "sizes", "n_random", "n_shown", "edges_per_node", "batch_size"])
def test_numbers_of_things_are_positive(name: str) -> None:
    with pytest.raises(ConfigError, match=rf"circuit.{name}=0: at least 1"):
        CircuitConfig(**{name: 0})


@pytest.mark.parametrize("name", ["n_discovery", "n_evaluation", "n_edge_images"])
def test_zero_images_means_all_and_less_is_an_error(name: str) -> None:
    CircuitConfig(**{name: 0})
    with pytest.raises(ConfigError, match=rf"circuit.{name}=-1 is negative.*Use 0 for all"):
        CircuitConfig(**{name: -1})


@pytest.mark.parametrize("name", ["check_edges", "n_exact", "n_map_images"])
def test_zero_leaves_a_measure_out_and_less_is_an_error(name: str) -> None:
    CircuitConfig(**{name: 0})
    with pytest.raises(ConfigError, match=rf"circuit.{name}=-1 is negative.*Use 0 to leave it out"):
        CircuitConfig(**{name: -1})


@pytest.mark.parametrize("value", [0.0, -1.0, float("nan")])
def test_min_effect_is_positive(value: float) -> None:
    with pytest.raises(ConfigError, match=r"circuit\.min_effect"):
        CircuitConfig(min_effect=value)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"target": Target.chosen}, "circuit.target_class is what circuit.target=chosen needs"),
        ({"target_class": "3"}, "circuit.target_class is what circuit.target=chosen needs"),
        ({"pairs_file": "pairs.csv"}, "circuit.pairs_file is what circuit.baseline=counterfactual"),
        ({"baseline": Baseline.counterfactual, "pairing": Pairing.file}, "circuit.pairs_file is what"),
        ({"baseline": Baseline.resample, "pairs_file": "p.csv"}, "circuit.pairs_file is what"),
        ({"objective": Objective.kl, "method": EffectMethod.atp}, "circuit.method=atp takes the gradient at the image"),
        ({"edges": EdgeMethod.exact, "check_edges": 2}, "circuit.check_edges compares linear edges"),
        ({"edges": EdgeMethod.none, "check_edges": 2}, "circuit.check_edges compares linear edges"),
        ({"other_class": "2"}, "circuit.other_class is for circuit.objective=logit_diff, not logit"),
    ],
)
def test_options_that_go_together_come_together(options: dict, message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        CircuitConfig(**options)


def test_options_that_go_together_do() -> None:
    CircuitConfig(target=Target.chosen, target_class="3", objective=Objective.logit_diff, other_class="2")
    CircuitConfig(baseline=Baseline.counterfactual, pairing=Pairing.file, pairs_file="pairs.csv")


def test_options_load_without_torch() -> None:
    code = "import sys, mis_lab.circuit.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
