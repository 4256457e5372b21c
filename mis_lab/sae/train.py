"""Training of one SAE, of whatever architecture, on stored activation vectors.

A step is a function of the state and of the batch, and the batch a function of the step's number: a run killed at any
step goes on from its last checkpoint to the same weights, to the bit. :class:`Training` is all the state there is, so
several SAEs can share one pass over the data.
"""

# B vectors of a batch  D site width  F features

from __future__ import annotations

import logging
import math
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mis_lab.core.errors import DataError
from mis_lab.core.files import write_json
from mis_lab.core.keys import content_key
from mis_lab.core.progress import progress
from mis_lab.core.seeding import generator
from mis_lab.sae import io
from mis_lab.sae.base import Sae, StepInfo
from mis_lab.sae.checkpoint import CHECKPOINT, read_checkpoint, remove_checkpoint, write_checkpoint
from mis_lab.sae.config import Normalisation, SaeOptimizer, TrainerConfig

LOSSES = "losses.json"
N_INITIAL = 32_768  # vectors whose mean and variance start the SAE
ADAM_EPS = 6.25e-10  # Gao et al. 2024: gradients of rare features are far below the usual 1e-8
logger = logging.getLogger(__name__)


class Vectors(Protocol):
    """Where batches come from: :class:`mis_lab.activations.loader.VectorLoader` or anything alike."""

    n_vectors: int

    def batch(self, step: int) -> Tensor:
        """(B, D) raw vectors of step number `step`, the same whenever asked."""

    def sample(self, n: int) -> Tensor:
        """(n, D) raw vectors spread over the data."""


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


def learning_rate(config: TrainerConfig, n_features: int, step: int) -> float:
    """Rate of step number `step`: rises linearly over `warmup`, falls linearly to 0 over `decay` at the end.

    Its largest value is `lr`, times √(lr_features / n_features) where `lr_features` is given.
    """
    peak = config.lr * (math.sqrt(config.lr_features / n_features) if config.lr_features else 1.0)
    rise = (step + 1) / max(1.0, config.warmup * config.n_steps)
    fall = (config.n_steps - step) / max(1.0, config.decay * config.n_steps)
    return peak * min(1.0, rise, fall)


def sparsity_factor(config: TrainerConfig, step: int) -> float:
    """Factor of sparsity penalties at step number `step`, rising linearly from 0 to 1 over `sparsity_warmup`."""
    n_rising = config.sparsity_warmup * config.n_steps
    return min(1.0, step / n_rising) if n_rising else 1.0


