from __future__ import annotations

from collections import Counter
from itertools import combinations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import entropy

from mis_lab.core.errors import DataError
from mis_lab.mis import coherence as module
from mis_lab.mis.coherence import coherence, pool_classes


@pytest.mark.parametrize("gram", [False, True])
def test_coherence_is_the_mean_over_pairs(embedding_of, gram):
    rng = np.random.default_rng(0)
    rows = rng.standard_normal((50, 6))
    embedding = embedding_of(rows, gram=gram)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True)
    top = np.stack([rng.permutation(50)[:10] for _ in range(4)])
    top[1, 3:], top[2, 1:] = -1, -1
    found = coherence(torch.tensor(top), embedding, 6)
    for row, (value, n_images) in enumerate(zip(found.coherence.tolist(), found.n_images.tolist(), strict=True)):
        some = [image for image in top[row, :6] if image >= 0]
        assert n_images == len(some)
        expected = np.mean([unit[i] @ unit[j] for i, j in combinations(some, 2)]) if len(some) > 1 else np.nan
        assert value == pytest.approx(expected, abs=1e-6, nan_ok=True)
    everything = np.mean([unit[i] @ unit[j] for i, j in combinations(range(50), 2)])
    assert found.base_rate == pytest.approx(everything, abs=1e-6)
    torch.testing.assert_close(found.above_base_rate, found.coherence - found.base_rate, equal_nan=True)
    # The closed form for unit vectors, k ‖mean‖² − 1 over k − 1.
    closed = (6 * np.square(unit[top[0, :6]].mean(0)).sum() - 1) / 5
    assert float(found.coherence[0]) == pytest.approx(closed, abs=1e-6)


@pytest.mark.parametrize("k", [1, 11])
def test_k_must_be_of_the_pool(embedding_of, k):
    with pytest.raises(ValueError, match=f"top {k} of pools of 10"):
        coherence(torch.zeros(1, 10, dtype=torch.int64), embedding_of(np.eye(3)), k)


POOLS = st.lists(st.lists(st.integers(-1, 19), min_size=6, max_size=6), min_size=1, max_size=5)


@settings(deadline=None)
@given(POOLS, st.lists(st.integers(0, 4), min_size=20, max_size=20), st.integers(1, 6))
def test_classes_against_scipy(pools, labels, k):
    found = pool_classes(torch.tensor(pools), labels, k)
    for row, pool in enumerate(pools):
        counts = Counter(labels[image] for image in pool[:k] if image >= 0)
        assert int(found.n_classes[row]) == len(counts)
        if not counts:
            assert found.entropy[row].isnan()
            assert found.purity[row].isnan()
            assert found.majority[row] == -1
            continue
        assert float(found.entropy[row]) == pytest.approx(entropy([*counts.values()], base=2), abs=1e-12)
        assert float(found.purity[row]) == max(counts.values()) / counts.total()
        assert int(found.majority[row]) == min(name for name in counts if counts[name] == max(counts.values()))


def test_units_in_pieces_and_classes_that_are_missing(monkeypatch):
    rng = np.random.default_rng(1)
    pools, labels = torch.tensor(rng.integers(0, 30, (12, 5))), rng.integers(0, 7, 30).tolist()
    once = pool_classes(pools, labels, 5)
    monkeypatch.setattr(module, "_MOST_NUMBERS", 1)
    for mine, theirs in zip(pool_classes(pools, labels, 5), once, strict=True):
        assert torch.equal(mine, theirs)
    with pytest.raises(DataError, match="2 images have no class"):
        pool_classes(pools, [-1, -1, *labels[2:]], 5)
    with pytest.raises(DataError, match="and there are 3 labels"):
        pool_classes(pools, labels[:3], 5)
