"""Schedules of learning rate, sparsity and k."""

from __future__ import annotations

from dataclasses import replace

import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.sae.schedules import k_factor, learning_rate, sparsity_factor
from mis_lab.sae.trainer_config import TrainerConfig


def test_learning_rate_rises_stays_and_falls() -> None:
    config = TrainerConfig(n_vectors=1000, batch_size=10, lr=2.0, lr_features=0, warmup=0.1, decay=0.2)
    rates = [learning_rate(config, 7, step) for step in range(100)]
    assert rates[:10] == pytest.approx([0.2 * (step + 1) for step in range(10)])
    assert rates[10:80] == [2.0] * 70
    assert rates[80:] == pytest.approx([0.1 * (100 - step) for step in range(80, 100)])
    flat = replace(config, warmup=0.0, decay=0.0)
    assert [learning_rate(flat, 7, step) for step in (0, 50, 99)] == [2.0] * 3


def test_learning_rate_falls_with_the_root_of_the_number_of_features() -> None:
    config = TrainerConfig(n_vectors=1000, batch_size=10, lr=1.0, lr_features=256)
    assert [learning_rate(config, n, 50) for n in (64, 256, 1024)] == [2.0, 1.0, 0.5]


def test_sparsity_rises_from_nothing_to_all() -> None:
    config = TrainerConfig(n_vectors=1000, batch_size=10, sparsity_warmup=0.1)
    assert [sparsity_factor(config, step) for step in (0, 5, 10, 99)] == [0.0, 0.5, 1.0, 1.0]
    assert sparsity_factor(replace(config, sparsity_warmup=0.0), 0) == 1.0


def test_a_sparsity_schedule_is_linear_between_its_points() -> None:
    config = TrainerConfig(n_vectors=1000, batch_size=10, sparsity_schedule=[[0.1, 0.0], [0.5, 2.0], [0.9, 1.0]])
    found = [sparsity_factor(config, step) for step in (0, 10, 30, 50, 70, 90, 99)]
    assert found == pytest.approx([0.0, 0.0, 1.0, 2.0, 1.5, 1.0, 1.0])


@pytest.mark.parametrize("points", [[[0.5]], [[0.5, 1.0, 2.0]], [[0.5, 1.0], [0.5, 2.0]], [[0.5, -1.0]], [[-0.1, 1.0]]])
def test_a_schedule_that_is_none_is_refused(points: list[list[float]]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.sparsity_schedule"):
        TrainerConfig(sparsity_schedule=points)


def test_k_falls_from_its_start_to_its_value() -> None:
    config = TrainerConfig(n_vectors=1000, batch_size=10, k_start=5.0, k_anneal=0.4)
    assert [k_factor(config, step) for step in (0, 10, 20, 40, 99)] == pytest.approx([5.0, 4.0, 3.0, 1.0, 1.0])
    assert k_factor(replace(config, k_anneal=0.0), 0) == 1.0


@pytest.mark.parametrize("options", [{"k_start": 0.5}, {"k_anneal": 1.5}])
def test_a_k_that_would_not_fall_is_refused(options: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match=r"trainer\.k_start"):
        TrainerConfig(**options)  # type: ignore[arg-type]
