"""Resampling: when, which features, and what becomes of them and of the optimiser's memory."""

# N vectors  D width  F features

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.conv import ConvSae
from mis_lab.sae.architectures.relu import ReluSae
from mis_lab.sae.config import ReluConfig, ReluForm
from mis_lab.sae.further_config import ConvConfig
from mis_lab.sae.resample import Resampler
from mis_lab.sae.train import FEATURES, train
from mis_lab.sae.trainer_config import ResamplingConfig, ResamplingKind, TrainerConfig
from mis_lab.sae.training import Training

THESIS = ResamplingConfig(kind=ResamplingKind.random, every=3, encoder_scale=1.0, living_bias=True)
BRICKEN = ResamplingConfig(kind=ResamplingKind.loss, at=[10], window=4, n_vectors=256)
CONFIG = TrainerConfig(n_vectors=64 * 30, batch_size=64, dead_after=10**6, log_steps=1)
DEAD = [2, 5, 11]


def with_dead(vectors: Callable, dead: list[int], config: ReluConfig | None = None) -> tuple[ReluSae, object]:
    """An SAE some of whose features never fire."""
    loader = vectors()
    sae = ReluSae(config or ReluConfig(n_features=16, l1=0.01), width=8)
    sae.initialise(loader.sample(512), generator(0))
    with torch.no_grad():
        sae.b_enc[dead] = -1e6
    return sae, loader


def run(sae: ReluSae, loader: object, resampling: ResamplingConfig, n_steps: int) -> Training:
    resampler = Resampler(resampling, loader, seed=0)  # type: ignore[arg-type]
    training = Training(sae, CONFIG, resampler)
    for step in range(n_steps):
        training.advance(loader.batch(step))  # type: ignore[attr-defined]
    return training


@pytest.mark.parametrize(("every", "steps"), [(194, [389, 777, 1165]), (625, [1251, 2501]), (3, [7, 13, 19])])
def test_windows_close_when_the_thesis_schedule_says(every: int, steps: list[int], vectors: Callable) -> None:
    resampler = Resampler(replace(THESIS, every=every), vectors(), 0)
    due = [step for step in range(1, steps[-1] + 1) if resampler.window(step) is not None]
    assert due == steps
    assert {resampler.window(step) for step in due} == {every + 1}


def test_listed_steps_have_the_window_given(vectors: Callable) -> None:
    resampler = Resampler(replace(BRICKEN, at=[10, 25]), vectors(), 0)
    assert {step: resampler.window(step) for step in range(1, 31) if resampler.window(step)} == {10: 4, 25: 4}


@pytest.mark.parametrize("resampling", [THESIS, BRICKEN], ids=["thesis", "bricken"])
def test_exactly_the_silent_features_are_started_anew(vectors: Callable, resampling: ResamplingConfig) -> None:
    sae, loader = with_dead(vectors, DEAD)
    training = run(sae, loader, resampling, 11)
    (step,) = training.resampler.revived  # type: ignore[union-attr]
    assert step == (7 if resampling is THESIS else 10)
    assert training.resampler.revived[step].tolist() == DEAD  # type: ignore[union-attr]
    torch.testing.assert_close(sae.W_dec[DEAD].norm(dim=1), torch.ones(3))
    assert (sae.b_enc[DEAD] > -1e3).all()


def snapshot_at(vectors: Callable, resampling: ResamplingConfig, step: int) -> tuple[ReluSae, Training, Tensor]:
    """State right after the step at which features were revived, and the encoder's rows before."""
    sae, loader = with_dead(vectors, DEAD)
    training = run(sae, loader, resampling, step)
    return sae, training, torch.tensor([f for f in range(16) if f not in DEAD])


