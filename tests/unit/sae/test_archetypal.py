"""Archetypal atoms against their definition, by NumPy and SciPy."""

# N vectors  D width  F features  C candidates

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
import torch
from scipy.optimize import nnls
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.archetypal import INITIAL_SHARE, ArchetypalSae, centroids
from mis_lab.sae.further_config import ArchetypalConfig
from mis_lab.sae.resample import Resampler
from mis_lab.sae.trainer_config import ResamplingConfig, ResamplingKind, TrainerConfig
from mis_lab.sae.training import Training

WIDTH = 8
CONFIG = ArchetypalConfig(n_features=12, n_candidates=30, k=4, aux_k=4, delta=0.2)


@pytest.fixture
def sae(x_nd: Tensor) -> ArchetypalSae:
    sae = ArchetypalSae(CONFIG, WIDTH)
    sae.initialise(x_nd, generator(0))
    return sae


@pytest.fixture
def moved(sae: ArchetypalSae) -> ArchetypalSae:
    """With mixtures of many candidates and relaxations, some too long."""
    with torch.no_grad():
        sae.mixing.copy_(torch.randn(sae.mixing.shape, generator=generator(1)))
        sae.relaxation.copy_(0.1 * torch.randn(sae.relaxation.shape, generator=generator(2)))
    return sae


