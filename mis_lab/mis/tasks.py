"""Tasks of the Machine Interpretability Score: which images explain a unit and which are asked about.

A task shows K strongly and K weakly activating images and asks which of two queries belongs to the strong
side. Here they are drawn from a unit's pools of extreme images. Zimmermann, Klindt and Brendel (2024),
"Measuring Mechanistic Interpretability at Scale Without Humans"; fair bins: Borowski et al. (2021);
quantile: the authors' reference code.
"""

# U units  S pool size  N tasks a unit  K explanations a side  G groups of images

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.seeding import derive_seed
from mis_lab.mis.config import MisConfig, Negatives, Protocol, Query
from mis_lab.mis.draws import hashes, permutations, subsets
from mis_lab.mis.units import UnitStatus, is_sparse, silent_status

if TYPE_CHECKING:
    from mis_lab.activations.pools import Pools

# A row of (units, tasks, groups) numbers is worked on in pieces of at most this many numbers.
_MOST_NUMBERS = 1 << 24


class Tasks(NamedTuple):
    """Image indices of every task; -1 where a unit has fewer tasks (its first `n_tasks` are there).

    Attributes:
        explanations_positive, explanations_negative: (U, N, K) int32, the most extreme image first.
        query_positive, query_negative: (U, N) int32.
        n_tasks: (U,) int64, 0 for a unit whose status is not ok.
    """

    explanations_positive: Tensor
    query_positive: Tensor
    explanations_negative: Tensor
    query_negative: Tensor
    n_tasks: Tensor


class Draw(NamedTuple):
    """Tasks, and why a unit has none: `status_u` (U,) int64 holds numbers of :class:`UnitStatus`."""

    tasks: Tasks
    status_u: Tensor


class _Side(NamedTuple):
    """One side's pool, most extreme image first, -1 where none is to be used; and the images' groups.

    Without groups the images to be used stand first.
    """

    images_us: Tensor
    groups_us: Tensor | None
    n_groups: int

    @property
    def size_u(self) -> Tensor:
        return (self.images_us >= 0).sum(1)


class PoolNeeds(NamedTuple):
    """What pools must be gathered: `size` images a side, at most `per_group` of a group (0 = any number)."""

    size: int
    per_group: int


