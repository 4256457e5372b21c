from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.utils._python_dispatch import TorchDispatchMode

from mis_lab.core.errors import DataError
from mis_lab.core.seeding import generator
from mis_lab.mis import cross_mis as module
from mis_lab.mis import similarity
from mis_lab.mis.coherence import coherence
from mis_lab.mis.cross_mis import cross_mis, duplicates, neighbours
from mis_lab.mis.odd_one_out import odd_one_out, outsiders_below

KINDS = [(kind, gram) for kind in ("cosine", "squared_euclidean") for gram in (False, True)]


@pytest.fixture
def units():
    """Rows in six clusters; units of clusters 0, 0 (other images), 1, 2, random, and unit 0 again."""
    rng = np.random.default_rng(0)
    cluster = np.arange(120) % 6
    rows = rng.standard_normal((6, 12))[cluster] + 0.3 * rng.standard_normal((120, 12))
    of = [np.flatnonzero(cluster == c) for c in range(6)]
    tops = [of[0][:8], of[0][8:16], of[1][:8], of[2][:8], rng.permutation(120)[:8], of[0][:8][::-1].copy()]
    return rows, torch.tensor(np.stack(tops), dtype=torch.int32)


def similarities(embedding) -> np.ndarray:
    gram = (embedding.gram if embedding.rows is None else embedding.rows @ embedding.rows.T).double().numpy()
    if embedding.rows is not None:
        rows = embedding.rows.double().numpy()
        gram = rows @ rows.T
    return gram if embedding.similarity == "cosine" else 2 * gram - gram.diagonal()[:, None] - gram.diagonal()


def written_out(table, a, b) -> tuple[float, float, float]:
    right, across, within = 0.0, [], []
    for mine, theirs in zip(a, b, strict=True):
        own = [np.mean([table[i, j] for j in pool if j != i]) for i, pool in ((mine, a), (theirs, b))]
        other = [np.mean([table[i, j] for j in pool if j != i]) for i, pool in ((mine, b), (theirs, a))]
        delta = sum(own) - sum(other)
        right += 0.5 if abs(delta) <= 1e-6 else float(delta > 0)
        across += [table[mine, j] for j in b if j != mine]
        within += own
    return right / len(a), float(np.mean(across)), float(np.mean(within))


@pytest.mark.parametrize(("kind", "gram"), KINDS)
def test_pairs_are_told_apart_as_the_definition_says(embedding_of, monkeypatch, units, kind, gram):
    rows, top = units
    embedding = embedding_of(rows / np.linalg.norm(rows, axis=1, keepdims=True), kind, gram)
    pairs = torch.tensor([(i, j) for i in range(6) for j in range(6)])
    found, table = cross_mis(top, pairs, embedding, 7), similarities(embedding)
    for row, (i, j) in enumerate(pairs.tolist()):
        a, b = top[i, :7].tolist(), top[j, :7].tolist()
        expected = written_out(table, a, b)
        assert float(found.accuracy[row]) == expected[0]
        assert float(found.between[row]) == pytest.approx(expected[1], abs=1e-10)
        assert float(found.within[row]) == pytest.approx(expected[2], abs=1e-10)
        assert int(found.n_shared[row]) == len({*a} & {*b})
    by_pair = dict(zip(map(tuple, pairs.tolist()), found.accuracy.tolist(), strict=True))
    assert by_pair[0, 2] == by_pair[2, 3] == 1.0
    assert by_pair[0, 0] == by_pair[4, 4] == 0.5
    assert by_pair[0, 1] < 1.0
    monkeypatch.setattr(similarity, "_MOST_NUMBERS", 1)
    assert torch.equal(cross_mis(top, pairs, embedding, 7).accuracy, found.accuracy)


def test_units_with_too_few_images_are_not_compared(embedding_of, units):
    rows, top = units
    top = top.clone()
    top[2, 5:] = -1
    embedding = embedding_of(rows)
    found = cross_mis(top, torch.tensor([[0, 1], [0, 2], [2, 3]]), embedding, 6)
    assert found.accuracy.isnan().tolist() == [False, True, True]
    assert found.between.isnan().tolist() == found.within.isnan().tolist() == [False, True, True]
    nothing = cross_mis(top, torch.tensor([[2, 3]]), embedding, 6)
    assert nothing.accuracy.isnan().all()
    near = neighbours(top, embedding, 5, 6)
    assert near.units[2].tolist() == [-1] * 5
    assert near.likeness[2].isnan().all()
    assert 2 not in near.units.tolist()[0]
    assert near.units[0, 4] == -1  # four others have enough images
    assert near.likeness[0, 4].isnan()
    assert (neighbours(top[2:3], embedding, 2, 6).units == -1).all()


