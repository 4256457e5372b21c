"""Tasks of the Machine Interpretability Score: which images explain a unit and which are asked about.

A task shows K strongly and K weakly activating images and asks which of two queries belongs to the strong
side. Here they are drawn from a unit's pools of extreme images. Zimmermann, Klindt and Brendel (2024),
"Measuring Mechanistic Interpretability at Scale Without Humans"; the ways of drawing are in
:mod:`mis_lab.mis.protocols`.
"""

# U units  S pool size  N tasks a unit  K explanations a side  G groups of images

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mis_lab.core.seeding import derive_seed
from mis_lab.mis.config import MisConfig, Negatives, Protocol, Query
from mis_lab.mis.draws import subsets
from mis_lab.mis.protocols.bins import rounds
from mis_lab.mis.protocols.groups import draw_distinct_groups, groups_of, largest_bins, once, rank_in_group
from mis_lab.mis.protocols.layout import Layout, layouts
from mis_lab.mis.protocols.within_class import ImageClasses, keep_filled, match_classes
from mis_lab.mis.units import UnitStatus, is_sparse, silent_status

if TYPE_CHECKING:
    from mis_lab.activations.pools import Pools


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

    Without groups the images to be used stand first, of the pool or, with a window, of explanations and of queries.
    """

    images_us: Tensor
    groups_us: Tensor | None
    n_groups: int
    layout: Layout

    @property
    def size_u(self) -> Tensor:
        return (self.images_us >= 0).sum(1)


class PoolNeeds(NamedTuple):
    """What pools must be gathered: `size` images a side, at most `per_group` of a group (0 = any number)."""

    size: int
    per_group: int


def pool_needs(config: MisConfig, n_images: int) -> PoolNeeds:
    """The pools that tasks on `n_images` images are drawn from.

    Raises:
        DataError: when the images are too few for any unit to have its tasks.
    """
    of_sides = layouts(config, n_images)
    if config.one_per_group and config.protocol is Protocol.inner_quantile:
        return PoolNeeds(n_images // 2, 0)  # how many images a cap leaves within the quantiles is not known before
    by_cap = config.one_per_group and config.protocol is Protocol.extreme
    return PoolNeeds(max(side.n_ranked() for side in of_sides), of_sides[0].bin_size if by_cap else 0)


def draw_tasks(
    pools: Pools,
    config: MisConfig,
    negatives: Negatives,
    seed: int,
    unit_keys: Tensor,
    groups: Tensor | None,
    n_images: int,
    classes: ImageClasses | None = None,
) -> Draw:
    """Draw the tasks of U units.

    Protocol ``extreme``: the N(K+1) most extreme images in K+1 bins of N, every image in one task, a task
    one image of each bin; the query comes from the most (or least) extreme bin. With `one_per_group` the
    pool has at most N images of a group and its images are dealt out group by group, so that no task gets
    two of one group; the query is the most (or least) extreme image of its task. ``inner_quantile`` does so with what
    is left between the quantiles. Protocol ``hard`` explains by the KN most extreme images in K bins and asks about
    one of the N images from a percentile on. Protocol ``quantile``: every task draws K+1 distinct images of the pool
    (K+1 distinct groups), and images recur over tasks. With ``pool_size`` bins have its K+1st part, and images recur
    when there are more tasks than that.

    The negative side is drawn the same way, its most extreme image being the least active one; a random pool is
    in random order, so its query is a random one. Negatives ``within_class`` are matched to the positive side image
    by image.

    Of a unit that is never negative only images that activate it may stand on the positive side. N is
    lowered for units that cannot fill it (not for quantile): to n_active / (K+1). Quantile needs as many images as the
    smallest extreme draw, `min_tasks` (K+1), or all of its pool where that is smaller.

    Args:
        pools: image indices of U units; as large and as capped as :func:`pool_needs` says.
        seed: of the draws; `unit_keys` (U,) int64 tells units apart.
        groups: (n_images,) group codes; used with ``config.one_per_group`` alone.
        n_images: how many images were ranked.
        classes: of the images; needed for negatives ``within_class``.

    Raises:
        DataError: when activations are not finite, or `n_images` is too small for any unit.
    """
    size = pool_needs(config, n_images).size
    if config.one_per_group and groups is None:
        raise ValueError("one_per_group needs the images' groups")
    if negatives is Negatives.within_class and classes is None:
        raise ValueError("within_class needs the images' classes")
    groups = groups if config.one_per_group else None

    positive_side, negative_side = _sides(pools, config, negatives, size, groups, n_images)
    of_sides = [_possible_bins(side, config) for side in (positive_side, negative_side) if side is not None]
    bin_size_u = torch.stack(of_sides).amin(0)
    possible_u = _possible_tasks(bin_size_u, pools, config, positive_side.layout)
    status_u = silent_status(pools.n_active, pools.minimum, pools.maximum)
    wanting = (status_u == UnitStatus.ok.value) & (possible_u < config.min_tasks)
    by_groups = _enough_images(pools, config, positive_side.layout, n_images) & (groups is not None)
    status_u[wanting & by_groups] = UnitStatus.too_few_groups.value
    status_u[wanting & ~by_groups] = UnitStatus.too_rare.value

    n_tasks_u = torch.where(status_u == UnitStatus.ok.value, possible_u, 0)
    bin_size_u = torch.where(status_u == UnitStatus.ok.value, bin_size_u, 0)
    seeds = (derive_seed(seed, "mis", "positive"), derive_seed(seed, "mis", negatives.name))
    query, query_negative = config.queries()
    positive = _deal(positive_side, bin_size_u, n_tasks_u, config, seeds[0], unit_keys)
    if negative_side is not None:
        negative = _deal(negative_side, bin_size_u, n_tasks_u, config, seeds[1], unit_keys)
    else:
        assert classes is not None  # asked for above
        top = pools.top[:, :size].long()
        negative, filled = match_classes(positive, top, classes, groups, seeds[1], unit_keys)
        filled &= filled.sum(1, keepdim=True) >= config.min_tasks
        positive, negative = keep_filled((positive, negative), filled)
        n_tasks_u, query_negative = filled.sum(1), query
        status_u[(status_u == UnitStatus.ok.value) & (n_tasks_u == 0)] = UnitStatus.too_few_groups.value
    return Draw(assemble(positive, negative, n_tasks_u, query, query_negative), status_u)


def assemble(
    positive_unk: Tensor, negative_unk: Tensor, n_tasks_u: Tensor, query: Query, query_negative: Query | None = None
) -> Tasks:
    """Tasks from each side's K+1 images a task, (U, N, K+1), the most extreme first: one is the query."""
    explained_p, asked_p = _split(positive_unk, query)
    explained_n, asked_n = _split(negative_unk, query_negative or query)
    return Tasks(explained_p, asked_p, explained_n, asked_n, n_tasks_u)


