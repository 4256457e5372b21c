"""Odd one out: is an image that does not belong to a unit found among images that do?

Chang et al. (2009), "Reading tea leaves": shown K images of a unit and an intruder, the guess is the image least like
the others. :func:`outsiders_below` is the form of the MIS authors' development code, over all images at once. Neither
needs similarities of all pairs of images.
"""

# U units  S pool size  N tasks a unit  K images shown of the unit  n images  m width of the embedding's table

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.intervals import Interval, wilson
from mis_lab.core.seeding import derive_seed
from mis_lab.mis.draws import hashes, subsets
from mis_lab.mis.similarity import require_known, set_means, small_sets, squared_lengths, table_of
from mis_lab.mis.units import UnitStatus

if TYPE_CHECKING:
    from mis_lab.metric.base import Embedding

TIE = 1e-6  # of the embedding's scale
_MOST_NUMBERS = 1 << 22


class OddOneOut(NamedTuple):
    """Of U units; NaN where the status is not ok.

    Attributes:
        found: share of intruders found, with its 95 % interval (Wilson), (U,) each; j images that are equally little
            like the others share the guess.
        chance: 1 / (K + 1), what a unit scores whose images have nothing in common.
        status: (U,) int64, ``too_rare`` with fewer than K images or no image outside.
        images: (U, N, K+1) int64, the intruder last; −1 for a unit that is not scored.
    """

    found: Interval
    chance: float
    status: Tensor
    images: Tensor


def odd_one_out(
    top_us: Tensor,
    outside_us: Tensor,
    embedding: Embedding,
    n_shown: int = 5,
    n_tasks: int = 20,
    seed: int = 0,
    unit_keys: Tensor | None = None,
) -> OddOneOut:
    """Tasks of K = `n_shown` images drawn from a unit's top pool and one drawn from outside.

    Args:
        top_us: image indices, −1 where a pool has fewer.
        outside_us: images that are not in the top pool (``Pools.random`` or ``Pools.bottom``), −1 where there are
            fewer.
        unit_keys: (U,) int64, what each unit is called; its number by default. A unit's draws depend on seed and key
            alone.

    Raises:
        DataError: when a pool names an image that is not embedded.
        ValueError: for fewer than two images shown.
    """
    if n_shown < 2 or n_tasks < 1:
        raise ValueError(f"{n_tasks} tasks of {n_shown} images")
    keys = torch.arange(len(top_us)) if unit_keys is None else unit_keys
    require_known(embedding, outside_us)
    n_top_u, n_outside_u = (top_us >= 0).sum(1), (outside_us >= 0).sum(1)
    ok = (n_top_u >= n_shown) & (n_outside_u >= 1)
    shown_unk = subsets(derive_seed(seed, "odd one out", "shown"), keys, n_tasks, n_shown, n_top_u)
    intruder_un = hashes(derive_seed(seed, "odd one out", "intruder"), keys, torch.arange(n_tasks))
    intruder_un = intruder_un % n_outside_u.clamp_min(1)[:, None]
    images = torch.cat(
        [
            _present(top_us).gather(1, shown_unk.flatten(1).clamp_max(top_us.shape[1] - 1)).view_as(shown_unk),
            _present(outside_us).gather(1, intruder_un)[..., None],
        ],
        -1,
    )
    images = images.masked_fill(~ok[:, None, None], -1)
    credit_t = torch.zeros(int(ok.sum()) * n_tasks, dtype=torch.float64)
    for some, similarity_tkk in small_sets(embedding, images[ok].flatten(0, 1)):
        credit_t[some] = _credit(similarity_tkk, TIE * embedding.scale).cpu()
    found = np.full((3, len(top_us)), np.nan)
    found[:, ok.numpy()] = wilson(credit_t.view(-1, n_tasks).mean(1).numpy(), n_tasks)
    status = torch.where(ok, UnitStatus.ok.value, UnitStatus.too_rare.value)
    return OddOneOut(Interval(*found), 1 / (n_shown + 1), status, images)


def outsiders_below(top_us: Tensor, embedding: Embedding, k: int) -> Tensor:
    """Share of all other images that are less like the unit's top k than these are like each other, (U,) float64.

    Chance is not one half: an image of the pool is compared without itself. Ties count one half; NaN where a pool has
    fewer than k images. Images are taken in chunks.

    Raises:
        DataError: when a pool names an image that is not embedded.
        ValueError: when `k` is no number of images of a pool, or no image is left outside.
    """
    table, lengths_n = table_of(embedding), squared_lengths(embedding)
    n_images = len(table)
    if not 2 <= k <= min(top_us.shape[1], n_images - 1):
        raise ValueError(f"top {k} of pools of {top_us.shape[1]} images, {n_images} in all")
    require_known(embedding, top_us)
    ok = (top_us[:, :k] >= 0).all(1)
    top_uk = top_us[ok, :k].long().to(table.device)
    distance, factor, tie = embedding.similarity == "squared_euclidean", embedding.margin_factor, TIE * embedding.scale
    found = torch.full((len(top_us),), torch.nan, dtype=torch.float64)
    shares = []
    for some_uk in top_uk.split(max(1, _MOST_NUMBERS // n_images)):
        means_um = set_means(embedding, some_uk)
        pool_length_u1 = lengths_n[some_uk].mean(1, keepdim=True) if distance else 0.0
        mean_un = torch.empty(len(some_uk), n_images, dtype=torch.float64, device=table.device)
        if embedding.rows is None:
            mean_un[:] = means_um
        else:
            step = max(1, _MOST_NUMBERS // table.shape[1])
            for start in range(0, n_images, step):
                mean_un[:, start : start + step] = means_um @ table[start : start + step].double().T
        mean_un = factor * mean_un - ((pool_length_u1 + lengths_n) if distance else 0.0)
        own_uk = torch.zeros_like(mean_un.gather(1, some_uk)) if distance else lengths_n[some_uk]
        threshold_u1 = ((k * mean_un.gather(1, some_uk) - own_uk) / (k - 1)).mean(1, keepdim=True)
        below_un = (mean_un < threshold_u1).double().masked_fill((mean_un - threshold_u1).abs() <= tie, 0.5)
        shares.append((below_un.sum(1) - below_un.gather(1, some_uk).sum(1)) / (n_images - k))
    found[ok] = torch.cat([torch.empty(0, dtype=torch.float64), *(share.cpu() for share in shares)])
    return found


def _present(images_us: Tensor) -> Tensor:
    """Image indices with those that are there first."""
    return images_us.long().gather(1, (images_us < 0).to(torch.uint8).argsort(dim=1, stable=True))


def _credit(similarity_tkk: Tensor, tie: float) -> Tensor:
    """(T,) 1 where the last image is least like the others, 1/j where j images are, else 0."""
    to_others_tk = (similarity_tkk.sum(-1) - similarity_tkk.diagonal(dim1=1, dim2=2)) / (similarity_tkk.shape[1] - 1)
    least = to_others_tk <= to_others_tk.amin(1, keepdim=True) + tie
    return least[:, -1].double() / least.sum(1)
