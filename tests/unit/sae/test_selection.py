"""Selections equal sorting, whatever the chunks, the guesses and the ties."""

# B vectors  F features

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mis_lab.sae import selection
from mis_lab.sae.selection import BatchTopK, Selection, TopK


def draw(n_vectors: int, n_features: int, seed: int = 0) -> Tensor:
    return torch.randn(n_vectors, n_features, generator=torch.Generator().manual_seed(seed))


def select(how: Callable[..., Selection], pre_bf: Tensor) -> Selection:
    return how(lambda rows: pre_bf[rows], len(pre_bf))


def dense(found: Selection, shape: torch.Size) -> Tensor:
    """(B, F) the values selected, 0 elsewhere."""
    rows = torch.arange(shape[0]).repeat_interleave(found.starts_b.diff())
    values = torch.zeros(shape, dtype=found.values_m.dtype)
    values[rows, found.features_m] = found.values_m
    return values


@pytest.mark.parametrize("chunk", [1, 40, 10_000])
def test_top_k_keeps_the_k_largest_of_every_vector(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CHUNK_ELEMENTS", chunk)
    pre_bf = draw(20, 15)
    found = select(TopK(4), pre_bf)
    assert found.starts_b.tolist() == list(range(0, 81, 4))
    for row, features in enumerate(found.features_m.reshape(20, 4)):
        assert set(features.tolist()) == set(pre_bf[row].argsort(descending=True)[:4].tolist())
    assert torch.equal(found.values_m.reshape(20, 4), pre_bf.gather(1, found.features_m.reshape(20, 4)))


@settings(max_examples=60)
@given(
    n_vectors=st.integers(1, 200),
    n_features=st.integers(1, 20),
    k=st.integers(1, 8),
    shift=st.sampled_from([-3.0, 0.0, 2.0]),
    uneven=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_batch_top_k_keeps_the_largest_positive_ones_of_the_batch(
    n_vectors: int, n_features: int, k: int, shift: float, uneven: bool, seed: int
) -> None:
    pre_bf = draw(n_vectors, n_features, seed) + shift
    if uneven:  # the sampled vectors tell nothing of where the large values are
        pre_bf *= torch.linspace(0, 1, n_vectors)[:, None] ** 8
    found = select(BatchTopK(k), pre_bf)
    positive = pre_bf.flatten()[pre_bf.flatten() > 0]
    expected = positive.sort(descending=True).values[: k * n_vectors]
    assert torch.equal(found.values_m.sort(descending=True).values, expected)
    least = expected.min() if len(expected) else torch.inf
    assert torch.equal(dense(found, pre_bf.shape), torch.where(pre_bf >= least, pre_bf, 0.0))


@pytest.mark.parametrize("chunk", [1, 64, 10_000])
def test_of_equal_values_those_of_earlier_vectors_come_first(chunk: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CHUNK_ELEMENTS", chunk)
    pre_bf = torch.ones(6, 4)
    pre_bf[5, 2] = 2.0
    found = select(BatchTopK(2), pre_bf)  # 12 of 24: the large one and 11 of the first three vectors
    assert found.starts_b.tolist() == [0, 4, 8, 11, 11, 11, 12]
    assert found.features_m.tolist() == [0, 1, 2, 3, 0, 1, 2, 3, 0, 1, 2, 2]


def test_pre_activations_are_asked_for_a_few_vectors_at_a_time(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(selection, "CHUNK_ELEMENTS", 150)
    pre_bf, sizes = draw(300, 15), []

    def pre(rows: slice | Tensor) -> Tensor:
        sizes.append(len(pre_bf[rows]))
        return pre_bf[rows]

    TopK(3)(pre, 300)
    assert max(sizes) == 10
    assert sum(sizes) == 301  # the first once more, to learn how many features there are
