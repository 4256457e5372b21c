"""Toy models of superposition: the solutions that are known, and that an SAE's recovery of the truth is told."""

# N vectors  F features  D hidden dimensions

from __future__ import annotations

import pytest
import torch

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.base import Sae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.geometry import geometry
from mis_lab.sae.stability import match
from mis_lab.sae.toy_models import ToyModel, ToyVectors, recovery_table, train_toy_model


@pytest.fixture(scope="module")
def pentagon() -> ToyModel:
    return train_toy_model(5, 2, seed=0, density=0.05, n_steps=800, batch_size=256, n_restarts=4)


@pytest.fixture(scope="module")
def toy() -> ToyModel:
    """Directions given, not trained; the last feature is not represented."""
    directions = torch.nn.functional.normalize(torch.randn(9, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    directions[8] *= 0.1
    return ToyModel(directions, torch.zeros(9), torch.ones(9), 0.2, 0.0)


def test_sparse_features_share_dimensions_as_a_pentagon(pentagon: ToyModel) -> None:
    """Elhage et al. 2022: 5 sparse features of equal importance in 2 dimensions have 2/5 of a dimension each."""
    found = geometry(pentagon.directions_fd)
    assert pentagon.represented_f.all()
    assert found.dimensionality_f.tolist() == pytest.approx([0.4] * 5, abs=0.03)
    assert found.features_per_dimension > 2.5


def test_dense_features_do_not() -> None:
    """Without sparsity the most important features get a dimension each and the others nothing, as in PCA."""
    model = train_toy_model(5, 2, seed=0, density=1.0, importance=0.7, n_steps=800, batch_size=256, n_restarts=2)
    assert model.represented_f.tolist() == [True, True, False, False, False]
    assert geometry(model.directions_fd[:2]).dimensionality_f.tolist() == pytest.approx([1, 1], abs=0.05)


def test_the_loss_is_of_the_model_as_it_says(pentagon: ToyModel) -> None:
    x = pentagon.draw(50_000, generator(3, "check"))
    error = (x - pentagon.output(pentagon.hidden(x))).square().sum(1).mean()
    assert float(error) == pytest.approx(pentagon.loss, rel=0.1)
    w_df = pentagon.directions_fd.T
    expected = (w_df.T @ (w_df @ x[0]) + pentagon.bias_f).relu()
    torch.testing.assert_close(pentagon.output(pentagon.hidden(x[:1]))[0], expected)
    # Better than giving up: an output that is the mean of every feature.
    assert pentagon.loss < 0.5 * float((x - x.mean(0)).square().sum(1).mean())


def test_features_are_uniform_where_active() -> None:
    model = ToyModel(torch.eye(3), torch.zeros(3), torch.ones(3), 0.3, 0.0)
    x = model.draw(100_000, generator(0, "check"))
    active = x > 0
    assert float(active.double().mean()) == pytest.approx(0.3, abs=0.005)
    assert float(x[active].mean()) == pytest.approx(0.5, abs=0.005)
    assert 0 <= float(x.min()) < float(x.max()) <= 1


@pytest.mark.usefixtures("untouched_rng")
def test_the_seed_decides() -> None:
    one, again, other = (
        train_toy_model(4, 2, seed, n_steps=5, batch_size=16, n_restarts=2).directions_fd for seed in (0, 0, 1)
    )
    assert torch.equal(one, again)
    assert not torch.equal(one, other)


def test_the_best_restart_is_kept() -> None:
    losses = [train_toy_model(5, 2, 0, n_steps=30, batch_size=64, n_restarts=n).loss for n in (1, 6)]
    assert losses[1] <= losses[0]


def test_importances_one_by_one() -> None:
    """A feature of no importance is not represented."""
    importance = torch.tensor([1.0, 0.0, 1.0])
    model = train_toy_model(3, 2, 0, importance=importance, density=0.5, n_steps=400, batch_size=128)
    assert model.directions_fd[[0, 2]].norm(dim=1).min() > 3 * model.directions_fd[1].norm()


def test_vectors_are_a_function_of_step_and_seed(toy: ToyModel) -> None:
    vectors, same, other = (ToyVectors(toy, 1000, 32, seed) for seed in (0, 0, 1))
    assert (vectors.n_vectors, vectors.batch(3).shape, vectors.sample(7).shape) == (1000, (32, 6), (7, 6))
    assert torch.equal(vectors.batch(3), same.batch(3))
    for another in (vectors.batch(4), other.batch(3), vectors.sample(32), vectors.held_out(32).x_nd):
        assert not torch.equal(vectors.batch(3), another)
    # Each is a sum of directions with coefficients in [0, 1].
    x = torch.linalg.lstsq(toy.directions_fd.T.double(), vectors.batch(0).T.double()).solution
    torch.testing.assert_close((toy.directions_fd.T.double() @ x).T, vectors.batch(0).double())
    assert torch.equal(vectors.directions_fd, toy.directions_fd[:8])


def test_recovery_is_told(toy: ToyModel) -> None:
    """One SAE that has the truth as its dictionary, and one of random directions."""
    vectors = ToyVectors(toy, 4096, 64, seed=0)
    saes: dict[str, Sae] = {}
    for name in ("truth", "random"):
        saes[name] = build(TopKConfig(n_features=12, k=2), width=6)
        saes[name].initialise(vectors.sample(500), generator(5, "atoms"))
    with torch.no_grad():
        saes["truth"].W_dec[2:10] = vectors.directions_fd
    truth, random = recovery_table(saes, vectors, n_held_out=500)
    assert (truth.name, random.name, truth.n_true) == ("truth", "random", 8)
    assert truth.mcc == pytest.approx(1, abs=1e-6)
    assert truth.recovered == 1.0
    matching = match(saes["random"].dictionary, vectors.directions_fd)
    assert random.mcc == pytest.approx(matching.mcc)
    assert random.mcc < 0.95
    assert random.recovered < 1.0
    quality = evaluate_reconstruction(saes["random"], vectors.held_out(500))
    assert (random.fvu, random.l0) == (quality.fvu, quality.l0)


@pytest.mark.parametrize("bad", [{"n_steps": 0}, {"n_restarts": 0}, {"lr": 0.0}, {"batch_size": 0}])
def test_numbers_that_must_be_positive(bad: dict[str, float]) -> None:
    with pytest.raises(ConfigError, match="positive"):
        train_toy_model(3, 2, 0, **bad)  # type: ignore[arg-type]


def test_other_bad_input() -> None:
    for density in (0.0, 1.5):
        with pytest.raises(ConfigError, match=r"density=.* must lie in \(0, 1\]"):
            train_toy_model(3, 2, 0, density=density)
    for importance in (torch.ones(2), torch.tensor([1.0, -1.0, 1.0])):
        with pytest.raises(ConfigError, match="3 features needs as many importances"):
            train_toy_model(3, 2, 0, importance=importance)
