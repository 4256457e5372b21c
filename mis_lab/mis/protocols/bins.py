"""Fair bins: a task takes one image of each bin of the pool, every image once (Borowski et al. 2021)."""

# U units  S pool size  N tasks a unit  K explanations a side

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.core.seeding import derive_seed
from mis_lab.mis.draws import permutations
from mis_lab.mis.protocols.groups import deal_groups


def deal_bins(permutations_ubn: Tensor, bin_size_u: Tensor, last_at: int | None = None) -> Tensor:
    """Places (U, N, K+1) when task t takes image ``permutation[b, t]`` of each bin b.

    Args:
        bin_size_u: images a bin, of each unit.
        last_at: where the last bin starts; by default behind the others.
    """
    bins = torch.arange(permutations_ubn.shape[1])
    starts = bins[:, None] * bin_size_u[:, None, None]
    if last_at is not None:
        starts[:, -1] = last_at
    return (starts + permutations_ubn).transpose(1, 2)


def rounds(
    seed: int,
    unit_keys: Tensor,
    bin_size_u: Tensor,
    most: int,
    per_side: int,
    n_rounds: int,
    last_at: int | None,
    groups_us: Tensor | None,
) -> Tensor:
    """Places (U, n_rounds * most, K+1) of tasks: in each round every image of the pool once.

    Args:
        bin_size_u: images a bin; the first so many tasks of a round hold meaning.
        most: the largest bin there may be; draws depend on it, so that it must not be a chunk's own.
        last_at: see :func:`deal_bins`.
        groups_us: with groups, images are dealt out group by group, so that no task gets two of one.
    """
    dealt = []
    for number in range(n_rounds):
        of_round = derive_seed(seed, "round", number) if number else seed
        if groups_us is None:
            drawn = permutations(of_round, unit_keys, per_side, bin_size_u, most)
            dealt.append(deal_bins(drawn, bin_size_u, last_at))
        else:
            dealt.append(deal_groups(groups_us, bin_size_u, most, per_side, of_round, unit_keys))
    return torch.cat(dealt, 1)
