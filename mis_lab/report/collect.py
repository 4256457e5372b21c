"""From a run's artifacts to what its page shows: reads results, picks units, and looks their images up again.

Which images excite a unit, and where, is computed anew from the stored activations for the few units shown; scores,
qualities and effects are read as they were written.
"""

# U units shown of a source  n images  P positions

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.pools import gather
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.unit_maps import MapReader
from mis_lab.activations.units import Neurons, UnitSource
from mis_lab.circuit.result import CircuitResult
from mis_lab.core.intervals import Interval
from mis_lab.core.seeding import numpy_generator
from mis_lab.dataset.base import ImageDataset
from mis_lab.mis.compare import Comparison
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.mis.unit_tasks import unit_tasks
from mis_lab.mis.units import UnitStatus
from mis_lab.report.about import DatasetSummary, ModelSummary, RunSummary, Scene, SiteSummary
from mis_lab.report.circuit_collect import circuit_details, circuit_view, faithfulness_curves
from mis_lab.report.circuit_data import CircuitDetails
from mis_lab.report.config import ReportConfig
from mis_lab.report.data import (
    PICKS,
    ComparisonRow,
    KindScores,
    MisSettings,
    ReportData,
    UnitCard,
    UnitImage,
    UnitScore,
)
from mis_lab.report.mis_collect import MisResults, beside_scores
from mis_lab.report.sae_collect import SaeResults, site_sae
from mis_lab.report.sheet import sheet
from mis_lab.report.wording import page_kind
from mis_lab.sae.units import Features

MOST_SCENES = 24  # on the contact sheet


@dataclass(frozen=True)
class Sources:
    """Everything a report is made of; what was not run is empty or None.

    Attributes:
        data: "train" and "score"; without an SAE only the second is shown.
        held_out: groups that are held out.
        activations: site → folder with the activations of the split ``score``, in the order of the network.
        scores: (site, kind of artifact) → scores; the second is ``neuron``, ``feature`` or a control.
        comparisons: (kind, kind) → what was found at every site with every kind of negatives.
        beside: what stands beside scores.
    """

    run: RunSummary
    model: ModelSummary
    data: Mapping[str, ImageDataset]
    held_out: frozenset[str]
    activations: Mapping[str, Path]
    image_activation: ImageActivation
    saes: Mapping[str, SaeResults]
    scores: Mapping[tuple[str, str], UnitScores]
    mis: MisSettings | None
    comparisons: Mapping[tuple[str, str], Sequence[Comparison]]
    circuit: CircuitResult | None
    seed: int
    beside: MisResults = field(default_factory=MisResults)
    notes: Sequence[str] = ()


def collect(sources: Sources, config: ReportConfig) -> ReportData:
    """What the page of a run shows."""
    stored = {site: StoredActivations(folder) for site, folder in sources.activations.items()}
    pictures = {
        (site, kind): Pictures(sources, stored[site], source)
        for site in stored
        for kind, source in _sources_of(sources, site, stored[site].width).items()
    }

    def top_images(site: str, kind: str, units: Sequence[int], n_images: int) -> list[list[UnitImage]]:
        return [of_unit["top"] for of_unit in pictures[site, kind].of(units, n_images)]

    circuit = sources.circuit
    return ReportData(
        run=sources.run,
        model=sources.model,
        dataset=_dataset(sources),
        sites=[
            SiteSummary(
                site, of.width, of.n_positions, sources.saes[site].sae.n_features if site in sources.saes else 0
            )
            for site, of in stored.items()
        ],
        saes=[site_sae(site, results) for site, results in sources.saes.items()],
        mis=sources.mis,
        scores=[_kind_scores(site, kind, scores) for (site, kind), scores in sources.scores.items()],
        units=[
            card
            for (site, kind), scores in sources.scores.items()
            if kind in ("neuron", "feature")
            for card in _cards(scores, pictures[site, kind], config, sources.seed)
        ],
        comparisons=[
            comparison_row(a, b, comparison) for (a, b), found in sources.comparisons.items() for comparison in found
        ],
        beside=beside_scores(sources.beside, sources.scores),
        circuit=circuit_view(circuit, sources.data["score"], sources.scores, top_images) if circuit else None,
        circuit_details=circuit_details(circuit, sources.scores) if circuit else CircuitDetails(),
        faithfulness=faithfulness_curves(circuit) if circuit else [],
        notes=sources.notes,
    )


def _sources_of(sources: Sources, site: str, width: int) -> dict[str, UnitSource]:
    found: dict[str, UnitSource] = {"neuron": Neurons(width)}
    if site in sources.saes:
        found["feature"] = Features(sources.saes[site].sae)
    return found


