"""How alike a unit's most activating images are, and how many classes they come from.

Coherence is the mean similarity of two images of the pool (Klindt et al. 2023, arXiv:2310.11431, with LPIPS); entropy
and purity of the pool's classes are those of PatchSAE (Lim et al. 2024). Both look at the top alone: a unit that
excites for a second reason lower down is not found out.
"""

# U units  S pool size  k images looked at  C classes

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.mis.similarity import mean_similarity, within

if TYPE_CHECKING:
    from mis_lab.metric.base import Embedding

_MOST_NUMBERS = 1 << 24


class Coherence(NamedTuple):
    """Of U units; NaN where a pool has fewer than two images.

    Attributes:
        coherence: (U,) float64 mean similarity of two images of the top k.
        base_rate: mean similarity of two images of the data set.
        above_base_rate: (U,) float64, the difference.
        n_images: (U,) int64, images there are, at most k.
    """

    coherence: Tensor
    base_rate: float
    above_base_rate: Tensor
    n_images: Tensor


class PoolClasses(NamedTuple):
    """Classes of the top k images of U units; NaN (and class −1) for an empty pool.

    Attributes:
        entropy: (U,) float64 in bits; 0 when all are of one class, at most log₂ min(k, C).
        purity: (U,) float64 share of the most frequent class.
        majority: (U,) int64 that class; the first of equally frequent ones.
        n_classes: (U,) int64 different classes.
    """

    entropy: Tensor
    purity: Tensor
    majority: Tensor
    n_classes: Tensor


def coherence(top_us: Tensor, embedding: Embedding, k: int) -> Coherence:
    """Coherence of the `k` most activating images.

    Args:
        top_us: image indices, the most activating first, −1 where there are fewer.

    Raises:
        DataError: when a pool names an image that is not embedded.
        ValueError: when `k` is no number of images of a pool.
    """
    top_uk = _first(top_us, k, 2)
    found, base_rate = within(embedding, top_uk), mean_similarity(embedding)
    return Coherence(found, base_rate, found - base_rate, (top_uk >= 0).sum(1))


def pool_classes(top_us: Tensor, labels: Sequence[int], k: int) -> PoolClasses:
    """Classes of the `k` most activating images.

    Args:
        labels: class of each image, from 0.

    Raises:
        DataError: when an image has no class.
        ValueError: when `k` is no number of images of a pool.
    """
    labels_n = torch.as_tensor(labels, dtype=torch.int64)
    if labels_n.numel() and int(labels_n.min()) < 0:
        raise DataError(f"{int((labels_n < 0).sum())} images have no class", fix="Take a data set with labels.")
    top_uk = _first(top_us, k, 1).long()
    if top_uk.numel() and int(top_uk.max()) >= len(labels_n):
        raise DataError(f"pools name image {int(top_uk.max())}, and there are {len(labels_n)} labels")
    n_classes = int(labels_n.max()) + 1
    parts = [_classes(some, labels_n, n_classes) for some in top_uk.split(max(1, _MOST_NUMBERS // n_classes))]
    return PoolClasses(*(torch.cat(columns) for columns in zip(*parts, strict=True)))


def _classes(top_uk: Tensor, labels_n: Tensor, n_classes: int) -> PoolClasses:
    there = top_uk >= 0
    classes_uk = labels_n[top_uk.clamp_min(0)].masked_fill(~there, n_classes)  # the column too many: padding
    counts_uc = torch.zeros(len(top_uk), n_classes + 1, dtype=torch.float64)
    counts_uc.scatter_add_(1, classes_uk, torch.ones_like(classes_uk, dtype=torch.float64))
    shares_uc = counts_uc[:, :n_classes] / there.sum(1, keepdim=True)
    bits_u = -torch.special.xlogy(shares_uc, shares_uc).sum(1) / torch.log(torch.tensor(2.0, dtype=torch.float64))
    purity_u, majority_u = shares_uc.max(1)
    empty = ~there.any(1)
    return PoolClasses(
        bits_u.abs().masked_fill(empty, torch.nan),  # not −0
        purity_u.masked_fill(empty, torch.nan),
        majority_u.masked_fill(empty, -1),
        (counts_uc[:, :n_classes] > 0).sum(1),
    )


def _first(top_us: Tensor, k: int, least: int) -> Tensor:
    if not least <= k <= top_us.shape[1]:
        raise ValueError(f"top {k} of pools of {top_us.shape[1]} images")
    return top_us[:, :k]