def test_thesis_rows_have_the_living_norm_and_the_living_bias(vectors: Callable) -> None:
    sae, _, living = snapshot_at(vectors, THESIS, 7)
    living_norm = sae.W_enc[living].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_enc[DEAD].norm(dim=1), living_norm.expand(3))
    torch.testing.assert_close(sae.b_enc[DEAD], sae.b_enc[living].abs().mean().expand(3))
    cosine = torch.nn.functional.cosine_similarity(sae.W_enc[DEAD], sae.W_dec[DEAD])
    assert cosine.abs().max() < 0.95  # encoder and decoder are drawn apart


def test_thesis_variant_without_rescaling_leaves_kaiming_rows(vectors: Callable) -> None:
    sae, _, _ = snapshot_at(vectors, replace(THESIS, encoder_scale=0.0, living_bias=False), 7)
    assert sae.W_enc[DEAD].abs().max() <= (6 / 8) ** 0.5
    assert sae.W_enc[DEAD].abs().max() > 0.6 * (6 / 8) ** 0.5
    assert not sae.b_enc[DEAD].any()


def test_bricken_rows_are_badly_reconstructed_vectors_a_fifth_as_long(vectors: Callable) -> None:
    sae, training, living = snapshot_at(vectors, BRICKEN, 10)
    centred = sae.normalise(training.resampler.vectors.sample(256)) - sae.b_dec  # type: ignore[union-attr]
    cosines = torch.nn.functional.normalize(sae.W_dec[DEAD], dim=1) @ torch.nn.functional.normalize(centred, dim=1).T
    torch.testing.assert_close(cosines.max(1).values, torch.ones(3))
    living_norm = sae.W_enc[living].norm(dim=1).mean()
    torch.testing.assert_close(sae.W_enc[DEAD], 0.2 * living_norm * sae.W_dec[DEAD])
    assert not sae.b_enc[DEAD].any()


