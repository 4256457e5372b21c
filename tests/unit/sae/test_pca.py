"""Against scikit-learn's PCA and NumPy's covariance."""

# N vectors  D width

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import pytest
import torch
from sklearn.decomposition import PCA
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.pca import PcaSae, covariance
from mis_lab.sae.baseline_config import PcaConfig
from mis_lab.sae.evaluate import evaluate_reconstruction


@dataclass
class InOrder:
    """Batches of one epoch, each vector once."""

    x_nd: Tensor
    batch_size: int = 32

    @property
    def n_vectors(self) -> int:
        return len(self.x_nd)

    def batch(self, step: int) -> Tensor:
        return self.x_nd[step * self.batch_size : (step + 1) * self.batch_size]

    def sample(self, n: int) -> Tensor:
        return self.x_nd[:n]


def fitted(x_nd: Tensor, **options: int) -> PcaSae:
    sae = PcaSae(PcaConfig(**options), x_nd.shape[1])
    sae.initialise(x_nd[:100], generator(0))  # a sample that is not all there is
    sae.fit(InOrder(x_nd), generator(1))
    return sae


def test_components_mean_and_codes_are_those_of_scikit_learn(x_nd: Tensor) -> None:
    sae, pca = fitted(x_nd), PCA().fit(x_nd.double().numpy())
    along = (sae.W_dec.detach().double().numpy() * pca.components_).sum(1)
    np.testing.assert_allclose(abs(along), 1, rtol=1e-6)
    torch.testing.assert_close(sae.offset, x_nd.mean(0))
    expected = along * pca.transform(x_nd.double().numpy())
    np.testing.assert_allclose(sae.encode(x_nd).detach().numpy() / float(sae.scale), expected, rtol=1e-3, atol=1e-4)
    assert (sae.W_dec.gather(1, sae.W_dec.abs().argmax(1, keepdim=True)) > 0).all()
    total = float(x_nd.double().var(0, correction=0).sum())
    assert float(sae.variance) == pytest.approx(total * float(sae.scale) ** 2)


@pytest.mark.parametrize("n_components", [1, 3, 8])
def test_fvu_is_the_variance_left_out(x_nd: Tensor, stored: Callable, n_components: int) -> None:
    explained = PCA().fit(x_nd.double().numpy()).explained_variance_ratio_
    quality = evaluate_reconstruction(fitted(x_nd, n_features=n_components), stored(x_nd[:, None]))
    assert quality.fvu == pytest.approx(explained[n_components:].sum(), rel=1e-4, abs=1e-8)
    assert quality.l0 == pytest.approx(n_components)


def test_the_k_largest_codes_are_the_best_of_an_orthogonal_basis(x_nd: Tensor, stored: Callable) -> None:
    sae = fitted(x_nd, k=2)
    codes = PCA().fit_transform(x_nd.double().numpy())
    left = np.sort(codes**2, 1)[:, :-2].sum() / (codes**2).sum()
    assert evaluate_reconstruction(sae, stored(x_nd[:, None])).fvu == pytest.approx(left, rel=1e-4)


def test_never_more_components_than_dimensions() -> None:
    assert PcaConfig(n_features=20).features_of(8) == PcaConfig().features_of(8) == 8


def test_covariance_survives_a_mean_that_is_large_against_the_spread() -> None:
    x_nd = (
        torch.randn(640, 4, generator=generator(0)).double() @ torch.randn(4, 4, generator=generator(1)).double()
    ) + 1e6
    mean_d, covariance_dd = covariance(InOrder(x_nd))
    torch.testing.assert_close(mean_d, x_nd.mean(0))
    np.testing.assert_allclose(covariance_dd.numpy(), np.cov((x_nd - 1e6).numpy().T, ddof=0), rtol=1e-6)


def test_vectors_that_are_not_finite_are_refused(x_nd: Tensor) -> None:
    x_nd = x_nd.clone()
    x_nd[200, 3] = float("inf")
    with pytest.raises(DataError, match="to fit contain NaN or infinity"):
        fitted(x_nd)
