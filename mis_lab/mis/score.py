"""Margins of tasks and the scores made of them.

Margin: Δ = [s(q₊,E₊) − s(q₊,E₋)] − [s(q₋,E₊) − s(q₋,E₋)] with s(q,E) the mean similarity of q to the images
of E (Zimmermann, Klindt and Brendel 2024). For an inner product, or minus a squared Euclidean distance, all
norms cancel: Δ = c (q₊ − q₋)·(mean E₊ − mean E₋), with c = 1 and c = 2.
"""

# U units  N tasks a unit  T tasks in a row  K explanations a side  d width of the embedding  n images

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from scipy.special import expit
from torch import Tensor
from torch.nn.functional import embedding_bag

from mis_lab.core.errors import DataError
from mis_lab.core.intervals import Interval, bounded_mean_interval, mean_interval, wilson
from mis_lab.core.seeding import derive_seed, numpy_generator
from mis_lab.mis.draws import hashes, subsets
from mis_lab.mis.tasks import Tasks

if TYPE_CHECKING:
    from mis_lab.metric.base import Embedding

# Numbers in the sums of a chunk of tasks: a CPU keeps them in its cache, a GPU wants few launches.
CHUNK, CHUNK_GPU = 1 << 18, 1 << 26
N_RANDOM_TASKS = 10_000


class Scores(NamedTuple):
    """Scores of U units, each with its 95 % interval; NaN for units without tasks.

    Intervals are of the mean over all tasks that could be drawn from the unit's pool. They take tasks as independent;
    that they share a pool can widen the spread by some per cent.

    Attributes:
        soft: mean of sigmoid(Δ/τ), bootstrap over the tasks and one more that is answered by guessing.
        hard: share of tasks with Δ > 0, ties one half, Wilson.
        delta_over_tau: mean of Δ/τ, bootstrap over tasks; NaN limits for a single task.
    """

    soft: Interval
    hard: Interval
    delta_over_tau: Interval


def margins(tasks: Tasks, embedding: Embedding) -> Tensor:
    """Margins Δ of tasks, (U, N) float64 on the CPU, NaN where there is no task.

    From the rows of the embedding (explanations are summed as they are read and never stand in memory side by side)
    or from its Gram matrix. Equal to the definition to 1e-6 of the embedding's scale.

    Raises:
        DataError: when a task names an image that the embedding does not have.
    """
    there = tasks.query_positive >= 0
    queries_t2 = torch.stack([tasks.query_positive[there], tasks.query_negative[there]], 1).long()
    explained_t2k = torch.stack([tasks.explanations_positive[there], tasks.explanations_negative[there]], 1).long()
    table = embedding.gram if embedding.rows is None else embedding.rows
    assert table is not None  # an embedding has one of them
    if len(queries_t2) and max(int(queries_t2.max()), int(explained_t2k.max())) >= len(table):
        raise DataError(
            f"tasks name images beyond the {len(table)} that {embedding.metric} embedded", fix="Embed the same images."
        )
    delta_t = (_gram_margins if embedding.rows is None else _row_margins)(
        table, queries_t2.to(table.device), explained_t2k.to(table.device)
    )
    result = torch.full(there.shape, torch.nan, dtype=torch.float64)
    result[there] = embedding.margin_factor * delta_t.cpu()
    return result


def _gram_margins(gram_nn: Tensor, queries_t2: Tensor, explained_t2k: Tensor) -> Tensor:
    """(T,) float64: every similarity looked up."""
    places = queries_t2[:, :, None, None] * gram_nn.shape[1] + explained_t2k[:, None]
    similarity_t22 = gram_nn.reshape(-1)[places].double().mean(-1)  # of query q to explanations of side e
    return similarity_t22[:, 0, 0] - similarity_t22[:, 0, 1] - similarity_t22[:, 1, 0] + similarity_t22[:, 1, 1]


