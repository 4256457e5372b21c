"""Sets of dead and of revived features in the course of training: how many of one set are in another.

A feature that dies, is revived and dies again was not saved by resampling; the shares say how many those are.
"""

from __future__ import annotations

from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from mis_lab.core.errors import StoreError
from mis_lab.core.files import read_json
from mis_lab.sae.train import FEATURES


@dataclass(frozen=True)
class Fates:
    """What became of features in training.

    Attributes:
        dead: steps taken → features that had been silent for long by then; steps rise.
        revived: the same for those that were started anew after these steps.
    """

    dead: Mapping[int, frozenset[int]]
    revived: Mapping[int, frozenset[int]]

    @classmethod
    def read(cls, folder: Path) -> Fates:
        """What training left in an SAE's folder; nothing known where it left nothing.

        Raises:
            StoreError: when the file is damaged.
        """
        if not (folder / FEATURES).exists():
            return cls({}, {})
        told = read_json(folder / FEATURES)
        try:
            return cls(_sets(told["dead"]), _sets(told["revived"]))
        except (AttributeError, KeyError, TypeError, ValueError) as error:
            raise StoreError(f"{folder / FEATURES} is damaged ({error})", fix="Remove the artifact.") from error

    @property
    def any(self) -> bool:
        """Whether a feature was ever dead or revived."""
        return any(self.dead.values()) or any(self.revived.values())


def _sets(told: Mapping[str, Any]) -> dict[int, frozenset[int]]:
    return {step: frozenset(told[str(step)]) for step in sorted(map(int, told))}


def overlap(a: Collection[int], b: Collection[int]) -> float:
    """|A ∩ B| / |A|, the share of A that is in B, too; NaN for an empty A."""
    first = set(a)
    return len(first.intersection(b)) / len(first) if first else float("nan")


def overlap_table(rows: Sequence[Collection[int]], columns: Sequence[Collection[int]]) -> np.ndarray:
    """(rows, columns) float64: the share of each row's set that is in each column's set."""
    values = [[overlap(a, b) for b in columns] for a in rows]
    return np.array(values, dtype=np.float64).reshape(len(rows), len(columns))