def cosines(embedding, top, k) -> np.ndarray:
    """Cosines of mean explanations about the data set's mean, from the rows or factors of the Gram matrix."""
    if embedding.rows is None:
        values, vectors = np.linalg.eigh(embedding.gram.double().numpy())
        rows = vectors * np.sqrt(np.clip(values, 0, None))
    else:
        rows = embedding.rows.double().numpy()
    means = np.stack([rows[one[:k].long().numpy()].mean(0) for one in top]) - rows.mean(0)
    means /= np.linalg.norm(means, axis=1, keepdims=True)
    return means @ means.T


@pytest.mark.parametrize(("kind", "gram"), KINDS)
def test_neighbours_and_duplicates_against_the_full_matrix(embedding_of, monkeypatch, units, kind, gram):
    rows, top = units
    embedding = embedding_of(rows, kind, gram)
    full = cosines(embedding, top, 8)
    np.fill_diagonal(full, -np.inf)
    found = neighbours(top, embedding, 3, 8)
    order = np.argsort(-full, axis=1, kind="stable")[:, :3]
    np.testing.assert_allclose(found.likeness, np.take_along_axis(full, order, 1), atol=1e-5)
    np.testing.assert_allclose(np.take_along_axis(full, found.units.numpy(), 1), found.likeness, atol=1e-5)
    assert all(len({*row}) == 3 for row in found.units.tolist())  # equally alike ones in any order
    assert found.units[0, 0] == 5
    assert found.units[5, 0] == 0
    expected = [[i, j] for i in range(6) for j in range(i + 1, 6) if full[i, j] >= 0.8]
    assert duplicates(top, embedding, 0.8, 8).tolist() == expected
    assert duplicates(top, embedding, 0.999, 8).tolist() == [[0, 5]]
    monkeypatch.setattr(module, "_MOST_NUMBERS", 1)
    again = neighbours(top, embedding, 3, 8)
    torch.testing.assert_close(again.likeness, found.likeness)
    assert duplicates(top, embedding, 0.8, 8).tolist() == expected


def test_what_cannot_be_compared(embedding_of, units):
    rows, top = units
    for ask in (
        lambda: cross_mis(top, torch.tensor([[0, 1]]), embedding_of(rows), 9),
        lambda: neighbours(top, embedding_of(rows), 1, 9),
    ):
        with pytest.raises(ValueError, match="top 9 of pools of 8"):
            ask()
    few = embedding_of(rows[:10])
    with pytest.raises(DataError, match="of the 10 that test embedded"):
        cross_mis(top, torch.tensor([[0, 1]]), few, 8)
    with pytest.raises(DataError, match="of the 10 that test embedded"):
        duplicates(top, few, k=8)


def test_pitfall_13_no_similarity_of_all_pairs_of_images_or_units_is_made(embedding_of):
    """The reference's forms compute all n² similarities of images, and one pair of units after the other, all U²."""

    class Largest(TorchDispatchMode):
        numbers = 0

        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            found = func(*args, **(kwargs or {}))
            if isinstance(found, torch.Tensor):
                self.numbers = max(self.numbers, found.numel())
            return found

    n_images, n_units, k = 4000, 60, 9
    rows = np.random.default_rng(0).normal(size=(n_images, 8))
    embedding, top_us = embedding_of(rows), torch.randint(n_images, (n_units, k), generator=generator(0, "pitfall"))
    outside_us = torch.randint(n_images, (n_units, 30), generator=generator(1, "pitfall"))
    with Largest() as largest:
        coherence(top_us, embedding, k)
        odd_one_out(top_us, outside_us, embedding)
        outsiders_below(top_us, embedding, k)
        near = neighbours(top_us, embedding, k=k)
        cross_mis(top_us, torch.stack([torch.arange(n_units), near.units[:, 0]], 1), embedding, k)
    assert largest.numbers < n_images**2 / 20
