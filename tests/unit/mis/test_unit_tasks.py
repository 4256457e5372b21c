"""The tasks of one unit are those that were scored."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.special import expit

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.mis.score import score
from mis_lab.mis.tasks import Tasks
from mis_lab.mis.unit_scores import NegativesScores, Settings, UnitScores
from mis_lab.mis.unit_tasks import Outcome, unit_tasks
from mis_lab.mis.units import UnitStatus

N, K, TAU, TIE = 5, 3, 0.4, 1e-3
MARGINS = [
    [0.7, -0.2, 0.0005, 0.1, 0.3],
    [0.2, 0.1, np.nan, np.nan, np.nan],
    [np.nan] * N,
]


@pytest.fixture(scope="module")
def scores() -> UnitScores:
    """Units 4, 7 and 9: with five tasks, with two, and dead."""
    random = np.random.default_rng(0)
    delta_un = torch.tensor(MARGINS, dtype=torch.float64)
    n_tasks = torch.tensor([5, 2, 0])
    there = (torch.arange(N) < n_tasks[:, None]).int()
    images = torch.from_numpy(random.integers(0, 90, (3, N, 2 * K + 2))).int()
    images = images * there[..., None] - (1 - there[..., None])
    tasks = Tasks(images[..., :K], images[..., K], images[..., K + 1 : 2 * K + 1], images[..., -1], n_tasks)
    status = torch.tensor([0, 0, UnitStatus.dead.value])
    found = NegativesScores(status, tasks, delta_un, score(delta_un, n_tasks, TAU, TIE, 20, 0))
    settings = Settings(
        protocol="extreme", query="most_extreme", query_negative="most_extreme", query_percentile=0.0, quantile=0.0,
        n_explanations=K, n_tasks=N, min_tasks=1, pool_size=20, one_per_group=False, image_activation="mean",
        ties=1e-6, metric="test", metric_fingerprint="f", temperature=TAU, tie=TIE, n_images=90, images="i", classes="",
    )  # fmt: skip
    return UnitScores(
        site="a.1",
        kind="feature",
        control="",
        units=torch.tensor([4, 7, 9]),
        unit_names=["feature 4", "feature 7", "feature 9"],
        settings=settings,
        seed=0,
        n_active=torch.tensor([60, 12, 0]),
        minimum=torch.zeros(3),
        maximum=torch.ones(3),
        image_ids=[str(n) for n in range(90)],
        image_groups=["g"] * 90,
        by_negatives={"random": found},
    )


@pytest.mark.parametrize(("unit", "row", "n_tasks"), [(4, 0, 5), (7, 1, 2)])
def test_images_margins_and_outcomes_are_the_stored_ones(scores, unit, row, n_tasks):
    found, stored = unit_tasks(scores, unit, "random"), scores.of("random")
    assert [task.number for task in found.tasks] == list(range(1, n_tasks + 1))
    for place, task in enumerate(found.tasks):
        assert task.explanations_positive == stored.tasks.explanations_positive[row, place].tolist()
        assert task.explanations_negative == stored.tasks.explanations_negative[row, place].tolist()
        assert (task.query_positive, task.query_negative) == (
            int(stored.tasks.query_positive[row, place]),
            int(stored.tasks.query_negative[row, place]),
        )
        assert task.probability == pytest.approx(expit(MARGINS[row][place] / TAU), abs=1e-12)
        assert sorted(task.images) == sorted(
            [*task.explanations_positive, *task.explanations_negative, task.query_positive, task.query_negative]
        )
    # What is told of tasks adds up to the unit's scores.
    assert np.mean([task.probability for task in found.tasks]) == pytest.approx(found.soft.estimate, abs=1e-12)
    assert np.mean([task.outcome.value for task in found.tasks]) == pytest.approx(found.hard.estimate, abs=1e-12)
    assert found.n_active == int(scores.n_active[row])


def test_the_clearest_the_median_and_the_hardest_task(scores):
    found = unit_tasks(scores, 4, "random")
    assert [task.number for task in found.by_margin] == [1, 5, 4, 3, 2]
    assert (found.median.number, found.hardest.number) == (4, 2)
    assert [task.outcome for task in found.tasks] == [
        Outcome.right, Outcome.wrong, Outcome.tie, Outcome.right, Outcome.right,
    ]  # fmt: skip
    assert unit_tasks(scores, 7, "random").median.number == 2  # of two the lower
    assert found.task(5) is found.tasks[4]


def test_what_is_not_there_is_told(scores, tmp_path: Path):
    with pytest.raises(ConfigError, match=r"features of a\.1 have no unit 5; looked in 3 units\. Near: 4, 7, 9\."):
        unit_tasks(scores, 5, "random")
    with pytest.raises(ConfigError, match="no scores with bottom negatives"):
        unit_tasks(scores, 4, "bottom")
    with pytest.raises(DataError, match=r"feature 9 of a\.1 has no score .* it is dead \(active on 0 of 90 images\)"):
        unit_tasks(scores, 9, "random")
    for number in (0, 3, -1):
        with pytest.raises(ConfigError, match=f"feature 7 of a.1 has no task {number}. It has tasks 1 to 2."):
            unit_tasks(scores, 7, "random").task(number)
    scores.write(tmp_path)
    assert unit_tasks(UnitScores.read(tmp_path), 4, "random") == unit_tasks(scores, 4, "random")
