"""What a run cannot show is told with the run's own numbers."""

from __future__ import annotations

import dataclasses

from mis_lab.core.intervals import wilson
from mis_lab.report.limits import limits


def test_limits_carry_the_runs_own_numbers(data):
    found = {limit.title: limit.text for limit in limits(data)}
    assert "1\u202f288 scored images are parts of 15 scenes" in found["Few scenes"]
    assert "lpips_baseline_squeeze was never fitted to human judgements" in found["Uncalibrated metric"]
    assert "τ = 0.0213" in found["Uncalibrated metric"]
    assert f"{wilson(1.0, 20).low:.2f} to 1" in found["Coarse scores of single units"]
    n_units = sum(len(one.numbers) for one in data.scores if one.kind in ("feature", "neuron"))
    assert f"{n_units:,}".replace(",", "\u202f") in found["Chosen after the fact"]
    assert "11 of the 15 scenes" in found["Features were fitted to such images"]
    assert "0.24 to 0.36" in found["Features were fitted to such images"]
    assert "seed 0" in found["One network, one seed"]
    assert "mean value" in found["Circuits are relative to their baseline"]


def test_limits_say_nothing_of_what_was_not_run(data):
    alone = dataclasses.replace(data, saes=(), circuit=None, mis=None)
    assert [limit.title for limit in limits(alone)] == ["Few scenes", "One network, one seed"]
    many = dataclasses.replace(data, dataset=dataclasses.replace(data.dataset, n_groups=5000, group_word="image"))
    assert limits(many)[0].title == "One data set"
    assert "of the 5\u202f000 images" not in " ".join(limit.text for limit in limits(many))
    calibrated = dataclasses.replace(data, mis=dataclasses.replace(data.mis, metric_is_calibrated=True))
    assert "One metric" in {limit.title for limit in limits(calibrated)}
