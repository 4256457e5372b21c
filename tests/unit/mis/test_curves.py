"""Curves over hardness and pool size are made of ordinary scores."""

from __future__ import annotations

import json
import logging
from dataclasses import replace

import numpy as np
import pytest
import torch
from scipy.stats import ttest_1samp

from mis_lab.core.errors import ConfigError
from mis_lab.mis.config import MisConfig, Negatives, Protocol, Query
from mis_lab.mis.curves import EXTREME, CurvePoint, score_curves, settings, summarise_point
from mis_lab.mis.tasks import draw_tasks
from mis_lab.mis.unit_scores import UnitScores
from tests.unit.mis.test_compare import unit_scores

CONFIG = MisConfig(n_explanations=2, n_tasks=6, min_tasks=3, hardness=[90.0, 70.0], quantiles=[0.25, 0.1])


def test_points_are_asked_for_from_the_hardest_query_and_the_smallest_pool_on() -> None:
    points = list(settings(replace(CONFIG, one_per_group=True, pool_size=30)))
    assert [(setting, x) for setting, x, _ in points] == [
        ("hardness", 70.0),
        ("hardness", 90.0),
        ("hardness", EXTREME),
        ("quantile", 0.1),
        ("quantile", 0.25),
    ]
    by_x = {(setting, x): config for setting, x, config in points}
    assert by_x["hardness", 70.0].protocol is Protocol.hard
    assert by_x["hardness", 70.0].query_percentile == 70.0
    assert by_x["hardness", EXTREME].query is Query.most_extreme
    assert by_x["quantile", 0.1].quantile == 0.1
    assert by_x["quantile", 0.1].query is Query.least_extreme
    assert not any(config.one_per_group or config.pool_size for *_, config in points)


def test_negatives_within_a_class_are_no_part_of_curves() -> None:
    both = replace(CONFIG, negatives=[Negatives.within_class, Negatives.bottom])
    assert all(config.negatives == [Negatives.bottom] for *_, config in settings(both))
    alone = replace(CONFIG, negatives=[Negatives.within_class])
    assert all(config.negatives == [Negatives.random] for *_, config in settings(alone))


def test_a_point_is_the_mean_of_the_scored_units_with_students_interval() -> None:
    rng = np.random.default_rng(0)
    scores = unit_scores(rng.normal(0.2, 0.3, (12, 20)), status=[0] * 10 + [1, 3])
    (point,) = summarise_point("hardness", 90.0, scores)
    hard = np.asarray(scores.of("bottom").scores.hard.estimate)[:10]
    expected = ttest_1samp(hard, 0.0).confidence_interval(0.95)
    assert (point.n_units, point.n_scored, point.negatives) == (12, 10, "bottom")
    assert tuple(point.hard) == pytest.approx((hard.mean(), expected.low, expected.high))
    assert CurvePoint.from_json(json.loads(json.dumps(point.as_json()))) == point


def test_without_a_scored_unit_a_point_has_no_mean() -> None:
    (point,) = summarise_point("quantile", 0.1, unit_scores(np.zeros((2, 20)), status=[1, 3]))
    assert point.n_scored == 0
    assert np.isnan([*point.soft, *point.hard]).all()


def test_points_that_need_more_images_are_left_out_and_told(caplog: pytest.LogCaptureFixture) -> None:
    asked: list[MisConfig] = []

    def rescore(config: MisConfig) -> UnitScores:
        asked.append(config)
        return unit_scores(np.ones((3, 20)))

    with caplog.at_level(logging.INFO):
        points = score_curves(replace(CONFIG, hardness=[99.0, 70.0]), 60, rescore)
    assert [(point.setting, point.x) for point in points] == [
        ("hardness", 70.0),
        ("hardness", EXTREME),
        ("quantile", 0.1),
        ("quantile", 0.25),
    ]
    assert len(asked) == 4
    assert "hardness 99" in caplog.text


def test_queries_at_lower_percentiles_are_less_active(pools_of) -> None:
    a_nu = np.random.default_rng(0).normal(size=(200, 4))
    active = {}
    for setting, x, config in settings(CONFIG):
        if setting == "hardness":
            tasks, _ = draw_tasks(pools_of(a_nu, 100), config, Negatives.bottom, 0, torch.arange(4), None, 200)
            asked = tasks.query_positive[:, : int(tasks.n_tasks.min())]
            active[x] = float(a_nu[asked.numpy(), np.arange(4)[:, None]].mean())
    assert active[70.0] < active[90.0] < active[EXTREME]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ({"hardness": [50.0]}, "hardness: 50"),
        ({"hardness": [100.0]}, "hardness: 100"),
        ({"quantiles": [0.6]}, "quantiles: 0.6"),
        ({"quantiles": [0.0]}, "quantiles: 0"),
        ({"n_reseeds": 1}, "n_reseeds=1"),
        ({"n_top": 1}, "n_top=1"),
        ({"controls": ["neurons"]}, "unknown neurons"),
    ],
)
def test_what_cannot_be_is_refused(changes: dict, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        replace(CONFIG, **changes)