def _split(side_unk: Tensor, query: Query) -> tuple[Tensor, Tensor]:
    """Explanations (U, N, K) and query (U, N) of one side."""
    at, rest = (0, slice(1, None)) if query is Query.most_extreme else (-1, slice(None, -1))
    images = side_unk.to(torch.int32)
    return images[..., rest], images[..., at]


def _sides(
    pools: Pools, config: MisConfig, negatives: Negatives, size: int, groups: Tensor | None, n_images: int
) -> tuple[_Side, _Side | None]:
    """Positive and negative side; no negative one where its images follow from the positive side's."""
    of_top, of_bottom = layouts(config, n_images)
    top, top_values = pools.top[:, :size].long(), pools.top_values[:, :size]
    eligible = (top >= 0) & ~(is_sparse(pools.minimum)[:, None] & (top_values <= 0))
    if negatives is Negatives.within_class:
        return _side(top, eligible, groups, of_top), None
    if negatives is Negatives.random:
        weak = pools.random[:, :size].long()
        anywhere = Layout(0, of_top.size, of_top.bin_size, None)  # a random order has no extremes
        return _side(top, eligible, groups, of_top), _side(weak, weak >= 0, groups, anywhere)
    weak = pools.bottom[:, :size].long()
    weak_eligible = weak >= 0
    if groups is not None:
        eligible, weak_eligible = once(top, eligible, weak, weak_eligible, groups)
    return _side(top, eligible, groups, of_top), _side(weak, weak_eligible, groups, of_bottom)


