from __future__ import annotations

import json
from dataclasses import asdict, replace

import numpy as np
import pytest
import torch

from mis_lab.core.errors import ConfigError, DataError, StoreError
from mis_lab.core.intervals import Interval
from mis_lab.mis.score import Scores
from mis_lab.mis.tasks import Tasks
from mis_lab.mis.unit_scores import NegativesScores, Settings, UnitScores


@pytest.fixture
def scores() -> UnitScores:
    rng = np.random.default_rng(0)

    def ids(*shape: int) -> torch.Tensor:
        return torch.from_numpy(rng.integers(-1, 9, shape).astype(np.int32))

    def intervals() -> Interval:
        return Interval(*(np.where([True, True, False], rng.random(3), np.nan) for _ in range(3)))

    def with_negatives() -> NegativesScores:
        return NegativesScores(
            status=torch.tensor([0, 0, 3]),
            tasks=Tasks(ids(3, 4, 2), ids(3, 4), ids(3, 4, 2), ids(3, 4), torch.tensor([4, 3, 0])),
            margins=torch.from_numpy(rng.standard_normal((3, 4))),
            scores=Scores(intervals(), intervals(), intervals()),
        )

    return UnitScores(
        site="features.3",
        kind="random_direction",
        control="",
        units=torch.tensor([5, 0, 2]),
        unit_names=["five", "null", "zwei ü"],
        settings=Settings(
            protocol="extreme",
            query="most_extreme",
            query_negative="least_extreme",
            query_percentile=0.0,
            quantile=0.0,
            n_explanations=2,
            n_tasks=4,
            min_tasks=2,
            pool_size=12,
            one_per_group=True,
            image_activation="max",
            ties=1e-6,
            metric="test",
            metric_fingerprint="abc",
            temperature=0.16,
            tie=1e-6,
            n_images=9,
            images="def",
            classes="ghi",
        ),
        seed=3,
        n_active=torch.tensor([4, 9, 0]),
        minimum=torch.tensor([0.0, -1.0, 0.0]),
        maximum=torch.tensor([2.0, 1.0, 0.0]),
        image_ids=[f"image {number}" for number in range(9)],
        image_groups=["a", "b", "c"] * 3,
        by_negatives={"random": with_negatives(), "bottom": with_negatives()},
    )


def flat(value) -> list:
    """Leaves of dataclasses, tuples and mappings, in order."""
    if isinstance(value, dict):
        return [leaf for key, item in value.items() for leaf in (key, *flat(item))]
    if isinstance(value, list | tuple):
        return [leaf for item in value for leaf in flat(item)]
    return [value]


def test_what_is_written_is_read_back(scores, tmp_path):
    scores.write(tmp_path)
    read = UnitScores.read(tmp_path)
    for was, now in zip(flat(asdict(scores)), flat(asdict(read)), strict=True):
        if isinstance(was, np.ndarray | torch.Tensor):
            was, now = np.asarray(was), np.asarray(now)
            assert was.dtype == now.dtype
            np.testing.assert_array_equal(was, now)
        else:
            assert was == now
    assert type(read.of("random").tasks) is Tasks
    assert type(read.of("random").scores.soft) is Interval
    assert read.label == "random directions"
    assert {path.name for path in tmp_path.iterdir()} == {"scores.safetensors", "scores.json", "images.json"}


def test_folders_that_cannot_be_read(scores, tmp_path):
    with pytest.raises(StoreError, match="no unit scores"):
        UnitScores.read(tmp_path / "nothing")
    scores.write(tmp_path)
    told = json.loads((tmp_path / "scores.json").read_text())
    (tmp_path / "scores.json").write_text(json.dumps(told | {"format": 1}))
    with pytest.raises(StoreError, match="unit scores of format 1; this version reads format 2"):
        UnitScores.read(tmp_path)
    scores.write(tmp_path)
    whole = (tmp_path / "scores.safetensors").read_bytes()
    (tmp_path / "scores.safetensors").write_bytes(whole[:-40])
    with pytest.raises(StoreError, match="damaged"):
        UnitScores.read(tmp_path)


def test_units_can_be_left_out(scores: UnitScores) -> None:
    rest = scores.without({0, 7}, "never revived")
    assert rest.label == "never revived random directions"
    assert (rest.units.tolist(), rest.unit_names) == ([5, 2], ["five", "zwei ü"])
    for negatives, result in rest.by_negatives.items():
        whole = scores.of(negatives)
        assert torch.equal(result.status, whole.status[[0, 2]])
        assert all(torch.equal(one, two[[0, 2]]) for one, two in zip(result.tasks, whole.tasks, strict=True))
        np.testing.assert_array_equal(result.scores.soft.low, whole.scores.soft.low[[0, 2]])


def test_parts_of_the_units_are_put_together_in_their_order(scores):
    other = replace(scores, units=scores.units + 100, unit_names=[f"{name} more" for name in scores.unit_names])
    both = UnitScores.concatenate([other, scores])
    assert both.units.tolist() == [*other.units.tolist(), *scores.units.tolist()]
    assert both.unit_names == other.unit_names + scores.unit_names
    assert (both.settings, both.seed, both.image_ids) == (scores.settings, scores.seed, scores.image_ids)
    for negatives, result in both.by_negatives.items():
        part = scores.of(negatives)
        np.testing.assert_array_equal(result.margins, torch.cat([part.margins] * 2))
        assert all(torch.equal(one, torch.cat([two] * 2)) for one, two in zip(result.tasks, part.tasks, strict=True))
        for one, two in zip(result.scores, part.scores, strict=True):
            np.testing.assert_array_equal(np.array(one), np.concatenate([np.array(two)] * 2, 1))
    np.testing.assert_array_equal(UnitScores.concatenate([scores]).of("random").margins, scores.of("random").margins)


def test_parts_that_do_not_belong_together_say_why(scores):
    other = replace(scores, units=scores.units + 100)
    for changes, words in (
        ({"site": "elsewhere"}, r"differ in site\."),
        ({"seed": 9, "kind": "neurone"}, "differ in kind of units, seed"),
        ({"image_ids": [*scores.image_ids[1:], scores.image_ids[0]]}, "differ in images"),
        ({"by_negatives": {}}, "differ in negatives"),
        (
            {"settings": replace(scores.settings, n_tasks=77)},
            r"cannot be compared: they differ in n_tasks \(\d+ and 77",
        ),
        ({"settings": replace(scores.settings, classes="others")}, "differ in classes"),
    ):
        with pytest.raises(ConfigError, match=words):
            UnitScores.concatenate([scores, replace(other, **changes)])
    with pytest.raises(DataError, match=rf" 0 of {scores.site} is in two parts of the scores \(3 are\)"):
        UnitScores.concatenate([other, scores, scores])
