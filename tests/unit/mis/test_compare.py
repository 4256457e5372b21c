from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch
from scipy.stats import t as student

from mis_lab.core.errors import ConfigError
from mis_lab.core.intervals import Interval
from mis_lab.core.seeding import numpy_generator
from mis_lab.mis.compare import Comparison, compare, compare_sites, group_bootstrap, summarise, verdict
from mis_lab.mis.differences import unit_bootstrap
from mis_lab.mis.score import outcomes, score
from mis_lab.mis.tasks import Tasks
from mis_lab.mis.unit_scores import NegativesScores, Settings, UnitScores
from mis_lab.mis.units import UnitStatus

SETTINGS = Settings(
    protocol="extreme",
    query="most_extreme",
    query_negative="least_extreme",
    query_percentile=0.0,
    quantile=0.0,
    n_explanations=9,
    n_tasks=20,
    min_tasks=5,
    pool_size=200,
    one_per_group=False,
    image_activation="mean",
    ties=1e-6,
    metric="test",
    metric_fingerprint="abc",
    temperature=0.16,
    tie=1e-6,
    n_images=60,
    images="def",
    classes="ghi",
)
N_GROUPS = 6


def unit_scores(delta, status=None, kind="feature", negatives=("bottom",), seed=0, site="layer") -> UnitScores:
    """Scores whose margins are given; the positive query of task t is image t, of group t mod 6."""
    delta = torch.as_tensor(np.asarray(delta), dtype=torch.float64)
    n_units, n_tasks = delta.shape
    status = torch.zeros(n_units, dtype=torch.int64) if status is None else torch.tensor(status)
    delta = delta.masked_fill((status != UnitStatus.ok.value)[:, None], torch.nan)
    counts = delta.isfinite().sum(1)
    queries = torch.arange(n_tasks, dtype=torch.int32).expand(n_units, -1).masked_fill(delta.isnan(), -1)
    explained = queries[..., None].expand(-1, -1, 9)
    result = NegativesScores(
        status, Tasks(explained, queries, explained, queries, counts), delta, score(delta, counts, 0.16, 1e-6, 50, seed)
    )
    return UnitScores(
        site=site,
        kind=kind,
        control="",
        units=torch.arange(n_units),
        unit_names=[f"{kind} {unit}" for unit in range(n_units)],
        settings=SETTINGS,
        seed=seed,
        n_active=torch.full((n_units,), 50),
        minimum=torch.zeros(n_units),
        maximum=torch.ones(n_units),
        image_ids=[f"image {image}" for image in range(60)],
        image_groups=[f"scene {image % N_GROUPS}" for image in range(60)],
        by_negatives=dict.fromkeys(negatives, result),
    )


@pytest.fixture
def pair():
    rng = np.random.default_rng(0)
    unit_means = rng.normal(0, 0.05, (110, 1))
    a = rng.normal(0.25 + unit_means[:50], 0.1, (50, 20))
    b = rng.normal(0.05 + unit_means[50:], 0.1, (60, 20))
    return unit_scores(a), unit_scores(b, kind="neuron")


def test_the_numbers_are_those_of_the_scored_units(pair):
    a, b = pair
    found = compare(a, b, "bottom", n_bootstrap=300, seed=4)
    values = [scores.of("bottom").scores.soft.estimate for scores in pair]
    units = unit_bootstrap(*values, 300, seed=4)
    assert found.cliffs_delta == units.cliffs_delta
    assert found.median_difference == units.median_difference
    assert found.mean_difference == units.mean_difference
    assert found.a.mean == pytest.approx(values[0].mean())
    assert found.b.median == pytest.approx(np.median(values[1]))
    assert (found.a.label, found.b.label) == ("features", "neurons")
    assert found.p_value < 1e-6
    for measure in ("hard", "delta_over_tau"):
        other = compare(a, b, "bottom", measure, 50)
        expected = [getattr(scores.of("bottom").scores, measure).estimate.mean() for scores in pair]
        assert other.mean_difference.estimate == pytest.approx(expected[0] - expected[1])
    with pytest.raises(ConfigError, match="unknown measure mis"):
        compare(a, b, "bottom", "mis")


