"""Numbers as people read them."""

from __future__ import annotations

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.intervals import Interval
from mis_lab.report import wording


@pytest.mark.parametrize(
    ("value", "text"),
    [
        (None, "–"), (math.nan, "–"), (0.0, "0"), (0.02134, "0.0213"), (-0.5, "−0.500"), (12.345, "12.3"),
        (1288, "1\u202f288"), (1234.5, "1\u202f234"), (2.5e-7, "2.50×10⁻⁷"),
        (math.inf, "∞"), (-math.inf, "−∞"), (16.0, "16"),
    ],
)  # fmt: skip
def test_number(value, text):
    assert wording.number(value) == text


@given(st.floats(1e-4, 1e6))
def test_a_number_reads_back_to_three_digits(value):
    back = float(wording.number(value).replace("\u202f", ""))
    assert back == pytest.approx(value, rel=6e-3)


@pytest.mark.parametrize(
    ("value", "signed", "text"),
    [
        (0.125, False, "0.12"),
        (0.126, True, "+0.13"),
        (-0.5, True, "−0.50"),
        (-0.001, True, "0.00"),
        (0.001, True, "0.00"),
    ],
)
def test_fixed_has_a_real_minus_and_no_signed_zero(value, signed, text):
    assert wording.fixed(value, signed=signed) == text


@pytest.mark.parametrize(
    ("share", "text"),
    [(0.0, "0\u202f%"), (1.0, "100\u202f%"), (0.5, "50\u202f%"), (0.004, "<\u202f1\u202f%"), 
     (0.997, ">\u202f99\u202f%"), (0.006, "1\u202f%"), (0.994, "99\u202f%"), (None, "–"), (-0.2, "−20\u202f%")],
)  # fmt: skip
def test_percent_never_says_none_or_all_of_what_is_only_close(share, text):
    assert wording.percent(share) == text


def test_p_values_interval_spread_and_lists():
    assert wording.p_value(0.0004) == "< 0.001"
    assert wording.p_value(0.0314) == "0.031"
    assert wording.p_value(math.nan) == "–"
    assert wording.interval(Interval(0.5, 0.4, 0.6)) == "[0.40, 0.60]"
    assert wording.interval(Interval(0.5, math.nan, math.nan)) == "–"
    assert wording.spread([0.71, 0.83, 0.75]) == "0.71 to 0.83"
    assert wording.spread([0.711, 0.712]) == "0.71"
    assert wording.spread([-0.04, -0.02], signed=True) == "−0.04 to −0.02"
    assert wording.listed(["a"]) == "a"
    assert wording.listed(["a", "b", "c"]) == "a, b and c"
    assert wording.plural(1, "scene") == "1 scene"
    assert wording.plural(1500, "scene") == "1\u202f500 scenes"
    assert wording.compact(1_500_000) == "1.5\u202fM"
    assert wording.compact(999) == "999"
    assert wording.named(wording.KINDS, "my_kind") == "my kind"