def test_vectors_are_drawn_with_probability_of_the_squared_loss(vectors: Callable) -> None:
    """A vector with three times the loss is drawn nine times as often."""
    sae, _ = with_dead(vectors, [])
    with torch.no_grad():
        sae.b_enc.fill_(-1e6)  # x̂ = b_dec: the loss of a vector is its squared distance from there
    base = sae.offset.detach()
    direction = torch.nn.functional.normalize(torch.randn(2, 8, generator=generator(1)), dim=1)
    near, far = base + direction[0], base + 3**0.5 * direction[1]

    class Two:
        n_vectors = 2000

        def sample(self, n: int) -> Tensor:
            return torch.stack([near, far]).repeat(n // 2, 1)

    resampler = Resampler(replace(BRICKEN, n_vectors=2000), Two(), 0)  # type: ignore[arg-type]
    with torch.no_grad():
        rows = resampler._badly_reconstructed(sae, 300, generator(3))
    n_far = int((torch.nn.functional.normalize(rows, dim=1) @ direction[1] > 0.99).sum())
    assert n_far / 300 == pytest.approx(0.9, abs=0.06)


def test_the_optimiser_forgets_revived_features_and_no_other(vectors: Callable) -> None:
    sae, training, living = snapshot_at(vectors, THESIS, 7)
    for name in ("W_enc", "W_dec", "b_enc"):
        state = training.optimizer.state[getattr(sae, name)]
        for moment in ("exp_avg", "exp_avg_sq"):
            assert not state[moment][DEAD].any(), (name, moment)
            assert state[moment][living].any(), (name, moment)
        assert int(state["step"]) == 7
    assert training.optimizer.state[sae.b_dec]["exp_avg"].any()
    assert not training.silent_f[DEAD].any()


def test_revived_features_fire_again(vectors: Callable) -> None:
    sae, loader = with_dead(vectors, DEAD)
    training = run(sae, loader, BRICKEN, 30)
    assert (training.silent_f[DEAD] < 64 * 20).all()


def test_only_parameters_with_a_row_a_feature_are_forgotten(vectors: Callable) -> None:
    """With as many features as dimensions b_dec has F entries, too."""
    sae, loader = with_dead(vectors, [0, 1], ReluConfig(n_features=8, l1=0.01))
    training = run(sae, loader, THESIS, 7)
    assert not training.optimizer.state[sae.W_enc]["exp_avg"][[0, 1]].any()
    assert training.optimizer.state[sae.b_dec]["exp_avg"][[0, 1]].all()


def test_free_atoms_without_a_pre_bias_start_anew_as_they_began(vectors: Callable) -> None:
    sae, loader = with_dead(vectors, DEAD, ReluConfig(n_features=16, l1=0.01, form=ReluForm.april))
    run(sae, loader, BRICKEN, 10)
    torch.testing.assert_close(sae.W_dec[DEAD].norm(dim=1), torch.full((3,), 0.1))
    at_the_mean = sae.W_enc[DEAD] @ sae.b_dec + sae.b_enc[DEAD]
    assert at_the_mean.abs().max() < 1e-6
    mean_d = torch.nn.functional.normalize(sae.b_dec, dim=0)
    assert (torch.nn.functional.normalize(sae.W_dec[DEAD], dim=1) @ mean_d).abs().max() < 0.9


def test_what_cannot_be_revived_is_refused_before_the_first_step(vectors: Callable, tmp_path: Path) -> None:
    sae = ConvSae(ConvConfig(expansion=2), width=8, grid=(1, 1))
    with pytest.raises(ConfigError, match=r"ConvSae cannot be resampled. Use trainer.resampling.kind=none"):
        train(sae, vectors(), replace(CONFIG, resampling=THESIS), 0, tmp_path, lambda numbers, step: None)


def test_all_dead_is_no_nan(vectors: Callable) -> None:
    for resampling in (THESIS, BRICKEN):
        sae, loader = with_dead(vectors, list(range(16)))
        training = run(sae, loader, resampling, 12)
        assert len(next(iter(training.resampler.revived.values()))) == 16  # type: ignore[union-attr]
        for name, parameter in sae.named_parameters():
            assert torch.isfinite(parameter).all(), name


def test_nothing_dead_changes_nothing(vectors: Callable) -> None:
    resampled, loader = with_dead(vectors, [])
    training = run(resampled, loader, THESIS, 9)
    assert [len(features) for features in training.resampler.revived.values()] == [0]  # type: ignore[union-attr]
    plain, loader = with_dead(vectors, [])
    without = Training(plain, CONFIG)
    for step in range(9):
        without.advance(loader.batch(step))  # type: ignore[attr-defined]
    assert torch.equal(resampled.W_enc, plain.W_enc)


def test_which_were_revived_is_written_down_and_survives_a_kill(vectors: Callable, tmp_path: Path) -> None:
    config = replace(CONFIG, resampling=THESIS, checkpoint_steps=5)
    found = []
    for kill_at in (None, 11):
        sae, _ = with_dead(vectors, [])
        folder = tmp_path / str(kill_at)

        def log(numbers: object, step: int, kill_at: int | None = kill_at) -> None:
            if step == kill_at:
                raise KeyboardInterrupt

        if kill_at is not None:
            with pytest.raises(KeyboardInterrupt):
                train(sae, vectors(), config, 0, folder, log)
        sae, _ = with_dead(vectors, [])
        train(sae, vectors(), config, 0, folder, lambda numbers, step: None)
        found.append((json.loads((folder / FEATURES).read_text()), sae.W_enc.detach()))
    assert found[0][0] == found[1][0]
    assert list(found[0][0]["revived"]) == ["7", "13", "19", "25"]
    assert torch.equal(found[0][1], found[1][1])


@pytest.mark.parametrize(
    ("options", "said"),
    [
        ({"kind": ResamplingKind.loss}, "never due"),
        ({"every": -1}, "out of range"),
        ({"at": [0]}, "out of range"),
        ({"encoder_scale": -0.1}, "out of range"),
    ],
)
def test_options_out_of_range_are_refused(options: dict, said: str) -> None:
    with pytest.raises(ConfigError, match=said):
        ResamplingConfig(**options)
