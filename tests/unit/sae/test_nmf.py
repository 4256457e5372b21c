"""Codes against SciPy's non-negative least squares, atoms against those that made the data."""

# N vectors  D width  F features

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.optimize import lsq_linear
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.nmf import NmfSae, nonnegative_codes
from mis_lab.sae.baseline_config import NmfConfig


@given(
    n_features=st.integers(1, 12),
    width=st.integers(1, 8),
    scale=st.sampled_from([1e-3, 1.0, 1e3]),
    seed=st.integers(0, 99),
)
@settings(max_examples=25)
def test_codes_are_non_negative_least_squares(n_features: int, width: int, scale: float, seed: int) -> None:
    atoms_fd = scale * torch.rand(n_features, width, generator=generator(seed)).double()
    x_nd = torch.randn(6, width, generator=generator(seed, "x")).double()
    codes_nf = nonnegative_codes(x_nd, atoms_fd, 20_000)
    assert (codes_nf >= 0).all()
    error_n = (x_nd - codes_nf @ atoms_fd).norm(dim=1).numpy()
    # Not scipy's nnls, which in 1.15 tells too small an error where there are more atoms than dimensions.
    best = [lsq_linear(atoms_fd.T.numpy(), row, (0, np.inf), method="bvls") for row in x_nd.numpy()]
    best_n = np.array([(2 * found.cost) ** 0.5 for found in best])
    np.testing.assert_allclose(error_n, best_n, rtol=1e-4, atol=1e-4)


def test_codes_of_nothing() -> None:
    assert not nonnegative_codes(torch.ones(2, 3), torch.zeros(4, 3), 10).any()
    assert not nonnegative_codes(torch.zeros(2, 3), torch.ones(4, 3), 10).any()
    assert nonnegative_codes(torch.zeros(0, 3), torch.ones(4, 3), 10).shape == (0, 4)


@pytest.fixture
def parts() -> tuple[Tensor, Tensor]:
    """Atoms (5, 12) with few entries each, and 600 vectors that mix two of them."""
    atoms_fd = F.normalize(
        torch.rand(5, 12, generator=generator(0)) * (torch.eye(5).repeat(1, 3)[:, :12] + 0.02), dim=1
    )
    codes_nf = torch.rand(600, 5, generator=generator(1)) * (torch.rand(600, 5, generator=generator(2)) < 0.4)
    return atoms_fd, 7 * codes_nf @ atoms_fd


def test_atoms_that_made_the_data_are_found(parts: tuple[Tensor, Tensor], vectors: Callable) -> None:
    atoms_fd, x_nd = parts
    loader = vectors()
    loader.x_nd = x_nd
    sae = NmfSae(NmfConfig(n_features=5), 12)
    sae.initialise(x_nd, generator(0))
    sae.fit(loader, generator(1))
    assert (sae.W_dec >= 0).all()
    torch.testing.assert_close(sae.W_dec.norm(dim=1), torch.ones(5))
    assert not sae.offset.any()
    assert ((atoms_fd @ sae.W_dec.T).max(1).values > 0.97).all()
    output = sae(x_nd)
    assert (output.codes >= 0).all()
    assert (x_nd - output.reconstruction).square().sum() < 0.02 * (x_nd - x_nd.mean(0)).square().sum()


def test_data_with_a_sign_are_refused(x_nd: Tensor, vectors: Callable) -> None:
    sae = NmfSae(NmfConfig(), 8)
    with pytest.raises(
        DataError, match=r"without negative numbers, these go down to -.*site after a ReLU, or sae=topk"
    ):
        sae.initialise(x_nd, generator(0))
    sae.initialise(x_nd.relu(), generator(0))
    loader = vectors()
    loader.x_nd = x_nd
    with pytest.raises(DataError, match="without negative numbers"):
        sae.fit(loader, generator(0))


@pytest.mark.parametrize("bad", ["n_vectors", "max_epochs", "n_steps"])
def test_bad_options_are_refused(bad: str) -> None:
    with pytest.raises(ConfigError, match=bad):
        NmfConfig(**{bad: 0})
