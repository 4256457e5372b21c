"""The contract of an adapter to another SAE library, and which libraries are here."""

# N vectors  D width  F features

from __future__ import annotations

import contextlib
import functools
import importlib
import io
import os
import warnings
from abc import ABC, abstractmethod
from typing import Any, ClassVar, NamedTuple

import torch
from torch import Tensor

LIBRARIES = {  # name → module
    "overcomplete": "overcomplete.sae",
    "dictionary_learning": "dictionary_learning",
    "sae_lens": "sae_lens",
    "sparsify": "sparsify",
}


@contextlib.contextmanager
def quiet() -> Any:
    """Libraries print and warn as they import and train."""
    with warnings.catch_warnings(), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        yield


@functools.cache
def _imported(library: str) -> str:
    """Empty when `library` can be used, else why not."""
    os.environ.setdefault("SPARSIFY_DISABLE_TRITON", "1")  # its kernels are for GPUs
    try:
        with quiet():
            importlib.import_module(LIBRARIES[library])
    except ImportError as error:
        return str(error)
    except Exception as error:  # a library broken by another's version is as good as not there, and is told as well
        return f"{type(error).__name__}: {error}"
    return ""


def missing() -> dict[str, str]:
    """Libraries that cannot be used here, and why."""
    return {library: why for library in LIBRARIES if (why := _imported(library))}


class Job(NamedTuple):
    """What to train.

    Attributes:
        width, n_features, k: D, F, active features a vector.
        n_steps, batch_size: length of the run.
        seed: of the library's initialisation.
        lr: learning rate; None for the library's own.
        sparsity: weight of the sparsity penalty, for those that have one; None for the library's own.
    """

    width: int
    n_features: int
    k: int
    n_steps: int
    batch_size: int
    seed: int = 0
    lr: float | None = None
    sparsity: float | None = None


class Peer(ABC):
    """One SAE of another library in training.

    Attributes:
        name: ``library/architecture``; what follows a colon is a variant of the same step.
        penalised: whether a sparsity penalty, not k, decides the number of active features.
    """

    name: ClassVar[str]
    penalised: ClassVar[bool] = False

    def __init__(self, job: Job) -> None:
        self.job = job
        self.n_done = 0
        with quiet(), torch.random.fork_rng(devices=[]):
            torch.manual_seed(job.seed)
            self.build()

    def step(self, x_bd: Tensor) -> None:
        with quiet():
            self.advance(x_bd)
        self.n_done += 1

    def options(self, **named: Any) -> dict[str, Any]:
        """`named` without what is None: the library's default stands."""
        return {name: value for name, value in named.items() if value is not None}

    @abstractmethod
    def build(self) -> None:
        """Make the library's SAE and trainer."""

    @abstractmethod
    def advance(self, x_bd: Tensor) -> None:
        """The library's step."""

    @abstractmethod
    def dictionary(self) -> Tensor:
        """(F, D): what a unit of each code adds to the reconstruction, up to its length."""

    @abstractmethod
    def encode(self, x_nd: Tensor) -> Tensor:
        """(N, F) codes as the library gives them after training."""

    @abstractmethod
    def decode(self, codes_nf: Tensor) -> Tensor:
        """(N, D) reconstruction."""
