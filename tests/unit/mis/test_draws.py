from __future__ import annotations

from itertools import combinations
from itertools import permutations as orders

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mis_lab.mis.draws import hashes, mix, permutations, subsets

GAMMA = 0x9E3779B97F4A7C15


def unsigned(x: torch.Tensor) -> list[int]:
    return [number % 2**64 for number in x.tolist()]


def test_mix_gives_the_published_stream_of_splitmix64():
    # The first numbers of Vigna's splitmix64.c for seed 0, and a second implementation with Python integers.
    counters = [(GAMMA * step) % 2**64 for step in (1, 2, 3)]
    signed = torch.tensor([c - 2**64 if c >= 2**63 else c for c in counters])
    assert unsigned(mix(signed)) == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_hashes_depend_on_unit_seed_and_counter_alone():
    keys, counters = torch.tensor([5, 0, -3, 2**40]), torch.arange(50)
    all_at_once = hashes(7, keys, counters)
    assert all_at_once.min() >= 0
    assert all_at_once.unique().numel() == all_at_once.numel()
    for row, key in enumerate(keys):
        assert torch.equal(hashes(7, key[None], counters)[0], all_at_once[row])
    assert torch.equal(hashes(7, keys.flip(0), counters), all_at_once.flip(0))
    assert torch.equal(hashes(7, keys, counters[10:20]), all_at_once[:, 10:20])
    assert not (hashes(8, keys, counters) == all_at_once).any()


@given(st.integers(0, 2**62), st.lists(st.integers(0, 12), min_size=1, max_size=4), st.integers(1, 4))
def test_permutations_of_every_size(seed, sizes, n_bins):
    drawn = permutations(seed, torch.arange(len(sizes)), n_bins, torch.tensor(sizes), 12)
    assert drawn.shape == (len(sizes), n_bins, 12)
    for row, size in zip(drawn, sizes, strict=True):
        for one in row[:, :size].tolist():
            assert sorted(one) == list(range(size))


def test_permutations_are_uniform_and_bins_independent():
    drawn = permutations(3, torch.arange(12000), 2, torch.full((12000,), 3), 3)
    place = {order: number for number, order in enumerate(orders(range(3)))}
    pairs = torch.tensor([place[tuple(a)] * 6 + place[tuple(b)] for a, b in drawn.tolist()])
    assert chisquare(torch.bincount(pairs, minlength=36)).pvalue > 1e-3


@given(st.integers(0, 2**62), st.integers(1, 6), st.lists(st.integers(0, 9), min_size=1, max_size=4))
def test_subsets_have_no_repetition(seed, size, more):
    populations = torch.tensor([size + extra for extra in more])
    drawn = subsets(seed, torch.arange(len(more)), 5, size, populations)
    assert drawn.shape == (len(more), 5, size)
    ordered = drawn.sort(-1).values
    assert (ordered[..., 1:] > ordered[..., :-1]).all()
    assert (drawn >= 0).all()
    assert (drawn < populations[:, None, None]).all()


@pytest.mark.parametrize(("population", "size"), [(6, 3), (5, 1), (4, 4)])
def test_subsets_are_uniform(population, size):
    drawn = subsets(1, torch.arange(60), 200, size, torch.full((60,), population)).sort(-1).values
    place = {chosen: number for number, chosen in enumerate(combinations(range(population), size))}
    counts = torch.bincount(
        torch.tensor([place[tuple(one)] for one in drawn.flatten(0, 1).tolist()]), minlength=len(place)
    )
    if len(place) > 1:
        assert chisquare(counts).pvalue > 1e-3
    assert counts.sum() == 12000