class Training:
    """An SAE and everything that a step changes.

    Attributes:
        step: number of the next step.
        n_seen: vectors of the steps so far.
        silent_f: (F,) int64, vectors seen since each feature last fired.
        history: logged numbers so far.
    """

    def __init__(self, sae: Sae, config: TrainerConfig) -> None:
        self.sae, self.config = sae, config
        self.parameters = {name: parameter for name, parameter in sae.named_parameters() if parameter.requires_grad}
        self.optimizer = _optimizer(list(self.parameters.values()), config)
        self.step = self.n_seen = 0
        self.silent_f = torch.zeros(sae.n_features, dtype=torch.int64, device=sae.scale.device)
        self.history: dict[str, list[float]] = {}

    def advance(self, x_bd: Tensor) -> dict[str, float] | None:
        """Take one step on raw vectors; returns the numbers to log when it is time to.

        Raises:
            DataError: when vectors, loss or gradient are not finite; the SAE is left as it was before the step.
        """
        config = self.config
        step = StepInfo(self.step, sparsity_factor(config, self.step), self.silent_f >= config.dead_after)
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.sae.step_losses(x_bd, step)
        losses.total.backward()
        if config.unit_norm:
            self.sae.project_gradient()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = get_total_norm(gradients)
        if not torch.isfinite(losses.total.detach() + norm):
            self._tell_non_finite(x_bd)
        if config.clip and norm > config.clip:
            clip_grads_with_norm_(self.parameters.values(), config.clip, norm)
        rate = learning_rate(config, self.sae.n_features, self.step)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if config.unit_norm:
            self.sae.normalise_atoms()
        self.silent_f = torch.where(losses.fired_f, 0, self.silent_f + len(x_bd))
        self.step += 1
        self.n_seen += len(x_bd)
        if step.step % config.log_steps and self.step != config.n_steps:
            return None
        return self._logged(step.step, {"loss": losses.total.detach(), **losses.named, "gradient_norm": norm}, rate)

    def _logged(self, step: int, numbers: dict[str, Tensor], rate: float) -> dict[str, float]:
        logged = {name: float(number) for name, number in numbers.items()}
        logged["dead_share"] = float((self.silent_f >= self.config.dead_after).double().mean())
        logged["learning_rate"] = rate
        for name, number in {"step": float(step), **logged}.items():
            self.history.setdefault(name, []).append(number)
        return logged

    def _tell_non_finite(self, x_bd: Tensor) -> None:
        if not torch.isfinite(x_bd).all():
            raise DataError(
                f"activations of training step {self.step} contain NaN or infinity", fix="Extract them again."
            )
        raise DataError(
            f"training diverged: loss or gradient is not finite at step {self.step}",
            fix=f"Lower trainer.lr (now {self.config.lr:g}); the last checkpoint is from before.",
        )

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` goes on as if nothing had happened."""
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    state[f"optimizer.{name}/{key}"] = value
        for name, values in self.history.items():
            state[f"history.{name}"] = torch.tensor(values, dtype=torch.float64)
        counts = {"step": torch.tensor(self.step), "n_seen": torch.tensor(self.n_seen)}
        return state | counts | {"silent_f": self.silent_f}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step, self.n_seen = int(state["step"]), int(state["n_seen"])
        self.silent_f = state["silent_f"].to(self.silent_f.device)
        weights = {}
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            if kind == "sae":
                weights[rest] = tensor
            elif kind == "history":
                self.history[rest] = tensor.tolist()
            elif kind == "optimizer":
                owner, _, key = rest.rpartition("/")
                parameter = self.parameters[owner]
                self.optimizer.state[parameter][key] = tensor.to(parameter.device)
        self.sae.load_state_dict(weights)


def _optimizer(parameters: list[nn.Parameter], config: TrainerConfig) -> torch.optim.Optimizer:
    if config.optimizer is SaeOptimizer.sgd:
        return torch.optim.SGD(parameters, config.lr, momentum=config.beta1)
    return torch.optim.Adam(parameters, config.lr, betas=(config.beta1, config.beta2), eps=ADAM_EPS, fused=True)


def train(
    sae: Sae,
    loader: Vectors,
    config: TrainerConfig,
    seed: int,
    folder: Path,
    log: Callable[[dict[str, float], int], None],
) -> TrainingSummary:
    """Initialise `sae` from data and train it; write it, and ``losses.json``, into `folder`.

    A checkpoint in `folder` is gone on from; the last one is kept when a step fails and removed at the end.

    Args:
        sae: of any architecture, on the device to train on.
        loader: batches of raw vectors on that device.
        seed: of the initial atoms.
        log: called with named numbers and the step's number, every `log_steps` steps; after a resume the steps since
            the checkpoint come again, with equal numbers.

    Raises:
        DataError: when activations are not finite or training diverges, saying at which step.
        StoreError: when the checkpoint in `folder` belongs to other options.
    """
    folder.mkdir(parents=True, exist_ok=True)
    key = content_key(
        {
            "sae": sae.config,
            "class": type(sae).__qualname__,
            "width": sae.width,
            "trainer": config,
            "seed": seed,
            "n_vectors": loader.n_vectors,
        }
    )
    training = Training(sae.train(), config)
    state = read_checkpoint(folder, key)
    if state is None:
        sample_nd = loader.sample(min(N_INITIAL, loader.n_vectors))
        sae.initialise(sample_nd, generator(seed, "sae", "atoms"), config.normalisation is Normalisation.unit_variance)
    else:
        training.restore(state)
        logger.info("going on from step %d of %d (%s)", training.step, config.n_steps, folder / CHECKPOINT)
    steps = range(training.step, config.n_steps)
    for step in progress(steps, f"sae {sae.width}→{sae.n_features}", config.n_steps, training.step, "step"):
        logged = training.advance(loader.batch(step))
        if logged is not None:
            log(logged, step)
        if config.checkpoint_steps and training.step % config.checkpoint_steps == 0:
            write_checkpoint(folder, training.state(), key)
    io.save(sae.eval(), folder)
    summary = TrainingSummary(training.step, training.n_seen, training.history)
    write_json(folder / LOSSES, summary.history)
    remove_checkpoint(folder)
    final = ", ".join(f"{name} {number:.4g}" for name, number in summary.final.items())
    logger.info("trained on %d vectors: %s", summary.n_vectors, final)
    return summary
