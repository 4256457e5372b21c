"""Which units of a run get a card."""

from __future__ import annotations

import numpy as np

from mis_lab.report.collect import pick_units


def test_units_without_a_score_are_never_shown():
    soft = np.array([np.nan, 0.9, 0.5, np.nan, 0.7, 0.6, 0.8, np.nan, 0.4])  # dead, constant or too rare: NaN
    picked = pick_units(soft, 2, 0, "a.1/feature")
    assert (picked["best"], picked["worst"]) == ([1, 6], [8, 2])
    assert sorted(picked["random"]) == [4, 5]
    assert pick_units(np.full(5, np.nan), 2, 0, "a.1/feature") == {"best": [], "random": [], "worst": []}
