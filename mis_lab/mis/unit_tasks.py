"""The tasks of one unit, read out of stored scores: the images of each, its margin, and how it went."""

# N tasks of the unit  K explanations a side

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import Enum
from typing import NamedTuple

import numpy as np

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.intervals import Interval
from mis_lab.mis.score import outcomes
from mis_lab.mis.unit_scores import Settings, UnitScores
from mis_lab.mis.units import UnitStatus


class Outcome(Enum):
    """How a task went; the number is what it adds to the hard score."""

    right = 1.0
    tie = 0.5
    wrong = 0.0


class UnitTask(NamedTuple):
    """One task of a unit.

    Attributes:
        number: from 1.
        explanations_positive, explanations_negative: K image indices, the most extreme first.
        query_positive, query_negative: image indices.
        margin: Δ.
        probability: sigmoid(Δ/τ) of the right answer.
        outcome: right, tie or wrong.
    """

    number: int
    explanations_positive: list[int]
    query_positive: int
    explanations_negative: list[int]
    query_negative: int
    margin: float
    probability: float
    outcome: Outcome

    @property
    def images(self) -> list[int]:
        """All its images."""
        return [self.query_positive, self.query_negative, *self.explanations_positive, *self.explanations_negative]


@dataclass(frozen=True)
class UnitTasks:
    """A unit with its tasks.

    Attributes:
        site, unit, negatives: which unit, and what its weak side is made of.
        name: for people, "feature 17".
        soft, hard: scores with intervals.
        n_active: images with an activation above zero.
        tasks: N of them, in the order they were drawn.
    """

    site: str
    unit: int
    name: str
    negatives: str
    settings: Settings
    soft: Interval
    hard: Interval
    n_active: int
    tasks: Sequence[UnitTask]

    def task(self, number: int) -> UnitTask:
        """Task `number`, from 1.

        Raises:
            ConfigError: when there are fewer.
        """
        if not 1 <= number <= len(self.tasks):
            raise ConfigError(
                f"{self.name} of {self.site} has no task {number}", fix=f"It has tasks 1 to {len(self.tasks)}."
            )
        return self.tasks[number - 1]

    @property
    def by_margin(self) -> list[UnitTask]:
        """The tasks, the clearest first."""
        return sorted(self.tasks, key=lambda task: -task.margin)

    @property
    def median(self) -> UnitTask:
        """The task whose margin is the median (of an even number the lower of the two)."""
        return self.by_margin[len(self.tasks) // 2]

    @property
    def hardest(self) -> UnitTask:
        """The task with the smallest margin."""
        return self.by_margin[-1]


def unit_tasks(scores: UnitScores, unit: int, negatives: str) -> UnitTasks:
    """The tasks of the unit number `unit`.

    Raises:
        ConfigError: when there is no such unit, or no score with these negatives.
        DataError: naming its status, when the unit has no score.
    """
    found, numbers = scores.of(negatives), scores.units.tolist()
    if unit not in numbers:
        near = ", ".join(str(number) for number in sorted(numbers, key=lambda number: abs(number - unit))[:5])
        raise ConfigError(
            f"{scores.label} of {scores.site} have no unit {unit}", looked=f"{len(numbers)} units", fix=f"Near: {near}."
        )
    row = numbers.index(unit)
    name = f"{scores.control} {scores.unit_names[row]}".strip()
    status = UnitStatus(int(found.status[row]))
    if status is not UnitStatus.ok:
        raise DataError(
            f"{name} of {scores.site} has no score with {negatives} negatives: it is {status.name.replace('_', ' ')}"
            f" (active on {int(scores.n_active[row])} of {scores.settings.n_images} images)",
            fix="Choose a unit that was scored.",
        )
    tasks, n_tasks = found.tasks, int(found.tasks.n_tasks[row])
    margins_n = found.margins[row, :n_tasks]
    of_tasks = outcomes(margins_n, scores.settings.temperature, scores.settings.tie)
    return UnitTasks(
        site=scores.site,
        unit=unit,
        name=name,
        negatives=negatives,
        settings=scores.settings,
        soft=_at(found.scores.soft, row),
        hard=_at(found.scores.hard, row),
        n_active=int(scores.n_active[row]),
        tasks=[
            UnitTask(
                number=place + 1,
                explanations_positive=tasks.explanations_positive[row, place].tolist(),
                query_positive=int(tasks.query_positive[row, place]),
                explanations_negative=tasks.explanations_negative[row, place].tolist(),
                query_negative=int(tasks.query_negative[row, place]),
                margin=float(margins_n[place]),
                probability=float(of_tasks["soft"][place]),
                outcome=Outcome(float(of_tasks["hard"][place])),
            )
            for place in range(n_tasks)
        ],
    )


def _at(interval: Interval, row: int) -> Interval:
    return Interval(*(float(np.asarray(values)[row]) for values in interval))
