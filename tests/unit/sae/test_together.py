"""Many SAEs in one pass: each as if it were alone, whatever happens to the others."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path

import pytest
import torch

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.sae.base import Autoencoder, Losses, StepInfo
from mis_lab.sae.checkpoint import CHECKPOINT
from mis_lab.sae.config import BatchTopKConfig, JumpReluConfig, SaeConfig, TopKConfig
from mis_lab.sae.train import Job, train, train_together
from mis_lab.sae.trainer_config import ResamplingConfig, ResamplingKind, TrainerConfig

CONFIG = TrainerConfig(n_vectors=64 * 24, batch_size=64, dead_after=320, checkpoint_steps=5, log_steps=1)
RESAMPLING = ResamplingConfig(kind=ResamplingKind.loss, every=3, n_vectors=100)
GRID: dict[str, tuple[SaeConfig, TrainerConfig, int]] = {
    "k=3": (TopKConfig(n_features=24, k=3), CONFIG, 0),
    "k=5, other seed": (TopKConfig(n_features=24, k=5), CONFIG, 1),
    "more features": (BatchTopKConfig(n_features=40, k=3), CONFIG, 0),
    "jump, resampled": (JumpReluConfig(n_features=24), replace(CONFIG, resampling=RESAMPLING), 0),
    "shorter": (TopKConfig(n_features=24, k=3), replace(CONFIG, n_vectors=64 * 10), 0),
}


class Killed(Exception):
    pass


def jobs(folder: Path, names: list[str], kill_at: int = -1) -> list[Job]:
    def log(numbers: Mapping[str, float], step: int) -> None:
        if step == kill_at:
            raise Killed

    return [
        Job(build(GRID[name][0], width=8), GRID[name][1], GRID[name][2], folder / str(number), log)
        for number, name in enumerate(names)
    ]


@pytest.fixture(scope="module")
def alone(vectors: Callable, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Autoencoder]:
    saes = {}
    for name in GRID:
        (job,) = jobs(tmp_path_factory.mktemp("alone"), [name])
        loader = vectors()
        train(job.sae, loader, job.config, job.seed, job.folder, job.log, loader.x_nd[:100])
        saes[name] = job.sae
    return saes


def same(one: Autoencoder, other: Autoencoder) -> bool:
    a, b = one.state_dict(), other.state_dict()
    return a.keys() == b.keys() and all(torch.equal(a[name], b[name]) for name in a)


def test_each_trains_as_if_it_were_alone_and_batches_are_read_once(
    vectors: Callable, alone: dict[str, Autoencoder], tmp_path: Path
) -> None:
    loader, together = vectors(), jobs(tmp_path, list(GRID))
    summaries = train_together(together, loader, loader.x_nd[:100])
    assert loader.asked == list(range(24))
    for name, job, summary in zip(GRID, together, summaries, strict=True):
        assert same(job.sae, alone[name]), name
        assert summary.n_steps == GRID[name][1].n_steps


def test_killed_together_and_started_again_is_the_same_to_the_bit(
    vectors: Callable, alone: dict[str, Autoencoder], tmp_path: Path
) -> None:
    loader = vectors()
    with pytest.raises(Killed):
        train_together(jobs(tmp_path, list(GRID), kill_at=13), loader, loader.x_nd[:100])
    loader, together = vectors(), jobs(tmp_path, list(GRID))
    train_together(together, loader, loader.x_nd[:100])
    assert loader.asked[0] == 10
    for name, job in zip(GRID, together, strict=True):
        assert same(job.sae, alone[name]), name


def test_one_that_has_a_checkpoint_waits_for_one_that_has_none(
    vectors: Callable, alone: dict[str, Autoencoder], tmp_path: Path
) -> None:
    loader = vectors()
    with pytest.raises(Killed):
        train_together(jobs(tmp_path, ["k=3"], kill_at=13), loader, loader.x_nd[:100])
    together = jobs(tmp_path, ["k=3", "more features"])
    train_together(together, loader, loader.x_nd[:100])
    assert same(together[0].sae, alone["k=3"])
    assert same(together[1].sae, alone["more features"])


def test_one_that_diverges_does_not_stop_the_others(
    vectors: Callable, alone: dict[str, Autoencoder], tmp_path: Path
) -> None:
    together = jobs(tmp_path, ["k=3", "k=5, other seed"])
    healthy = together[0].sae.step_losses

    def diverging(x_nd: torch.Tensor, step: StepInfo) -> Losses:
        losses = healthy(x_nd, step)
        return losses._replace(total=losses.total * float("inf")) if step.step == 12 else losses

    together[0].sae.step_losses = diverging  # type: ignore[method-assign]
    loader = vectors()
    with pytest.raises(DataError, match=r"training diverged.*at step 12"):
        train_together(together, loader, loader.x_nd[:100])
    assert same(together[1].sae, alone["k=5, other seed"])
    assert (together[1].folder / "sae.safetensors").exists()
    assert [path.name for path in together[0].folder.iterdir()] == [CHECKPOINT]


def test_batches_larger_than_asked_for_are_refused(vectors: Callable, tmp_path: Path) -> None:
    job = jobs(tmp_path, ["k=3"])[0]
    with pytest.raises(ConfigError, match=r"trainer\.batch_size=64, but the loader's batches have 128"):
        train_together([job], vectors(batch_size=128))