def test_the_interval_over_groups_against_the_procedure_written_out():
    rng = np.random.default_rng(5)
    a, b = rng.normal(0.2, 0.1, (50, 20)), rng.normal(0.1, 0.1, (60, 20))
    a[:25, 1:] = np.nan  # one task each, asked about scene 0: many resamples leave nothing of these units
    a[:25, 0] += 0.5
    pair = unit_scores(a), unit_scores(b, kind="neuron")
    found = compare(*pair, "bottom", n_bootstrap=120, seed=7)
    weights = numpy_generator(7, "bootstrap", "groups").multinomial(N_GROUPS, [1 / N_GROUPS] * N_GROUPS, size=120)
    differences = []
    for drawn in weights:
        means = []
        for scores in pair:
            result = scores.of("bottom")
            outcome = outcomes(result.margins, 0.16, 1e-6)["soft"].numpy()
            unit_values = []
            for unit, n_tasks in enumerate(result.tasks.n_tasks.tolist()):
                images = result.tasks.query_positive[unit, :n_tasks].tolist()
                weight = np.array([drawn[int(scores.image_groups[image].split()[1])] for image in images])
                if weight.sum():
                    unit_values.append((weight * outcome[unit, :n_tasks]).sum() / weight.sum())
            means.append(np.mean(unit_values))
        differences.append(means[0] - means[1])
    # Scene 0 has the tasks of half the units a alone: six scenes count as fewer.
    tasks_of = np.bincount([image % N_GROUPS for image in range(20)], minlength=N_GROUPS) * 25
    tasks_of[0] += 25
    w = tasks_of / tasks_of.sum()
    n = 1 / (w**2).sum()
    assert 5 < n < N_GROUPS
    # How far a weighted mean of group effects moves, and how far resamples of them do, by the effects' covariance.
    around = np.eye(N_GROUPS) - w
    widening = np.sqrt((w**2).sum() / np.trace(np.diag(w) @ around @ around.T @ np.diag(w)))
    half = student.ppf(0.975, n - 1) * widening * np.std(differences, ddof=1)
    assert found.n_groups == N_GROUPS
    interval = found.mean_difference_groups
    assert interval.estimate == pytest.approx(found.mean_difference.estimate)
    assert (interval.low, interval.high) == pytest.approx((interval.estimate - half, interval.estimate + half))


def test_the_interval_over_few_scenes_leaves_out_zero_no_more_often_than_promised():
    """Scenes move either set's scores; percentiles of six scenes leave out zero in 15 of 100 cases."""
    rng, n_rounds, outside = np.random.default_rng(6), 200, 0
    scene = np.arange(18) % N_GROUPS
    for number in range(n_rounds):
        a, b = (rng.normal(0, 0.2, N_GROUPS)[scene] + rng.normal(0, 0.1, (8, 18)) for _ in range(2))
        interval, _ = group_bootstrap(unit_scores(a), unit_scores(b), "bottom", "delta_over_tau", 200, number)
        outside += not interval.low <= 0 <= interval.high
    assert outside / n_rounds == pytest.approx(0.05, abs=4 * (0.05 * 0.95 / n_rounds) ** 0.5)


def test_tasks_of_a_single_scene_have_no_interval_over_scenes():
    delta = np.full((4, 18), np.nan)
    delta[:, 0] = [0.1, 0.2, 0.3, 0.4]
    interval, n_groups = group_bootstrap(unit_scores(delta), unit_scores(delta + 0.1), "bottom", "soft", 50, 0)
    assert n_groups == N_GROUPS
    assert np.isnan([interval.low, interval.high]).all()
    assert interval.estimate < 0


def test_a_difference_that_one_scene_carries_is_not_certain_over_scenes():
    rng = np.random.default_rng(1)
    a, b = rng.normal(0, 0.05, (80, 18)), rng.normal(0, 0.05, (80, 18))
    a[:, ::N_GROUPS] += 0.6  # only tasks asked about scene 0
    found = compare(unit_scores(a), unit_scores(b, kind="neuron"), "bottom", n_bootstrap=400)
    assert found.mean_difference.low > 0.05
    assert found.mean_difference_groups.low < 0.01
    assert "not certain over the 6 groups of images" in found.verdict
    everywhere = compare(unit_scores(b + 0.1), unit_scores(b, kind="neuron"), "bottom", n_bootstrap=400)
    assert "holds over the 6 groups of images" in everywhere.verdict


