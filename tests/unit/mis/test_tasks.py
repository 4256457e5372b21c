from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.errors import DataError
from mis_lab.dataset.splits import group_codes
from mis_lab.mis.config import MisConfig, NegativeQuery, Negatives, Protocol, Query
from mis_lab.mis.protocols.bins import deal_bins
from mis_lab.mis.protocols.within_class import image_classes
from mis_lab.mis.tasks import Tasks, assemble, draw_tasks, pool_needs
from mis_lab.mis.units import UnitStatus

EVERYWHERE = (Negatives.bottom, Negatives.random)
POSITIONS = pytest.mark.parametrize("query", [Query.most_extreme, Query.least_extreme])
BOTH = pytest.mark.parametrize("negatives", EVERYWHERE)
ALL = pytest.mark.parametrize("negatives", list(Negatives))
OK = UnitStatus.ok.value


def config_of(**options) -> MisConfig:
    return MisConfig(**{"n_explanations": 3, "n_tasks": 5, "min_tasks": 2, **options})


def draw(pools_of, activations, config, negatives=Negatives.bottom, seed=0, groups=None, units=None, ids=None):
    """Gather and draw as score_units does; an image's class follows from its id."""
    activations = np.asarray(activations, dtype=np.float32)
    n_images, n_units = activations.shape
    needs = pool_needs(config, n_images)
    units = list(range(n_units)) if units is None else units
    pools = pools_of(
        activations,
        needs.size,
        seed=seed,
        ids=ids,
        groups=groups,
        per_group=needs.per_group,
        units=units,
    )
    codes = None if groups is None else group_codes(groups)
    names = [f"image {place:05d}" for place in range(n_images)] if ids is None else ids
    classes = image_classes([int(name[-1]) % 3 for name in names], names)
    return draw_tasks(pools, config, negatives, seed, torch.tensor(units), codes, n_images, classes)


def sides(tasks: Tasks) -> tuple[np.ndarray, np.ndarray]:
    """Each side's K+1 images a task, (U, N, K+1), in no particular order."""
    positive = torch.cat([tasks.explanations_positive, tasks.query_positive[..., None]], -1)
    negative = torch.cat([tasks.explanations_negative, tasks.query_negative[..., None]], -1)
    return positive.numpy(), negative.numpy()


def greedy(order: np.ndarray, groups: np.ndarray, cap: int, size: int) -> list[int]:
    """The first images of an order with at most `cap` of a group: the pool of one_per_group, written out."""
    taken, of_group = [], dict.fromkeys(groups.tolist(), 0)
    for image in order:
        if of_group[groups[image]] < cap and len(taken) < size:
            of_group[groups[image]] += 1
            taken.append(int(image))
    return taken


# The construction --------------------------------------------------------------------------------------------


