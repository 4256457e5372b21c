"""Geometry of directions against arrangements known by heart, and against the whole F×F matrix."""

# F directions  D dimensions

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.sae.geometry import geometry, overlaps, weight_directions


def polygon(n: int) -> Tensor:
    angle = 2 * torch.pi * torch.arange(n, dtype=torch.float64) / n
    return torch.stack([angle.cos(), angle.sin()], 1)


@pytest.mark.parametrize(
    ("directions", "dimensionality"),
    [
        (torch.eye(3), 1.0),  # each has a dimension of its own
        (torch.tensor([[1.0, 0], [-1, 0], [0, 1], [0, -1]]), 1 / 2),  # two antipodal pairs
        (polygon(3), 2 / 3),
        (polygon(5), 2 / 5),
        (torch.tensor([[1.0, 1, 1], [1, -1, -1], [-1, 1, -1], [-1, -1, 1]]) / 3**0.5, 3 / 4),  # tetrahedron
    ],
    ids=["basis", "digons", "triangle", "pentagon", "tetrahedron"],
)
def test_dimensionality_of_the_arrangements_of_the_paper(directions: Tensor, dimensionality: float) -> None:
    """Elhage et al. 2022: solutions of toy models sit at these fractions."""
    found = geometry(directions)
    n, d = directions.shape
    assert found.dimensionality_f.tolist() == pytest.approx([dimensionality] * n)
    assert found.features_per_dimension == pytest.approx(n / d)
    assert found.dimensions_per_feature == pytest.approx(d / n)
    # They are tight frames: all directions of space get the same.
    assert found.effective_rank == pytest.approx(d)
    assert found.participation_ratio == pytest.approx(d)


def test_a_features_own_length_matters() -> None:
    """A short direction beside a long one has nearly no dimension of its own, the long one nearly all of one."""
    found = geometry(torch.tensor([[1.0, 0.0], [0.1, 0.0]]))
    assert found.dimensionality_f.tolist() == pytest.approx([1 / (1 + 0.01), 0.01 / (0.01 + 1)])
    assert found.interference_f.tolist() == pytest.approx([1, 1])
    assert found.dimensions_per_feature == pytest.approx(2 / 1.01)


