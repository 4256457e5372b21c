from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.units import Neurons
from mis_lab.core.errors import DataError
from mis_lab.mis import monosemanticity as module
from mis_lab.mis.monosemanticity import Weighting, monosemanticity, pool_monosemanticity, stored_chunks
from mis_lab.mis.units import UnitStatus

KINDS = [(kind, gram) for kind in ("cosine", "squared_euclidean") for gram in (False, True)]
OK, DEAD, CONSTANT, RARE = (UnitStatus[name].value for name in ("ok", "dead", "constant", "too_rare"))


def passes(a_nu, size=7, order=None):
    """Starts passes over activations (n, U) in chunks, in this order of images."""
    a_nu = torch.as_tensor(a_nu)
    places = list(range(len(a_nu))) if order is None else list(order)
    return lambda: ((places[at : at + size], a_nu[places[at : at + size]]) for at in range(0, len(places), size))


def defined(rows, weights, kind="cosine") -> float:
    """The score from every pair, float64."""
    rows, top, bottom = np.asarray(rows, dtype=np.float64), 0.0, 0.0
    for i in range(len(rows)):
        for j in range(i + 1, len(rows)):
            alike = rows[i] @ rows[j] if kind == "cosine" else -((rows[i] - rows[j]) ** 2).sum()
            top += weights[i] * weights[j] * alike
            bottom += weights[i] * weights[j]
    return top / bottom


def weights_of(a, weighting):
    a = np.asarray(a, dtype=np.float64)
    return np.maximum(a, 0) / a.max() if weighting is Weighting.active else (a - a.min()) / (a.max() - a.min())


@pytest.fixture
def activations():
    """Graded, sparse, signed, rare units."""
    rng = np.random.default_rng(3)
    a = rng.standard_normal((40, 6)).astype(np.float32)
    a[:, 1] = np.maximum(a[:, 1], 0)
    a[:, 2] = np.exp(a[:, 2])
    a[:, 3] -= 0.7
    a[:, 4] = 0
    a[[3, 17], 4] = 2.0, 1.5
    a[:, 5] = a[:, 5] * 1e-5 + 100
    return a


@pytest.mark.parametrize("weighting", Weighting)
@pytest.mark.parametrize("kind", ["cosine", "squared_euclidean"])
def test_equals_the_definition_over_pairs(embedding_of, activations, weighting, kind):
    embedding = embedding_of(np.random.default_rng(0).standard_normal((40, 5)) + 0.5, kind)
    rows = embedding.rows.double().numpy()
    found = monosemanticity(passes(activations), embedding, weighting)
    expected = [defined(rows, weights_of(a, weighting), kind) for a in activations.T]
    np.testing.assert_allclose(found.score, expected, rtol=0, atol=1e-10)
    base = defined(rows, np.ones(40), kind)
    assert found.base_rate == pytest.approx(base, abs=1e-10)
    np.testing.assert_allclose(found.above_base_rate, np.array(expected) - base, atol=1e-10)
    assert found.n_images[4] == 2
    assert (found.status == OK).all()


@pytest.mark.parametrize("weighting", Weighting)
@pytest.mark.parametrize("kind", ["cosine", "squared_euclidean"])
def test_the_gram_matrix_says_the_same_as_the_rows(embedding_of, monkeypatch, activations, weighting, kind):
    rows = np.random.default_rng(0).standard_normal((40, 5)) + 0.5
    by_rows, by_gram = (embedding_of(rows, kind, gram) for gram in (False, True))
    expected = monosemanticity(passes(activations), by_rows, weighting)
    monkeypatch.setattr(module, "_MOST_NUMBERS", 80)  # two units at a time
    order = np.random.default_rng(1).permutation(40).tolist()
    found = monosemanticity(passes(activations, 9, order), by_gram, weighting)
    np.testing.assert_allclose(found.score, expected.score, atol=1e-5)  # a Gram matrix is rounded to float32
    # Exactly: against the definition on the Gram matrix's own numbers.
    table = by_gram.gram.double().numpy()
    if kind == "squared_euclidean":
        table = 2 * table - table.diagonal()[:, None] - table.diagonal()
    for unit, a in enumerate(activations.T):
        weights = weights_of(a, weighting)
        of_pairs = np.triu(np.outer(weights, weights), 1)
        assert float(found.score[unit]) == pytest.approx((of_pairs * table).sum() / of_pairs.sum(), abs=1e-10)


def test_golden_scores(golden, embedding_of):
    for gram in (False, True):
        embedding = embedding_of(golden["emb"], gram=gram)
        found = monosemanticity(passes(golden["act"], 64), embedding)
        np.testing.assert_allclose(found.score, golden["ms"], atol=1e-6)  # NaN in the same places
    assert found.status[6] == CONSTANT
    assert found.status[11] == RARE