class Pictures:
    """Images of the units of one source at one site, with activation maps."""

    def __init__(self, sources: Sources, stored: StoredActivations, source: UnitSource) -> None:
        self.maps = MapReader(stored, source, sources.image_activation)
        self.dataset, self.seed = sources.data["score"], sources.seed

    def of(self, units: Sequence[int], n_images: int) -> list[dict[str, list[UnitImage]]]:
        """For each unit: ``top``, ``bottom`` and ``random`` → its `n_images` images, the most extreme first."""
        if not units:
            return []
        maps = self.maps
        pools = gather(maps.stored, maps.source, n_images, self.seed, maps.image_activation, units=units)
        return [
            {name: self._images(unit, getattr(pools, name)[row].tolist()) for name in ("top", "bottom", "random")}
            for row, unit in enumerate(units)
        ]

    def sheet(self, scores: UnitScores, unit: int) -> Image.Image:
        """The unit's tasks of median and of least margin, with its activation on their images."""
        tasks = unit_tasks(scores, unit, next(iter(scores.by_negatives)))
        shown = sorted({image for task in (tasks.median, tasks.hardest) for image in task.images})
        values = self.maps.of(unit, shown).values.tolist()
        return sheet(tasks, self.dataset, activations=dict(zip(shown, values, strict=True)))

    def _images(self, unit: int, indices: Sequence[int]) -> list[UnitImage]:
        chosen = [index for index in indices if index >= 0]
        if not chosen:
            return []
        values, maps = self.maps.of(unit, chosen)
        return [
            UnitImage(
                self.dataset.image(index),
                value,
                self.dataset.groups[index],
                self.dataset.ids[index],
                heat if heat.size > 1 else None,
            )
            for index, value, heat in zip(chosen, values.tolist(), maps.numpy(), strict=True)
        ]


def _dataset(sources: Sources) -> DatasetSummary:
    score, train = sources.data["score"], sources.data["train"]
    groups = list(dict.fromkeys(score.groups))
    counts = {"train": Counter(train.groups), "score": Counter(score.groups)}
    shared = len(groups) < len(score)  # else every image is its own group
    return DatasetSummary(
        name=score.name,
        group_word="scene" if score.name == "photo_patches" else "group" if shared else "image",
        n_train=sum(1 for group in train.groups if group not in sources.held_out),
        n_score=len(score),
        n_groups=len(groups),
        n_held_out=len(sources.held_out),
        scenes=[
            Scene(
                group,
                score.portrait(group),
                counts["train"][group],
                counts["score"][group],
                group in sources.held_out,
                score.credit(group),
            )
            for group in groups[:: -(-len(groups) // MOST_SCENES)]  # evenly spread, not the first class alone
        ],
    )


def _kind_scores(site: str, kind: str, scores: UnitScores) -> KindScores:
    any_result = next(iter(scores.by_negatives.values()))
    return KindScores(
        site=site,
        kind=page_kind(kind),
        numbers=scores.units.numpy(),
        status=[UnitStatus(number).name for number in any_result.status.tolist()],
        n_active=scores.n_active.numpy(),
        scores={
            negatives: {name: np.asarray(interval.estimate) for name, interval in result.scores._asdict().items()}
            for negatives, result in scores.by_negatives.items()
        },
    )


def pick_units(soft: np.ndarray, n: int, seed: int, scope: str) -> dict[str, list[int]]:
    """``best``, ``random`` and ``worst`` → rows of `soft` (NaN for units without a score); no row twice."""
    order = np.argsort(-soft, kind="stable")
    order = order[np.isfinite(soft[order])].tolist()
    n = min(n, len(order) // 3) or min(1, len(order))
    best, worst = order[:n], order[n:][-n:][::-1]
    rest = np.asarray(sorted(set(order) - set(best) - set(worst)), dtype=np.int64)
    random = numpy_generator(seed, "units shown", scope).permutation(rest)[:n].tolist()
    return dict(zip(PICKS, (best, random, worst), strict=True))


def _cards(scores: UnitScores, pictures: Pictures, config: ReportConfig, seed: int) -> list[UnitCard]:
    first = next(iter(scores.by_negatives.values()))
    picked = pick_units(np.asarray(first.scores.soft.estimate), config.units, seed, f"{scores.site}/{scores.kind}")
    rows = [(pick, row) for pick, of_pick in picked.items() for row in of_pick]
    numbers = scores.units.tolist()
    images = pictures.of([numbers[row] for _, row in rows], config.images)
    wanted = ("top", *(negatives for negatives in scores.by_negatives))
    typical = next(iter(picked["random"] or picked["best"]), None)
    return [
        UnitCard(
            site=scores.site,
            kind=scores.kind,
            number=numbers[row],
            pick=pick,
            status=UnitStatus(int(first.status[row])).name,
            n_active=int(scores.n_active[row]),
            n_images=scores.settings.n_images,
            scores={
                negatives: UnitScore(
                    soft=_at(result.scores.soft, row),
                    hard=_at(result.scores.hard, row),
                    n_tasks=int(result.tasks.n_tasks[row]),
                )
                for negatives, result in scores.by_negatives.items()
            },
            images={name: of_unit[name] for name in wanted},
            sheet=pictures.sheet(scores, numbers[row]) if row == typical else None,
        )
        for (pick, row), of_unit in zip(rows, images, strict=True)
    ]


def _at(interval: Interval, row: int) -> Interval:
    return Interval(*(float(np.asarray(values)[row]) for values in interval))


def comparison_row(a: str, b: str, comparison: Comparison) -> ComparisonRow:
    """A comparison of kind `a` with kind `b` as the page shows it."""
    over_groups = comparison.mean_difference_groups
    return ComparisonRow(
        site=comparison.site,
        negatives=comparison.negatives,
        measure=comparison.measure,
        a=page_kind(a),
        b=page_kind(b),
        n_a=comparison.a.n_scored,
        n_b=comparison.b.n_scored,
        median_a=comparison.a.median,
        median_b=comparison.b.median,
        median_difference=comparison.median_difference,
        mean_difference=comparison.mean_difference,
        mean_difference_groups=over_groups if np.isfinite(over_groups.low) else None,
        cliffs_delta=comparison.cliffs_delta,
        p_value=comparison.p_value,
        p_holm=comparison.p_holm,
        difference_with_unscored=comparison.difference_with_unscored,
    )
