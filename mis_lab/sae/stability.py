"""Whether two dictionaries hold the same directions: SAEs of several seeds, or an SAE and a known truth.

Mean correlation coefficient (MCC): directions are paired one to one so that the sum of |cosine| is largest (Hungarian
method), and |cosine| is averaged over the pairs.
"""

# A, F rows of either dictionary  D dimensions  M pairs: the smaller of both numbers

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import combinations

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from mis_lab.core.errors import DataError

RECOVERED = 0.9  # |cosine| above which a direction counts as found


@dataclass(frozen=True)
class Matching:
    """The best one-to-one pairing of two sets of directions.

    Attributes:
        rows_a_m, rows_b_m: (M,) int64, the paired rows, in the order of the first dictionary.
        cosines_m: (M,) float64, with sign; a pair with a direction of length 0 has 0.
        n_a, n_b: directions on either side; those of the larger set beyond M have no partner.
    """

    rows_a_m: Tensor
    rows_b_m: Tensor
    cosines_m: Tensor
    n_a: int
    n_b: int

    @property
    def mcc(self) -> float:
        """Mean |cosine| of the pairs."""
        return float(self.cosines_m.abs().mean())

    def recovered(self, above: float = RECOVERED) -> float:
        """Share of the pairs with |cosine| greater than `above`."""
        return float((self.cosines_m.abs() > above).double().mean())

    def recovered_of_b(self, above: float = RECOVERED) -> float:
        """Share of all directions of the second set that have such a partner: what was found of a truth."""
        return float((self.cosines_m.abs() > above).sum()) / self.n_b


@dataclass(frozen=True)
class Stability:
    """How alike several dictionaries are.

    Attributes:
        mcc_by_pair: MCC of every two of them, in the order 0–1, 0–2, …, 1–2, ….
        recovered_by_pair: share of paired directions with |cosine| above .9.
    """

    mcc_by_pair: tuple[float, ...]
    recovered_by_pair: tuple[float, ...]

    @property
    def mcc(self) -> float:
        """Mean over the pairs."""
        return sum(self.mcc_by_pair) / len(self.mcc_by_pair)

    @property
    def mcc_std(self) -> float:
        """Population standard deviation over the pairs, which are not independent: no standard error."""
        return float(torch.tensor(self.mcc_by_pair, dtype=torch.float64).std(correction=0))

    @property
    def mcc_range(self) -> tuple[float, float]:
        return min(self.mcc_by_pair), max(self.mcc_by_pair)

    @property
    def recovered(self) -> float:
        """Mean over the pairs."""
        return sum(self.recovered_by_pair) / len(self.recovered_by_pair)


@torch.no_grad()
def match(a_fd: Tensor, b_fd: Tensor) -> Matching:
    """Pair the rows of two matrices one to one; the smaller decides how many pairs there are.

    Takes a matrix of all cosines and time of the order F³: seconds for some thousand directions.

    Raises:
        DataError: when the shapes do not fit, or a number is not finite.
    """
    if a_fd.ndim != 2 or b_fd.ndim != 2 or a_fd.shape[1] != b_fd.shape[1] or 0 in (*a_fd.shape, *b_fd.shape):
        raise DataError(f"dictionaries of shapes {tuple(a_fd.shape)} and {tuple(b_fd.shape)} cannot be matched")
    cosines_af = _unit(a_fd) @ _unit(b_fd).T
    if not cosines_af.isfinite().all():
        raise DataError("a dictionary to match contains NaN or infinity")
    rows_a, rows_b = linear_sum_assignment(cosines_af.abs().numpy(), maximize=True)
    cosines_m = cosines_af[rows_a, rows_b]
    return Matching(torch.from_numpy(rows_a), torch.from_numpy(rows_b), cosines_m, len(a_fd), len(b_fd))


def stability(dictionaries: Sequence[Tensor]) -> Stability:
    """How alike the dictionaries of SAEs are that differ in their seed alone, over all pairs of them.

    Raises:
        DataError: when there are fewer than two, or two cannot be matched.
    """
    if len(dictionaries) < 2:
        raise DataError(f"{len(dictionaries)} dictionary has nothing to be compared with", fix="Train two seeds.")
    matchings = [match(a_fd, b_fd) for a_fd, b_fd in combinations(dictionaries, 2)]
    return Stability(tuple(one.mcc for one in matchings), tuple(one.recovered() for one in matchings))


def _unit(directions_fd: Tensor) -> Tensor:
    directions_fd = directions_fd.detach().cpu().double()
    norm_f1 = directions_fd.norm(dim=1, keepdim=True)
    return torch.where(norm_f1 == 0, 0.0, directions_fd / norm_f1)