def test_one_group_has_no_interval_over_groups(pair):
    a, b = (replace(scores, image_groups=["one"] * 60) for scores in pair)
    found = compare(a, b, "bottom", n_bootstrap=50)
    assert found.n_groups == 1
    assert np.isnan(found.mean_difference_groups.low)
    assert "groups" not in found.verdict


def test_shares_and_rare_units_as_chance():
    delta = np.full((10, 20), 10.0)  # soft and hard 1
    status = [0, 0, 0, 0, 1, 1, 2, 3, 3, 4]
    found = summarise(unit_scores(delta, status), "bottom")
    assert found.shares == {"ok": 0.4, "dead": 0.2, "constant": 0.1, "too_rare": 0.2, "too_few_groups": 0.1}
    assert (found.n_units, found.n_scored) == (10, 4)
    assert found.mean == found.median == 1.0
    assert found.mean_with_rare == pytest.approx((4 + 2 * 0.5) / 6)
    assert found.mean_with_unscored == pytest.approx((4 + 6 * 0.5) / 10)
    scaled = summarise(unit_scores(delta, status), "bottom", "delta_over_tau")
    assert scaled.mean_with_rare == pytest.approx(4 * 10 / 0.16 / 6)
    comparison = compare(unit_scores(delta, status), unit_scores(delta[:3], kind="neuron"), "bottom", n_bootstrap=20)
    assert comparison.mean_difference.estimate == 0
    assert comparison.difference_with_rare == pytest.approx(5 / 6 - 1)
    assert comparison.difference_with_unscored == pytest.approx(0.7 - 1)


def test_nothing_to_compare_is_said():
    nothing = unit_scores(np.ones((3, 20)), [1, 1, 3])
    found = compare(nothing, unit_scores(np.ones((2, 20)), kind="neuron"), "bottom", n_bootstrap=20)
    assert found.verdict == "nothing to compare: none of 3 features has a score"
    assert np.isnan(found.p_value)
    assert np.isnan(found.mean_difference_groups.low)
    assert np.isnan(found.a.mean)
    assert found.a.mean_with_unscored == 0.5


SETTING_CHANGES = {
    "protocol": "quantile",
    "query": "least_extreme",
    "query_negative": "most_extreme",
    "query_percentile": 95.0,
    "quantile": 0.25,
    "n_explanations": 5,
    "n_tasks": 100,
    "min_tasks": 2,
    "pool_size": 100,
    "one_per_group": True,
    "image_activation": "max",
    "ties": 0.0,
    "metric": "other",
    "metric_fingerprint": "xyz",
    "temperature": 0.2,
    "tie": 2e-6,
    "n_images": 61,
    "images": "xyz",
    "classes": "xyz",
}


@pytest.mark.parametrize("name", [*asdict(SETTINGS)])
def test_scores_with_other_settings_are_refused(pair, name):
    other = replace(pair[1], settings=replace(SETTINGS, **{name: SETTING_CHANGES[name]}))
    was = getattr(SETTINGS, name)
    with pytest.raises(ConfigError, match=rf"they differ in {name} \({was} and {SETTING_CHANGES[name]}\)"):
        compare(pair[0], other, "bottom")


def test_classes_count_only_where_both_went_by_them(pair):
    without = replace(pair[1], settings=replace(SETTINGS, classes=""))
    assert compare(pair[0], without, "bottom", n_bootstrap=20).p_value < 0.05


def test_seeds_and_last_bits_of_the_temperature_may_differ(pair):
    other = replace(pair[1], seed=9, settings=replace(SETTINGS, temperature=0.16 * (1 + 1e-12)))
    assert compare(pair[0], other, "bottom", n_bootstrap=20).p_value < 0.05


def test_negatives_that_were_not_scored(pair):
    with pytest.raises(ConfigError, match="features at layer have no scores with random negatives; looked in bottom"):
        compare(*pair, "random")
    with pytest.raises(ConfigError, match="no kind of negatives in common"):
        compare_sites({"layer": (pair[0], unit_scores(np.ones((2, 20)), negatives=("random",)))})


