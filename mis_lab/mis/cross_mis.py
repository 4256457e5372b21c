"""How alike the explanations of two units are: can their images be told apart, and which units are duplicates?

After the cross-MIS of the MIS authors' development code: of two units' i-th images, which goes with whose others? One
thing differs: an image that explains both units is not compared with itself, so that equal explanations score one half
and not zero. Cost: O(k² d) a pair asked for; neighbours among all units in blocks, never a matrix of all pairs.
"""

# U units  k images that explain a unit  P pairs of units  m width of the embedding's table  b units of a block

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING, NamedTuple

import torch
from torch import Tensor

from mis_lab.mis.similarity import require_known, set_means, small_sets, table_of

if TYPE_CHECKING:
    from mis_lab.metric.base import Embedding

TIE = 1e-6  # of the embedding's scale
_MOST_NUMBERS = 1 << 24


class CrossMis(NamedTuple):
    """Of P pairs of units; NaN where a unit has fewer than k images.

    Attributes:
        accuracy: (P,) float64 share of the k places whose two images go with the right unit: 1 when explanations are
            told apart, one half when they are the same.
        between: mean similarity of an image of one and an image of the other, the same image left out.
        within: mean similarity of two images of the same unit, mean of both units.
        n_shared: (P,) int64 images that explain both.
    """

    accuracy: Tensor
    between: Tensor
    within: Tensor
    n_shared: Tensor


class Neighbours(NamedTuple):
    """The most alike units of each, most alike first; −1 and NaN where there are fewer, or none for this unit.

    Attributes:
        units: (U, n) int64.
        likeness: (U, n) float32, cosine of the explanations' mean embeddings about the data set's mean.
    """

    units: Tensor
    likeness: Tensor


def cross_mis(top_us: Tensor, pairs_p2: Tensor, embedding: Embedding, k: int = 9) -> CrossMis:
    """Tell apart the `k` most activating images of the two units of every pair.

    Args:
        top_us: image indices, the most activating first, −1 where there are fewer.
        pairs_p2: numbers of units (rows of `top_us`).

    Raises:
        DataError: when a pool names an image that is not embedded.
        ValueError: when `k` is no number of images of a pool.
    """
    _require_k(top_us, k, 2)
    both_pk = top_us[:, :k].long()[pairs_p2.long()].flatten(1)  # (P, 2k)
    ok = (both_pk >= 0).all(1)
    accuracy, between, within = torch.full((3, len(pairs_p2)), torch.nan, dtype=torch.float64)
    same_pkk = both_pk[:, :k, None] == both_pk[:, None, k:]
    n_shared = same_pkk.sum((1, 2)).masked_fill(~ok, 0)
    parts = [
        _tell_apart(similarity.cpu(), same_pkk[ok][some], TIE * embedding.scale)
        for some, similarity in small_sets(embedding, both_pk[ok])
    ]
    if parts:
        accuracy[ok], between[ok], within[ok] = (torch.cat(columns) for columns in zip(*parts, strict=True))
    return CrossMis(accuracy, between, within, n_shared)


def _tell_apart(similarity: Tensor, same_tkk: Tensor, tie: float) -> tuple[Tensor, Tensor, Tensor]:
    k = similarity.shape[1] // 2
    mine_tkk, theirs_tkk = similarity[:, :k, :k], similarity[:, k:, k:]
    own_t2k = torch.stack([_to_others(mine_tkk), _to_others(theirs_tkk)], 1)
    across_tkk = similarity[:, :k, k:].masked_fill(same_tkk, 0.0)
    n_different_t2k = k - torch.stack([same_tkk.sum(2), same_tkk.sum(1)], 1)
    across_t2k = torch.stack([across_tkk.sum(2), across_tkk.sum(1)], 1) / n_different_t2k
    delta_tk = (own_t2k - across_t2k).sum(1)
    right_tk = (delta_tk > 0).double().masked_fill(delta_tk.abs() <= tie, 0.5)
    between_t = across_tkk.sum((1, 2)) / (k * k - same_tkk.sum((1, 2)))
    return right_tk.mean(1), between_t, own_t2k.mean((1, 2))


