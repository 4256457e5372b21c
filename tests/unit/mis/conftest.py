"""Golden arrays, pools from the real gatherer, and a way to score activations, for the tests of mis_lab.mis."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch

from mis_lab.activations.pools import PoolGatherer, Pools
from mis_lab.metric.base import Embedding

GOLDEN = Path(__file__).parents[2] / "golden" / "mis" / "mis_golden.npz"


@pytest.fixture(scope="session")
def golden() -> dict[str, np.ndarray]:
    """Arrays of tests/golden/mis (its README says what they are)."""
    with np.load(GOLDEN, allow_pickle=False) as arrays:
        return dict(arrays)


@pytest.fixture(scope="session")
def pools_of() -> Callable[..., Pools]:
    """Pools of activations (n, U), gathered in one go."""

    def gather(activations, size, seed=0, ids=None, groups=None, per_group=0, units=None):
        a_nu = torch.as_tensor(np.asarray(activations), dtype=torch.float32)
        names = [f"image {index:05d}" for index in range(len(a_nu))] if ids is None else ids
        gatherer = PoolGatherer(a_nu.shape[1], size, names, seed, groups, per_group, units=units)
        gatherer.update(a_nu, range(len(a_nu)))
        return gatherer.result()

    return gather


@pytest.fixture(scope="session")
def embedding_of() -> Callable[..., Embedding]:
    """An embedding of rows (n, d): made unit vectors for cosine, taken as they are for squared distances."""

    def make(rows, similarity="cosine", gram=False):
        x_nd = torch.as_tensor(np.asarray(rows), dtype=torch.float64)
        if similarity == "cosine":
            x_nd = x_nd / x_nd.norm(dim=1, keepdim=True)
        return Embedding(
            metric="test",
            ids=[f"image {index:05d}" for index in range(len(x_nd))],
            similarity=similarity,
            scale=float(x_nd.square().sum(1).mean()),
            fingerprint="of the test",
            rows=None if gram else x_nd.float(),
            gram=(x_nd @ x_nd.T).float() if gram else None,
        )

    return make