def test_sites_are_corrected_together_and_kinds_of_negatives_apart(pair):
    rng = np.random.default_rng(3)
    pairs = {}
    for number, shift in enumerate((0.02, 0.03, 0.2)):
        a = unit_scores(rng.normal(shift, 0.1, (40, 20)), negatives=("bottom", "random"), site=f"layer{number}")
        b = unit_scores(rng.normal(0, 0.1, (40, 20)), kind="neuron", negatives=("bottom", "random"))
        pairs[f"layer{number}"] = (a, b)
    found = compare_sites(pairs, n_bootstrap=50)
    assert [(one.site, one.negatives) for one in found] == [
        (site, negatives) for site in pairs for negatives in ("bottom", "random")
    ]
    for negatives in ("bottom", "random"):
        p_values = np.array([one.p_value for one in found if one.negatives == negatives])
        corrected = np.array([one.p_holm for one in found if one.negatives == negatives])
        assert corrected.min() == pytest.approx(3 * p_values.min())
        assert (corrected >= p_values).all()
    alone = compare(*pairs["layer0"], "bottom", n_bootstrap=50)
    assert alone.p_holm == alone.p_value


def a_comparison(pair, **changes) -> Comparison:
    return replace(compare(*pair, "bottom", n_bootstrap=20), **changes)


@pytest.mark.parametrize(
    ("changes", "expected"),
    [
        (
            {"mean_difference": Interval(0.0432, 0.0111, 0.0612), "p_holm": 0.001},
            "features higher by 0.04 (95 % interval 0.01 to 0.06), which holds over the 6 groups of images"
            " (0.01 to 0.02)",
        ),
        (
            {
                "mean_difference": Interval(-0.0432, -0.06, -0.01),
                "cliffs_delta": Interval(-0.2, -0.3, -0.1),
                "mean_difference_groups": Interval(-0.0432, -0.1, 0.03),
                "p_holm": 0.001,
            },
            "features lower by 0.04 (95 % interval -0.06 to -0.01), which is not certain over the 6 groups of images"
            " (-0.10 to 0.03)",
        ),
        (
            {
                "mean_difference": Interval(-0.0432, -0.06, -0.01),
                "cliffs_delta": Interval(-0.2, -0.3, -0.1),
                "mean_difference_groups": Interval(-0.0432, -0.1, -0.02),
                "p_holm": 0.001,
            },
            "features lower by 0.04 (95 % interval -0.06 to -0.01), which holds over the 6 groups of images"
            " (-0.10 to -0.02)",
        ),
        (
            {"mean_difference": Interval(0.0031, -0.001, 0.006), "p_holm": 0.3},
            "no difference shown between features and neurons (0.003, 95 % interval -0.001 to 0.006, p = 0.3)",
        ),
        (  # an interval alone does not make a difference
            {"mean_difference": Interval(0.04, 0.01, 0.06), "p_holm": 0.08},
            "no difference shown between features and neurons (0.04, 95 % interval 0.01 to 0.06, p = 0.08)",
        ),
        (
            {"mean_difference": Interval(-0.02, -0.05, 0.01), "cliffs_delta": Interval(0.2, 0.1, 0.3), "p_holm": 0.01},
            "features rank higher than neurons (Cliff's delta 0.20, p = 0.01), but their means are not clearly"
            " different (-0.02, 95 % interval -0.05 to 0.01)",
        ),
    ],
)
def test_verdicts(pair, changes, expected):
    changes = {"mean_difference_groups": Interval(0.02, 0.01, 0.02), "cliffs_delta": Interval(0.3, 0.2, 0.4), **changes}
    assert verdict(a_comparison(pair, **changes)) == expected


def test_a_comparison_goes_through_json(pair):
    found = compare(*pair, "bottom", n_bootstrap=20)
    told = json.loads(json.dumps(found.as_json()))
    assert told["mean_difference"].keys() == {"estimate", "low", "high"}
    assert told["a"]["label"] == "features"
    assert Comparison.from_json(told | {"kinds": ["feature", "neuron"]}) == found


def test_the_same_units_differ_in_nothing(pair):
    found = compare(pair[0], replace(pair[0], kind="neuron"), "bottom", n_bootstrap=100)
    assert found.mean_difference.estimate == 0
    assert found.cliffs_delta.estimate == 0
    assert found.p_value == pytest.approx(1)
    # Groups are resampled for both sets together: the same units differ in no resample.
    assert found.mean_difference_groups == Interval(0.0, 0.0, 0.0)
    assert found.verdict.startswith("no difference shown")
