"""A wide embedding in fewer columns: CountSketch (Charikar, Chen and Farach-Colton 2002) with buckets of equal size.

Every column gets a random sign and falls into one bucket; a bucket is the sum of its columns. Inner products, distances
and margins keep their expectation; their variance falls as 1/m - 1/d. A Gaussian projection has the same error to first
order but needs m times the work and a matrix of m d numbers (16 GB for LPIPS at 224 pixels and m = 8,192); a Hadamard
transform pads to a power of two. This one reads each number once, sums in a fixed order on every device, and is an
isometry as soon as m ≥ d.
"""

# B images in a batch  n images in a sample  d width of the embedding  m width of the sketch  T tasks  K explanations

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.core.seeding import generator

N_TASKS, N_EXPLANATIONS = 10_000, 9


class CountSketch:
    """A linear map from d to m dimensions, a function of d, m and the seed alone."""

    def __init__(self, width: int, n_buckets: int, seed: int, device: torch.device | str = "cpu") -> None:
        self.width, self.n_buckets = width, n_buckets
        numbers = generator(seed, "sketch", width, n_buckets)
        self.per_bucket = -(-width // n_buckets)
        places = torch.randperm(n_buckets * self.per_bucket, generator=numbers)
        signs = torch.randint(0, 2, places.shape, generator=numbers) * 2.0 - 1
        filled = places < width  # the last places of some buckets stay empty
        self.columns = places.where(filled, 0).to(device)
        self.signs = (signs * filled).to(device)

    def __call__(self, rows_bd: Tensor) -> Tensor:
        """(B, m) sketches of rows (B, d)."""
        chosen = rows_bd[:, self.columns].mul_(self.signs)
        return chosen.view(len(rows_bd), self.n_buckets, self.per_bucket).sum(-1)


def sketch_error(exact_nn: Tensor, sketched_nn: Tensor) -> dict[str, float]:
    """How far a sketch is off, on the Gram matrices of a sample of n images without and with it.

    Tasks have 9 explanations a side (fewer in a sample below 20 images), their images drawn at random.

    Returns:
        ``sketch_distance_error``: root mean square of the relative error of the squared distance of two images;
        ``sketch_margin_error``: root mean square error of a task's margin over the standard deviation of margins
        (the measured τ: what soft scores see); ``sketch_margin_correlation``; ``sketch_sign_agreement``: share of the
        tasks whose margin keeps its sign (what hard scores see); ``sketch_n_images``. Empty below 4 images.
    """
    n = len(exact_nn)
    k = min(N_EXPLANATIONS, n // 2 - 1)
    if k < 1:
        return {}
    exact_p, sketched_p = _distances(exact_nn), _distances(sketched_nn)
    apart = exact_p > 1e-9 * float(exact_nn.diagonal().mean())
    relative = (sketched_p[apart] - exact_p[apart]) / exact_p[apart]
    scores = torch.rand(N_TASKS, n, generator=generator(0, "sketch error", "tasks"))
    images = scores.topk(2 * (k + 1), dim=1).indices
    exact_t, sketched_t = _margins(exact_nn, images), _margins(sketched_nn, images)
    error_t = sketched_t - exact_t
    together = torch.corrcoef(torch.stack([exact_t, sketched_t]))
    return {
        "sketch_distance_error": float(relative.square().mean().sqrt()),
        "sketch_margin_error": float(error_t.square().mean().sqrt() / exact_t.std(correction=0)),
        "sketch_margin_correlation": float(together[0, 1]),
        "sketch_sign_agreement": float((exact_t.sign() == sketched_t.sign()).double().mean()),
        "sketch_n_images": float(n),
    }


def _distances(gram_nn: Tensor) -> Tensor:
    """Squared distances of all pairs, float64."""
    gram_nn = gram_nn.double()
    squared_n = gram_nn.diagonal()
    pairs = torch.triu_indices(len(gram_nn), len(gram_nn), 1)
    return squared_n[pairs[0]] + squared_n[pairs[1]] - 2 * gram_nn[pairs[0], pairs[1]]


def _margins(gram_nn: Tensor, images: Tensor) -> Tensor:
    """(T,) margins (up to a constant factor) of tasks: the first two images are the queries."""
    k = images.shape[1] // 2 - 1
    inner = gram_nn.double()[images[:, :2, None], images[:, None, 2:]]
    by_side = inner.unflatten(2, (2, k)).mean(-1)  # (T, query, side)
    return by_side[:, 0, 0] - by_side[:, 0, 1] - by_side[:, 1, 0] + by_side[:, 1, 1]
