"""Who is ahead, and which circuit size is meant."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mis_lab.core.intervals import Interval
from mis_lab.report.data import FaithfulnessCurve

ABOVE, BELOW, ACROSS = Interval(0.1, 0.02, 0.2), Interval(-0.1, -0.2, -0.02), Interval(0.1, -0.02, 0.2)


@pytest.mark.parametrize(
    ("p", "units", "groups", "winner", "carries_over"),
    [
        (0.01, ABOVE, ABOVE, "feature", True),
        (0.01, BELOW, BELOW, "neuron", True),
        (0.01, ABOVE, ACROSS, "feature", False),
        (0.01, ABOVE, None, "feature", False),
        (0.01, ABOVE, BELOW, "feature", False),  # the groups say the opposite
        (0.05, ABOVE, ABOVE, None, False),
        (0.01, ACROSS, ABOVE, None, False),
        (float("nan"), ABOVE, ABOVE, None, False),
        (0.01, ABOVE, Interval(0.1, np.nan, np.nan), "feature", False),
    ],
)
def test_a_kind_wins_when_the_test_and_the_interval_agree(made_up, p, units, groups, winner, carries_over):
    row = dataclasses.replace(made_up().comparisons[0], p_holm=p, mean_difference=units, mean_difference_groups=groups)
    assert (row.winner, row.carries_over) == (winner, carries_over)


def test_the_curve_is_read_at_the_size_nearest_in_ratio():
    n = np.array([0, 1, 10, 100])
    curve = FaithfulnessCurve("feature", "effect", n, n / 100, n / 200, n / 50)
    assert curve.at(18) == (10, Interval(0.1, 0.05, 0.2))
    assert curve.at(60)[0] == 100
    assert curve.at(0)[0] == 1
    assert curve.at(10_000)[0] == 100


@pytest.mark.parametrize(("with_unscored", "turns"), [(-0.01, True), (0.01, False), (None, False)])
def test_a_lead_turns_round_when_units_without_a_score_outweigh_it(made_up, with_unscored, turns):
    ahead = dataclasses.replace(
        made_up().comparisons[0],
        p_holm=0.001,
        mean_difference=Interval(0.1, 0.05, 0.15),
        difference_with_unscored=with_unscored,
    )
    assert ahead.turns_round is turns
    assert not dataclasses.replace(ahead, p_holm=0.9).turns_round
