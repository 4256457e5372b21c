"""How alike the images of a set are: weighted mean similarity over all pairs, from sums instead of pairs.

A cosine is e_i·e_j, minus a squared distance 2 e_i·e_j − ‖e_i‖² − ‖e_j‖². So the sum over the pairs of a set is an
inner product of the set's sum with itself, less what an image has with itself: O(n d), not O(n² d).
"""

# U units  S images of a set  n images in all  m width of the table: d of the rows, n of a Gram matrix  T small sets

from __future__ import annotations

from collections.abc import Iterator
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from mis_lab.core.errors import DataError

if TYPE_CHECKING:
    from mis_lab.metric.base import Embedding

_MOST_NUMBERS = 1 << 22  # float64 numbers read at once


def table_of(embedding: Embedding) -> Tensor:
    """(n, m) what the embedding holds: its rows, or else its Gram matrix."""
    table = embedding.gram if embedding.rows is None else embedding.rows
    assert table is not None  # an embedding has one of them
    return table


def squared_lengths(embedding: Embedding) -> Tensor:
    """(n,) float64 inner product of each image with itself."""
    if embedding.rows is None:
        return table_of(embedding).diagonal().double()
    return torch.cat([rows.double().square().sum(1) for rows in _row_blocks(embedding.rows)])


def mean_similarity(embedding: Embedding) -> float:
    """Mean similarity of two different images of the data set: the base rate of every score below.

    Raises:
        DataError: when there are fewer than two images.
    """
    table = table_of(embedding)
    if len(table) < 2:
        raise DataError(f"{embedding.metric} embedded {len(table)} images; a pair needs two")
    sums_m = torch.zeros(table.shape[1], dtype=torch.float64, device=table.device)
    for block in _row_blocks(table):
        sums_m += block.double().sum(0)
    inner = sums_m.sum() if embedding.rows is None else sums_m @ sums_m
    ones = torch.ones(1, len(table), dtype=torch.float64, device=table.device)
    return float(pair_mean(embedding, inner[None], ones, squared_lengths(embedding)[None])[0])


def pair_mean(embedding: Embedding, inner_u: Tensor, weights_us: Tensor, lengths_us: Tensor) -> Tensor:
    """Σ_{i≠j} w_i w_j s(i, j) / Σ_{i≠j} w_i w_j, (U,) float64, NaN where fewer than two images have a weight.

    Args:
        inner_u: ‖Σ w_i e_i‖².
        weights_us: w_i >= 0, float64.
        lengths_us: ‖e_i‖², or (1, S) when all units share the images.
    """
    total_u1 = weights_us.sum(1, keepdim=True)
    of_pairs_u = (weights_us * (total_u1 - weights_us)).sum(1)
    own_u = (weights_us.square() * lengths_us).sum(1)
    alike_u = embedding.margin_factor * (inner_u - own_u)
    if embedding.similarity == "squared_euclidean":
        alike_u = alike_u - 2 * (weights_us * lengths_us * (total_u1 - weights_us)).sum(1)
    return (alike_u / of_pairs_u).masked_fill((weights_us > 0).sum(1) < 2, torch.nan)


def within(embedding: Embedding, images_us: Tensor, weights_us: Tensor | None = None) -> Tensor:
    """Mean similarity of two different images of each set, (U,) float64 on the CPU.

    Args:
        images_us: indices, −1 where a set has fewer than S images.
        weights_us: of the images, at least 0; equal by default. A pair counts with the product of its weights.
    """
    require_known(embedding, images_us)
    table, lengths_n = table_of(embedding), squared_lengths(embedding)
    images_us = images_us.long().to(table.device)
    there = (images_us >= 0).double()
    weights_us = there if weights_us is None else there * weights_us.to(table.device, torch.float64).nan_to_num(0.0)
    step = max(1, _MOST_NUMBERS // (max(1, images_us.shape[1]) * table.shape[1]))
    found = [torch.empty(0, dtype=torch.float64)]
    for images, weights in zip(images_us.clamp_min(0).split(step), weights_us.split(step), strict=True):
        sums_cm = weighted_sums(table, images, weights)
        from_gram = embedding.rows is None
        inner_c = (weights * sums_cm.gather(1, images) if from_gram else sums_cm.square()).sum(1)
        found.append(pair_mean(embedding, inner_c, weights, lengths_n[images]).cpu())
    return torch.cat(found)


def weighted_sums(table: Tensor, images_cs: Tensor, weights_cs: Tensor) -> Tensor:
    """(C, m) float64 Σ w_i table_i of a few sets at once."""
    return torch.einsum("cs,csm->cm", weights_cs, table[images_cs].double())


def set_means(embedding: Embedding, images_us: Tensor) -> Tensor:
    """(U, m) float64 mean of the table over each set (indices, none missing)."""
    table = table_of(embedding)
    images_us = images_us.long().to(table.device)
    means_um = torch.empty(len(images_us), table.shape[1], dtype=torch.float64, device=table.device)
    step = max(1, _MOST_NUMBERS // (max(1, images_us.shape[1]) * table.shape[1]))
    for start in range(0, len(images_us), step):
        means_um[start : start + step] = table[images_us[start : start + step]].double().mean(1)
    return means_um


def small_sets(embedding: Embedding, images_tk: Tensor) -> Iterator[tuple[slice, Tensor]]:
    """Similarities (t, K, K) float64 within small sets of images, some sets after another.

    Yields:
        which of the T sets, and their similarities; O(K² + K d) numbers a set.
    """
    require_known(embedding, images_tk)
    table = table_of(embedding)
    images_tk = images_tk.long().to(table.device)
    k = images_tk.shape[1]
    step = max(1, _MOST_NUMBERS // (k * (k if embedding.rows is None else table.shape[1])))
    for start in range(0, len(images_tk), step):
        images = images_tk[start : start + step]
        if embedding.rows is None:
            inner_tkk = table[images[:, :, None], images[:, None]].double()
        else:
            rows_tkd = table[images].double()
            inner_tkk = rows_tkd @ rows_tkd.mT
        yield slice(start, start + len(images)), _similarities(embedding, inner_tkk)


def _similarities(embedding: Embedding, inner_tkk: Tensor) -> Tensor:
    if embedding.similarity == "cosine":
        return inner_tkk
    lengths_tk = inner_tkk.diagonal(dim1=1, dim2=2)
    return embedding.margin_factor * inner_tkk - lengths_tk[:, :, None] - lengths_tk[:, None]


def require_known(embedding: Embedding, images: Tensor) -> None:
    """Refuse images that the embedding does not have.

    Raises:
        DataError: when an index lies beyond its images.
    """
    n_images = len(table_of(embedding))
    if images.numel() and int(images.max()) >= n_images:
        raise DataError(
            f"pools name image {int(images.max())} of the {n_images} that {embedding.metric} embedded",
            fix="Embed the images of the activations, in their order.",
        )


def _row_blocks(table: Tensor) -> tuple[Tensor, ...]:
    return table.split(max(1, _MOST_NUMBERS // table.shape[1]))
