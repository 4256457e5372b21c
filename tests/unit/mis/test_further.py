"""Further scores: each is that of its own module, on the images that the MIS ranks."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mis_lab.activations.pools import Pools, gather
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.activations.units import Neurons
from mis_lab.metric.base import Embedding
from mis_lab.mis.coherence import coherence
from mis_lab.mis.config import MisConfig
from mis_lab.mis.further import MEASURES, FurtherScores, further_scores
from mis_lab.model.sites import Site

N_IMAGES, N_CLUSTERS, WIDTH = 120, 6, 9
SITE = Site("layer", "bd", WIDTH, 1, (1,))
CONFIG = MisConfig(n_explanations=3, n_tasks=8, min_tasks=2, n_top=10)
NOISE, DOUBLE, DEAD = N_CLUSTERS, N_CLUSTERS + 1, N_CLUSTERS + 2


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    return np.arange(N_IMAGES) % N_CLUSTERS


@pytest.fixture(scope="module")
def stored(clusters: np.ndarray, tmp_path_factory: pytest.TempPathFactory) -> StoredActivations:
    """Neuron c sees cluster c; then noise, the double of neuron 0, a dead one."""
    rng = np.random.default_rng(0)
    x_nd = rng.random((N_IMAGES, WIDTH)).astype(np.float32) + 0.5
    x_nd[:, :N_CLUSTERS] *= clusters[:, None] == np.arange(N_CLUSTERS)
    x_nd[:, DOUBLE] = 2 * x_nd[:, 0]
    x_nd[:, DEAD] = 0
    folder = tmp_path_factory.mktemp("stored")
    ids = [f"{n:04d}" for n in range(N_IMAGES)]
    with ActivationWriter(folder, SITE, ids, ids, [-1] * N_IMAGES) as writer:
        writer.append(torch.from_numpy(x_nd[:, None]), range(N_IMAGES))
    return StoredActivations(folder)


@pytest.fixture(scope="module")
def embedding(clusters: np.ndarray, stored: StoredActivations, embedding_of) -> Embedding:
    rng = np.random.default_rng(1)
    rows = rng.standard_normal((N_CLUSTERS, 16))[clusters] + 0.3 * rng.standard_normal((N_IMAGES, 16))
    return replace(embedding_of(rows), ids=stored.ids)


@pytest.fixture(scope="module")
def pools(stored: StoredActivations) -> Pools:
    return gather(stored, Neurons(WIDTH), 30, 0)


@pytest.fixture(scope="module")
def scores(stored: StoredActivations, pools: Pools, embedding: Embedding, clusters: np.ndarray) -> FurtherScores:
    classes = torch.from_numpy(clusters.astype(np.int64))
    return further_scores(stored, Neurons(WIDTH), pools, embedding, classes, CONFIG, seed=0)


def test_units_that_see_one_thing_score_higher_by_every_measure(scores: FurtherScores) -> None:
    for name, values in scores.measures().items():
        assert values[:N_CLUSTERS].min() > values[NOISE], name
    assert set(scores.measures()) == set(MEASURES)


def test_a_dead_unit_has_no_score(scores: FurtherScores) -> None:
    assert all(np.isnan(values[DEAD]) for values in scores.measures().values())
    assert (int(scores.nearest[DEAD]), int(scores.class_majority[DEAD])) == (-1, -1)
    assert scores.cross_mis[DEAD].isnan()


def test_a_double_is_found_and_cannot_be_told_apart(scores: FurtherScores) -> None:
    assert (int(scores.nearest[0]), int(scores.nearest[DOUBLE])) == (DOUBLE, 0)
    assert float(scores.likeness[0]) == pytest.approx(1.0, abs=1e-5)
    assert float(scores.cross_mis[0]) == pytest.approx(0.5)
    assert float(scores.cross_mis[1]) > 0.5
    assert scores.duplicate_share == pytest.approx(2 / (WIDTH - 1))


def test_only_images_that_activate_a_sparse_unit_explain_it(
    scores: FurtherScores, pools: Pools, embedding: Embedding, clusters: np.ndarray
) -> None:
    assert scores.class_purity[:N_CLUSTERS].tolist() == [1.0] * N_CLUSTERS
    assert scores.class_majority[:N_CLUSTERS].tolist() == list(range(N_CLUSTERS))
    assert float(scores.class_entropy[0]) == 0.0
    expected = coherence(pools.top[:1, :10], embedding, 10)
    assert float(scores.coherence[0]) == float(expected.coherence[0])
    assert scores.base_rate == expected.base_rate


def test_scores_survive_the_disk(scores: FurtherScores, tmp_path: Path) -> None:
    scores.write(tmp_path)
    read = FurtherScores.read(tmp_path)
    for name, values in scores.measures().items():
        np.testing.assert_array_equal(read.measures()[name], values)
    assert read.numbers() == scores.numbers()
    assert scores.numbers()["coherence"] == pytest.approx(float(scores.coherence.nanmean()))
