"""Choose images by group: which groups are held out, and how a few images are spread evenly over all groups.

Groups are ranked by a hash of seed and name, not by position, so that the choice does not depend on the order
of the images, and a new group moves at most one other across the border.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.seeding import derive_seed


def group_codes(groups: Sequence[str]) -> Tensor:
    """(n,) int64: the place of each image's group among the sorted names."""
    return torch.from_numpy(np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].astype(np.int64))


def held_out_groups(groups: Sequence[str], share: float, seed: int, scope: str = "hold_out") -> frozenset[str]:
    """The groups to keep aside.

    Args:
        groups: the group of each image (repeats are fine).
        share: of the distinct groups; rounded half up. Where `share` > 0 and there are two groups or more, at
            least one is held out and at least one is not.
        seed: which ones.
        scope: name of the use; another use with the same seed draws other groups.
    """
    distinct = sorted(set(groups))
    if share <= 0 or len(distinct) < 2:
        return frozenset()
    n_held_out = min(max(int(share * len(distinct) + 0.5), 1), len(distinct) - 1)
    ranked = sorted(distinct, key=lambda group: (derive_seed(seed, scope, group), group))
    return frozenset(ranked[:n_held_out])


def spread(groups: Sequence[str], n: int, generator: torch.Generator | None = None) -> list[int]:
    """Indices of `n` images, as evenly over the groups as they allow (round robin), in ascending order.

    Args:
        groups: the group of each image.
        n: how many; all images when there are not more.
        generator: draw at random within the groups; without it the images of a group are evenly spaced and
            the choice is always the same.
    """
    if n >= len(groups):
        return list(range(len(groups)))
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    salt = 0 if generator is None else int(torch.randint(2**62, (1,), generator=generator))
    order = sorted(members, key=lambda group: (derive_seed(salt, "spread", group), group))
    chosen: list[int] = []
    for group, quota in zip(order, _quotas([len(members[group]) for group in order], n), strict=True):
        mine = members[group]
        if generator is None:
            picks = [(2 * turn + 1) * len(mine) // (2 * quota) for turn in range(quota)]
        else:
            picks = torch.randperm(len(mine), generator=generator)[:quota].tolist()
        chosen += [mine[pick] for pick in picks]
    return sorted(chosen)


def _quotas(sizes: Sequence[int], n: int) -> list[int]:
    """Split `n` over groups of these sizes as if they took one each in turn; the first get what is left."""
    quotas = [0] * len(sizes)
    open_groups = [position for position, size in enumerate(sizes) if size]
    while n and open_groups:
        turns = max(min(n // len(open_groups), min(sizes[p] - quotas[p] for p in open_groups)), 1)
        for position in open_groups[:n]:
            quotas[position] += turns
            n -= turns
        open_groups = [position for position in open_groups if quotas[position] < sizes[position]]
    return quotas