@given(n=st.integers(2, 30), d=st.integers(1, 8), block_rows=st.integers(1, 40), seed=st.integers(0, 99))
def test_blocks_give_what_the_whole_matrix_gives(n: int, d: int, block_rows: int, seed: int) -> None:
    w = torch.randn(n, d, generator=torch.Generator().manual_seed(seed)).double()
    found = geometry(w, block_rows, n_bins=10)
    x = w.numpy()
    unit = x / np.linalg.norm(x, axis=1, keepdims=True)
    others = ~np.eye(n, dtype=bool)
    cosines = np.where(others, np.abs(unit @ unit.T), 0)
    np.testing.assert_allclose(found.dimensionality_f, (x**2).sum(1) / ((unit @ x.T) ** 2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(found.interference_f, (cosines**2).sum(1), rtol=1e-9)
    np.testing.assert_allclose(found.coherence_f, cosines.max(1), rtol=1e-9)
    np.testing.assert_allclose(cosines[np.arange(n), found.nearest_f], cosines.max(1), rtol=1e-9)
    assert (found.nearest_f != torch.arange(n)).all()
    assert found.coherence == pytest.approx(cosines.max(), rel=1e-9)
    assert found.overlap_rms == pytest.approx(np.sqrt(((x @ x.T) ** 2)[others].mean()), rel=1e-9)
    assert int(found.cosine_histogram.sum()) == n * (n - 1) // 2
    if d > 1:  # else every cosine is 1, at the edge
        expected = np.histogram(cosines[np.triu(others)], bins=10, range=(0, 1))[0]
        assert found.cosine_histogram.tolist() == expected.tolist()
    sigma = np.linalg.svd(x, compute_uv=False)
    p = sigma / sigma.sum()
    assert found.effective_rank == pytest.approx(np.exp(-(p * np.log(p)).sum()), rel=1e-9)
    assert found.participation_ratio == pytest.approx((sigma**2).sum() ** 2 / (sigma**4).sum(), rel=1e-9)


def test_ranks_of_a_spectrum_by_hand() -> None:
    found = geometry(torch.diag(torch.tensor([3.0, 1.0, 0.0]))[:2])
    assert found.singular_values.tolist() == pytest.approx([3, 1])
    assert found.effective_rank == pytest.approx(math.exp(-(0.75 * math.log(0.75) + 0.25 * math.log(0.25))))
    assert found.participation_ratio == pytest.approx(100 / 82)
    assert geometry(torch.tensor([[1.0, 2.0], [2.0, 4.0]])).effective_rank == pytest.approx(1, abs=1e-6)


@pytest.mark.parametrize("block_rows", [1, 2, 100])
def test_directions_of_length_zero(block_rows: int) -> None:
    found = geometry(torch.tensor([[0.0, 0.0], [1.0, 0.0], [3.0, 4.0], [0.0, 0.0]]), block_rows)
    assert found.n_zero == 2
    assert found.norm_f.tolist() == [0, 1, 5, 0]
    assert found.dimensionality_f[[0, 3]].isnan().all()
    assert found.dimensionality_f[1] == pytest.approx(1 / (1 + 9))
    assert found.interference_f.isnan().tolist() == [True, False, False, True]
    assert found.nearest_f.tolist() == [-1, 2, 1, -1]
    assert found.coherence == pytest.approx(0.6)
    assert found.overlap_rms == pytest.approx(3)
    assert int(found.cosine_histogram.sum()) == 1


def test_one_direction_alone() -> None:
    found = geometry(torch.tensor([[2.0, 0.0]]))
    assert found.dimensionality_f.tolist() == [1.0]
    assert math.isnan(found.coherence)
    assert math.isnan(found.overlap_rms)
    assert found.nearest_f.tolist() == [-1]
    assert found.interference_f.tolist() == [0.0]


def test_overlaps_on_request() -> None:
    w = torch.randn(6, 3, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(overlaps(w), w.double() @ w.double().T)
    torch.testing.assert_close(overlaps(w, [4, 1]), w[[4, 1]].double() @ w[[4, 1]].double().T)
    with pytest.raises(ConfigError, match="4097 directions are too many"):
        overlaps(torch.ones(4097, 1))


def test_directions_of_a_networks_own_weights() -> None:
    linear, convolution = nn.Linear(3, 5), nn.Conv2d(2, 4, 3)
    assert torch.equal(weight_directions(linear), linear.weight)
    assert torch.equal(weight_directions(linear, writes=True), linear.weight.T)
    assert torch.equal(weight_directions(convolution), convolution.weight.reshape(4, 18))
    assert weight_directions(convolution, writes=True).shape == (2, 36)
    assert torch.equal(weight_directions(convolution, writes=True)[1], convolution.weight[:, 1].flatten())
    assert not weight_directions(linear).requires_grad
    depthwise = nn.Conv2d(4, 4, 3, groups=4)
    assert weight_directions(depthwise).shape == (4, 9)
    with pytest.raises(ConfigError, match="4 groups"):
        weight_directions(depthwise, writes=True)
    for module in (nn.ReLU(), nn.BatchNorm2d(3), nn.ConvTranspose2d(2, 3, 1)):
        with pytest.raises(ConfigError, match=r"has no directions.*linear layer or a convolution"):
            weight_directions(module)


@pytest.mark.parametrize("bad", [torch.ones(3), torch.ones(0, 3), torch.ones(2, 2, 2)])
def test_what_is_no_matrix(bad: Tensor) -> None:
    with pytest.raises(DataError, match="rows of a matrix"):
        geometry(bad)


def test_numbers_that_cannot_be_used() -> None:
    with pytest.raises(DataError, match="NaN or infinity"):
        geometry(torch.tensor([[1.0, float("nan")]]))
    with pytest.raises(DataError, match="all 2 directions have length 0"):
        geometry(torch.zeros(2, 3))