def test_atoms_are_directions_of_relaxed_mixtures_of_candidates(moved: ArchetypalSae) -> None:
    weights = np.exp(moved.mixing.detach().double().numpy())
    in_hull = weights / weights.sum(1, keepdims=True) @ moved.candidates.double().numpy()
    length = np.linalg.norm(in_hull, axis=1, keepdims=True)
    points = in_hull + length * moved.relaxation.detach().double().numpy()
    np.testing.assert_allclose(moved.archetypes.detach().numpy(), points, rtol=1e-5, atol=1e-6)
    unit = points / np.linalg.norm(points, axis=1, keepdims=True)
    np.testing.assert_allclose(moved.atoms.detach().numpy(), unit, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(moved.dictionary.detach().numpy(), unit / float(moved.scale), rtol=1e-5, atol=1e-6)


def test_without_relaxation_archetypes_lie_in_the_hull(moved: ArchetypalSae) -> None:
    with torch.no_grad():
        moved.relaxation.zero_()
    # Convex weights solve [Cᵀ; 1]·w = [point; 1], w ≥ 0.
    candidates = moved.candidates.double().numpy()
    stacked = np.vstack([candidates.T, np.ones(len(candidates))])
    for point in moved.archetypes.detach().double().numpy():
        assert nnls(stacked, np.append(point, 1.0))[1] < 1e-6
        assert nnls(stacked, np.append(50 * point, 1.0))[1] > 0.1  # outside


def test_relaxation_is_bounded_and_so_is_the_angle_to_the_hull(moved: ArchetypalSae) -> None:
    before = moved.relaxation.detach().clone()
    moved.constrain()
    length, was = moved.relaxation.norm(dim=1), before.norm(dim=1)
    assert (was > 0.2).any()
    assert (was < 0.2).any()
    torch.testing.assert_close(length, was.clamp_max(0.2))
    torch.testing.assert_close(moved.relaxation / length[:, None], before / was[:, None])
    in_hull = torch.nn.functional.normalize(moved.mixing.softmax(1) @ moved.candidates, dim=1)
    sine = (1 - (in_hull * moved.atoms).sum(1).square()).clamp_min(0).sqrt()
    assert sine.max() <= 0.2 + 1e-5


def test_no_relaxation_at_all(x_nd: Tensor) -> None:
    sae = ArchetypalSae(ArchetypalConfig(n_features=12, k=4, delta=0.0), WIDTH)
    assert sae.candidates.shape == (24, WIDTH)  # twice as many as features
    sae.initialise(x_nd, generator(0))
    with torch.no_grad():
        sae.relaxation.fill_(1.0)
    sae.constrain()
    assert not sae.relaxation.any()


def test_starts_at_candidates_and_with_the_encoder_at_the_atoms(sae: ArchetypalSae, x_nd: Tensor) -> None:
    centred_nd = sae.normalise(x_nd) - sae.b_dec
    torch.testing.assert_close(sae.candidates, centroids(centred_nd, 30, generator(0)))
    assert sae.candidates.unique(dim=0).shape[0] == 30
    weights = sae.mixing.softmax(1)
    torch.testing.assert_close(weights.max(1).values, torch.full((12,), INITIAL_SHARE))
    assert len(weights.argmax(1).unique()) == 12
    assert torch.equal(sae.W_enc, sae.atoms)
    torch.testing.assert_close(sae.atoms.norm(dim=1), torch.ones(12))
    torch.testing.assert_close(sae.offset, x_nd.mean(0))
    assert "W_dec" not in dict(sae.named_parameters())


@pytest.mark.usefixtures("untouched_rng")
def test_centroids_are_good_and_depend_on_the_generator_alone(x_nd: Tensor) -> None:
    found = centroids(x_nd, 40, generator(3))
    assert torch.equal(found, centroids(x_nd, 40, generator(3)))
    assert not torch.equal(found, centroids(x_nd, 40, generator(4)))
    random = x_nd[torch.randperm(len(x_nd), generator=generator(0))[:40]]
    error, by_chance = (torch.cdist(x_nd, points).min(1).values.square().sum() for points in (found, random))
    assert error < by_chance


def test_sparse_gradients_of_what_composes_the_atoms_are_those_of_autograd(
    moved: ArchetypalSae, x_nd: Tensor, step: Callable
) -> None:
    moved = moved.double()
    dense = ArchetypalSae(ArchetypalConfig(**{**vars(CONFIG), "sparse": False}), WIDTH).double()
    dense.load_state_dict(moved.state_dict())
    for sae in (moved, dense):
        sae.step_losses(x_nd.double(), step(sae, dead=[1, 5])).total.backward()
    for (name, one), other in zip(moved.named_parameters(), dense.parameters(), strict=True):
        assert one.grad.any(), name
        torch.testing.assert_close(one.grad, other.grad, rtol=1e-9, atol=1e-12)


def test_training_keeps_the_relaxation_short_and_learns(x_nd: Tensor, sae: ArchetypalSae) -> None:
    training = Training(sae, TrainerConfig(n_vectors=256 * 100, batch_size=256, lr=1e-2, log_steps=1))
    for _ in range(100):
        training.advance(x_nd)
        assert sae.relaxation.norm(dim=1).max() <= 0.2 + 1e-6
    assert sae.relaxation.norm(dim=1).max() > 0.1
    assert training.history["fvu"][-1] < 0.8 * training.history["fvu"][0]


def test_revived_features_start_at_the_candidates_nearest_in_direction(moved: ArchetypalSae) -> None:
    features = torch.tensor([2, 7])
    before = moved.atoms.detach().clone()
    encoder_kd, bias_k = torch.randn(2, WIDTH, generator=generator(5)), torch.tensor([0.5, -0.5])
    asked = 3 * moved.candidates[[4, 9]] + 1e-3
    moved.revive(features, encoder_kd, asked, bias_k)
    assert torch.equal(moved.mixing[features].argmax(1), torch.tensor([4, 9]))
    assert not moved.relaxation[features].any()
    assert torch.equal(moved.W_enc[features], encoder_kd)
    assert torch.equal(moved.b_enc[features], bias_k)
    torch.testing.assert_close(moved.atoms.norm(dim=1), torch.ones(12))
    others = torch.tensor([0, 1, 3, 4, 5, 6, 8, 9, 10, 11])
    assert torch.equal(moved.atoms[others], before[others])


@pytest.mark.parametrize("kind", [ResamplingKind.loss, ResamplingKind.random])
def test_silent_features_are_resampled(sae: ArchetypalSae, vectors: Callable, kind: ResamplingKind) -> None:
    loader = vectors()
    with torch.no_grad():
        sae.b_enc[5] = -100.0
    resampler = Resampler(ResamplingConfig(kind, at=[3], window=3, n_vectors=100), loader, seed=0)
    training = Training(sae, TrainerConfig(n_vectors=64 * 3, batch_size=64), resampler)
    for step in range(3):
        training.advance(loader.batch(step))
    assert 5 in resampler.revived[3].tolist()
    assert not sae.b_enc[5].any()
    cosine = torch.nn.functional.normalize(sae.candidates, dim=1) @ sae.atoms[5]
    assert cosine.max() > 0.9


def test_folding_the_scale_changes_no_number(moved: ArchetypalSae, x_nd: Tensor) -> None:
    moved, x_nd = moved.double(), x_nd.double()
    before, points, scale = moved(x_nd), moved.archetypes.detach().clone(), float(moved.scale)
    moved.fold_scale()
    assert float(moved.scale) == 1 != scale
    torch.testing.assert_close(moved(x_nd), before, rtol=1e-9, atol=1e-9)
    torch.testing.assert_close(moved.archetypes, points / scale)


def test_bad_options_and_data_are_refused(x_nd: Tensor) -> None:
    with pytest.raises(ConfigError, match=r"n_candidates=5 is less than the 12 features at width 8"):
        ArchetypalSae(ArchetypalConfig(n_features=12, k=4, n_candidates=5), WIDTH)
    with pytest.raises(DataError, match="20 vectors cannot give 30 candidate points"):
        ArchetypalSae(CONFIG, WIDTH).initialise(x_nd[:20], generator(0))
    for bad in ({"n_candidates": -1}, {"delta": -0.1}):
        with pytest.raises(ConfigError, match="must not be negative"):
            ArchetypalConfig(**bad)
