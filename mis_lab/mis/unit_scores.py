"""Scores of many units with everything that makes them comparable, as one folder on disk.

``scores.safetensors`` has the numbers, ``scores.json`` the settings and names, ``images.json`` what the image
indices of the tasks mean.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError, StoreError
from mis_lab.core.files import read_json, write_json
from mis_lab.core.intervals import Interval
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.mis.score import Scores
from mis_lab.mis.tasks import Tasks
from mis_lab.mis.units import UnitStatus

# U units  N tasks a unit

FORMAT = 2
TENSORS, SETTINGS, IMAGES = "scores.safetensors", "scores.json", "images.json"


@dataclass(frozen=True)
class Settings:
    """What a score means; scores whose settings differ must not be compared.

    Attributes:
        protocol, query, n_explanations, n_tasks, min_tasks, one_per_group, image_activation, ties:
            as in :class:`~mis_lab.mis.config.MisConfig`, enums by name.
        query_negative: of the least active images, always named.
        query_percentile, quantile: 0 where the protocol has none.
        pool_size: images in a pool (of a unit that fills it).
        metric, metric_fingerprint: name, and content key of what decides its embeddings.
        temperature: τ of the soft score.
        tie: margins up to this size are ties; `ties` times the scale of the embedding.
        n_images, images: how many images were ranked, and the content key of their ids.
        classes: content key of the images' classes; empty where no negatives went by them.
    """

    protocol: str
    query: str
    query_negative: str
    query_percentile: float
    quantile: float
    n_explanations: int
    n_tasks: int
    min_tasks: int
    pool_size: int
    one_per_group: bool
    image_activation: str
    ties: float
    metric: str
    metric_fingerprint: str
    temperature: float
    tie: float
    n_images: int
    images: str
    classes: str

    def require_equal(self, other: Settings) -> None:
        """Refuse to compare what cannot be compared.

        Raises:
            ConfigError: naming the settings that differ.
        """
        mine, theirs = dataclasses.asdict(self), dataclasses.asdict(other)
        differing = [
            f"{name} ({mine[name]} and {theirs[name]})" for name in mine if not _same(mine[name], theirs[name])
        ]
        if not self.classes or not other.classes:
            differing = [told for told in differing if not told.startswith("classes ")]  # then not compared by class
        if differing:
            raise ConfigError(
                f"these scores cannot be compared: they differ in {', '.join(differing)}",
                fix="Score both sets of units with the same settings on the same images.",
            )


def _same(one: object, other: object) -> bool:
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)  # a measured τ differs in its last bits between machines
    return one == other


@dataclass(frozen=True)
class NegativesScores:
    """Scores of U units with one kind of negatives.

    Attributes:
        status: (U,) int64, numbers of :class:`~mis_lab.mis.units.UnitStatus`.
        tasks: image indices of every task.
        margins: (U, N) float64, NaN where there is no task.
        scores: soft, hard and Δ/τ with intervals, (U,) each, NaN for units without a score.
    """

    status: Tensor
    tasks: Tasks
    margins: Tensor
    scores: Scores

    def share(self, status: UnitStatus) -> float:
        """Share of the units with this status."""
        return float((self.status == status.value).double().mean())

    @classmethod
    def concatenate(cls, parts: Sequence[NegativesScores]) -> NegativesScores:
        """The scores of all units of `parts`, in their order."""
        return cls(
            status=torch.cat([part.status for part in parts]),
            tasks=Tasks(*(torch.cat(columns) for columns in zip(*(part.tasks for part in parts), strict=True))),
            margins=torch.cat([part.margins for part in parts]),
            scores=Scores(
                *(
                    Interval(*(np.concatenate(limits) for limits in zip(*intervals, strict=True)))
                    for intervals in zip(*(part.scores for part in parts), strict=True)
                )
            ),
        )


@dataclass(frozen=True)
class UnitScores:
    """Scores of the units of one kind at one site.

    Attributes:
        site: module path.
        kind: ``neuron``, ``feature``, ``random_direction`` or a kind of your own.
        control: ``permuted`` when images were shuffled for every unit before they were ranked, or what else was done
            to the set of units; else empty.
        units: (U,) int64, their places at the site (channel, latent).
        unit_names: names for people, one a unit.
        seed: of tasks and bootstrap. Scores of different seeds are replicates and may be compared.
        n_active: (U,) number of images with an activation above zero; `minimum`, `maximum`: (U,) over images.
        image_ids, image_groups: what an image index of the tasks means.
        by_negatives: ``random`` or ``bottom`` → scores.
    """

    site: str
    kind: str
    control: str
    units: Tensor
    unit_names: list[str]
    settings: Settings
    seed: int
    n_active: Tensor
    minimum: Tensor
    maximum: Tensor
    image_ids: list[str]
    image_groups: list[str]
    by_negatives: Mapping[str, NegativesScores]

    @property
    def label(self) -> str:
        """The units in words: "features", "permuted features", "random directions"."""
        return f"{self.control} {self.kind.replace('_', ' ')}s".strip()

    def of(self, negatives: str) -> NegativesScores:
        """The scores with these negatives.

        Raises:
            ConfigError: when they were not computed.
        """
        if negatives not in self.by_negatives:
            raise ConfigError(
                f"{self.label} at {self.site} have no scores with {negatives} negatives",
                looked=", ".join(self.by_negatives),
                fix=f"Add {negatives} to mis.negatives.",
            )
        return self.by_negatives[negatives]

    def without(self, units: Collection[int], control: str) -> UnitScores:
        """The scores of all other units, under a name of their own (`control`)."""
        kept = torch.tensor([unit not in units for unit in self.units.tolist()], dtype=torch.bool)
        mask = kept.numpy()

        def rest(result: NegativesScores) -> NegativesScores:
            return NegativesScores(
                status=result.status[kept],
                tasks=Tasks(*(part[kept] for part in result.tasks)),
                margins=result.margins[kept],
                scores=Scores(*(Interval(*(np.asarray(part)[mask] for part in one)) for one in result.scores)),
            )

        return dataclasses.replace(
            self,
            control=control,
            units=self.units[kept],
            unit_names=[name for name, stays in zip(self.unit_names, mask, strict=True) if stays],
            n_active=self.n_active[kept],
            minimum=self.minimum[kept],
            maximum=self.maximum[kept],
            by_negatives={negatives: rest(result) for negatives, result in self.by_negatives.items()},
        )

    @classmethod
    def concatenate(cls, parts: Sequence[UnitScores]) -> UnitScores:
        """The scores of all units of `parts`, in their order: as if one job had scored them.

        Raises:
            ConfigError: naming what differs between parts that must have it in common.
            DataError: naming a unit of two parts.
        """
        first = parts[0]
        for part in parts[1:]:
            first.settings.require_equal(part.settings)
            first._require_same_run(part)
        units = torch.cat([part.units for part in parts])
        found, counts = units.unique(return_counts=True)
        if len(twice := found[counts > 1]):
            raise DataError(
                f"{first.kind} {int(twice[0])} of {first.site} is in two parts of the scores ({len(twice)} are)",
                fix="Score every unit in one job.",
            )
        return dataclasses.replace(
            first,
            units=units,
            unit_names=[name for part in parts for name in part.unit_names],
            n_active=torch.cat([part.n_active for part in parts]),
            minimum=torch.cat([part.minimum for part in parts]),
            maximum=torch.cat([part.maximum for part in parts]),
            by_negatives={
                negatives: NegativesScores.concatenate([part.by_negatives[negatives] for part in parts])
                for negatives in first.by_negatives
            },
        )

    def _require_same_run(self, other: UnitScores) -> None:
        mine, theirs = (
            {
                "site": scores.site,
                "kind of units": scores.kind,
                "control": scores.control,
                "seed": scores.seed,
                "negatives": list(scores.by_negatives),
                "classes": scores.settings.classes,
                "images": (scores.image_ids, scores.image_groups),
            }
            for scores in (self, other)
        )
        if differing := [name for name in mine if mine[name] != theirs[name]]:
            raise ConfigError(
                f"these parts of the scores do not belong together: they differ in {', '.join(differing)}",
                fix="Score all parts in the same way.",
            )

    def write(self, folder: Path) -> None:
        """Write the scores into `folder`."""
        tensors = {name: getattr(self, name) for name in ("units", "n_active", "minimum", "maximum")}
        for negatives, result in self.by_negatives.items():
            parts = {"status": result.status, "margins": result.margins, **result.tasks._asdict()}
            for name, interval in result.scores._asdict().items():
                parts[name] = torch.from_numpy(np.stack([np.asarray(values) for values in interval]))
            tensors |= {f"{negatives}.{name}": tensor for name, tensor in parts.items()}
        write_tensors(folder / TENSORS, tensors)
        write_json(folder / IMAGES, {"ids": self.image_ids, "groups": self.image_groups})
        write_json(
            folder / SETTINGS,
            {
                "format": FORMAT,
                "site": self.site,
                "kind": self.kind,
                "control": self.control,
                "seed": self.seed,
                "negatives": list(self.by_negatives),
                "settings": dataclasses.asdict(self.settings),
                "unit_names": self.unit_names,
            },
        )

    @classmethod
    def read(cls, folder: Path) -> UnitScores:
        """Read what :meth:`write` wrote.

        Raises:
            StoreError: when a file is missing or damaged, or was written in another format.
        """
        if not (folder / SETTINGS).exists():
            raise StoreError(f"no unit scores in {folder}", fix="Run the stage mis.")
        told, images, tensors = (
            read_json(folder / SETTINGS),
            read_json(folder / IMAGES),
            read_tensors(folder / TENSORS),
        )
        if told["format"] != FORMAT:
            raise StoreError(
                f"{folder} has unit scores of format {told['format']}; this version reads format {FORMAT}",
                fix="Run the stage mis again.",
            )
        by_negatives = {}
        for negatives in told["negatives"]:
            part = {name: tensors[f"{negatives}.{name}"] for name in ("status", "margins", *Tasks._fields)}
            scores = Scores(**{name: Interval(*tensors[f"{negatives}.{name}"].numpy()) for name in Scores._fields})
            tasks = Tasks(**{name: part[name] for name in Tasks._fields})
            by_negatives[negatives] = NegativesScores(part["status"], tasks, part["margins"], scores)
        return cls(
            site=told["site"],
            kind=told["kind"],
            control=told["control"],
            units=tensors["units"],
            unit_names=told["unit_names"],
            settings=Settings(**told["settings"]),
            seed=told["seed"],
            n_active=tensors["n_active"],
            minimum=tensors["minimum"],
            maximum=tensors["maximum"],
            image_ids=images["ids"],
            image_groups=images["groups"],
            by_negatives=by_negatives,
        )
