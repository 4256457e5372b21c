"""One SAE in training: everything that a step changes, and the step.

A step is a function of the state and of the batch, and the batch a function of the step's number: a run killed at any
step goes on from its last checkpoint to the same weights, to the bit. :class:`Training` is all the state there is, so
several SAEs can share one pass over the data (`train.py`).
"""

# B vectors of a batch  D site width  F features

from __future__ import annotations

from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils import clip_grads_with_norm_, get_total_norm

from mis_lab.core.errors import DataError
from mis_lab.sae.base import Autoencoder, StepInfo
from mis_lab.sae.monitor import Monitor
from mis_lab.sae.resample import Resampler
from mis_lab.sae.schedules import k_factor, learning_rate, sparsity_factor
from mis_lab.sae.trainer_config import SaeOptimizer, TrainerConfig, TrainingPrecision

ADAM_EPS = 6.25e-10  # Gao et al. 2024: gradients of rare features are far below the usual 1e-8
PRECISIONS = {TrainingPrecision.float32: torch.float32, TrainingPrecision.bfloat16: torch.bfloat16}


class Training:
    """An SAE and everything that a step changes.

    Args:
        sae: initialised, on the device to train on.
        resampler: revives dead features on its schedule.
        monitor: evaluates the SAE in the course of training.

    Attributes:
        step: number of the next step.
        n_seen: vectors of the steps so far.
        silent_f: (F,) int64, vectors seen since each feature last fired.
        history: logged numbers so far, ``step`` among their names.
    """

    def __init__(
        self,
        sae: Autoencoder,
        config: TrainerConfig,
        resampler: Resampler | None = None,
        monitor: Monitor | None = None,
    ) -> None:
        self.sae, self.config, self.resampler, self.monitor = sae, config, resampler, monitor
        self.parameters = {name: parameter for name, parameter in sae.named_parameters() if parameter.requires_grad}
        self.optimizer = _optimizer(list(self.parameters.values()), config)
        self.step = self.n_seen = 0
        self.silent_f = torch.zeros(sae.n_features, dtype=torch.int64, device=sae.scale.device)
        self.history: dict[str, list[float]] = {}

    @property
    def dead_f(self) -> Tensor:
        """(F,) bool: features silent for `dead_after` vectors."""
        return self.silent_f >= self.config.dead_after

    def advance(self, x_bd: Tensor, before: Callable[[], None] | None = None) -> dict[str, float] | None:
        """Take one step on raw vectors; returns the numbers to log when it is time to.

        Args:
            before: called once loss and gradient have proved to be finite, while all is as before the step: the moment
                for a checkpoint, as weights that a step has spoilt show in the next one.

        Raises:
            DataError: when vectors, loss or gradient are not finite; the SAE is left as it was before the step.
        """
        config, number = self.config, self.step
        if self.monitor is not None and number == 0:
            self.monitor.look(self.sae, 0, self.dead_f)
        step = StepInfo(
            number,
            sparsity_factor(config, number),
            self.dead_f,
            k_factor(config, number),
            PRECISIONS[config.precision],
        )
        self.optimizer.zero_grad(set_to_none=True)
        losses = self.sae.step_losses(x_bd, step)
        losses.total.backward()
        if config.unit_norm:
            self.sae.project_gradient()
        gradients = [parameter.grad for parameter in self.parameters.values() if parameter.grad is not None]
        norm = get_total_norm(gradients)
        if not torch.isfinite(losses.total.detach() + norm):
            self._tell_non_finite(x_bd)
        if before is not None:
            before()
        if config.clip and norm > config.clip:
            clip_grads_with_norm_(self.parameters.values(), config.clip, norm)
        rate = learning_rate(config, self.sae.n_features, number)
        for group in self.optimizer.param_groups:
            group["lr"] = rate
        self.optimizer.step()
        if config.unit_norm:
            self.sae.normalise_atoms()
        self.sae.constrain()
        n_vectors = x_bd.shape[:-1].numel()
        self.silent_f = torch.where(losses.fired_f, 0, self.silent_f + n_vectors)
        self.step += 1
        self.n_seen += n_vectors
        if self.resampler is not None:
            self.resampler.after(self)
        told: dict[str, float] = {}
        if number % config.log_steps == 0 or self.step == config.n_steps:
            told = self._logged(number, {"loss": losses.total.detach(), **losses.named, "gradient_norm": norm}, rate)
        if self.monitor is not None and self.monitor.is_due(self.step):
            told |= self.monitor.look(self.sae, self.step, self.dead_f)
        return told or None

    def _logged(self, step: int, numbers: dict[str, Tensor], rate: float) -> dict[str, float]:
        logged = {name: float(number) for name, number in numbers.items()}
        logged["dead_share"] = float(self.dead_f.double().mean())
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
            fix=f"Lower trainer.lr (now {self.config.lr:g}); a checkpoint, where there is one, is from before.",
        )

    @torch.no_grad()
    def forget_moments(self, features: Tensor) -> None:
        """Set what the optimiser remembers of these features to 0."""
        for name in self.sae.of_features:
            if name not in self.parameters:
                continue
            parameter = self.parameters[name]
            for value in self.optimizer.state[parameter].values():
                if isinstance(value, Tensor) and value.shape == parameter.shape:
                    value[features] = 0

    def state(self) -> dict[str, Tensor]:
        """Tensors from which :meth:`restore` goes on as if nothing had happened."""
        state = {f"sae.{name}": tensor for name, tensor in self.sae.state_dict().items()}
        for name, parameter in self.parameters.items():
            for key, value in self.optimizer.state[parameter].items():
                if value is not None:
                    state[f"optimizer.{name}/{key}"] = value
        for name, values in self.history.items():
            state[f"history.{name}"] = torch.tensor(values, dtype=torch.float64)
        for name, part in (("resampler", self.resampler), ("monitor", self.monitor)):
            if part is not None:
                state |= {f"{name}.{key}": value for key, value in part.state().items()}
        counts = {"step": torch.tensor(self.step), "n_seen": torch.tensor(self.n_seen)}
        return state | counts | {"silent_f": self.silent_f}

    def restore(self, state: dict[str, Tensor]) -> None:
        """Go on from what :meth:`state` gave."""
        self.step, self.n_seen = int(state["step"]), int(state["n_seen"])
        self.silent_f = state["silent_f"].to(self.silent_f.device)
        parts: dict[str, dict[str, Tensor]] = {"sae": {}, "resampler": {}, "monitor": {}}
        for name, tensor in state.items():
            kind, _, rest = name.partition(".")
            if kind in parts:
                parts[kind][rest] = tensor
            elif kind == "history":
                self.history[rest] = tensor.tolist()
            elif kind == "optimizer":
                owner, _, key = rest.rpartition("/")
                parameter = self.parameters[owner]
                self.optimizer.state[parameter][key] = tensor.to(parameter.device)
        self.sae.load_state_dict(parts["sae"])
        for part in ("resampler", "monitor"):
            if getattr(self, part) is not None:
                getattr(self, part).restore(parts[part])


def _optimizer(parameters: list[nn.Parameter], config: TrainerConfig) -> torch.optim.Optimizer:
    if config.optimizer is SaeOptimizer.sgd:
        return torch.optim.SGD(parameters, config.lr, momentum=config.beta1)
    return torch.optim.Adam(parameters, config.lr, betas=(config.beta1, config.beta2), eps=ADAM_EPS, fused=True)