@settings(max_examples=25, deadline=None)
@given(st.integers(0, 10**6), st.integers(1, 13), st.sampled_from(KINDS))
def test_chunks_and_order_of_images_change_nothing(embedding_of, seed, size, kind):
    rng = np.random.default_rng(seed)
    a = rng.standard_normal((12, 3)).astype(np.float32)
    embedding = embedding_of(rng.standard_normal((12, 4)), *kind)
    once = monosemanticity(passes(a, 12), embedding)
    again = monosemanticity(passes(a, size, rng.permutation(12).tolist()), embedding)
    np.testing.assert_allclose(again.score, once.score, rtol=1e-9, atol=1e-9)
    scaled = monosemanticity(passes(a * np.float32(4), size), embedding)  # exact in float32
    np.testing.assert_allclose(scaled.score, once.score, rtol=1e-9, atol=1e-9)


def test_units_without_a_score_have_nan_and_a_status(embedding_of, pools_of):
    embedding = embedding_of(np.random.default_rng(0).standard_normal((10, 4)))
    a = np.zeros((10, 5), dtype=np.float32)
    a[:, 1] = 3
    a[4, 2] = 1
    a[:, 3] = -np.arange(10) - 1.0
    a[:, 4] = np.arange(10)
    for found in (monosemanticity(passes(a), embedding), pool_monosemanticity(pools_of(a, 6), embedding, 5)):
        assert found.status.tolist() == [DEAD, CONSTANT, RARE, OK, OK]
        assert found.score.isnan().tolist() == [True, True, True, False, False]
        assert found.above_base_rate.isnan().tolist() == [True, True, True, False, False]
    active = monosemanticity(passes(a), embedding, Weighting.active)
    assert active.status.tolist() == [DEAD, CONSTANT, RARE, RARE, OK]
    assert active.n_images.tolist() == [0, 10, 1, 0, 9]


def test_the_top_k_alone(embedding_of, pools_of, activations):
    embedding = embedding_of(np.random.default_rng(0).standard_normal((40, 5)))
    pools = pools_of(activations, 20)
    found = pool_monosemanticity(pools, embedding, 12)
    for unit, a in enumerate(activations.T):
        weights = weights_of(a, Weighting.scaled)
        chosen = pools.top[unit, :12].long().numpy()
        expected = defined(embedding.rows[chosen], weights[chosen])
        assert float(found.score[unit]) == pytest.approx(expected, abs=1e-6 if unit == 5 else 1e-10)
    with pytest.raises(ValueError, match="top 21 of pools of 20"):
        pool_monosemanticity(pools, embedding, 21)


def test_one_kind_of_image_scores_higher_than_two_and_a_dense_unit_has_the_base_rate(embedding_of):
    rng = np.random.default_rng(4)
    cluster = rng.integers(0, 10, 300)
    rows = 1.2 * rng.standard_normal((10, 16))[cluster] + 0.8 * rng.standard_normal((300, 16))
    embedding = embedding_of(rows)
    a = np.stack([cluster == 1, np.isin(cluster, [1, 2]), rng.random(300) + 5, rows @ rows[0]], 1).astype(np.float32)
    found = monosemanticity(passes(a, 50), embedding)
    one, two, noise, graded = found.above_base_rate.tolist()
    assert one > two + 0.1
    assert two > noise + 0.05
    assert abs(noise) < 0.02
    assert graded < one / 4  # a direction of the embedding itself: weights near one half everywhere


class Store:
    """Ten images of three positions, where a run has stored ones."""

    n_positions, width = 3, 4

    def __init__(self) -> None:
        self.x = torch.randn(10, 3, 4, generator=torch.Generator().manual_seed(0))

    def images(self, batch):
        yield range(0, 6), self.x[:6]
        yield range(6, 10), self.x[6:]


def test_neurons_of_a_store(embedding_of):
    embedding, store = embedding_of(np.random.default_rng(0).standard_normal((10, 4))), Store()
    found = monosemanticity(stored_chunks(store, Neurons(4)), embedding)
    expected = monosemanticity(passes(store.x.double().mean(1).float()), embedding)
    assert torch.equal(found.score.isnan(), torch.zeros(4, dtype=torch.bool))
    torch.testing.assert_close(found.score, expected.score)
    largest = monosemanticity(stored_chunks(store, Neurons(4), ImageActivation.max), embedding)
    torch.testing.assert_close(largest.score, monosemanticity(passes(store.x.amax(1)), embedding).score)


def test_what_cannot_be_scored_is_told(embedding_of):
    embedding = embedding_of(np.eye(4))
    a = np.arange(8, dtype=np.float32).reshape(4, 2)
    with pytest.raises(DataError, match="1 of 4 images have no activations"):
        monosemanticity(passes(a[:3]), embedding)
    with pytest.raises(DataError, match="activations of image 6, and the metric embedded 4"):
        monosemanticity(passes(np.concatenate([a, a])), embedding)
    with pytest.raises(ValueError, match="an image came twice"):
        monosemanticity(passes(a, 2, [0, 1, 1, 2]), embedding)
    with pytest.raises(ValueError, match="1 rows of activations for 2 images"):
        monosemanticity(lambda: [([0, 1], torch.zeros(1, 2))], embedding)
    used_up = passes(a)()
    with pytest.raises(DataError, match="could not be started again"):
        monosemanticity(lambda: used_up, embedding)
    a[2, 1] = np.nan
    with pytest.raises(DataError, match="NaN or infinite"):
        monosemanticity(passes(a), embedding)
