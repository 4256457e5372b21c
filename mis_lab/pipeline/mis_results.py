"""What the stage ``mis`` left in the store, read back for the page."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from mis_lab.core.files import read_json
from mis_lab.core.intervals import Interval
from mis_lab.core.store import Artifact
from mis_lab.mis.agreement import ReseedNoise
from mis_lab.mis.discovery import InterpretableUnits
from mis_lab.mis.further import FurtherScores
from mis_lab.mis.over_sites import OverSites
from mis_lab.mis.pairs import PairedComparison
from mis_lab.pipeline.comparison import AGREEMENT, INTERPRETABLE, OVER_SITES, PAIRS, read_partners
from mis_lab.pipeline.mis_beside import NOISE, read_points
from mis_lab.report.mis_collect import MisResults
from mis_lab.report.mis_data import AgreementMatrix

Made = Mapping[str, Artifact]


def mis_results(made: Made) -> MisResults:
    """Everything beside the scores among the artifacts `made`."""
    compared = made.get("compare")
    return MisResults(
        further={of: FurtherScores.read(artifact.path) for of, artifact in _by_kind(made, "further")},
        curves={of: read_points(artifact) for of, artifact in _by_kind(made, "curves")},
        course={site: read_points(artifact) for site, artifact in _by_site(made, "course")},
        noise={
            (site, kind, told.pop("negatives"), told.pop("measure")): _record(ReseedNoise, told)
            for (site, kind), artifact in _by_kind(made, "reseeds")
            for told in read_json(artifact.path / NOISE)
        },
        partners={site: read_partners(artifact) for site, artifact in _by_site(made, "partners")},
        pairs={
            (told.pop("site"), told.pop("negatives"), told.pop("measure")): _record(PairedComparison, told)
            for told in _list(compared, PAIRS)
        },
        over_sites=[OverSites.from_json(told) for told in _list(compared, OVER_SITES)],
        interpretable=[InterpretableUnits(**told) for told in _list(compared, INTERPRETABLE)],
        agreement=[
            AgreementMatrix(**told | {"spearman": np.array(told["spearman"], dtype=np.float64)})
            for told in _list(compared, AGREEMENT)
        ],
    )


def _by_site(made: Made, stage: str) -> Iterator[tuple[str, Artifact]]:
    start = f"{stage}/"
    yield from ((name.removeprefix(start), artifact) for name, artifact in made.items() if name.startswith(start))


def _by_kind(made: Made, stage: str) -> Iterator[tuple[tuple[str, str], Artifact]]:
    for name, artifact in _by_site(made, stage):
        site, _, kind = name.rpartition("/")
        yield (site, kind), artifact


def _list(artifact: Artifact | None, name: str) -> list[dict[str, Any]]:
    found: list[dict[str, Any]] = read_json(artifact.path / name) if artifact else []
    return found


def _record(kind: type[Any], told: Mapping[str, Any]) -> Any:
    """A dataclass from JSON, intervals as lists of three."""
    return kind(**{name: Interval(*value) if isinstance(value, list) else value for name, value in told.items()})