def _to_others(similarity_tkk: Tensor) -> Tensor:
    own_tk = similarity_tkk.diagonal(dim1=1, dim2=2)
    return (similarity_tkk.sum(2) - own_tk) / (similarity_tkk.shape[1] - 1)


def neighbours(top_us: Tensor, embedding: Embedding, n: int = 1, k: int = 9) -> Neighbours:
    """The `n` units whose explanations are most like each unit's.

    Raises:
        DataError: when a pool names an image that is not embedded.
        ValueError: when `k` is no number of images of a pool.
    """
    units = torch.full((len(top_us), n), -1)
    likeness = torch.full((len(top_us), n), torch.nan)
    for rows_b, known_v, likeness_bv in _likeness(top_us, embedding, k):
        values, places = likeness_bv.topk(min(n, len(known_v)), dim=1)
        there = values > -torch.inf
        n_found = values.shape[1]
        units[rows_b, :n_found] = known_v[places].masked_fill(~there, -1)
        likeness[rows_b, :n_found] = values.masked_fill(~there, torch.nan)
    return Neighbours(units, likeness)


def duplicates(top_us: Tensor, embedding: Embedding, least: float = 0.99, k: int = 9) -> Tensor:
    """(P, 2) int64 all pairs of units with a likeness of at least `least`, the lower number first, in order.

    Raises:
        DataError: when a pool names an image that is not embedded.
        ValueError: when `k` is no number of images of a pool.
    """
    found = [torch.empty(0, 2, dtype=torch.int64)]
    for rows_b, known_v, likeness_bv in _likeness(top_us, embedding, k):
        row, column = (likeness_bv >= least).nonzero(as_tuple=True)
        pairs = torch.stack([rows_b[row], known_v[column]], 1)
        found.append(pairs[pairs[:, 0] < pairs[:, 1]])
    return torch.cat(found)


def _likeness(top_us: Tensor, embedding: Embedding, k: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """(units of a block (b,), all units that have k images (V,), likeness (b, V), −∞ with itself)."""
    _require_k(top_us, k, 1)
    require_known(embedding, top_us)
    known_v = (top_us[:, :k] >= 0).all(1).nonzero()[:, 0]
    if not len(known_v):
        return
    table = table_of(embedding)
    images_vk = top_us[known_v, :k].long().to(table.device)
    right_vm = set_means(embedding, images_vk) - _mean_row(table)
    if embedding.rows is None:
        # Inner products about the mean are (w − 1/n)ᵀ G (w' − 1/n), and the left factor has entries for all images.
        left_vm = torch.zeros_like(right_vm).scatter_add_(
            1, images_vk, torch.full(images_vk.shape, 1 / k, dtype=torch.float64, device=table.device)
        )
        left_vm -= 1 / len(table)
    else:
        left_vm = right_vm
    lengths_v1 = (left_vm * right_vm).sum(1, keepdim=True).clamp_min(0.0).sqrt()
    # An explanation at the data set's mean is like no other.
    left_vm, right_vm = ((part / lengths_v1).nan_to_num(0.0, 0.0, 0.0).float() for part in (left_vm, right_vm))
    step = max(1, _MOST_NUMBERS // len(known_v))
    for start in range(0, len(known_v), step):
        block = torch.arange(start, min(start + step, len(known_v)))
        likeness_bv = (left_vm[start : start + step] @ right_vm.T).cpu()
        likeness_bv[block - start, block] = -torch.inf
        yield known_v[block], known_v, likeness_bv


def _mean_row(table: Tensor) -> Tensor:
    total = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    for some in table.split(max(1, _MOST_NUMBERS // table.shape[1])):
        total += some.double().sum(0)
    return total / len(table)


def _require_k(top_us: Tensor, k: int, least: int) -> None:
    if not least <= k <= top_us.shape[1]:
        raise ValueError(f"top {k} of pools of {top_us.shape[1]} images")
