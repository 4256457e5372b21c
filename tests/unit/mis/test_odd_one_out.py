from __future__ import annotations

import numpy as np
import pytest
import torch

from mis_lab.core.errors import DataError
from mis_lab.core.intervals import wilson
from mis_lab.mis import odd_one_out as module
from mis_lab.mis import similarity
from mis_lab.mis.odd_one_out import odd_one_out, outsiders_below
from mis_lab.mis.units import UnitStatus

KINDS = [(kind, gram) for kind in ("cosine", "squared_euclidean") for gram in (False, True)]


def alike(embedding, i, j) -> float:
    if embedding.rows is None:
        g = embedding.gram.double()
        inner, own = float(g[i, j]), float(g[i, i] + g[j, j])
    else:
        a, b = embedding.rows[i].double(), embedding.rows[j].double()
        inner, own = float(a @ b), float(a @ a + b @ b)
    return inner if embedding.similarity == "cosine" else 2 * inner - own


@pytest.fixture
def clusters():
    """Images in 8 clusters, and pools: cluster 0, clusters 0 and 1, random images; with images outside each."""
    rng = np.random.default_rng(0)
    cluster = np.arange(160) % 8
    rows = rng.standard_normal((8, 24))[cluster] + 0.4 * rng.standard_normal((160, 24))
    tops = [np.flatnonzero(cluster == 0), np.flatnonzero(cluster <= 1)[:20], rng.permutation(160)[:20]]
    outside = [rng.permutation(np.setdiff1d(np.arange(160), top))[:60] for top in tops]
    return rows, torch.tensor(np.stack(tops)), torch.tensor(np.stack(outside))


@pytest.mark.parametrize(("kind", "gram"), KINDS)
def test_the_guess_is_the_image_least_like_the_others(embedding_of, monkeypatch, clusters, kind, gram):
    rows, top, outside = clusters
    embedding = embedding_of(rows, kind, gram)
    found = odd_one_out(top, outside, embedding, 4, 30, seed=2)
    assert found.chance == 0.2
    assert found.images.shape == (3, 30, 5)
    for unit, tasks in enumerate(found.images.tolist()):
        right = 0
        for task in tasks:
            assert len(set(task[:4])) == 4
            assert set(task[:4]) <= set(top[unit].tolist())
            assert task[4] in outside[unit].tolist()
            means = [np.mean([alike(embedding, i, j) for j in task if j != i]) for i in task]
            right += int(np.argmin(means) == 4)
        expected = wilson(right / 30, 30)
        assert found.found.estimate[unit] == pytest.approx(expected.estimate)
        assert found.found.low[unit] == pytest.approx(expected.low)
        assert found.found.high[unit] == pytest.approx(expected.high)
    assert found.found.estimate[0] == 1.0
    assert found.found.estimate[0] > found.found.estimate[1] > found.found.estimate[2]
    monkeypatch.setattr(similarity, "_MOST_NUMBERS", 1)
    assert np.array_equal(odd_one_out(top, outside, embedding, 4, 30, seed=2).found, found.found)


def test_draws_depend_on_seed_and_key_alone(embedding_of, clusters):
    rows, top, outside = clusters
    embedding, keys = embedding_of(rows), torch.tensor([7, 3, 11])
    once = odd_one_out(top, outside, embedding, seed=1, unit_keys=keys)
    one = odd_one_out(top[2:], outside[2:], embedding, seed=1, unit_keys=keys[2:])
    assert torch.equal(one.images[0], once.images[2])
    assert not torch.equal(odd_one_out(top, outside, embedding, seed=2, unit_keys=keys).images, once.images)
    padded = torch.cat([torch.full((3, 2), -1), top[:, :5], torch.full((3, 4), -1), top[:, 5:]], 1)
    assert torch.equal(odd_one_out(padded, outside, embedding, seed=1, unit_keys=keys).images, once.images)


def test_images_without_anything_in_common_score_chance(embedding_of):
    rng = np.random.default_rng(3)
    embedding = embedding_of(rng.standard_normal((400, 20)))
    order = torch.tensor(np.stack([rng.permutation(400)[:120] for _ in range(200)]))
    found = odd_one_out(order[:, :60], order[:, 60:], embedding, 4, 20)
    standard_error = (0.2 * 0.8 / 4000) ** 0.5
    assert np.mean(found.found.estimate) == pytest.approx(0.2, abs=5 * standard_error)
    # All images the same: the guess is shared.
    same = odd_one_out(order[:3, :60] % 9, order[:3, 60:] % 9, embedding_of(np.ones((9, 4))), 4, 20)
    np.testing.assert_allclose(same.found.estimate, 0.2)


def test_units_with_too_few_images(embedding_of, clusters):
    rows, top, outside = clusters
    top, outside = top.clone(), outside.clone()
    top[0, 4:] = -1
    outside[1] = -1
    found = odd_one_out(top, outside, embedding_of(rows), 5)
    rare = UnitStatus.too_rare.value
    assert found.status.tolist() == [rare, rare, UnitStatus.ok.value]
    assert np.isnan(np.stack(found.found)).all(0).tolist() == [True, True, False]
    assert (found.images[:2] == -1).all()
    nobody = odd_one_out(top[:2], outside[:2], embedding_of(rows), 5)
    assert np.isnan(nobody.found.estimate).all()


@pytest.mark.parametrize(("kind", "gram"), KINDS)
def test_all_outsiders_against_the_threshold(embedding_of, monkeypatch, clusters, kind, gram):
    rows, top, _ = clusters
    top = top.clone()
    top[2, 5:] = -1
    embedding = embedding_of(rows, kind, gram)
    found = outsiders_below(top, embedding, 6)
    for unit in range(2):
        pool = top[unit, :6].tolist()
        threshold = np.mean([alike(embedding, i, j) for i in pool for j in pool if i != j])
        others = [image for image in range(160) if image not in pool]
        below = [np.mean([alike(embedding, i, j) for j in pool]) < threshold for i in others]
        assert float(found[unit]) == pytest.approx(np.mean(below), abs=1e-12)
    assert found[2].isnan()
    assert found[0] > 0.9
    monkeypatch.setattr(module, "_MOST_NUMBERS", 200)
    torch.testing.assert_close(outsiders_below(top, embedding, 6), found, equal_nan=True)
    equal = outsiders_below(top[:2], embedding_of(np.ones((160, 3)), kind, gram), 6)
    assert equal.tolist() == [0.5, 0.5]


def test_what_cannot_be_asked(embedding_of, clusters):
    rows, top, outside = clusters
    embedding = embedding_of(rows[:100])
    with pytest.raises(ValueError, match="20 tasks of 1 images"):
        odd_one_out(top, outside, embedding, 1)
    with pytest.raises(DataError, match="of the 100 that test embedded"):
        odd_one_out(top, outside, embedding)
    with pytest.raises(DataError, match="of the 100 that test embedded"):
        outsiders_below(top, embedding, 5)
    with pytest.raises(ValueError, match="top 21 of pools of 20 images"):
        outsiders_below(top, embedding, 21)
