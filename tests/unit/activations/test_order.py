from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from mis_lab.activations.order import (
    EMPTY,
    decode,
    descending,
    encode,
    hash_keys,
    image_ordinals,
    largest,
    mix,
    unmix,
    within_cap,
)

NUMBERS = st.integers(0, 2**31 - 1)
FLOATS = st.floats(width=32, allow_nan=False)


def mixed(x: int, first: int, second: int) -> int:
    """The hash by Python's whole numbers, which never wrap around."""
    x = (x ^ first) * 0x6C4C1B51 % 2**31
    return ((x ^ x >> 15) + second) * 0x31848BAB % 2**31


@given(st.lists(NUMBERS, min_size=1, max_size=40), st.lists(st.tuples(NUMBERS, NUMBERS), min_size=1, max_size=4))
def test_the_hash_wraps_as_whole_numbers_do_and_can_be_undone(numbers, keys):
    ordinals, keys_u2 = torch.tensor(numbers, dtype=torch.int32), torch.tensor(keys, dtype=torch.int32)
    hashed = mix(ordinals, keys_u2)
    assert hashed.tolist() == [[mixed(number, *key) for number in numbers] for key in keys]
    assert unmix(hashed, keys_u2).tolist() == [numbers] * len(keys)


def test_no_two_images_of_a_unit_collide():
    hashed = mix(torch.arange(10**6, dtype=torch.int32), hash_keys(0, "ties", ["a"]))
    assert len(hashed.unique()) == 10**6
    assert hashed.min() >= 0


def test_ties_are_uniform_over_images_pairs_and_units():
    n, n_units = 30, 40_000
    rank = mix(torch.arange(n, dtype=torch.int32), hash_keys(11, "ties", range(n_units))).argsort(1)
    first, second, last = rank[:, 0], rank[:, 1], rank[:, -1]
    for cells in (first, last, first[1:] * n + first[:-1]):
        assert chisquare(torch.bincount(cells, minlength=int(n ** (2 if cells.max() >= n else 1)))).pvalue > 1e-4
    other = ~np.eye(n, dtype=bool).ravel()
    for pair in (first * n + second, first * n + last):
        assert chisquare(torch.bincount(pair, minlength=n * n).numpy()[other]).pvalue > 1e-4


def test_keys_of_a_unit_depend_on_its_name_and_the_seed():
    keys = hash_keys(0, "ties", ["a", "b", 3])
    assert torch.equal(hash_keys(0, "ties", [3, "a"]), keys[[2, 0]])
    assert not (hash_keys(1, "ties", ["a", "b", 3]) == keys).any()
    assert not (hash_keys(0, "random pool", ["a", "b", 3]) == keys).any()


@given(st.lists(st.tuples(FLOATS, NUMBERS), min_size=1, max_size=50))
def test_keys_sort_as_activation_and_tie(pairs):
    values, ties = zip(*pairs, strict=True)
    keys = encode(torch.tensor([values]), torch.tensor([ties], dtype=torch.int32))[0]
    assert [pairs[index] for index in keys.argsort(stable=True)] == sorted(pairs)  # −0.0 == 0.0 in Python as well
    assert (keys > EMPTY).all()
    assert (~keys > EMPTY).all()
    read, read_ties = decode(keys)
    assert read.tolist() == [float(value) for value in values]
    assert read_ties.tolist() == list(ties)


def test_negative_zero_is_zero():
    keys = encode(torch.tensor([[0.0, -0.0]]), torch.tensor([[5, 5]], dtype=torch.int32))[0]
    assert keys[0] == keys[1]


@given(st.lists(st.text("aB/0é", max_size=4), unique=True, max_size=20))
def test_ordinals_are_ranks_of_the_ids(ids):
    assert image_ordinals(ids).tolist() == [sorted(ids).index(name) for name in ids]


def test_ids_that_are_not_unique_have_no_ranks():
    with pytest.raises(ValueError, match="not unique"):
        image_ordinals(["a", "b", "a"])


@given(st.lists(st.integers(-(2**63), 2**63 - 1), min_size=1, max_size=30), st.data())
def test_largest(numbers, data):
    k = data.draw(st.integers(1, len(numbers)))
    keys = torch.tensor([numbers, numbers[::-1]])
    assert largest(keys, k).sort(1).values.tolist() == [sorted(numbers)[-k:]] * 2


PAIRS = st.tuples(st.integers(-(10**6), 10**6), st.integers(0, 3))


@given(st.lists(PAIRS, unique=True, max_size=25), st.integers(1, 4))
def test_within_cap(pairs, cap):
    keys, groups = torch.tensor(pairs, dtype=torch.int64).view(-1, 2).T
    found = within_cap(torch.stack([keys, -keys]), torch.stack([groups, groups]), cap)
    for row, sign in enumerate((1, -1)):
        for index, (key, group) in enumerate(pairs):
            ahead = sum(sign * other > sign * key for other, its in pairs if its == group)
            ties = sum(other == key for other, its in pairs if its == group) > 1
            assert ties or bool(found[row, index]) == (ahead < cap)


def test_descending_sorts_every_row_and_overwrites_nothing():
    keys = torch.randint(-(2**62), 2**62, (5, 300), generator=torch.Generator().manual_seed(0))
    keys[2, 40:90] = EMPTY
    before = keys.clone()
    assert torch.equal(descending(keys), before.sort(1, descending=True).values)
    assert torch.equal(keys, before)
