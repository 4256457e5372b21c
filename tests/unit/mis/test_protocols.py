"""What each protocol takes of a unit's ranking, against the definition written out with NumPy."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset.splits import group_codes
from mis_lab.mis.config import MisConfig, NegativeQuery, Negatives, Protocol, Query
from mis_lab.mis.protocols.layout import layouts
from mis_lab.mis.protocols.within_class import image_classes
from mis_lab.mis.score import margins, outcomes
from mis_lab.mis.tasks import draw_tasks, pool_needs
from mis_lab.mis.units import UnitStatus

PRESETS = Path(__file__).parents[3] / "conf" / "mis"
HARD = {"protocol": Protocol.hard, "query": Query.percentile}
QUANTILE = {"protocol": Protocol.quantile, "query": Query.least_extreme}
INNER = {"protocol": Protocol.inner_quantile, "quantile": 0.05}


def config_of(**options) -> MisConfig:
    return MisConfig(**{"n_explanations": 3, "n_tasks": 5, "min_tasks": 2, **options})


def preset(name: str) -> MisConfig:
    """A preset of conf/mis, without Hydra."""
    told = yaml.safe_load((PRESETS / f"{name}.yaml").read_text())
    del told["defaults"]
    for option, kind in (("protocol", Protocol), ("query", Query), ("query_negative", NegativeQuery)):
        if option in told:
            told[option] = kind[told[option]]
    if "negatives" in told:
        told["negatives"] = [Negatives[negatives] for negatives in told["negatives"]]
    return MisConfig(**told)


def draw(pools_of, activations, config, negatives=Negatives.bottom, seed=0, groups=None, classes=None):
    needs = pool_needs(config, len(activations))
    pools = pools_of(activations, needs.size, seed, groups=groups, per_group=needs.per_group)
    ids = [f"{place:05d}" for place in range(len(activations))]
    return draw_tasks(
        pools,
        config,
        negatives,
        seed,
        torch.arange(np.shape(activations)[1]),
        None if groups is None else group_codes(groups),
        len(activations),
        None if classes is None else image_classes(classes, ids),
    )


def places(tasks, activations, unit=0):
    """Of both sides, explanations (N, K) and queries (N,) as places in the side's ranking, 0 the most extreme."""
    rank = (-np.asarray(activations)[:, unit]).argsort().argsort()
    last = len(activations) - 1
    n = int(tasks.n_tasks[unit])
    return (
        rank[tasks.explanations_positive[unit, :n]],
        rank[tasks.query_positive[unit, :n]],
        last - rank[tasks.explanations_negative[unit, :n]],
        last - rank[tasks.query_negative[unit, :n]],
    )


def statuses(status_u) -> list[str]:
    return [UnitStatus(number).name for number in status_u.tolist()]


