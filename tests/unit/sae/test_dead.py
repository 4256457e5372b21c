"""How much of one set of features is in another."""

from __future__ import annotations

import json
import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.errors import StoreError
from mis_lab.sae.dead import Fates, overlap, overlap_table

SETS = st.lists(st.integers(0, 12), max_size=12)


@given(SETS, SETS)
def test_an_overlap_is_the_chance_that_a_member_of_the_first_is_in_the_second(a, b):
    members = sorted(set(a))
    if not members:
        assert math.isnan(overlap(a, b))
    else:
        assert overlap(a, b) == pytest.approx(sum(member in b for member in members) / len(members))
        assert overlap(a, [*a, *b]) == 1
        assert overlap(a, []) == 0


def test_a_table_of_overlaps_goes_by_rows():
    table = overlap_table([{1, 2, 3, 4}, {5}, set()], [{1}, {1, 2, 5}])
    assert table[:2].tolist() == [[0.25, 0.5], [0.0, 1.0]]
    assert np.isnan(table[2]).all()
    assert overlap_table([], [{1}]).shape == (0, 1)


def test_fates_are_read_in_the_order_of_steps_whatever_their_spelling(tmp_path):
    told = {"dead": {"100": [3], "20": [1, 2], "0": []}, "revived": {"41": [2, 1]}}
    (tmp_path / "dead_features.json").write_text(json.dumps(told))
    fates = Fates.read(tmp_path)
    assert list(fates.dead.items()) == [(0, frozenset()), (20, {1, 2}), (100, {3})]
    assert fates.revived == {41: {1, 2}}
    assert fates.any


def test_nothing_is_known_of_features_without_a_file(tmp_path):
    assert Fates.read(tmp_path) == Fates({}, {})
    assert not Fates({0: frozenset()}, {}).any
    assert Fates({0: frozenset()}, {5: frozenset({1})}).any


@pytest.mark.parametrize("text", ["{}", '{"dead": [1], "revived": {}}', '{"dead": {"a": []}, "revived": {}}'])
def test_a_damaged_file_is_told(tmp_path, text):
    (tmp_path / "dead_features.json").write_text(text)
    with pytest.raises(StoreError, match=r"dead_features\.json is damaged"):
        Fates.read(tmp_path)
