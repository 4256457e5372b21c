"""Training of SAEs of whatever architecture: one, or many in one pass over the same vectors.

Each SAE trains as if it were alone, to the bit: what they share is the batch. A run killed at any step goes on from its
last checkpoint.
"""

# B vectors of a batch  D site width  F features

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError, MisLabError
from mis_lab.core.files import write_json
from mis_lab.core.keys import content_key
from mis_lab.core.progress import progress
from mis_lab.core.seeding import generator
from mis_lab.sae import io
from mis_lab.sae.base import Autoencoder, Vectors
from mis_lab.sae.checkpoint import CHECKPOINT, read_checkpoint, remove_checkpoint, remove_partial, write_checkpoint
from mis_lab.sae.monitor import Monitor
from mis_lab.sae.resample import Resampler
from mis_lab.sae.snapshots import remove_snapshots, save_snapshot, snapshot_steps
from mis_lab.sae.trainer_config import ResamplingKind, TrainerConfig
from mis_lab.sae.training import Training

LOSSES, EVALUATIONS, FEATURES = "losses.json", "evaluations.json", "dead_features.json"
N_INITIAL = 32_768  # vectors whose mean and variance start the SAE
Log = Callable[[Mapping[str, float], int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class TrainingSummary:
    """How a training run went.

    Attributes:
        n_steps, n_vectors: steps taken and vectors seen, those before a resume included.
        history: name → values at every logged step, ``step`` among the names.
        final: the last of each.
    """

    n_steps: int
    n_vectors: int
    history: dict[str, list[float]]

    @property
    def final(self) -> dict[str, float]:
        return {name: values[-1] for name, values in self.history.items()}


@dataclass(frozen=True)
class Job:
    """One SAE to train.

    Attributes:
        sae: of any architecture, on the device to train on.
        config: of its trainer; `batch_size` must be the loader's.
        seed: of the initial atoms.
        folder: for checkpoints and for what comes out.
        log: called with named numbers and the step's number, every `log_steps` steps; after a resume the steps since
            the checkpoint come again, with equal numbers.
    """

    sae: Autoencoder
    config: TrainerConfig
    seed: int
    folder: Path
    log: Log


def train(
    sae: Autoencoder,
    loader: Vectors,
    config: TrainerConfig,
    seed: int,
    folder: Path,
    log: Log,
    held_out_nd: Tensor | None = None,
) -> TrainingSummary:
    """Initialise `sae` from data and train it; :func:`train_together` for one SAE."""
    return train_together([Job(sae, config, seed, folder, log)], loader, held_out_nd)[0]


def train_together(
    jobs: Sequence[Job],
    loader: Vectors,
    held_out_nd: Tensor | None = None,
    finished: Callable[[Job, TrainingSummary], None] = lambda job, summary: None,
) -> list[TrainingSummary]:
    """Train several SAEs in one pass over the data; each folder gets its SAE and its curves.

    ``losses.json`` has the logged losses, ``evaluations.json`` quality on `held_out_nd` in the course of training,
    ``dead_features.json`` the features dead at those steps and those revived.

    A checkpoint in a job's folder is gone on from; the last one is kept when a step fails and removed at the end. An
    SAE that fails does not stop the others.

    Args:
        jobs: what to train; budgets and options may differ.
        loader: batches of raw vectors on the SAEs' device.
        held_out_nd: raw vectors to evaluate on; none without.
        finished: called for each SAE whose folder is complete, before the failure of another is raised.

    Raises:
        DataError: when activations are not finite or training diverges, saying at which step; raised once the other
            SAEs are done.
        StoreError: when a checkpoint belongs to other options.
    """
    runs = [_Run(job, loader, held_out_nd) for job in jobs]
    first = min((run.training.step for run in runs if run.is_stepped), default=0)
    last = max((run.job.config.n_steps for run in runs if run.is_stepped), default=0)
    widths = ", ".join(dict.fromkeys(f"{run.job.sae.width}→{run.job.sae.n_features}" for run in runs))
    told = f"sae {widths}" if len(runs) == 1 else f"{len(runs)} saes {widths}"
    for step in progress(range(first, last), told, last, first, "step") if last else ():
        due = [run for run in runs if run.is_due(step)]
        if due:
            x_bd = loader.batch(step)
            for run in due:
                run.advance(x_bd, alone=len(runs) == 1)
    summaries = [summary for run in runs if (summary := run.finish(finished)) is not None]
    if failed := [run.error for run in runs if run.error is not None]:
        raise failed[0]
    return summaries


class _Run:
    """One job under way."""

    def __init__(self, job: Job, loader: Vectors, held_out_nd: Tensor | None) -> None:
        self.job, self.loader = job, loader
        self.error: MisLabError | None = None
        sae, config = job.sae, job.config
        job.folder.mkdir(parents=True, exist_ok=True)
        remove_partial(job.folder)
        self.key = content_key(
            {
                "sae": sae.config,
                "class": type(sae).__qualname__,
                "width": sae.width,
                "trainer": config,
                "seed": job.seed,
                "n_vectors": loader.n_vectors,
            }
        )
        resampler = None
        if config.resampling.kind is not ResamplingKind.none:
            if not sae.can_be_revived:
                raise ConfigError(
                    f"features of {type(sae).__name__} cannot be resampled", fix="Use trainer.resampling.kind=none."
                )
            resampler = Resampler(config.resampling, loader, job.seed)
        monitor = None
        if held_out_nd is not None and config.n_evaluations:
            monitor = Monitor(held_out_nd, config.n_steps, config.n_evaluations)
        self.is_stepped = not sae.is_fitted
        batch_size = getattr(loader, "batch_size", config.batch_size)
        if self.is_stepped and config.batch_size < batch_size:
            raise ConfigError(
                f"trainer.batch_size={config.batch_size}, but the loader's batches have {batch_size}",
                fix=f"Set trainer.batch_size to {batch_size} at least (an SAE of maps reads whole images).",
            )
        state = read_checkpoint(job.folder, self.key) if self.is_stepped else None
        if state is None:
            sample_nd = loader.sample(min(N_INITIAL, loader.n_vectors))
            sae.initialise(sample_nd, generator(job.seed, "sae", "atoms"), config.normalisation)
        self.training = Training(sae.train(), config, resampler, monitor)
        self.snapshot_steps = snapshot_steps(config) if self.is_stepped else frozenset()
        if state is None:
            remove_snapshots(job.folder)
            self._keep_snapshot()
        else:
            self.training.restore(state)
            logger.info("going on from step %d of %d (%s)", self.training.step, config.n_steps, job.folder / CHECKPOINT)

    def is_due(self, step: int) -> bool:
        return self.error is None and self.is_stepped and self.training.step == step and step < self.job.config.n_steps

    def advance(self, x_bd: Tensor, alone: bool) -> None:
        config, training = self.job.config, self.training
        is_due = config.checkpoint_steps and training.step and training.step % config.checkpoint_steps == 0
        try:
            logged = training.advance(x_bd, self._checkpoint if is_due else None)
        except MisLabError as error:
            if alone:
                raise
            self._fail(error)
            return
        if logged is not None:
            self.job.log(logged, training.step - 1)
        self._keep_snapshot()
        if training.step == config.n_steps and config.checkpoint_steps and not alone:
            self._checkpoint()  # others may go on for long

    def _keep_snapshot(self) -> None:
        if self.training.step in self.snapshot_steps:
            save_snapshot(self.job.sae, self.job.folder, self.training.step)

    def _checkpoint(self) -> None:
        write_checkpoint(self.job.folder, self.training.state(), self.key)

    def _fail(self, error: MisLabError) -> None:
        logger.error("%s: %s", self.job.folder, error)
        self.error = error

    def finish(self, finished: Callable[[Job, TrainingSummary], None]) -> TrainingSummary | None:
        if self.error is not None:
            return None
        training, folder, sae = self.training, self.job.folder, self.job.sae
        if not self.is_stepped:
            sae.fit(self.loader, generator(self.job.seed, "sae", "fit"))
        if not all(torch.isfinite(parameter).all() for parameter in sae.parameters()):
            self._fail(DataError("the last step left weights that are not finite", fix="Lower trainer.lr."))
            return None
        io.save(sae.eval(), folder)
        n_vectors = training.n_seen if self.is_stepped else self.loader.n_vectors
        summary = TrainingSummary(training.step, n_vectors, training.history)
        write_json(folder / LOSSES, summary.history)
        if training.monitor is not None:
            if sae.is_fitted:
                training.monitor.look(sae, 0, training.dead_f)
            write_json(folder / EVALUATIONS, training.monitor.history)
        write_json(
            folder / FEATURES,
            {
                "dead": _numbers(training.monitor.dead if training.monitor else {}),
                "revived": _numbers(training.resampler.revived if training.resampler else {}),
            },
        )
        remove_checkpoint(folder)
        final = ", ".join(f"{name} {number:.4g}" for name, number in summary.final.items())
        logger.info("trained on %d vectors: %s", summary.n_vectors, final or "fitted in one go")
        finished(self.job, summary)
        return summary


def _numbers(features: Mapping[int, Tensor]) -> dict[str, list[int]]:
    return {str(step): numbers.tolist() for step, numbers in features.items()}
