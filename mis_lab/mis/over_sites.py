"""Two kinds of units over several sites or seeds: the site is the replicate, by its mean difference.

Wilcoxon's signed-rank test has a least p of 2/2ⁿ at n sites: below six it can never be under 0.05, and that is said.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

import numpy as np

from mis_lab.core.intervals import Interval, student_interval
from mis_lab.mis.compare import Comparison
from mis_lab.mis.pairs import rank_biserial, signed_rank


@dataclass(frozen=True)
class OverSites:
    """Differences of means, a − b, of several sites (or seeds).

    Attributes:
        n: sites at which both have a score.
        differences: of each, in their order.
        mean_difference: over sites, Student's t interval.
        rank_biserial: (W₊ − W₋) / (W₊ + W₋).
        p_value: two-sided signed-rank test; NaN for none.
        least_p: what the test can at best reach with so many sites.
    """

    negatives: str
    measure: str
    n: int
    differences: list[float]
    mean_difference: Interval
    rank_biserial: float
    p_value: float
    least_p: float

    def as_json(self) -> dict[str, Any]:
        """JSON types; :meth:`from_json` reads them back."""
        return asdict(self) | {"mean_difference": list(self.mean_difference)}

    @classmethod
    def from_json(cls, told: dict[str, Any]) -> OverSites:
        return cls(**told | {"mean_difference": Interval(*told["mean_difference"])})


def over_sites(comparisons: Sequence[Comparison]) -> list[OverSites]:
    """One for every kind of negatives and measure among the comparisons of two kinds of units."""
    found = []
    for negatives, measure in dict.fromkeys((one.negatives, one.measure) for one in comparisons):
        of_sites = [one for one in comparisons if (one.negatives, one.measure) == (negatives, measure)]
        values = np.array([float(one.mean_difference.estimate) for one in of_sites])
        values = values[np.isfinite(values)]
        found.append(
            OverSites(
                negatives=negatives,
                measure=measure,
                n=len(values),
                differences=values.tolist(),
                mean_difference=student_interval(values),
                rank_biserial=float(rank_biserial(values)) if len(values) else float("nan"),
                p_value=signed_rank(values),
                least_p=2.0 ** (1 - len(values)) if len(values) else float("nan"),
            )
        )
    return found