def test_extreme_reproduces_the_golden_ids_from_the_golden_permutations(golden):
    n_units, n_images = golden["act"].shape[1], len(golden["act"])
    order = golden["act"].argsort(0, kind="stable").T  # ascending, ties by image
    n_tasks = torch.full((n_units,), 20)
    for side, (name, pool) in enumerate((("top", order[:, ::-1]), ("bot", order))):
        places = deal_bins(torch.from_numpy(golden["extreme_perms"][:, side].astype(np.int64)), n_tasks)
        images = torch.from_numpy(pool[:, : n_images // 2].copy()).gather(1, places.flatten(1)).view_as(places)
        tasks = assemble(images, images, n_tasks, Query.most_extreme)
        # The golden arrays keep a task's query last.
        assert (sides(tasks)[0] == golden[f"extreme_{name}"]).all()


@POSITIONS
@BOTH
def test_extreme_takes_one_image_of_each_bin(pools_of, query, negatives):
    rng = np.random.default_rng(0)
    activations = rng.standard_normal((100, 6))
    config = config_of(query=query)
    tasks, status = draw(pools_of, activations, config, negatives)
    assert (status == OK).all()
    rank = (-activations).argsort(0).argsort(0)  # 0 = most active
    for unit in range(6):
        explained = rank[tasks.explanations_positive[unit], unit]
        asked = rank[tasks.query_positive[unit], unit]
        bins = np.column_stack([asked, explained] if query is Query.most_extreme else [explained, asked])
        assert (bins // 5 == np.arange(4)).all()  # bin b has the images ranked 5b to 5b + 4
        positive = bins
        if negatives is Negatives.bottom:
            explained = 99 - rank[tasks.explanations_negative[unit], unit]
            asked = 99 - rank[tasks.query_negative[unit], unit]
            bins = np.column_stack([asked, explained] if query is Query.most_extreme else [explained, asked])
            assert (bins // 5 == np.arange(4)).all()
            assert (bins != positive).any()  # sides are shuffled apart
        for side in sides(tasks):
            assert len(np.unique(side[unit])) == 20  # every image once


@POSITIONS
def test_quantile_asks_the_least_or_the_most_extreme_of_its_draw(pools_of, query):
    activations = np.random.default_rng(1).standard_normal((90, 4))
    config = config_of(protocol=Protocol.quantile, quantile=0.25, query=query, n_tasks=40)
    tasks, status = draw(pools_of, activations, config)
    assert (status == OK).all()
    assert (tasks.n_tasks == 40).all()
    rank = (-activations).argsort(0).argsort(0)
    for unit in range(4):
        for explained, asked, mirrored in (
            (tasks.explanations_positive[unit], tasks.query_positive[unit], rank[:, unit]),
            (tasks.explanations_negative[unit], tasks.query_negative[unit], 89 - rank[:, unit]),
        ):
            explained, asked = mirrored[explained], mirrored[asked]
            assert max(explained.max(), asked.max()) == 22  # ceil(0.25 * 90) = 23 images, all of them used
            assert (np.diff(explained, axis=1) > 0).all()
            if query is Query.least_extreme:
                assert (asked > explained.max(1)).all()
            else:
                assert (asked < explained.min(1)).all()


@given(
    seed=st.integers(0, 2**32),
    protocol=st.sampled_from((Protocol.extreme, Protocol.quantile)),
    negatives=st.sampled_from(EVERYWHERE),
    grouped=st.booleans(),
    sparse=st.booleans(),
    levels=st.sampled_from([2, 5, 1000]),
    k=st.integers(1, 3),
    n_tasks=st.integers(2, 6),
    n_images=st.integers(48, 70),
)
def test_every_draw_is_sound(pools_of, seed, protocol, negatives, grouped, sparse, levels, k, n_tasks, n_images):
    rng = np.random.default_rng(seed)
    activations = np.round(rng.standard_normal((n_images, 5)) * levels) / levels  # few levels: many ties
    if sparse:
        activations = np.maximum(activations - rng.uniform(-0.5, 2, 5), 0)
    groups = [f"scene {number}" for number in rng.integers(0, rng.integers(2, 14), n_images)]
    config = MisConfig(
        protocol=protocol,
        n_explanations=k,
        n_tasks=n_tasks,
        min_tasks=2,
        quantile=0.3,
        one_per_group=grouped,
    )
    tasks, status = draw(pools_of, activations, config, negatives, seed, groups)
    activations = activations.astype(np.float32)
    codes = np.unique(groups, return_inverse=True)[1]
    positive, negative = sides(tasks)
    for unit in range(5):
        n = int(tasks.n_tasks[unit])
        assert (n >= 2) == (status[unit] == OK)
        assert n <= n_tasks
        assert (positive[unit, n:] == -1).all()
        assert (negative[unit, n:] == -1).all()
        used = np.concatenate([positive[unit, :n], negative[unit, :n]], 1)
        assert used.min(initial=0) >= 0
        assert all(len(set(task)) == 2 * (k + 1) for task in used.tolist())  # no image twice in a task
        assert not set(positive[unit, :n].flat) & set(negative[unit, :n].flat)  # nor on both sides
        if protocol is Protocol.extreme:
            assert len(np.unique(used)) == used.size  # nor in two tasks
        if activations[:, unit].min() >= 0:
            assert (activations[positive[unit, :n], unit] > 0).all()
        if grouped:
            for side in (positive, negative):
                assert all(len(set(task)) == k + 1 for task in codes[side[unit, :n]].tolist())


@given(seed=st.integers(0, 2**32), n_groups=st.integers(3, 15), skew=st.floats(0, 4), n_tasks=st.integers(2, 18))
def test_grouped_extreme_uses_the_most_extreme_images_that_the_cap_allows(pools_of, seed, n_groups, skew, n_tasks):
    rng, n_images, k = np.random.default_rng(seed), 120, 2
    activations = rng.standard_normal((n_images, 3))
    shares = np.arange(1, n_groups + 1) ** -skew
    codes = rng.choice(n_groups, n_images, p=shares / shares.sum())
    groups = [f"{code:02d}" for code in codes]
    config = config_of(n_explanations=k, n_tasks=n_tasks, min_tasks=2, one_per_group=True)
    tasks, status = draw(pools_of, activations, config, Negatives.random, seed, groups)
    needs = pool_needs(config, n_images)
    pools = pools_of(activations, needs.size, seed, groups=groups, per_group=needs.per_group)
    counts = np.bincount(codes, minlength=n_groups)

    def largest(counts: np.ndarray) -> int:
        caps = [cap for cap in range(1, n_tasks + 1) if np.minimum(counts, cap).sum() >= cap * (k + 1)]
        return max(caps, default=0)

    for unit in range(3):
        order = (-activations[:, unit]).argsort()
        n = int(tasks.n_tasks[unit])
        random_images = pools.random[unit][pools.random[unit] >= 0]
        most = min(largest(counts), largest(np.bincount(codes[random_images], minlength=n_groups)))
        assert n == (most if most >= 2 else 0)
        assert status[unit] == (OK if most >= 2 else UnitStatus.too_few_groups.value)
        if n:
            positive = sides(tasks)[0][unit, :n]
            assert set(positive.flat) == set(greedy(order, codes, n, n * (k + 1)))
            # The query is the most extreme image of its task.
            assert (activations[positive, unit].argmax(1) == k).all()


def test_a_group_with_half_of_all_images_lowers_the_number_of_tasks_as_far_as_needed(pools_of):
    # 40 of 80 images in one group, 10 in each of four others: with K + 1 = 5 every task needs all five groups.
    codes = np.repeat([0, 1, 2, 3, 4], [40, 10, 10, 10, 10])
    activations = np.random.default_rng(0).standard_normal((80, 4))
    groups = [str(code) for code in codes]
    for n_tasks in (5, 8):  # top and bottom share the ten images of the small groups
        config = config_of(n_explanations=4, n_tasks=n_tasks, one_per_group=True)
        tasks, status = draw(pools_of, activations, config, Negatives.bottom, groups=groups)
        assert (status == OK).all()
        assert (tasks.n_tasks == 5).all()
        for side in sides(tasks):
            for unit in range(4):
                assert (np.sort(codes[side[unit, : tasks.n_tasks[unit]]], 1) == np.arange(5)).all()
        # A group of ten gives its five most active images to one side and its five least active to the other.
        for side, sign in zip(sides(tasks), (-1, 1), strict=True):
            for unit in range(4):
                used = side[unit, :5]
                for group in range(1, 5):
                    of_group = 40 + (group - 1) * 10 + (sign * activations[codes == group, unit]).argsort()[:5]
                    assert set(used[codes[used] == group]) == set(of_group)


def test_quantile_with_groups_draws_uniformly_among_the_images_left():
    """Three images of group a, one of b and one of c, two distinct groups: against the sequential draw's chances."""
    from mis_lab.mis.protocols.groups import draw_distinct_groups

    groups = torch.tensor([[0, 1, 0, 2, 0, -1]]).expand(40, -1)
    places = draw_distinct_groups(groups, 3, 500, 2, 0, torch.arange(40)).sort(-1).values.flatten(0, 1)
    pairs, counts = places.unique(dim=0, return_counts=True)
    found = {tuple(pair): count / 20000 for pair, count in zip(pairs.tolist(), counts.tolist(), strict=True)}
    # P(a_i and b): a_i first (1/5) then b of {b, c} (1/2); or b first (1/5) then a_i of the four others (1/4).
    chance = {(0, 1): 0.15, (0, 3): 0.15, (1, 2): 0.15, (1, 4): 0.15, (2, 3): 0.15, (3, 4): 0.15, (1, 3): 0.1}
    assert found.keys() == chance.keys()
    assert all(abs(found[pair] - chance[pair]) < 5 * np.sqrt(0.15 * 0.85 / 20000) for pair in chance)


# What draws depend on ----------------------------------------------------------------------------------------


VARIANTS = [
    pytest.param(config_of(protocol=protocol, one_per_group=grouped), id=f"{protocol.name}-{grouped}")
    for protocol in (Protocol.extreme, Protocol.quantile)
    for grouped in (False, True)
] + [
    pytest.param(config_of(protocol=Protocol.hard, query=Query.percentile, query_percentile=80.0), id="hard"),
    pytest.param(config_of(protocol=Protocol.inner_quantile, quantile=0.1), id="inner"),
    pytest.param(config_of(protocol=Protocol.inner_quantile, quantile=0.05, one_per_group=True), id="inner-True"),
    pytest.param(config_of(n_tasks=13, pool_size=24), id="pool"),
    pytest.param(config_of(n_tasks=13, pool_size=24, one_per_group=True), id="pool-True"),
    pytest.param(config_of(query_negative=NegativeQuery.least_extreme), id="asymmetric"),
]


@pytest.mark.parametrize("config", VARIANTS)
@ALL
def test_units_are_drawn_alike_in_any_order_and_chunk(pools_of, config, negatives):
    rng = np.random.default_rng(2)
    activations = np.maximum(np.round(rng.standard_normal((120, 8)), 1), rng.choice([-9, 0], 8))
    groups = [f"{number % 12:02d}" for number in range(118)] + ["98", "99"]  # the last are in few units' pools
    tasks, status = draw(pools_of, activations, config, negatives, groups=groups)
    for units in ([7, 2, 5], [0], list(range(7, -1, -1))):
        part, part_status = draw(pools_of, activations[:, units], config, negatives, groups=groups, units=units)
        assert torch.equal(part_status, status[units])
        for mine, whole in zip(part, tasks, strict=True):
            assert torch.equal(mine, whole[units])
    other, _ = draw(pools_of, activations, config, negatives, seed=1, groups=groups)
    assert not torch.equal(other.explanations_positive, tasks.explanations_positive)


@pytest.mark.parametrize("config", VARIANTS)
@ALL
def test_images_in_another_order_give_the_same_images(pools_of, config, negatives):
    rng = np.random.default_rng(3)
    activations = np.round(rng.standard_normal((110, 5)), 1)
    ids = [f"{number:03d}" for number in range(110)]
    groups = [f"scene {number % 11}" for number in range(110)]
    moved = rng.permutation(110)
    tasks, status = draw(pools_of, activations, config, negatives, groups=groups, ids=ids)
    other, other_status = draw(
        pools_of,
        activations[moved],
        config,
        negatives,
        groups=[groups[place] for place in moved],
        ids=[ids[place] for place in moved],
    )
    assert torch.equal(status, other_status)
    for here, there in zip(sides(tasks), sides(other), strict=True):
        assert (np.where(there < 0, -1, moved[there]) == here).all()


@pytest.mark.parametrize("config", VARIANTS)
def test_a_strictly_increasing_transform_changes_nothing(pools_of, config):
    activations = np.random.default_rng(4).permutation(120).reshape(120, 1) / 30 - 2
    groups = [str(number % 10) for number in range(120)]
    tasks, _ = draw(pools_of, activations, config, groups=groups)
    for transformed in (np.exp(activations), activations**3, 7 * activations - 40):
        if transformed.min() < 0:  # exp is never negative: all images are active there, so nothing changes either
            assert transformed.max() - transformed.min() > 1
        other, _ = draw(pools_of, transformed, config, groups=groups)
        assert all(torch.equal(one, two) for one, two in zip(tasks, other, strict=True))


def test_a_sign_flip_swaps_the_pools(pools_of):
    activations = np.random.default_rng(5).standard_normal((60, 3))
    plain, flipped = pools_of(activations, 20), pools_of(-activations, 20)
    assert torch.equal(plain.top, flipped.bottom)
    assert torch.equal(plain.bottom, flipped.top)


def test_drawing_changes_neither_its_input_nor_any_global_generator(pools_of):
    # The reference normalised shared activations in place (a second call scored otherwise) and reseeded torch.
    activations = np.random.default_rng(6).standard_normal((60, 3)).astype(np.float32)
    pools, before = pools_of(activations, 20), activations.copy()
    held = [part.clone() for part in pools[:8]]
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    first = draw_tasks(pools, config_of(), Negatives.bottom, 0, torch.arange(3), None, 60)
    second = draw_tasks(pools, config_of(), Negatives.bottom, 0, torch.arange(3), None, 60)
    assert all(torch.equal(one, two) for one, two in zip(first.tasks, second.tasks, strict=True))
    assert (activations == before).all()
    assert all(torch.equal(one, two) for one, two in zip(held, pools[:8], strict=True))
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_units_full_of_ties_do_not_share_their_pools(pools_of):
    # The reference broke ties by the order of the images: constant and sparse units all got the same pools.
    activations = np.zeros((400, 6))
    activations[:60] = 1.0
    tasks, status = draw(pools_of, activations, config_of())
    assert (status == OK).all()
    used = [frozenset(negative.flat) for negative in sides(tasks)[1]]
    assert len(set(used)) == 6


# Status ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", [Protocol.extreme, Protocol.quantile])
@BOTH
def test_units_without_a_number_say_why(pools_of, protocol, negatives):
    rng = np.random.default_rng(7)
    activations = np.zeros((100, 7))
    activations[:, 0] = rng.standard_normal(100)
    # 1 is dead.
    activations[:, 2] = 3.0
    activations[:7, 3] = rng.uniform(1, 2, 7)  # 7 active images: one task of 4 each, two are needed
    activations[:8, 4] = rng.uniform(1, 2, 8)  # 8: two tasks
    activations[:, 5] = -1.0
    activations[:, 6] = rng.uniform(-9, -8, 100)  # never active, and graded all the same
    tasks, status = draw(pools_of, activations, config_of(protocol=protocol), negatives)
    names = [UnitStatus(number).name for number in status.tolist()]
    assert names == ["ok", "dead", "constant", "too_rare", "ok", "constant", "ok"]
    full = 5
    rare = 2 if protocol is Protocol.extreme else full
    assert tasks.n_tasks.tolist() == [full, 0, 0, 0, rare, 0, full]
    assert set(sides(tasks)[0][4].flat) <= {*range(8), -1}


@pytest.mark.parametrize("protocol", [Protocol.extreme, Protocol.quantile])
def test_too_few_groups_is_not_too_rare(pools_of, protocol):
    rng = np.random.default_rng(8)
    activations = np.zeros((100, 4))
    activations[:, 0] = rng.standard_normal(100)
    groups = np.array([f"{number % 20}" for number in range(100)])
    in_three = np.isin(groups, ["0", "1", "2"])
    activations[in_three, 1] = 1 + rng.random(15)  # 15 images, three groups: tasks of four groups are impossible
    activations[:5, 2] = 1.0  # too rare, whatever the groups
    activations[np.isin(groups, ["0", "1", "2", "3", "4"]), 3] = 1 + rng.random(25)
    config = config_of(protocol=protocol, one_per_group=True)
    tasks, status = draw(pools_of, activations, config, groups=list(groups))
    names = [UnitStatus(number).name for number in status.tolist()]
    assert names == ["ok", "too_few_groups", "too_rare", "ok"]
    assert tasks.n_tasks.tolist() == [5, 0, 0, 5]


def test_groups_are_looked_at_only_when_asked(pools_of):
    activations = np.random.default_rng(9).standard_normal((60, 2))
    one_group = ["everything"] * 60
    with_groups, _ = draw(pools_of, activations, config_of(), groups=one_group)
    without, _ = draw(pools_of, activations, config_of())
    assert all(torch.equal(one, two) for one, two in zip(with_groups, without, strict=True))
    _, status = draw(pools_of, activations, config_of(one_per_group=True), groups=one_group)
    assert (status == UnitStatus.too_few_groups.value).all()


# Bad input ---------------------------------------------------------------------------------------------------


def test_nan_and_infinite_activations_are_refused(pools_of):
    pools = pools_of(np.random.default_rng(10).standard_normal((60, 3)), 20)
    for broken in (torch.nan, torch.inf):
        maximum = pools.maximum.clone()
        maximum[1] = broken
        with pytest.raises(DataError, match=r"NaN or infinite \(unit 1\)"):
            draw_tasks(pools._replace(maximum=maximum), config_of(), Negatives.random, 0, torch.arange(3), None, 60)


@pytest.mark.parametrize(
    ("config", "n_images", "expected"),
    [
        (MisConfig(), 1000, (200, 0)),
        (MisConfig(), 399, (190, 0)),  # top and bottom must not share an image: 19 tasks
        (MisConfig(one_per_group=True), 1000, (200, 20)),
        (MisConfig(one_per_group=True), 399, (190, 19)),
        (MisConfig(n_explanations=2, n_tasks=3, min_tasks=2), 72, (9, 0)),
        (MisConfig(protocol=Protocol.quantile, quantile=0.25, one_per_group=True), 400, (100, 0)),
        (MisConfig(protocol=Protocol.quantile, quantile=0.05), 401, (21, 0)),
        (MisConfig(protocol=Protocol.quantile, quantile=0.07), 300, (21, 0)),  # 0.07 * 300 > 21 in float64
        (MisConfig(protocol=Protocol.quantile, quantile=0.5), 401, (200, 0)),
    ],
)
def test_pool_needs(config, n_images, expected):
    assert pool_needs(config, n_images) == expected


@pytest.mark.parametrize(
    ("config", "n_images"),
    [(MisConfig(), 99), (MisConfig(protocol=Protocol.quantile, quantile=0.05), 180)],
)
def test_too_few_images_for_any_unit(config, n_images):
    with pytest.raises(DataError, match=f"{n_images} images are too few.*lower"):
        pool_needs(config, n_images)
    assert pool_needs(config, n_images + 1).size >= 10
