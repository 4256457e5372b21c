from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.seeding import generator
from mis_lab.dataset.splits import _quotas, group_codes, held_out_groups, spread

GROUPS = st.lists(st.sampled_from("abcdefghij"), max_size=60)


@given(GROUPS, st.floats(0, 0.999), st.integers(0, 5))
def test_at_least_one_group_is_held_out_and_one_is_not(groups, share, seed):
    held_out = held_out_groups(groups, share, seed)
    distinct = set(groups)
    assert held_out <= distinct
    if share == 0 or len(distinct) < 2:
        assert not held_out
    else:
        nearest = [n for n in range(1, len(distinct)) if abs(n - share * len(distinct)) <= 0.5]
        assert len(held_out) in (nearest or [1, len(distinct) - 1])


@given(GROUPS, st.randoms(use_true_random=False))
def test_neither_order_nor_repeats_change_what_is_held_out(groups, random):
    shuffled = groups * 2
    random.shuffle(shuffled)
    assert held_out_groups(groups, 0.3, 1) == held_out_groups(shuffled, 0.3, 1)


def test_seed_and_scope_choose_other_groups():
    groups = [f"scene {number}" for number in range(40)]
    drawn = [
        held_out_groups(groups, 0.5, 0),
        held_out_groups(groups, 0.5, 1),
        held_out_groups(groups, 0.5, 0, "score"),
    ]
    assert len(set(drawn)) == 3
    assert {len(some) for some in drawn} == {20}


def test_a_new_group_moves_at_most_one_other():
    groups = [f"scene {number}" for number in range(30)]
    for number in range(50):
        before, after = held_out_groups(groups, 0.25, 0), held_out_groups([*groups, f"new {number}"], 0.25, 0)
        assert len(before - after) <= 1


def test_every_group_is_held_out_about_as_often():
    groups = [f"scene {number}" for number in range(12)]
    times = Counter(group for seed in range(600) for group in held_out_groups(groups, 0.25, seed))
    assert all(100 < times[group] < 200 for group in groups)  # 150 expected, standard deviation 10.6


@given(GROUPS, st.integers(0, 70))
def test_spread_takes_turns_among_the_groups(groups, n):
    chosen = spread(groups, n)
    assert chosen == sorted(set(chosen))
    assert len(chosen) == min(n, len(groups))
    sizes, taken = Counter(groups), Counter(groups[index] for index in chosen)
    fullest = max(taken.values(), default=0)
    for group, size in sizes.items():  # a group lags behind the fullest by one turn, or is used up
        assert taken[group] >= min(size, fullest - 1)


@given(GROUPS, st.integers(0, 70), st.integers(0, 3))
def test_spread_at_random_keeps_the_turns_and_is_seeded(groups, n, seed):
    chosen = spread(groups, n, generator(seed, "test"))
    assert chosen == spread(groups, n, generator(seed, "test"))
    assert len(set(chosen)) == len(chosen) == min(n, len(groups))
    taken = Counter(groups[index] for index in chosen)
    fullest = max(taken.values(), default=0)
    assert all(taken[group] >= min(size, fullest - 1) for group, size in Counter(groups).items())


@given(st.lists(st.integers(1, 12), min_size=1, max_size=8), st.integers(0, 60))
def test_quotas_are_those_of_taking_one_in_turn(sizes, n):
    quotas, left = [0] * len(sizes), min(n, sum(sizes))
    while left:
        for position, size in enumerate(sizes):
            if left and quotas[position] < size:
                quotas[position] += 1
                left -= 1
    assert _quotas(sizes, n) == quotas


def test_the_images_of_a_group_are_evenly_spaced():
    assert spread(["a"] * 100, 4) == [12, 37, 62, 87]
    assert spread(["a"] * 3 + ["b"] * 3, 2) == [1, 4]


def test_different_seeds_spread_differently():
    groups = ["a"] * 50 + ["b"] * 50
    assert spread(groups, 10, generator(0)) != spread(groups, 10, generator(1))


def test_images_that_are_their_own_groups_are_not_taken_from_the_front():
    chosen = spread([f"image {number}" for number in range(1000)], 100)
    assert sum(index < 500 for index in chosen) == pytest.approx(50, abs=20)


def test_group_codes_follow_the_names():
    assert group_codes(["b", "a", "c", "a"]).tolist() == [1, 0, 2, 0]