def _side(images_us: Tensor, eligible_us: Tensor, groups: Tensor | None, layout: Layout) -> _Side:
    images = images_us.masked_fill(~eligible_us, -1)[:, layout.start :]
    if layout.window is not None:
        window = slice(layout.window, layout.window + layout.bin_size)
        images = torch.cat([images[:, : layout.size - layout.bin_size], images[:, window]], 1)
    if groups is None:
        return _Side(images[:, : layout.size], None, 0, layout)
    return _Side(images, groups_of(images, groups), int(groups.max()) + 1, layout)


def _possible_bins(side: _Side, config: MisConfig) -> Tensor:
    """(U,) images a bin that one side allows; for quantile N where there are enough images, else 0."""
    per_side, layout = config.n_explanations + 1, side.layout
    if config.protocol is Protocol.quantile:
        enough = side.size_u >= min(layout.size, config.min_tasks * per_side)
        if side.groups_us is not None:
            enough &= ((side.groups_us >= 0) & (rank_in_group(side.groups_us) == 0)).sum(1) >= per_side
        return torch.where(enough, config.n_tasks, 0)
    if side.groups_us is not None:
        return largest_bins(side.groups_us, layout.bin_size, per_side)
    if layout.window is None:
        return side.size_u // per_side
    explaining, asked = side.images_us.split([layout.size - layout.bin_size, layout.bin_size], 1)
    return torch.minimum((explaining >= 0).sum(1) // config.n_explanations, (asked >= 0).sum(1))


def _possible_tasks(bin_size_u: Tensor, pools: Pools, config: MisConfig, layout: Layout) -> Tensor:
    """(U,) tasks that bins of these sizes allow. Of full bins of a given pool all images may be used again, but a unit
    that is never negative has no more than its active images would fill."""
    if config.protocol is Protocol.quantile or not config.pool_size:
        return bin_size_u.clamp_max(config.n_tasks)
    filled_u = (pools.n_active.long() - layout.start) // (config.n_explanations + 1)
    most_u = torch.where(is_sparse(pools.minimum), filled_u, config.n_tasks)
    return torch.where(bin_size_u < layout.bin_size, bin_size_u, most_u).clamp_max(config.n_tasks)


def _enough_images(pools: Pools, config: MisConfig, layout: Layout, n_images: int) -> Tensor:
    """(U,) bool: enough images for the fewest tasks, were it not for their groups."""
    available_u = torch.where(is_sparse(pools.minimum), pools.n_active.long(), n_images // 2) - layout.start
    return available_u >= min(layout.size, config.min_tasks * (config.n_explanations + 1))


def _deal(
    side: _Side, bin_size_u: Tensor, n_tasks_u: Tensor, config: MisConfig, seed: int, unit_keys: Tensor
) -> Tensor:
    """(U, N, K+1) images of each task, the most extreme first, -1 beyond a unit's tasks."""
    per_side, n_tasks, layout = config.n_explanations + 1, config.n_tasks, side.layout
    if config.protocol is not Protocol.quantile:
        most = layout.bin_size if config.pool_size else n_tasks
        n_rounds = -(-n_tasks // most)
        last_at = None if layout.window is None else layout.size - layout.bin_size
        places = rounds(seed, unit_keys, bin_size_u, most, per_side, n_rounds, last_at, side.groups_us)[:, :n_tasks]
    elif side.groups_us is None:
        places = subsets(seed, unit_keys, n_tasks, per_side, side.size_u)
    else:
        places = draw_distinct_groups(side.groups_us, side.n_groups, n_tasks, per_side, seed, unit_keys)
    missing = torch.arange(n_tasks) >= n_tasks_u[:, None]
    places = places.masked_fill(missing[..., None], 0).sort(-1).values
    images = side.images_us.gather(1, places.flatten(1)).view_as(places)
    return images.masked_fill(missing[..., None], -1)
