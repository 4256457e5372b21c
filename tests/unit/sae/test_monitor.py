"""Evaluation in the course of training."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from mis_lab.core.build import build
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.monitor import Monitor
from mis_lab.sae.train import EVALUATIONS, FEATURES, train
from mis_lab.sae.trainer_config import TrainerConfig

CONFIG = TrainerConfig(n_vectors=64 * 20, batch_size=64, dead_after=320, log_steps=7, n_evaluations=5)


def test_it_evaluates_before_after_and_evenly_between(vectors: Callable, tmp_path: Path) -> None:
    loader, logged = vectors(), []
    sae = build(TopKConfig(n_features=24, k=3), width=8)
    train(sae, loader, CONFIG, 0, tmp_path, lambda numbers, step: logged.append((step, numbers)), loader.x_nd[:200])
    history = json.loads((tmp_path / EVALUATIONS).read_text())
    assert history["step"] == [0, 5, 10, 15, 20]
    assert history["fvu"][-1] < 0.7 * history["fvu"][0]
    assert [step for step, numbers in logged if "held_out/fvu" in numbers] == [4, 9, 14, 19]
    assert list(json.loads((tmp_path / FEATURES).read_text())["dead"]) == ["0", "5", "10", "15", "20"]


def test_numbers_are_those_of_the_evaluation(stored: type, vectors: Callable) -> None:
    x_nd = vectors().x_nd
    sae = build(TopKConfig(n_features=24, k=3), width=8)
    sae.initialise(x_nd, torch.Generator().manual_seed(0))
    told = Monitor(x_nd, 10, 3).look(sae, 0, torch.zeros(24, dtype=torch.bool))
    quality = evaluate_reconstruction(sae, stored(x_nd[:, None]))
    assert told["held_out/fvu"] == pytest.approx(quality.fvu, rel=1e-5)
    assert told["held_out/l0"] == pytest.approx(quality.l0)
    assert told["held_out/silent_share"] == pytest.approx(quality.dead_share)


def test_without_evaluations_nothing_is_looked_at(vectors: Callable, tmp_path: Path) -> None:
    loader = vectors()
    config = TrainerConfig(n_vectors=640, batch_size=64, n_evaluations=0)
    train(build(TopKConfig(n_features=24, k=3), width=8), loader, config, 0, tmp_path, lambda *_: None, loader.x_nd)
    assert not (tmp_path / EVALUATIONS).exists()