def pool_needs(config: MisConfig, n_images: int) -> PoolNeeds:
    """The pools that tasks on `n_images` images are drawn from: N(K+1) images or the quantile.

    A side gets at most half of the images, so that no image is both strong and weak: N is lowered for that.

    Raises:
        DataError: when the images are too few for any unit to have its tasks.
    """
    per_side, half = config.n_explanations + 1, n_images // 2
    if config.protocol is Protocol.extreme:
        n_tasks = min(config.n_tasks, half // per_side)
        least, size = config.min_tasks * per_side, n_tasks * per_side
        needs = PoolNeeds(size, n_tasks if config.one_per_group else 0)
    else:
        # The small number undoes the rounding of 0.07 * 300 = 21.000000000000004.
        least, size = per_side, min(math.ceil(config.quantile * n_images - 1e-9), half)
        needs = PoolNeeds(size, 0)
    if size < least:
        raise DataError(
            f"{n_images} images are too few: a side of the tasks needs {least} images and gets {size}",
            fix="Score on more images, or lower mis.n_explanations or mis.min_tasks.",
        )
    return needs


def group_codes(groups: Sequence[str]) -> Tensor:
    """(n_images,) int64: the place of each image's group among the sorted names."""
    return torch.from_numpy(np.unique(np.asarray(groups, dtype=str), return_inverse=True)[1].astype(np.int64))


def draw_tasks(
    pools: Pools,
    config: MisConfig,
    negatives: Negatives,
    seed: int,
    unit_keys: Tensor,
    groups: Tensor | None,
    n_images: int,
) -> Draw:
    """Draw the tasks of U units.

    Protocol ``extreme``: the N(K+1) most extreme images in K+1 bins of N, every image in one task, a task
    one image of each bin; the query comes from the most (or least) extreme bin. With `one_per_group` the
    pool has at most N images of a group and its images are dealt out group by group, so that no task gets
    two of one group; the query is the most (or least) extreme image of its task. Protocol ``quantile``:
    every task draws K+1 distinct images of the pool (K+1 distinct groups), and images recur over tasks. The
    negative side is drawn the same way, its most extreme image being the least active one; a random pool is
    in random order, so its query is a random one.

    Of a unit that is never negative only images that activate it may stand on the positive side. N is
    lowered for units that cannot fill it (protocol extreme). Quantile needs as many images as the smallest
    extreme draw, `min_tasks` (K+1), or all of its pool where that is smaller.

    Args:
        pools: image indices of U units; as large and as capped as :func:`pool_needs` says.
        seed: of the draws; `unit_keys` (U,) int64 tells units apart.
        groups: (n_images,) group codes; used with ``config.one_per_group`` alone.
        n_images: how many images were ranked.

    Raises:
        DataError: when activations are not finite, or `n_images` is too small for any unit.
    """
    size = pool_needs(config, n_images).size
    if config.one_per_group and groups is None:
        raise ValueError("one_per_group needs the images' groups")
    groups = groups if config.one_per_group else None

    top, top_values = pools.top[:, :size].long(), pools.top_values[:, :size]
    weak = (pools.bottom if negatives is Negatives.bottom else pools.random)[:, :size].long()
    sparse_u = is_sparse(pools.minimum)
    eligible = (top >= 0) & ~(sparse_u[:, None] & (top_values <= 0))
    weak_eligible = weak >= 0
    if negatives is Negatives.bottom and groups is not None:
        eligible, weak_eligible = _once(top, eligible, weak, weak_eligible, groups)
    sides = (_side(top, eligible, groups), _side(weak, weak_eligible, groups))

    possible_u = torch.minimum(*(_possible_tasks(side, config, size) for side in sides)).clamp_max(config.n_tasks)
    status_u = silent_status(pools.n_active, pools.minimum, pools.maximum)
    available_u = torch.where(sparse_u, pools.n_active.long(), n_images // 2)
    enough_images = available_u >= min(size, config.min_tasks * (config.n_explanations + 1))
    wanting = (status_u == UnitStatus.ok.value) & (possible_u < config.min_tasks)
    by_groups = enough_images & (groups is not None)
    status_u[wanting & by_groups] = UnitStatus.too_few_groups.value
    status_u[wanting & ~by_groups] = UnitStatus.too_rare.value

    n_tasks_u = torch.where(status_u == UnitStatus.ok.value, possible_u, 0)
    seeds = (derive_seed(seed, "mis", "positive"), derive_seed(seed, "mis", negatives.name))
    positive, negative = (
        _deal(side, n_tasks_u, config, side_seed, unit_keys) for side, side_seed in zip(sides, seeds, strict=True)
    )
    return Draw(assemble(positive, negative, n_tasks_u, config.query), status_u)


def assemble(positive_unk: Tensor, negative_unk: Tensor, n_tasks_u: Tensor, query: Query) -> Tasks:
    """Tasks from each side's K+1 images a task, (U, N, K+1), the most extreme first: one is the query."""
    at, rest = (0, slice(1, None)) if query is Query.most_extreme else (-1, slice(None, -1))
    positive, negative = positive_unk.to(torch.int32), negative_unk.to(torch.int32)
    return Tasks(positive[..., rest], positive[..., at], negative[..., rest], negative[..., at], n_tasks_u)


def deal_bins(permutations_ubn: Tensor, n_tasks_u: Tensor) -> Tensor:
    """Places (U, N, K+1) when task t takes image ``permutation[b, t]`` of each bin b of n_tasks images."""
    bins = torch.arange(permutations_ubn.shape[1])
    places = bins[:, None] * n_tasks_u[:, None, None] + permutations_ubn
    return places.transpose(1, 2)


def _once(
    top: Tensor, eligible: Tensor, bottom: Tensor, bottom_eligible: Tensor, groups: Tensor
) -> tuple[Tensor, Tensor]:
    """Strike images that stand in both pools from the one where their group has more extreme images.

    A cap reaches deep into the ranking of a small group: its images are then shared out between the sides.
    """
    images = torch.cat([top.masked_fill(~eligible, -1), bottom.masked_fill(~bottom_eligible, -1)], dim=1)
    ranks = [_rank_in_group(_groups_of(side, groups)) for side in images.split([top.shape[1], bottom.shape[1]], 1)]
    ordered, order = images.sort(dim=1, stable=True)  # an image of both pools: first in top, then in bottom
    rank = torch.cat(ranks, 1).gather(1, order)
    twice = (ordered[:, 1:] == ordered[:, :-1]) & (ordered[:, 1:] >= 0)
    from_top = rank[:, :-1] > rank[:, 1:]
    struck = torch.zeros_like(images, dtype=torch.bool)
    struck[:, :-1] = twice & from_top
    struck[:, 1:] |= twice & ~from_top
    kept = torch.empty_like(struck).scatter_(1, order, ~struck)
    return eligible & kept[:, : top.shape[1]], bottom_eligible & kept[:, top.shape[1] :]


def _groups_of(images_us: Tensor, groups: Tensor) -> Tensor:
    return groups[images_us.clamp_min(0)].masked_fill(images_us < 0, -1)


def _side(images_us: Tensor, eligible_us: Tensor, groups: Tensor | None) -> _Side:
    images = images_us.masked_fill(~eligible_us, -1)
    if groups is None:
        return _Side(images, None, 0)
    return _Side(images, _groups_of(images, groups), int(groups.max()) + 1)


def _possible_tasks(side: _Side, config: MisConfig, pool: int) -> Tensor:
    """(U,) how many tasks one side allows, up to N."""
    per_side, n_tasks = config.n_explanations + 1, config.n_tasks
    if config.protocol is Protocol.quantile:
        enough = side.size_u >= min(pool, config.min_tasks * per_side)
        if side.groups_us is not None:
            enough &= ((side.groups_us >= 0) & (_rank_in_group(side.groups_us) == 0)).sum(1) >= per_side
        return torch.where(enough, n_tasks, 0)
    if side.groups_us is None:
        return (side.size_u // per_side).clamp_max(n_tasks)
    # With a cap of n images a group, as many images remain as have a rank below n in their group; their
    # number is concave in n, so the caps that leave n(K+1) images are 1..N' and counting them gives N'.
    rank = _rank_in_group(side.groups_us).masked_fill(side.groups_us < 0, n_tasks).clamp_max(n_tasks)
    of_rank = torch.zeros(rank.shape[0], n_tasks + 1, dtype=torch.int64).scatter_add_(1, rank, torch.ones_like(rank))
    below = of_rank[:, :n_tasks].cumsum(1)
    return (below >= torch.arange(1, n_tasks + 1) * per_side).sum(1)


def _rank_in_group(groups_us: Tensor) -> Tensor:
    """(U, S) how many images of the same group stand before each image of its pool."""
    ordered, order = groups_us.sort(dim=1, stable=True)
    places = torch.arange(groups_us.shape[1]).expand_as(groups_us)
    first = torch.ones_like(ordered, dtype=torch.bool)
    first[:, 1:] = ordered[:, 1:] != ordered[:, :-1]
    start = torch.where(first, places, 0).cummax(1).values
    return torch.empty_like(order).scatter_(1, order, places - start)


def _deal(side: _Side, n_tasks_u: Tensor, config: MisConfig, seed: int, unit_keys: Tensor) -> Tensor:
    """(U, N, K+1) images of each task, the most extreme first, -1 beyond a unit's tasks."""
    per_side, n_tasks = config.n_explanations + 1, config.n_tasks
    if config.protocol is Protocol.quantile:
        if side.groups_us is None:
            places = subsets(seed, unit_keys, n_tasks, per_side, side.size_u)
        else:
            places = _draw_distinct_groups(side.groups_us, side.n_groups, n_tasks, per_side, seed, unit_keys)
    elif side.groups_us is None:
        places = deal_bins(permutations(seed, unit_keys, per_side, n_tasks_u, n_tasks), n_tasks_u)
    else:
        places = _deal_groups(side.groups_us, n_tasks_u, n_tasks, per_side, seed, unit_keys)
    missing = torch.arange(n_tasks) >= n_tasks_u[:, None]
    places = places.masked_fill(missing[..., None], 0).sort(-1).values
    images = side.images_us.gather(1, places.flatten(1)).view_as(places)
    return images.masked_fill(missing[..., None], -1)


def _deal_groups(
    groups_us: Tensor, n_tasks_u: Tensor, n_tasks: int, per_side: int, seed: int, unit_keys: Tensor
) -> Tensor:
    """Places (U, N, K+1): the pool, at most n_tasks images a group, dealt round robin group by group."""
    allowed = (groups_us >= 0) & (_rank_in_group(groups_us) < n_tasks_u[:, None])
    taken = allowed & (allowed.cumsum(1) <= n_tasks_u[:, None] * per_side)
    # Groups in random order and, within a group, images in random order: sort by the second key, then the first.
    places = torch.arange(groups_us.shape[1])
    order = hashes(derive_seed(seed, "within groups"), unit_keys, places).argsort(dim=1, stable=True)
    group_key = hashes(derive_seed(seed, "groups"), unit_keys, groups_us).masked_fill(~taken, (1 << 63) - 1)
    order = order.gather(1, group_key.gather(1, order).argsort(dim=1, stable=True))
    # At most n images of a group lie side by side, so every n-th card of the deck is of another group.
    deck = torch.arange(per_side) * n_tasks_u[:, None, None] + torch.arange(n_tasks)[:, None]
    return order.gather(1, deck.flatten(1).clamp_max(groups_us.shape[1] - 1)).view_as(deck)


def _draw_distinct_groups(
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