def _row_margins(rows_nd: Tensor, queries_t2: Tensor, explained_t2k: Tensor) -> Tensor:
    """(T,) float64: one weighted sum of 2K rows and one inner product a task."""
    n_tasks, _, k = explained_t2k.shape
    if n_tasks == 1:  # the sum of a single row would be split over threads, and round otherwise
        return _row_margins(rows_nd, queries_t2.expand(2, -1), explained_t2k.expand(2, -1, -1))[:1]
    mean_t2k = torch.tensor([[1.0 / k] * k + [-1.0 / k] * k], dtype=rows_nd.dtype, device=rows_nd.device)
    signs_t2 = torch.tensor([[1.0, -1.0]], dtype=rows_nd.dtype, device=rows_nd.device)
    chunk = max(2, (CHUNK if rows_nd.device.type == "cpu" else CHUNK_GPU) // rows_nd.shape[1])
    delta_t = torch.empty(n_tasks, dtype=torch.float64, device=rows_nd.device)
    for start in range(0, n_tasks, chunk):
        some = slice(min(start, n_tasks - 2), start + chunk)
        asked_td = _weighted_sum(rows_nd, queries_t2[some], signs_t2)
        explained_td = _weighted_sum(rows_nd, explained_t2k[some].flatten(1), mean_t2k)
        delta_t[some] = torch.linalg.vecdot(asked_td, explained_td)
    return delta_t


def _weighted_sum(rows_nd: Tensor, ids: Tensor, weights: Tensor) -> Tensor:
    return embedding_bag(ids, rows_nd, per_sample_weights=weights.expand(ids.shape), mode="sum")


def random_tasks(n_images: int, n_explanations: int, n_tasks: int, seed: int) -> Tasks:
    """Tasks of one unit (U = 1) whose 2(K+1) distinct images are drawn from all images.

    Raises:
        DataError: when there are fewer than 2(K+1) images.
    """
    per_task = 2 * (n_explanations + 1)
    if n_images < per_task:
        raise DataError(
            f"{n_images} images are too few for one task of {per_task} images",
            fix="Lower mis.n_explanations.",
        )
    one = torch.zeros(1, dtype=torch.int64)
    images = subsets(derive_seed(seed, "random tasks"), one, n_tasks, per_task, torch.tensor([n_images]))
    # A subset has no order to rely on; which of its images is a query must be random too.
    keys = hashes(derive_seed(seed, "random tasks", "order"), one, torch.arange(n_tasks * per_task)).view_as(images)
    images = images.gather(-1, keys.argsort(-1)).to(torch.int32)
    explained_p, explained_n, queries = images.split([n_explanations, n_explanations, 2], dim=-1)
    return Tasks(explained_p, queries[..., 0], explained_n, queries[..., 1], torch.tensor([n_tasks]))


def measure_temperature(embedding: Embedding, n_explanations: int, seed: int = 0) -> float:
    """τ of a metric without a temperature of its own: the standard deviation of Δ over 10,000 random tasks.

    It belongs to metric, images and K, not to a run: with the default seed every run on these images has it.

    Raises:
        DataError: when all images look the same to the metric.
    """
    tasks = random_tasks(len(embedding.ids), n_explanations, N_RANDOM_TASKS, seed)
    temperature = float(margins(tasks, embedding).std(correction=0))
    if not temperature > 1e-12 * embedding.scale:
        raise DataError(
            f"to the metric all images look the same: margins of random tasks spread by {temperature:.3g}",
            fix="Use another metric or other images.",
        )
    return temperature


def outcomes(margins_un: Tensor, temperature: float, tie: float) -> dict[str, Tensor]:
    """What each task contributes to each score, (U, N) float64; NaN stays NaN.

    soft: the probability sigmoid(Δ/τ) of the right answer. hard: 1 where Δ > 0, ½ where |Δ| <= `tie`, else 0.
    """
    right = (margins_un > 0).to(margins_un.dtype)
    hard = torch.where(margins_un.abs() <= tie, 0.5, right).masked_fill(margins_un.isnan(), torch.nan)
    scaled = margins_un / temperature
    # torch.sigmoid rounds otherwise where it fills no vector, so that a score would depend on the chunk.
    return {"soft": torch.from_numpy(expit(scaled.numpy())), "hard": hard, "delta_over_tau": scaled}


def score(margins_un: Tensor, n_tasks_u: Tensor, temperature: float, tie: float, n_bootstrap: int, seed: int) -> Scores:
    """Soft and hard scores and the mean of Δ/τ, with intervals.

    Args:
        margins_un: (U, N) float64; the first `n_tasks_u` of a row count.
        tie: margins up to this size are ties (``config.ties`` times the embedding's scale).
        n_bootstrap: resamples of the tasks; units with equally many tasks share them, so that an interval
            depends on neither chunk nor order of units, down to its last bit.
    """
    by_measure = outcomes(margins_un, temperature, tie)
    results = {name: np.full((3, len(margins_un)), np.nan) for name in by_measure}
    for n_tasks in n_tasks_u.unique().tolist():
        if n_tasks == 0:
            continue
        rows = (n_tasks_u == n_tasks).nonzero().flatten()
        for name, outcome in by_measure.items():
            values_un, random = outcome[rows, :n_tasks].numpy(), numpy_generator(seed, "bootstrap", "tasks", n_tasks)
            if name == "hard":
                interval = wilson(values_un.mean(1), n_tasks)
            elif name == "soft":
                interval = bounded_mean_interval(values_un, random, n_bootstrap)
            else:
                interval = mean_interval(values_un, random, n_bootstrap)
            results[name][:, rows.numpy()] = interval
    return Scores(**{name: Interval(*values) for name, values in results.items()})
