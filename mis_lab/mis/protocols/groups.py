"""Draws in which no two images of one side of a task share a group (a photograph)."""

# U units  S pool size  N tasks a unit  K explanations a side  G groups of images

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.core.seeding import derive_seed
from mis_lab.mis.draws import hashes

# A row of (units, tasks, groups) numbers is worked on in pieces of at most this many numbers.
_MOST_NUMBERS = 1 << 24


def groups_of(images_us: Tensor, groups: Tensor) -> Tensor:
    return groups[images_us.clamp_min(0)].masked_fill(images_us < 0, -1)


def rank_in_group(groups_us: Tensor) -> Tensor:
    """(U, S) how many images of the same group stand before each image of its pool."""
    ordered, order = groups_us.sort(dim=1, stable=True)
    places = torch.arange(groups_us.shape[1]).expand_as(groups_us)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(first, places, 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, places - start)


def largest_bins(groups_us: Tensor, most: int, per_side: int) -> Tensor:
    """(U,) the largest n, up to `most`, so that n images of a group and no more leave n(K+1) images.

    As many images remain as have a rank below n in their group; their number is concave in n, so the caps that leave
    n(K+1) images are 1..n and counting them gives n.
    """
    rank = rank_in_group(groups_us).masked_fill(groups_us < 0, most).clamp_max(most)
    of_rank = torch.zeros(rank.shape[0], most + 1, dtype=torch.int64).scatter_add_(1, rank, torch.ones_like(rank))
    below = of_rank[:, :most].cumsum(1)
    return (below >= torch.arange(1, most + 1) * per_side).sum(1)


def once(
    top: Tensor, eligible: Tensor, bottom: Tensor, bottom_eligible: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Strike images that stand in both pools from the one where their group has more extreme images.

    A cap reaches deep into the ranking of a small group: its images are then shared out between the sides.
    """
    images = torch.cat([top.masked_fill(~eligible, -1), bottom.masked_fill(~bottom_eligible, -1)], dim=1)
    ranks = [rank_in_group(groups_of(side, groups)) for side in images.split([top.shape[1], bottom.shape[1]], 1)]
    ordered, order = images.sort(dim=1, stable=True)  # an image of both pools: first in top, then in bottom
    rank = torch.cat(ranks, 1).gather(1, order)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    from_top = rank[:, :-1] > rank[:, 1:]
    struck = torch.zeros_like(images, dtype=torch.bool)
    struck[:, :-1] = twice & from_top
    struck[:, 1:] |= twice & ~from_top
    kept = torch.empty_like(struck).scatter_(1, order, ~struck)
    return eligible & kept[:, : top.shape[1]], bottom_eligible & kept[:, top.shape[1] :]


def deal_groups(
    groups_us: Tensor, n_tasks_u: Tensor, n_tasks: int, per_side: int, seed: int, unit_keys: Tensor
) -> Tensor:
    """Places (U, N, K+1): the pool, at most n_tasks images a group, dealt round robin group by group."""
    allowed = (groups_us >= 0) & (rank_in_group(groups_us) < n_tasks_u[:, None])
    taken = allowed & (allowed.cumsum(1) <= n_tasks_u[:, None] * per_side)
    # Groups in random order and, within a group, images in random order: sort by the second key, then the first.
    places = torch.arange(groups_us.shape[1])
    order = hashes(derive_seed(seed, "within groups"), unit_keys, places).argsort(dim=1, stable=True)
    group_key = hashes(derive_seed(seed, "groups"), unit_keys, groups_us).masked_fill(~taken, (1 << 63) - 1)
    order = order.gather(1, group_key.gather(1, order).argsort(dim=1, stable=True))
    # At most n images of a group lie side by side, so every n-th card of the deck is of another group.
    deck = torch.arange(per_side) * n_tasks_u[:, None, None] + torch.arange(n_tasks)[:, None]
    return order.gather(1, deck.flatten(1).clamp_max(groups_us.shape[1] - 1)).view_as(deck)


def draw_distinct_groups(
    groups_us: Tensor, n_groups: int, n_tasks: int, per_side: int, seed: int, unit_keys: Tensor
) -> Tensor:
    """Places (U, N, K+1): images drawn one after the other, uniformly among those whose group is not drawn yet.

    A group's chance is then its number of images; exponential clocks at these rates give the same draw
    (Efraimidis and Spirakis 2006).
    """
    step = max(1, _MOST_NUMBERS // (n_tasks * max(n_groups, per_side)))
    drawn = []
    for rows, keys in zip(groups_us.split(step), unit_keys.split(step), strict=True):
        ordered, order = rows.sort(dim=1, stable=True)
        counts = torch.zeros(len(rows), n_groups + 1, dtype=torch.int64)
        counts.scatter_add_(1, ordered + 1, torch.ones_like(ordered))  # the first column counts the padding
        starts = (counts.cumsum(1) - counts)[:, 1:]
        counts = counts[:, 1:]
        ticks = hashes(derive_seed(seed, "groups"), keys, torch.arange(n_tasks * n_groups))
        uniform = (ticks.view(-1, n_tasks, n_groups) + 1).double() / 2.0**63
        clocks = -uniform.log() / counts[:, None]  # x / 0: a group without images never rings
        groups = clocks.topk(min(per_side, n_groups), largest=False).indices
        groups = torch.nn.functional.pad(groups, (0, per_side - groups.shape[-1]))
        of_group = hashes(derive_seed(seed, "within groups"), keys, torch.arange(n_tasks * per_side)).view_as(groups)
        flat = groups.flatten(1)
        place = starts.gather(1, flat) + of_group.flatten(1) % counts.gather(1, flat).clamp_min(1)
        drawn.append(order.gather(1, place.clamp_max(order.shape[1] - 1)).view_as(groups))
    return torch.cat(drawn)
