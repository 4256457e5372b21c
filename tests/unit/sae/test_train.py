"""The trainer: schedules, dead features, exact resume, and what it refuses."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError, StoreError
from mis_lab.core.seeding import generator
from mis_lab.sae import io
from mis_lab.sae.base import Losses, Sae, StepInfo
from mis_lab.sae.checkpoint import CHECKPOINT
from mis_lab.sae.config import ReluConfig, SaeConfig, TopKConfig
from mis_lab.sae.schedules import sparsity_factor
from mis_lab.sae.train import FEATURES, LOSSES, train
from mis_lab.sae.trainer_config import SaeOptimizer, TrainerConfig
from mis_lab.sae.training import Training

SAES: dict[str, SaeConfig] = {
    "relu": ReluConfig(n_features=24, l1=0.1),
    "topk": TopKConfig(n_features=24, k=3, aux_k=4),
}
CONFIG = TrainerConfig(
    n_vectors=64 * 24, batch_size=64, lr=1e-2, dead_after=320, checkpoint_steps=5, log_steps=1, sparsity_warmup=0.5
)


def quiet(numbers: Mapping[str, float], step: int) -> None:
    pass


class Killed(Exception):
    pass


def killed_at(step: int) -> Callable[[Mapping[str, float], int], None]:
    def log(numbers: Mapping[str, float], now: int) -> None:
        if now == step:
            raise Killed

    return log


def test_budget_in_steps() -> None:
    assert TrainerConfig(n_vectors=1050, batch_size=100).n_steps == 10
    assert TrainerConfig(n_vectors=10, batch_size=100).n_steps == 1


# Steps


class Scripted(Sae):
    """Fires what it is told; its loss is the squared norm of its weights, or what it is told."""

    def __init__(self, width: int = 4, n_features: int = 3) -> None:
        super().__init__({}, width, n_features)
        self.fires: list[list[int]] = []
        self.loss = 1.0
        self.told: list[StepInfo] = []

    def activation(self, pre: Tensor) -> Tensor:
        return pre

    def step_losses(self, x_nd: Tensor, step: StepInfo) -> Losses:
        self.told.append(step)
        fired_f = torch.zeros(self.n_features, dtype=torch.bool)
        fired_f[self.fires[step.step]] = True
        squared = sum(parameter.square().sum() for parameter in self.parameters())
        return Losses(self.loss * squared, {}, fired_f)


@pytest.fixture
def scripted(x_nd: Tensor) -> Scripted:
    sae = Scripted()
    sae.initialise(x_nd[:, :4], generator(0))
    return sae


def test_dead_are_those_silent_for_the_window(scripted: Scripted) -> None:
    scripted.fires = [[0, 1], [0], [0, 2], [0], [0, 1], [0]]
    training = Training(scripted, TrainerConfig(n_vectors=60, batch_size=10, dead_after=30))
    silent = []
    for _ in scripted.fires:
        training.advance(torch.ones(10, 4))
        silent.append(training.silent_f.tolist())
    assert silent == [[0, 0, 10], [0, 10, 20], [0, 20, 0], [0, 30, 10], [0, 0, 20], [0, 10, 30]]
    assert [step.dead_f.tolist() for step in scripted.told[3:]] == [[False] * 3, [False, True, False], [False] * 3]
    assert training.history["dead_share"][-1] == pytest.approx(1 / 3)
    assert training.n_seen == 60


def test_atoms_stay_at_unit_norm_unless_told_otherwise(vectors: Callable) -> None:
    for unit_norm in (True, False):
        loader = vectors()
        sae = build(SAES["topk"], width=8)
        sae.initialise(loader.sample(512), generator(0))
        training = Training(sae, replace(CONFIG, unit_norm=unit_norm))
        for number in range(10):
            training.advance(loader.batch(number))
        away = (sae.W_dec.detach().norm(dim=1) - 1).abs().max()
        assert away < 1e-6 if unit_norm else away > 1e-4


@pytest.mark.parametrize("unit_norm", [True, False])
def test_the_optimiser_sees_no_gradient_along_the_atoms(vectors: Callable, unit_norm: bool) -> None:
    loader = vectors()
    sae = build(SAES["topk"], width=8)
    sae.initialise(loader.sample(512), generator(0))
    atoms_fd = sae.W_dec.detach().clone()
    training = Training(sae, replace(CONFIG, optimizer=SaeOptimizer.sgd, unit_norm=unit_norm))
    training.advance(loader.batch(0))
    along = (training.optimizer.state[sae.W_dec]["momentum_buffer"] * atoms_fd).sum(1).abs().max()
    assert along < 1e-7 if unit_norm else along > 1e-4


def test_a_clipped_step_is_a_step_along_the_shortened_gradient(scripted: Scripted) -> None:
    scripted.fires = [[0]]
    config = TrainerConfig(
        n_vectors=10,
        batch_size=10,
        optimizer=SaeOptimizer.sgd,
        beta1=0.0,
        lr=1.0,
        lr_features=0,
        warmup=0,
        decay=0,
        clip=0.1,
        unit_norm=False,
    )
    before = torch.cat([parameter.detach().flatten().clone() for parameter in scripted.parameters()])
    logged = Training(scripted, config).advance(torch.ones(10, 4))
    after = torch.cat([parameter.detach().flatten() for parameter in scripted.parameters()])
    gradient = 2 * before
    assert logged is not None
    assert logged["gradient_norm"] == pytest.approx(float(gradient.norm()), rel=1e-5)
    torch.testing.assert_close(before - after, 0.1 * gradient / gradient.norm())


def test_adam_step_is_adams(vectors: Callable) -> None:
    loader = vectors()
    config = replace(CONFIG, clip=0.0, lr_features=0, unit_norm=False, warmup=0.0, decay=0.0)
    one, other = (build(SAES["relu"], width=8) for _ in range(2))
    for sae in (one, other):
        sae.initialise(loader.sample(512), generator(0))
    training = Training(one, config)
    plain = torch.optim.Adam(other.parameters(), lr=1e-2, betas=(0.9, 0.999), eps=6.25e-10)
    for number in range(3):
        training.advance(loader.batch(number))
        plain.zero_grad()
        nothing_dead = torch.zeros(24, dtype=torch.bool)
        step = StepInfo(number, sparsity_factor(config, number), nothing_dead)
        other.step_losses(loader.batch(number), step).total.backward()
        plain.step()
    torch.testing.assert_close(dict(one.named_parameters()), dict(other.named_parameters()))


# Runs


def test_a_run_leaves_sae_and_curves_and_no_checkpoint(vectors: Callable, tmp_path: Path) -> None:
    logged: list[tuple[int, dict[str, float]]] = []
    sae = build(SAES["topk"], width=8)
    config = replace(CONFIG, log_steps=10)
    summary = train(sae, vectors(), config, 0, tmp_path, lambda numbers, step: logged.append((step, dict(numbers))))
    assert sorted(path.name for path in tmp_path.iterdir()) == [FEATURES, LOSSES, "sae.json", "sae.safetensors"]
    assert [step for step, _ in logged] == [0, 10, 20, 23]
    assert set(logged[0][1]) == {"loss", "fvu", "l0", "aux", "gradient_norm", "learning_rate", "dead_share"}
    assert summary.history["step"] == [0, 10, 20, 23]
    assert summary.history["fvu"] == [numbers["fvu"] for _, numbers in logged]
    assert summary.final["loss"] == logged[-1][1]["loss"]
    assert (summary.n_steps, summary.n_vectors) == (24, 24 * 64)
    assert json.loads((tmp_path / LOSSES).read_text()) == summary.history
    assert torch.equal(io.load(tmp_path).W_dec, sae.W_dec)
    assert not sae.training


def test_same_seed_same_sae_other_seed_another(vectors: Callable, tmp_path: Path) -> None:
    found = []
    for number, seed in enumerate((0, 0, 1)):
        sae = build(SAES["topk"], width=8)
        train(sae, vectors(), CONFIG, seed, tmp_path / str(number), quiet)
        found.append(sae.W_dec.detach())
    assert torch.equal(found[0], found[1])
    assert not torch.equal(found[0], found[2])


@pytest.mark.parametrize("optimizer", SaeOptimizer)
@pytest.mark.parametrize("name", SAES)
def test_killed_at_any_step_and_started_again_gives_the_same_to_the_bit(
    vectors: Callable, tmp_path: Path, name: str, optimizer: SaeOptimizer
) -> None:
    config = replace(CONFIG, optimizer=optimizer)
    whole = build(SAES[name], width=8)
    expected = train(whole, vectors(), config, 0, tmp_path / "whole", quiet)
    for step in (0, 4, 5, 9, 13, 22, 23):
        folder = tmp_path / f"killed{step}"
        with pytest.raises(Killed):
            train(build(SAES[name], width=8), vectors(), config, 0, folder, killed_at(step))
        sae, loader = build(SAES[name], width=8), vectors()
        summary = train(sae, loader, config, 0, folder, quiet)
        assert loader.asked[0] == step // 5 * 5  # from the last checkpoint on, not from the start
        assert summary == expected
        for key, tensor in whole.state_dict().items():
            assert torch.equal(tensor, sae.state_dict()[key]), (step, key)


def test_killed_twice(vectors: Callable, tmp_path: Path) -> None:
    whole, sae = (build(SAES["topk"], width=8) for _ in range(2))
    train(whole, vectors(), CONFIG, 0, tmp_path / "whole", quiet)
    for step in (7, 16):
        with pytest.raises(Killed):
            train(build(SAES["topk"], width=8), vectors(), CONFIG, 0, tmp_path / "killed", killed_at(step))
    train(sae, vectors(), CONFIG, 0, tmp_path / "killed", quiet)
    assert torch.equal(whole.W_dec, sae.W_dec)


def test_without_checkpoints_it_starts_again(vectors: Callable, tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_steps=0)
    with pytest.raises(Killed):
        train(build(SAES["topk"], width=8), vectors(), config, 0, tmp_path, killed_at(20))
    loader = vectors()
    train(build(SAES["topk"], width=8), loader, config, 0, tmp_path, quiet)
    assert loader.asked == list(range(24))


@pytest.mark.parametrize("changed", [{"seed": 1}, {"lr": 1e-3}, {"k": 4}, {"n": 400}])
def test_a_checkpoint_of_other_options_is_refused(vectors: Callable, tmp_path: Path, changed: dict[str, Any]) -> None:
    with pytest.raises(Killed):
        train(build(SAES["topk"], width=8), vectors(), CONFIG, 0, tmp_path, killed_at(9))
    sae = build(replace(SAES["topk"], k=changed.get("k", 3)), width=8)
    config = replace(CONFIG, lr=changed.get("lr", CONFIG.lr))
    with pytest.raises(StoreError, match=r"checkpoint\.safetensors is of another training run"):
        train(sae, vectors(n=changed.get("n", 512)), config, changed.get("seed", 0), tmp_path, quiet)


def test_a_checkpoint_cut_short_is_told(vectors: Callable, tmp_path: Path) -> None:
    (tmp_path / CHECKPOINT).write_bytes(b"\x10\x00\x00")
    with pytest.raises(StoreError, match=r"checkpoint\.safetensors is damaged"):
        train(build(SAES["topk"], width=8), vectors(), CONFIG, 0, tmp_path, quiet)


# What stops a run


class Failing:
    """A loader whose batches turn bad at a step."""

    def __init__(self, loader: Any, bad_step: int, factor: float) -> None:
        self.loader, self.bad_step, self.factor = loader, bad_step, factor
        self.n_vectors, self.sample = loader.n_vectors, loader.sample

    def batch(self, step: int) -> Tensor:
        x_bd = self.loader.batch(step)
        return x_bd * self.factor if step >= self.bad_step else x_bd


@pytest.mark.parametrize(
    ("factor", "said"),
    [
        (float("nan"), "activations of training step 13 contain NaN or infinity"),
        (float("inf"), "activations of training step 13 contain NaN or infinity"),
        (1e25, r"training diverged: loss or gradient is not finite at step 13.*Lower trainer\.lr"),
    ],
)
@pytest.mark.parametrize("name", SAES)
def test_a_run_that_fails_says_where_and_keeps_the_last_good_checkpoint(
    vectors: Callable, tmp_path: Path, name: str, factor: float, said: str
) -> None:
    with pytest.raises(DataError, match=said):
        train(build(SAES[name], width=8), Failing(vectors(), 13, factor), CONFIG, 0, tmp_path, quiet)
    assert [path.name for path in tmp_path.iterdir()] == [CHECKPOINT]
    sae, whole = build(SAES[name], width=8), build(SAES[name], width=8)
    train(sae, vectors(), CONFIG, 0, tmp_path, quiet)
    train(whole, vectors(), CONFIG, 0, tmp_path / "whole", quiet)
    assert torch.equal(sae.W_dec, whole.W_dec)


def test_weights_that_a_step_has_spoilt_are_in_no_checkpoint(vectors: Callable, tmp_path: Path) -> None:
    config = replace(CONFIG, checkpoint_steps=1, lr=1e30, warmup=0.0)
    with pytest.raises(DataError, match="not finite at step 1"):
        train(build(SAES["relu"], width=8), vectors(), config, 0, tmp_path, quiet)
    assert not (tmp_path / CHECKPOINT).exists()  # the only state that was sound is the start


def test_a_last_step_that_spoils_the_weights_writes_no_sae(vectors: Callable, tmp_path: Path) -> None:
    sae = build(SAES["relu"], width=8)
    config = replace(CONFIG, n_vectors=64)
    sae.constrain = lambda: sae.b_enc.data.fill_(torch.nan)  # type: ignore[method-assign]
    with pytest.raises(DataError, match="the last step left weights that are not finite"):
        train(sae, vectors(), config, 0, tmp_path, quiet)
    assert not (tmp_path / "sae.json").exists()


def test_what_a_kill_left_of_a_checkpoint_goes_away(vectors: Callable, tmp_path: Path) -> None:
    (tmp_path / f".{CHECKPOINT}.4711").write_bytes(b"half")
    train(build(SAES["relu"], width=8), vectors(), CONFIG, 0, tmp_path, quiet)
    assert not [path.name for path in tmp_path.iterdir() if CHECKPOINT in path.name]


def test_a_gradient_that_is_not_finite_leaves_the_weights(scripted: Scripted) -> None:
    scripted.fires, scripted.loss = [[0]], 1e37  # of a finite loss, but its squares overflow
    with torch.no_grad():
        scripted.b_enc.fill_(1.0)
    before = {name: parameter.detach().clone() for name, parameter in scripted.named_parameters()}
    squared = sum(float(parameter.detach().square().sum()) for parameter in scripted.parameters())
    assert scripted.loss * squared < torch.finfo(torch.float32).max
    with pytest.raises(DataError, match="not finite at step 0"):
        Training(scripted, TrainerConfig(n_vectors=10, batch_size=10)).advance(torch.ones(10, 4))
    for name, parameter in scripted.named_parameters():
        assert torch.equal(parameter, before[name])


def test_nan_in_the_sample_is_refused_before_the_first_step(vectors: Callable, tmp_path: Path) -> None:
    loader = vectors()
    loader.x_nd[5, 1] = float("nan")
    with pytest.raises(DataError, match="activations to train on contain NaN"):
        train(build(SAES["relu"], width=8), loader, CONFIG, 0, tmp_path, quiet)
    assert loader.asked == []


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"n_vectors": 0}, "positive n_vectors"),
        ({"lr": -1.0}, "positive n_vectors, batch_size, lr"),
        ({"dead_after": 0}, "dead_after"),
        ({"clip": -1.0}, r"trainer\.clip=-1"),
        ({"checkpoint_steps": -1}, r"trainer\.checkpoint_steps=-1"),
        ({"lr_features": -1}, r"trainer\.lr_features=-1"),
        ({"beta2": 1.0}, r"trainer\.beta2=1"),
        ({"warmup": 0.6, "decay": 0.6}, r"trainer\.warmup=0\.6, trainer\.decay=0\.6"),
        ({"sparsity_warmup": -0.1}, "must be shares"),
        ({"sparsity_warmup": 3.0}, "must be shares"),
        ({"lr": float("nan")}, r"trainer\.lr=nan is no finite number"),
        ({"clip": float("inf")}, r"trainer\.clip=inf is no finite number"),
        ({"n_evaluations": 1}, r"trainer\.n_evaluations=1"),
    ],
)
def test_options_out_of_range_are_refused(options: dict[str, Any], said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        TrainerConfig(**options)
