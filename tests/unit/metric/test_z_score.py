"""Similarities in units of their spread: the hard score keeps, the soft score changes (when τ is given)."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric import base
from mis_lab.metric.base import Embedding, embed_dataset
from mis_lab.metric.config import LabelsConfig
from mis_lab.metric.load import load_metric
from mis_lab.mis.score import margins, measure_temperature, random_tasks, score

TIES = 1e-6


def embedding_of(rows: np.ndarray, similarity: str, gram: bool) -> Embedding:
    if similarity == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    rows_nd = torch.from_numpy(rows).float()
    scale = float(rows_nd.square().sum(1).mean())
    found = {"gram": rows_nd @ rows_nd.T} if gram else {"rows": rows_nd}
    return Embedding("x", [f"{n}" for n in range(len(rows))], similarity, scale, "", **found)


def similarities(rows: np.ndarray, similarity: str) -> np.ndarray:
    """Of all pairs of different images, one at a time."""
    if similarity == "cosine":
        rows = rows / np.linalg.norm(rows, axis=1, keepdims=True)
        return np.array([rows[i] @ rows[j] for i in range(len(rows)) for j in range(i)])
    return np.array([-((rows[i] - rows[j]) ** 2).sum() for i in range(len(rows)) for j in range(i)])


@given(
    seed=st.integers(0, 10_000),
    similarity=st.sampled_from(["cosine", "squared_euclidean"]),
    gram=st.booleans(),
    temperature=st.floats(0.05, 0.5),
)
@settings(max_examples=40)
def test_z_scoring_keeps_hard_scores_and_changes_soft_ones(seed, similarity, gram, temperature):
    rows = np.random.default_rng(seed).normal(size=(24, 5)) + 0.3
    rows[1], rows[3] = rows[0], rows[2]  # so that there are ties as well
    raw = embedding_of(rows, similarity, gram)
    scored = raw.z_scored()
    tasks = random_tasks(24, 2, 60, seed)
    (before, after) = (margins(tasks, embedding) for embedding in (raw, scored))
    spread = similarities(rows, similarity).std()
    np.testing.assert_allclose(after, before / spread, atol=2e-5 * raw.scale / spread)

    def scores(embedding, delta_un, tau):
        return score(delta_un, tasks.n_tasks, tau, TIES * embedding.scale, 5, 0)

    given_tau = [scores(raw, before, temperature), scores(scored, after, temperature)]
    assert given_tau[0].hard.estimate == given_tau[1].hard.estimate
    if abs(spread - 1) > 0.1:
        assert abs(given_tau[0].soft.estimate - given_tau[1].soft.estimate) > 1e-6
    measured = [
        scores(embedding, delta, measure_temperature(embedding, 2))
        for embedding, delta in ((raw, before), (scored, after))
    ]
    assert measured[0].soft.estimate == pytest.approx(measured[1].soft.estimate, abs=1e-4)


@pytest.mark.parametrize("similarity", ["cosine", "squared_euclidean"])
@pytest.mark.parametrize("gram", [True, False], ids=["gram", "rows"])
def test_mean_and_spread_are_those_of_all_pairs(monkeypatch, similarity, gram):
    monkeypatch.setattr(base, "BLOCK", 7)
    rows = np.random.default_rng(0).normal(size=(31, 4)) + 1
    scored = embedding_of(rows, similarity, gram).z_scored()
    expected = similarities(rows, similarity)
    assert scored.quality["similarity_mean"] == pytest.approx(expected.mean(), rel=1e-5)
    assert scored.quality["similarity_std"] == pytest.approx(expected.std(), rel=1e-5)
    again = scored.z_scored()
    assert again.quality["similarity_std"] == pytest.approx(1, rel=1e-5)


def test_the_option_scores_the_embedding_of_a_data_set_and_shows_in_the_fingerprint():
    labels = [0, 1, 1, 0, 1, 0, 0]
    dataset = ImageDataset("named", "score", [f"i{n}" for n in range(7)], None, labels, ["a", "b"])
    plain, scored = (load_metric(LabelsConfig(z_score=z_score)) for z_score in (False, True))
    assert plain.fingerprint != scored.fingerprint
    one, other = embed_dataset(plain, dataset), embed_dataset(scored, dataset)
    spread = other.quality["similarity_std"]
    assert one.quality == {}
    assert torch.allclose(other.gram, one.gram / spread)
    assert other.scale == pytest.approx(1 / spread)
    assert other.fingerprint == scored.fingerprint


def test_images_that_are_all_equally_alike_are_told():
    rows = np.eye(4)
    for gram in (True, False):
        with pytest.raises(DataError, match=r"all pairs of images are equally alike.*metric\.z_score=false"):
            embedding_of(rows, "cosine", gram).z_scored()
    with pytest.raises(DataError, match="equally alike"):
        embedding_of(rows[:1], "cosine", True).z_scored()
