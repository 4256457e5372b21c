"""Matching of dictionaries against all permutations, and what it must not see."""

# F rows  D dimensions

from __future__ import annotations

from itertools import permutations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.sae.stability import match, stability


def draw(n: int, d: int, seed: int) -> Tensor:
    return torch.randn(n, d, generator=torch.Generator().manual_seed(seed))


@given(n_a=st.integers(1, 5), n_b=st.integers(1, 5), d=st.integers(1, 4), seed=st.integers(0, 99))
def test_no_pairing_is_better(n_a: int, n_b: int, d: int, seed: int) -> None:
    a, b = draw(n_a, d, seed), draw(n_b, d, seed + 1000)
    found = match(a, b)
    unit_a, unit_b = (x.double() / x.double().norm(dim=1, keepdim=True) for x in (a, b))
    cosines = (unit_a @ unit_b.T).abs().numpy()
    if n_a > n_b:
        cosines = cosines.T
    short, long = cosines.shape
    best = max(np.mean([cosines[i, j] for i, j in enumerate(order)]) for order in permutations(range(long), short))
    assert found.mcc == pytest.approx(best, rel=1e-12)
    assert len(found.cosines_m) == min(n_a, n_b)
    assert len(set(found.rows_a_m.tolist())) == len(set(found.rows_b_m.tolist())) == short
    again = (unit_a[found.rows_a_m] * unit_b[found.rows_b_m]).sum(1)
    torch.testing.assert_close(found.cosines_m, again, rtol=1e-12, atol=1e-12)


def test_order_length_and_sign_do_not_matter() -> None:
    a = draw(20, 8, 0)
    order = torch.randperm(20, generator=torch.Generator().manual_seed(1))
    signs_and_lengths = torch.linspace(-3, 3, 20)[:, None]
    found = match(a, (signs_and_lengths * a)[order])
    assert found.mcc == pytest.approx(1)
    assert order[found.rows_b_m].tolist() == found.rows_a_m.tolist()
    assert (found.cosines_m < 0).sum() == 10


def test_the_greedy_pairing_is_not_taken() -> None:
    """The first row's best partner is worth more to the second row."""
    angle = torch.deg2rad(torch.tensor([0.0, 40.0]))
    b = torch.stack([angle.cos(), angle.sin()], 1)
    angle = torch.deg2rad(torch.tensor([-15.0, 10.0]))
    a = torch.stack([angle.cos(), angle.sin()], 1)
    found = match(a, b)
    assert found.rows_b_m.tolist() == [0, 1]
    assert found.mcc == pytest.approx(float(torch.deg2rad(torch.tensor([15.0, 30.0])).cos().mean()))


def test_recovery_of_a_truth_counts_what_was_not_found() -> None:
    truth = torch.eye(4)
    few = match(truth[[2, 0]], truth)
    assert (few.mcc, few.recovered(), few.recovered_of_b()) == (1.0, 1.0, 0.5)
    many = match(torch.cat([truth[:3], 0.85 * truth[:1] + 0.5 * truth[3:], truth[:1]]), truth)
    assert many.recovered_of_b() == 0.75
    assert many.recovered_of_b(above=0.5) == 1.0
    assert (many.n_a, many.n_b) == (5, 4)


def test_a_direction_of_length_zero_matches_nothing() -> None:
    found = match(torch.zeros(2, 3), torch.eye(3))
    assert found.cosines_m.tolist() == [0, 0]


def test_stability_is_over_all_pairs() -> None:
    dictionaries = [draw(10, 6, 0), draw(10, 6, 1), draw(10, 6, 0)]
    found = stability(dictionaries)
    expected = [match(dictionaries[i], dictionaries[j]).mcc for i, j in ((0, 1), (0, 2), (1, 2))]
    assert found.mcc_by_pair == pytest.approx(expected)
    assert found.mcc_by_pair[1] == pytest.approx(1)
    assert found.mcc == pytest.approx(np.mean(expected))
    assert found.mcc_std == pytest.approx(np.std(expected))
    assert found.mcc_range == (min(expected), max(expected))
    assert found.recovered == pytest.approx(np.mean(found.recovered_by_pair))
    assert found.recovered_by_pair[1] == 1.0


def test_bad_input() -> None:
    with pytest.raises(DataError, match="Train two seeds"):
        stability([torch.eye(2)])
    for a, b in ((torch.eye(2), torch.eye(3)), (torch.ones(2), torch.eye(2)), (torch.ones(0, 2), torch.eye(2))):
        with pytest.raises(DataError, match="cannot be matched"):
            match(a, b)
    with pytest.raises(DataError, match="NaN"):
        match(torch.tensor([[float("nan"), 1.0]]), torch.eye(2))
