from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mis_lab.core.errors import DataError
from mis_lab.mis import similarity
from mis_lab.mis.similarity import mean_similarity, set_means, small_sets, within

KINDS = [(kind, gram) for kind in ("cosine", "squared_euclidean") for gram in (False, True)]


def pairwise(embedding) -> np.ndarray:
    """Similarities of all images, float64, from the definition."""
    if embedding.rows is None:
        gram = embedding.gram.double().numpy()
        lengths = gram.diagonal()
        return gram if embedding.similarity == "cosine" else 2 * gram - lengths[:, None] - lengths
    rows = embedding.rows.double().numpy()
    if embedding.similarity == "cosine":
        return rows @ rows.T
    return -((rows[:, None] - rows[None]) ** 2).sum(-1)


def by_pairs(table: np.ndarray, images, weights) -> float:
    top = bottom = 0.0
    for i in range(len(images)):
        for j in range(i + 1, len(images)):
            if images[i] >= 0 and images[j] >= 0:
                top += weights[i] * weights[j] * table[images[i], images[j]]
                bottom += weights[i] * weights[j]
    return top / bottom if bottom else np.nan


@pytest.mark.parametrize(("kind", "gram"), KINDS)
def test_within_is_the_mean_over_pairs(embedding_of, monkeypatch, kind, gram):
    rng = np.random.default_rng(0)
    embedding = embedding_of(rng.standard_normal((30, 5)) + 1, kind, gram)
    images = np.stack([rng.permutation(30)[:8] for _ in range(7)])
    images[0, 3:] = -1
    images[1, 1:] = -1
    images[2] = -1
    weights = rng.random((7, 8))
    weights[3, 1:] = 0
    table = pairwise(embedding)
    expected = [by_pairs(table, *pair) for pair in zip(images, weights, strict=True)]
    assert np.isnan(expected[1:4]).all()
    found = within(embedding, torch.tensor(images), torch.tensor(weights))
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-10)
    equal = [by_pairs(table, one, np.ones(8)) for one in images]
    np.testing.assert_allclose(within(embedding, torch.tensor(images)), equal, rtol=0, atol=1e-10)
    monkeypatch.setattr(similarity, "_MOST_NUMBERS", 1)
    np.testing.assert_allclose(within(embedding, torch.tensor(images), torch.tensor(weights)), found, atol=1e-12)
    np.testing.assert_allclose(mean_similarity(embedding), by_pairs(table, np.arange(30), np.ones(30)), atol=1e-10)
    assert len(within(embedding, torch.zeros(0, 4, dtype=torch.int32))) == 0


@settings(max_examples=30, deadline=None)
@given(st.integers(0, 10**6), st.integers(2, 6), st.sampled_from(KINDS))
def test_scaling_weights_and_order_of_images_change_nothing(embedding_of, seed, size, kind):
    rng = np.random.default_rng(seed)
    embedding = embedding_of(rng.standard_normal((12, 3)), *kind)
    images, weights = torch.tensor(rng.permutation(12)[None, :size]), torch.tensor(rng.random((1, size)) + 0.1)
    order = torch.tensor(rng.permutation(size))
    once = within(embedding, images, weights)
    np.testing.assert_allclose(within(embedding, images[:, order], 7 * weights[:, order]), once, atol=1e-9)


@pytest.mark.parametrize(("kind", "gram"), KINDS)
def test_small_sets_and_means_against_the_table(embedding_of, monkeypatch, kind, gram):
    rng = np.random.default_rng(1)
    embedding = embedding_of(rng.standard_normal((20, 4)), kind, gram)
    images = torch.tensor(np.stack([rng.permutation(20)[:3] for _ in range(9)]))
    monkeypatch.setattr(similarity, "_MOST_NUMBERS", 50)
    table, seen = torch.tensor(pairwise(embedding)), []
    for some, found in small_sets(embedding, images):
        seen += range(some.start, some.stop)
        chosen = images[some]
        torch.testing.assert_close(found, table[chosen[:, :, None], chosen[:, None]], rtol=0, atol=1e-12)
    assert seen == list(range(9))
    whole = embedding.gram if gram else embedding.rows
    torch.testing.assert_close(set_means(embedding, images), whole.double()[images].mean(1))


def test_what_is_not_embedded_is_refused(embedding_of):
    embedding = embedding_of(np.eye(3))
    with pytest.raises(DataError, match="pools name image 3 of the 3"):
        within(embedding, torch.tensor([[0, 3]]))
    with pytest.raises(DataError, match="a pair needs two"):
        mean_similarity(embedding_of(np.eye(1)))
