"""Vectors made of a known dictionary, and how well an SAE found it.

256 unit features in 64 dimensions fire with unequal rates, 6 a vector on average, with magnitudes |N(1, 0.2)|; 2,500
batches of 512 are seen once, in order, and 40,000 vectors are held out. With seed s, on torch's CPU generators: one of
seed 100 + s draws the dictionary, then the direction of the constant that is added to all; one of seed 7 + s the
training stream; one of seed 999 + s the held-out set.
"""

# N vectors  D width  F features (of the SAE; T of the data)

from __future__ import annotations

import math
from collections.abc import Callable
from typing import NamedTuple

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mis_lab.core.seeding import generator

N_TRUE, WIDTH, BATCH, N_STEPS, MEAN_L0 = 256, 64, 512, 2500, 6.0
N_HELD_OUT, N_SAMPLE = 40_000, 8192
CHUNK = 4096
# Rates ∝ 1/(i + 10)^a. With a = 1 the most frequent feature fires 26.5 times as often as the rarest, with this 2,650.
UNEQUAL = math.log(2650) / math.log(26.5)


def rates(exponent: float = 1.0) -> Tensor:
    """(T,) how often each true feature fires; they sum to the mean number of active features."""
    shares_t = (torch.arange(N_TRUE) + 10.0) ** -exponent
    return shares_t * (MEAN_L0 / shares_t.sum())


class Synthetic:
    """A known dictionary and the stream of vectors it makes, with the interface of a vector loader.

    Args:
        seed: of dictionary, training stream and held-out set.
        offset: norm of the constant added to all vectors.
        exponent: see :data:`UNEQUAL`.
    """

    n_vectors = BATCH * N_STEPS

    def __init__(self, seed: int, offset: float, exponent: float = 1.0) -> None:
        truth = torch.Generator().manual_seed(100 + seed)
        self.atoms_td = torch.nn.functional.normalize(torch.randn(N_TRUE, WIDTH, generator=truth), dim=1)
        self.constant_d = torch.nn.functional.normalize(torch.randn(WIDTH, generator=truth), dim=0) * offset
        self.rates_t = rates(exponent)
        self.seed, self.stream, self.next_step = seed, torch.Generator().manual_seed(7 + seed), 0

    def draw(self, n: int, stream: torch.Generator) -> Tensor:
        fires_nt = torch.rand(n, N_TRUE, generator=stream) < self.rates_t
        codes_nt = fires_nt * (1 + 0.2 * torch.randn(n, N_TRUE, generator=stream)).abs()
        return codes_nt @ self.atoms_td + self.constant_d

    def batch(self, step: int) -> Tensor:
        assert step == self.next_step, "the stream is read in order"
        self.next_step += 1
        return self.draw(BATCH, self.stream)

    def sample(self, n: int) -> Tensor:
        return self.draw(min(n, N_SAMPLE), generator(self.seed, "sample"))

    def held_out(self) -> Tensor:
        return self.draw(N_HELD_OUT, torch.Generator().manual_seed(999 + self.seed))


class Quality(NamedTuple):
    """How well an SAE does.

    Attributes:
        mcc: mean |cosine| of the best one-to-one match between true and learned features.
        recovered: share of the true features with a learned one at cosine above 0.9.
        fvu, l0: on the held-out vectors. dead: share of the learned features that never fire there.
    """

    mcc: float
    recovered: float
    fvu: float
    l0: float
    dead: float


def match(true_td: Tensor, learned_fd: Tensor) -> tuple[float, float]:
    """MCC and share recovered of :class:`Quality`."""
    cosine_tf = (true_td @ torch.nn.functional.normalize(learned_fd, dim=1).T).numpy()
    rows, columns = linear_sum_assignment(-abs(cosine_tf))
    return float(abs(cosine_tf[rows, columns]).mean()), float((cosine_tf.max(1) > 0.9).mean())


@torch.no_grad()
def judge(
    source: Synthetic,
    dictionary_fd: Tensor,
    encode: Callable[[Tensor], Tensor],
    decode: Callable[[Tensor], Tensor],
) -> Quality:
    """Quality of any SAE on the held-out vectors of `source`; sums are float64."""
    x_nd = source.held_out()
    n_fired_f = torch.zeros(len(dictionary_fd), dtype=torch.float64)
    error = 0.0
    for chunk_nd in x_nd.split(CHUNK):
        codes_nf = encode(chunk_nd)
        n_fired_f += (codes_nf != 0).sum(0)
        error += float((chunk_nd.double() - decode(codes_nf).double()).square().sum())
    spread = float((x_nd.double() - x_nd.double().mean(0)).square().sum())
    mcc, recovered = match(source.atoms_td, dictionary_fd)
    return Quality(
        mcc, recovered, error / spread, float(n_fired_f.sum()) / len(x_nd), float((n_fired_f == 0).double().mean())
    )