# hard --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("percentile", "first"), [(90.0, 100), (95.0, 50), (85.0, 150), (98.5, 15)])
def test_hard_explains_by_the_top_and_asks_about_a_percentile(pools_of, percentile, first):
    activations = np.random.default_rng(0).standard_normal((1000, 3))
    tasks, status = draw(pools_of, activations, config_of(**HARD, query_percentile=percentile))
    assert statuses(status) == ["ok"] * 3
    for unit in range(3):
        for explained, asked in zip(*[iter(places(tasks, activations, unit))] * 2, strict=True):
            assert (np.sort(explained.flat) == np.arange(15)).all()  # KN images, every image once
            assert (explained // 5 == np.arange(3)).all()  # one of each bin
            assert (np.sort(asked) == np.arange(first, first + 5)).all()
    # The authors' ranks: queries from start_max to stop_max of the ascending order, stop_max the percentile.
    ascending = activations[:, 0].argsort()
    stop = round(percentile / 100 * 1000)
    assert set(tasks.query_positive[0].tolist()) == set(ascending[stop - 5 : stop])


def test_hard_on_one_side_only(pools_of):
    activations = np.random.default_rng(0).standard_normal((1000, 1))
    tasks, _ = draw(pools_of, activations, config_of(**HARD, query_negative=NegativeQuery.most_extreme))
    explained_p, asked_p, explained_n, asked_n = places(tasks, activations)
    assert (explained_p.max(), asked_p.min(), asked_p.max()) == (14, 100, 104)
    assert (asked_n.max(), explained_n.min(), explained_n.max()) == (4, 5, 19)


def test_hard_asks_of_random_negatives_about_random_images(pools_of):
    activations = np.random.default_rng(0).standard_normal((1000, 1))
    tasks, _ = draw(pools_of, activations, config_of(**HARD), Negatives.random)
    explained_p, asked_p, explained_n, asked_n = places(tasks, activations)
    assert (asked_p.min(), explained_p.max()) == (100, 14)
    outside = 999 - np.concatenate([explained_n.ravel(), asked_n])
    assert len(set(outside)) == 20
    assert outside.min() >= 105  # neither explanations nor queries, nor what lies between


def test_hard_takes_fewer_tasks_where_explanations_would_reach_the_percentile():
    assert layouts(config_of(**HARD, n_tasks=20), 1000)[0] == (0, 80, 20, 100)
    assert layouts(config_of(**HARD, n_tasks=20), 300)[0] == (0, 40, 10, 30)
    with pytest.raises(
        DataError, match=r"50 images are too few: a side of the tasks needs 8 images and gets 4 outside"
    ):
        layouts(config_of(**HARD), 50)


def test_hard_says_too_rare_of_units_that_are_silent_at_the_percentile(pools_of):
    rng = np.random.default_rng(1)
    activations = np.zeros((1000, 4))
    for unit, n_active in enumerate((300, 104, 103, 100)):
        activations[:n_active, unit] = rng.uniform(1, 2, n_active)
    tasks, status = draw(pools_of, activations, config_of(**HARD, min_tasks=4))
    assert statuses(status) == ["ok", "ok", "too_rare", "too_rare"]
    assert tasks.n_tasks.tolist() == [5, 4, 0, 0]
    explained, asked, _, _ = places(tasks, activations, 1)
    assert explained.max() == 11
    assert (np.sort(asked) == np.arange(100, 104)).all()


# inner_quantile ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("quantile", [0.01, 0.05, 0.1, 0.25])
@pytest.mark.parametrize("n_images", [400, 397, 401])
def test_inner_quantile_is_extreme_with_the_outer_images_set_to_the_median(pools_of, quantile, n_images):
    """As the reference's development branches do it, on units without ties."""
    activations = np.random.default_rng(2).standard_normal((n_images, 2)) ** 3
    tasks, _ = draw(pools_of, activations, config_of(**{**INNER, "quantile": quantile}))
    for unit in range(2):
        values = activations[:, unit].copy()
        low, high = np.quantile(values, [quantile, 1 - quantile])
        values[(values <= low) | (values >= high)] = np.median(values)
        order = values.argsort()
        for explained, asked, pool in (
            (tasks.explanations_positive, tasks.query_positive, order[::-1][:20]),
            (tasks.explanations_negative, tasks.query_negative, order[:20]),
        ):
            assert set(asked[unit].tolist()) == set(pool[:5])
            for number in range(3):
                assert set(explained[unit, :, number].tolist()) == set(pool[5 * number + 5 : 5 * number + 10])


def test_pitfall_2_a_sparse_feature_collapses_and_says_so_instead_of_scoring_chance(pools_of):
    rng = np.random.default_rng(3)
    activations = np.zeros((2000, 4))
    for unit, rate in enumerate((0.2, 0.06, 0.05, 0.01)):
        activations[: int(rate * 2000), unit] = rng.uniform(1, 2, int(rate * 2000))
    tasks, status = draw(pools_of, activations, MisConfig(**INNER, min_tasks=2))
    assert statuses(status) == ["ok", "ok", "too_rare", "too_rare"]
    assert tasks.n_tasks.tolist() == [20, 2, 0, 0]
    assert (activations[tasks.query_positive[1, :2], 1] > 0).all()


def test_inner_quantile_with_groups(pools_of):
    activations = np.random.default_rng(4).standard_normal((200, 3))
    groups = [f"{number % 9}" for number in range(200)]
    tasks, status = draw(pools_of, activations, config_of(**INNER, one_per_group=True), groups=groups)
    assert statuses(status) == ["ok"] * 3
    for unit in range(3):
        for part in places(tasks, activations, unit):
            assert part.min() >= 10  # floor(.05 * 199) + 1 images are left out
    for side in (tasks.explanations_positive, tasks.explanations_negative):
        assert all(len(set(task)) == 3 for unit in (side % 200 % 9).tolist() for task in unit)


# Query positions and the size of the pool -----------------------------------------------------------------------


def test_the_thesis_preset_is_its_asymmetry(pools_of):
    """Queries are ranks 1-20 on the active side and 181-200, the least extreme ones, on the other."""
    activations = np.random.default_rng(5).standard_normal((1000, 4))
    config = preset("thesis")
    assert config.negatives == [Negatives.bottom]
    tasks, _ = draw(pools_of, activations, config)
    for unit in range(4):
        explained_p, asked_p, explained_n, asked_n = places(tasks, activations, unit)
        assert (np.sort(asked_p) == np.arange(20)).all()
        assert (np.sort(explained_p.flat) == np.arange(20, 200)).all()
        assert (np.sort(asked_n) == np.arange(180, 200)).all()
        assert (np.sort(explained_n.flat) == np.arange(180)).all()
        for explained, start in ((explained_p, 20), (explained_n, 0)):
            assert ((explained - start) // 20 == np.arange(9)).all()


def test_a_pool_of_its_own_size_makes_tasks_more_and_nothing_else(pools_of):
    activations = np.random.default_rng(6).standard_normal((1000, 3))
    few, _ = draw(pools_of, activations, MisConfig())
    many, _ = draw(pools_of, activations, MisConfig(n_tasks=50, pool_size=200))
    some, _ = draw(pools_of, activations, MisConfig(n_tasks=7, pool_size=200))
    assert many.n_tasks.tolist() == [50] * 3
    for one, other, third in zip(few[:4], many[:4], some[:4], strict=True):
        assert torch.equal(one, other[:, :20])
        assert torch.equal(one[:, :7], third)
    for unit in range(3):
        for start in (0, 20):  # in each round of 20 every image once
            explained, asked, _, _ = places(many, activations, unit)
            in_round = np.concatenate([explained[start : start + 20].ravel(), asked[start : start + 20]])
            assert (np.sort(in_round) == np.arange(200)).all()
        assert (many.query_positive[unit, :20] != many.query_positive[unit, 20:40]).any()


def test_with_a_fixed_pool_scores_do_not_move_with_the_number_of_tasks(pools_of, embedding_of):
    rng = np.random.default_rng(7)
    rows = rng.standard_normal((4000, 100))
    activations = rows @ rng.standard_normal((100, 60))
    embedding = embedding_of(rows)

    def soft(**options):
        tasks, _ = draw(pools_of, activations, MisConfig(**options))
        return float(outcomes(margins(tasks, embedding), 0.16, 0.0)["soft"].mean())

    fixed = [soft(n_tasks=n_tasks, pool_size=200) for n_tasks in (10, 20, 100)]
    grown = [soft(n_tasks=n_tasks) for n_tasks in (10, 100)]
    assert max(fixed) - min(fixed) < 0.01
    assert grown[0] > grown[1] + 0.03


@pytest.mark.parametrize("options", [{"n_tasks": 20}, {"n_tasks": 100, "pool_size": 200}])
def test_top_02_a_rare_unit_has_as_many_tasks_as_its_active_images_fill(pools_of, options):
    """N = n_active / (K+1), whatever the batches that activations came in."""
    rng = np.random.default_rng(8)
    counts = [49, 50, 59, 155, 199, 200, 377, 2000]
    activations = np.zeros((3000, len(counts)))
    for unit, n_active in enumerate(counts):
        activations[rng.choice(3000, n_active, replace=False), unit] = rng.uniform(1, 2, n_active)
    tasks, status = draw(pools_of, activations, MisConfig(**options))
    assert statuses(status) == ["too_rare"] + ["ok"] * 7
    expected = [0, *(min(options["n_tasks"], n_active // 10) for n_active in counts[1:])]
    assert tasks.n_tasks.tolist() == expected
    for unit, n in enumerate(expected):
        used = torch.cat([tasks.explanations_positive[unit, :n].flatten(), tasks.query_positive[unit, :n]])
        assert (activations[used, unit] > 0).all()
        if n <= 20:
            assert len(used.unique()) == len(used)


def test_batches_change_no_task(pools_of):
    from mis_lab.activations.pools import PoolGatherer

    a_nu = torch.from_numpy(np.round(np.random.default_rng(9).standard_normal((300, 4)), 1)).float().clamp_min(0)
    config, ids = config_of(n_tasks=8), [f"image {place:05d}" for place in range(300)]
    gatherer = PoolGatherer(4, pool_needs(config, 300).size, ids, 0)
    for start in range(0, 300, 7):
        gatherer.update(a_nu[start : start + 7], range(start, min(start + 7, 300)))
    found = draw_tasks(gatherer.result(), config, Negatives.bottom, 0, torch.arange(4), None, 300)
    whole = draw(pools_of, a_nu, config)
    assert all(torch.equal(one, other) for one, other in zip(found.tasks, whole.tasks, strict=True))


@pytest.mark.parametrize(
    ("options", "n_images", "words"),
    [
        ({"pool_size": 200}, 399, "399 images are too few: a side of the tasks needs 200 images and gets 190"),
        ({"pool_size": 100, "protocol": Protocol.quantile}, 199, "needs 100 images and gets 99"),
        ({"quantile": 0.01, "protocol": Protocol.quantile}, 900, "needs 10 images and gets 9"),
        ({"quantile": 0.5, "protocol": Protocol.inner_quantile}, 1000, "gets 0 outside the explanations"),
        ({}, 99, "needs 50 images and gets 40"),
    ],
)
def test_fewer_images_than_a_pool(options, n_images, words):
    with pytest.raises(DataError, match=words) as told:
        pool_needs(MisConfig(**options), n_images)
    assert "\n" not in str(told.value)


def test_the_quantile_can_be_given_as_a_number_of_images(pools_of):
    activations = np.random.default_rng(10).standard_normal((500, 2))
    config = config_of(protocol=Protocol.quantile, query=Query.least_extreme, pool_size=30, n_tasks=60)
    tasks, _ = draw(pools_of, activations, config)
    explained, asked, _, _ = places(tasks, activations)
    assert max(explained.max(), asked.max()) == 29


# within_class --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("options", "grouped"),
    [({}, False), ({}, True), (QUANTILE, False), (QUANTILE, True), (HARD, False), (INNER, True)],
)
def test_negatives_within_class_have_the_classes_of_the_positives(pools_of, options, grouped):
    rng = np.random.default_rng(11)
    classes, activations = rng.integers(0, 4, 400), rng.standard_normal((400, 5))
    groups = [f"{number % 13}" for number in range(400)]
    config = config_of(one_per_group=grouped, **options)
    tasks, status = draw(pools_of, activations, config, Negatives.within_class, groups=groups, classes=classes)
    assert statuses(status) == ["ok"] * 5
    assert (classes[tasks.explanations_positive] == classes[tasks.explanations_negative]).all()
    assert (classes[tasks.query_positive] == classes[tasks.query_negative]).all()
    positive = draw(pools_of, activations, config, Negatives.bottom, groups=groups).tasks
    assert torch.equal(tasks.explanations_positive, positive.explanations_positive)
    for unit in range(5):
        top = set(pools_of(activations, pool_needs(config, 400).size).top[unit].tolist())
        for explained, asked in zip(tasks.explanations_negative[unit], tasks.query_negative[unit], strict=True):
            used = [*explained.tolist(), int(asked)]
            assert len(set(used)) == 4
            assert grouped or not set(used) & top
            if grouped:
                assert len({image % 13 for image in used}) == 4
    used = torch.cat([tasks.explanations_negative.flatten(1), tasks.query_negative], 1)
    assert grouped or all(len(row.unique()) == 20 for row in used)  # images enough: none comes twice


def test_within_class_takes_away_what_a_metric_makes_of_classes_alone(pools_of, embedding_of):
    rng = np.random.default_rng(12)
    classes = rng.integers(0, 5, 1000)
    embedding = embedding_of(np.eye(5)[classes])  # a metric that knows nothing but the class
    activations = np.column_stack([(classes == c) + 0.3 * rng.random(1000) for c in range(5)]) - 0.5
    config = config_of(n_tasks=10)

    def hard(negatives):
        tasks, status = draw(pools_of, activations, config, negatives, classes=classes)
        assert statuses(status) == ["ok"] * 5
        return outcomes(margins(tasks, embedding), 1.0, 1e-6)["hard"].mean()

    assert hard(Negatives.random) > 0.85  # the negatives may hold an image of the class
    assert hard(Negatives.within_class) == 0.5


def test_within_class_drops_tasks_that_cannot_be_filled_and_says_where_none_is_left(pools_of):
    rng = np.random.default_rng(13)
    classes = np.repeat([0, 1, 2], [60, 22, 118])
    activations = np.zeros((200, 3))
    activations[:60, 0] = rng.uniform(1, 2, 60)  # 20 of its class 0 are active most, 40 left
    activations[60:82, 1] = rng.uniform(1, 2, 22)  # two images of class 1 are left, four are needed
    activations[:, 2] = rng.standard_normal(200)
    tasks, status = draw(pools_of, activations, config_of(), Negatives.within_class, classes=classes)
    assert statuses(status) == ["ok", "too_few_groups", "ok"]
    assert tasks.n_tasks[1] == 0
    assert (tasks.query_negative[1] == -1).all()
    assert (tasks.explanations_positive[1] == -1).all()
    # Of class 1 two images are left outside the pool: tasks with three of them fall out, the others move up.
    mixed = np.zeros((200, 1))
    mixed[60:80, 0] = np.repeat([5.0, 3.0], 10) + rng.random(20)
    mixed[:40, 0] = np.repeat([4.0, 1.0], 20) + rng.random(40)
    tasks, status = draw(pools_of, mixed, config_of(n_tasks=10), Negatives.within_class, classes=classes)
    n = int(tasks.n_tasks[0])
    assert 2 <= n <= 10
    assert (tasks.query_negative[0, :n] >= 0).all()
    assert (tasks.query_positive[0, n:] == -1).all()


def test_classes_that_cannot_be_used():
    ids = ["a", "b", "c"]
    with pytest.raises(ConfigError, match=r"within_class\] needs the class of every image.*labels, or the net"):
        image_classes(None, ids)
    with pytest.raises(DataError, match="2 classes for 3 images"):
        image_classes([0, 1], ids)
    with pytest.raises(DataError, match=r"image b has no class \(2 of 3 have none\)"):
        image_classes([0, -1, -1], ids)


# What holds for all ----------------------------------------------------------------------------------------------


@given(
    seed=st.integers(0, 2**32),
    options=st.sampled_from([{}, HARD, INNER, {"pool_size": 12}, {"query_negative": NegativeQuery.least_extreme}]),
    negatives=st.sampled_from(Negatives),
    grouped=st.booleans(),
    sparse=st.booleans(),
    n_images=st.integers(100, 160),
    n_tasks=st.integers(2, 9),
)
def test_every_draw_is_sound(pools_of, seed, options, negatives, grouped, sparse, n_images, n_tasks):
    rng, k = np.random.default_rng(seed), 2
    activations = np.round(rng.standard_normal((n_images, 4)), 1)
    if sparse:
        activations = np.maximum(activations - rng.uniform(-0.5, 2, 4), 0)
    grouped = grouped and options is not HARD
    groups = [f"scene {number}" for number in rng.integers(0, rng.integers(2, 14), n_images)]
    classes = rng.integers(0, 3, n_images)
    config = config_of(n_explanations=k, n_tasks=n_tasks, one_per_group=grouped, **options)
    tasks, status = draw(pools_of, activations, config, negatives, seed, groups, classes)
    activations, codes = activations.astype(np.float32), np.unique(groups, return_inverse=True)[1]
    positive = torch.cat([tasks.explanations_positive, tasks.query_positive[..., None]], -1).numpy()
    negative = torch.cat([tasks.explanations_negative, tasks.query_negative[..., None]], -1).numpy()
    for unit in range(4):
        n = int(tasks.n_tasks[unit])
        assert (n >= 2) == (status[unit] == UnitStatus.ok.value)
        for side in (positive[unit], negative[unit]):
            assert (side[n:] == -1).all()
            assert side[:n].min(initial=0) >= 0
            assert all(len(set(task)) == k + 1 for task in side[:n].tolist())
            if grouped:
                assert all(len(set(task)) == k + 1 for task in codes[side[:n]].tolist())
        assert not set(positive[unit, :n].flat) & set(negative[unit, :n].flat)
        if activations[:, unit].min() >= 0:
            assert (activations[positive[unit, :n], unit] > 0).all()
        if negatives is Negatives.within_class:
            assert (classes[positive[unit, :n]] == classes[negative[unit, :n]]).all()


@pytest.mark.parametrize("options", [HARD, INNER, {"n_tasks": 40, "pool_size": 200}], ids=["hard", "inner", "pool"])
@pytest.mark.parametrize("negatives", list(Negatives))
def test_random_units_score_one_half(pools_of, embedding_of, options, negatives):
    rng = np.random.default_rng(14)
    classes = rng.integers(0, 8, 2000)
    rows = rng.standard_normal((8, 16))[classes] + rng.standard_normal((2000, 16))
    activations = rng.standard_normal((2000, 200))
    tasks, _ = draw(pools_of, activations, MisConfig(**options), negatives, classes=classes)
    hard = outcomes(margins(tasks, embedding_of(rows)), 1.0, 1e-6)["hard"].mean(1)
    assert hard.mean() == pytest.approx(0.5, abs=5 * 0.115 / 200**0.5)


@pytest.mark.parametrize("options", [HARD, INNER, {"pool_size": 24}])
@pytest.mark.parametrize("negatives", list(Negatives))
def test_dead_and_constant_units_have_no_tasks(pools_of, options, negatives):
    activations = np.random.default_rng(15).standard_normal((200, 3))
    activations[:, 1], activations[:, 2] = 0, 3
    tasks, status = draw(pools_of, activations, config_of(**options), negatives, classes=[0] * 200)
    assert statuses(status) == ["ok", "dead", "constant"]
    assert tasks.n_tasks.tolist()[1:] == [0, 0]


@pytest.mark.parametrize("name", sorted(path.stem for path in PRESETS.glob("*.yaml")))
def test_every_preset_draws(pools_of, name):
    activations = np.random.default_rng(16).standard_normal((2500, 2))
    config = preset(name)
    for negatives in config.negatives:
        tasks, status = draw(pools_of, activations, config, negatives, classes=[0] * 2500)
        assert statuses(status) == ["ok", "ok"]
        assert (tasks.n_tasks == config.n_tasks).all()
