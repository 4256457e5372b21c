"""Which features are active: the k largest pre-activations of every vector, or the k·B largest of a whole batch.

A selection asks for the pre-activations of some vectors at a time, so that the matrix vectors × features never exists.
"""

# B vectors  C vectors of a chunk  F features  M selected (vector, feature) pairs, in the order of the vectors

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import NamedTuple, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

CHUNK_ELEMENTS = 1 << 20  # pre-activations at a time: a few MiB, which caches hold
N_GUESS = 128  # vectors that tell where the threshold of a batch will be
GUESS_MARGIN = 1.25  # their share of candidates over what is wanted


class Selection(NamedTuple):
    """Which features each vector keeps, as a CSR matrix: row b has pairs ``starts_b[b] : starts_b[b + 1]``.

    Attributes:
        values_m: pre-activations of the pairs.
        features_m: int64, their features.
        starts_b: (B + 1) int64, where each vector's pairs start; the last entry is M.
    """

    values_m: Tensor
    features_m: Tensor
    starts_b: Tensor


Pre = Callable[[slice | Tensor], Tensor]  # pre-activations (C, F) of some of the vectors


class Select(Protocol):
    def __call__(self, pre: Pre, n_vectors: int) -> Selection:
        """Choose pairs of all `n_vectors` vectors."""


def _chunks(pre: Pre, n_vectors: int) -> Iterator[tuple[slice, Tensor]]:
    """Pre-activations, chunk by chunk. The first vector tells how many features there are."""
    size = max(1, CHUNK_ELEMENTS // pre(slice(0, 1)).shape[1])
    for start in range(0, n_vectors, size):
        rows = slice(start, min(start + size, n_vectors))
        yield rows, pre(rows)


class TopK:
    """The `k` largest pre-activations of every vector, of any sign.

    Selecting from rectified values would cost half as much again: who wants them positive rectifies the k values.
    """

    def __init__(self, k: int) -> None:
        self.k = k

    def __call__(self, pre: Pre, n_vectors: int) -> Selection:
        values, features = [], []
        for _, pre_cf in _chunks(pre, n_vectors):
            values_ck, features_ck = pre_cf.topk(self.k, dim=-1, sorted=False)
            values.append(values_ck.reshape(-1))
            features.append(features_ck.reshape(-1))
        features_m = torch.cat(features)
        starts_b = torch.arange(0, len(features_m) + 1, self.k, device=features_m.device)
        return Selection(torch.cat(values), features_m, starts_b)


class BatchTopK:
    """The `k` times B largest positive pre-activations of the batch (Bussmann et al. 2024, arXiv 2412.06410).

    Sorting all B·F of them is what makes this selection slow. A sample of vectors tells about where the threshold lies;
    the few pairs above that guess are collected, and the exact selection is made among them. A guess that proves too
    high is lowered and the pass repeated: what is selected never depends on it. Of equal values at the threshold those
    of earlier vectors come first.
    """

    def __init__(self, k: float) -> None:
        self.k = k

    def __call__(self, pre: Pre, n_vectors: int) -> Selection:
        wanted = max(1, round(self.k * n_vectors))
        margin = GUESS_MARGIN
        while True:
            guess = self._guess(pre, n_vectors, margin)
            found = self._above(pre, n_vectors, guess)
            if len(found.values_m) >= wanted or guess == 0:
                return _largest(found, wanted)
            margin *= 2

    def _guess(self, pre: Pre, n_vectors: int, margin: float) -> float:
        n_sampled = min(N_GUESS, n_vectors)
        if margin * self.k * n_sampled < 1:
            return 0.0
        sample = pre(torch.linspace(0, n_vectors - 1, n_sampled).long()).flatten()
        rank = round(margin * self.k * n_sampled)
        if rank >= sample.numel():
            return 0.0
        return max(0.0, float(sample.topk(rank, sorted=False).values.min()))

    @staticmethod
    def _above(pre: Pre, n_vectors: int, guess: float) -> Selection:
        values, features, counts = [], [], []
        for _, pre_cf in _chunks(pre, n_vectors):
            rows, columns = (pre_cf > guess).nonzero(as_tuple=True)
            values.append(pre_cf[rows, columns])
            features.append(columns)
            counts.append(torch.bincount(rows, minlength=len(pre_cf)))
        return Selection(torch.cat(values), torch.cat(features), F.pad(torch.cat(counts).cumsum(0), (1, 0)))


def _largest(found: Selection, wanted: int) -> Selection:
    """The `wanted` largest of the pairs found, in their order."""
    values_m, features_m, starts_b = found
    if len(values_m) <= wanted:
        return found
    threshold = values_m.topk(wanted, sorted=False).values.min()
    keep_m = values_m > threshold
    tied_m = (values_m == threshold).nonzero().squeeze(1)
    keep_m[tied_m[: wanted - int(keep_m.sum())]] = True
    kept_before = F.pad(keep_m.cumsum(0), (1, 0))
    return Selection(values_m[keep_m], features_m[keep_m], kept_before[starts_b])
