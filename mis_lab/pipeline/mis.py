"""Stage ``mis``: units of every kind scored, and what is told beside a score.

Beside the scores themselves: further scores of the same units, curves over hardness and pool size, scores drawn anew
(their noise), and scores of features in the course of training. Each is an artifact of its own, so that asking for one
more computes that one alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mis_lab.activations.pools import gather
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import Neurons, RandomDirections, UnitSource
from mis_lab.core.files import read_json, write_json
from mis_lab.core.keys import plain
from mis_lab.core.seeding import derive_seed
from mis_lab.core.store import Artifact, Recipe
from mis_lab.metric.base import Embedding, embed_dataset
from mis_lab.mis.agreement import reseed_noise
from mis_lab.mis.compare import summarise
from mis_lab.mis.config import BESIDE_SCORES, MisConfig, Negatives
from mis_lab.mis.curves import CurvePoint, score_curves, summarise_point
from mis_lab.mis.further import further_scores
from mis_lab.mis.run import PERMUTED, sample_units, score_units
from mis_lab.mis.tasks import pool_needs
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.pipeline.activations import activations
from mis_lab.pipeline.evaluation import classes, evaluate, is_labelled, predicted
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.saes import sae
from mis_lab.sae import io as sae_io
from mis_lab.sae.architectures.neurons import NeuronsSae
from mis_lab.sae.baseline_config import NeuronsConfig
from mis_lab.sae.snapshots import snapshots
from mis_lab.sae.units import Features

POINTS, NOISE = "points.json", "noise.json"
N_MEAN = 32_768  # vectors whose mean sparse neurons are told apart from
NOISY = ("soft", "hard")  # measures whose noise is told


def embedding(lab: Lab) -> Artifact:
    """Stage ``metric``: how alike the images of the split ``score`` look to the metric."""
    dataset = lab.data["score"]
    recipe = Recipe(
        "metric",
        VERSIONS["metric"],
        {"name": lab.config.metric.name},
        {"metric": lab.metric.fingerprint, "data": dataset.fingerprint},
        label=f"{lab.config.metric.name} of {dataset.name}/score",
    )

    def build(folder: Path) -> None:
        embedded = embed_dataset(lab.metric, dataset, scratch_dir=folder)
        embedded.write(folder)
        write_json(folder / SUMMARY, {"n_images": len(dataset)} | embedded.quality)

    return lab.store.get(recipe, build)


def kinds_of_units(lab: Lab) -> list[str]:
    """The kinds of units that a run scores at each site: ``neuron``, ``feature``, and the controls asked for."""
    controls = [kind for kind in lab.config.mis.controls if lab.has_sae or kind != "sparse_neurons"]
    return ["neuron", *(["feature"] if lab.has_sae else []), *controls]


@dataclass(frozen=True)
class _Units:
    """The units of one kind at one site.

    Attributes:
        stored: activations that they are computed from.
        source: makes them of these; `inputs`: keys of what it needs for that.
        is_permuted: whether their activations are dealt to other images.
    """

    site: str
    kind: str
    stored: Artifact
    source: Callable[[StoredActivations], UnitSource]
    inputs: Mapping[str, str] = field(default_factory=dict)
    is_permuted: bool = False


def _units(lab: Lab, site: str, kind: str) -> _Units:
    """The control ``permuted`` is of features where there are any, else of neurons."""
    is_permuted = kind == PERMUTED
    stored = activations(lab, "score")
    if kind == "feature" or (is_permuted and lab.has_sae):
        trained = sae(lab, site)

        def features(read: StoredActivations) -> UnitSource:
            return Features(sae_io.load(trained.path).to(lab.device))

        return _Units(site, kind, stored[lab.reads(site)], features, {"sae": trained.key}, is_permuted)
    if kind == "random_directions":
        config = lab.config
        return _Units(
            site,
            kind,
            stored[site],
            lambda read: RandomDirections(read.width, config.mis.n_control_units, config.seed),
        )
    if kind == "sparse_neurons":
        evaluated = evaluate(lab, site)
        return _Units(
            site,
            kind,
            stored[site],
            lambda read: _sparse_neurons(lab, read, read_json(evaluated.path / SUMMARY)),
            {"evaluate": evaluated.key},
        )
    return _Units(site, kind, stored[site], lambda read: Neurons(read.width), {}, is_permuted)


def _sparse_neurons(lab: Lab, read: StoredActivations, quality: Mapping[str, float]) -> Features:
    """Of each vector the neurons farthest from their means, as many as the SAE has active features."""
    l0 = quality.get("seen/l0", quality.get("held_out/l0", 1.0))
    neurons = NeuronsSae(NeuronsConfig(k=max(1, round(l0))), read.width)
    every = -(-read.n_images * read.n_positions // N_MEAN)
    neurons.initialise(read.take(range(0, read.n_images, every)).flatten(0, 1), torch.Generator())
    return Features(neurons.eval().requires_grad_(False).to(lab.device), "sparse_neuron")


def _scoring(lab: Lab, config: MisConfig) -> dict[str, Any]:
    """What decides the scores of given units, for recipes."""
    options = {name: value for name, value in plain(config).items() if name not in BESIDE_SCORES}
    return {"mis": options, "temperature": lab.metric.temperature, "seed": lab.config.seed}


def _inputs(lab: Lab, units: _Units, by_class: bool) -> dict[str, str]:
    found = {"activations": units.stored.key, "metric": embedding(lab).key, **units.inputs}
    if by_class:
        found["classes"] = lab.data["score"].fingerprint if is_labelled(lab) else predicted(lab).key
    return found


class _Scorer:
    """Scores the units of one kind at one site, as often as asked, from what is read once."""

    def __init__(self, lab: Lab, units: _Units, source: UnitSource | None = None) -> None:
        self.lab, self.units = lab, units
        self.read = StoredActivations(units.stored.path)
        self.source = source or units.source(self.read)
        self.embedding = Embedding.read(embedding(lab).path)
        self.classes = classes(lab) if Negatives.within_class in lab.config.mis.negatives else None

    @property
    def sample(self) -> list[int]:
        """Some units, the same whenever asked."""
        return sample_units(self.source.n_units, self.lab.config.mis.n_control_units, self.lab.config.seed)

    def scores(self, config: MisConfig, seed: int, some: list[int] | None = None) -> UnitScores:
        return score_units(
            self.read,
            self.source,
            self.embedding,
            config,
            seed,
            temperature=self.lab.metric.temperature,
            units=some,
            control=PERMUTED if self.units.is_permuted else "",
            device=self.lab.device,
            classes=self.classes,
        )


def mis(lab: Lab, site: str, kind: str) -> Artifact:
    """Stage ``mis``: pools gathered from the stored activations, tasks drawn from them, units scored."""
    units, config = _units(lab, site, kind), lab.config
    sampled = {"n_control_units": config.mis.n_control_units} if kind in (PERMUTED, "random_directions") else {}
    recipe = Recipe(
        "mis",
        VERSIONS["mis"],
        {"kind": kind, **_scoring(lab, config.mis), **sampled},
        _inputs(lab, units, Negatives.within_class in config.mis.negatives),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer = _Scorer(lab, units)
        scores = scorer.scores(config.mis, config.seed, scorer.sample if units.is_permuted else None)
        scores.write(folder)
        write_json(folder / SUMMARY, _means(scores))

    return lab.store.get(recipe, build)


def _means(scores: UnitScores) -> dict[str, float]:
    """Mean soft and hard score and share of scored units, by kind of negatives."""
    numbers = {}
    for negatives in scores.by_negatives:
        for measure in ("soft", "hard"):
            summary = summarise(scores, negatives, measure)
            numbers[f"{negatives}/{measure}"] = summary.mean
        numbers[f"{negatives}/scored_share"] = summary.n_scored / summary.n_units
    return numbers


def further(lab: Lab, site: str, kind: str) -> Artifact:
    """Scores beside the MIS, of the same units; not of permuted ones, whose images mean nothing."""
    units, config = _units(lab, site, kind), lab.config
    sampled = {"n_control_units": config.mis.n_control_units} if kind == "random_directions" else {}
    recipe = Recipe(
        "further",
        VERSIONS["further"],
        {"kind": kind, **_scoring(lab, config.mis), "n_top": config.mis.n_top, **sampled},
        _inputs(lab, units, by_class=True),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer = _Scorer(lab, units)
        needs = pool_needs(config.mis, scorer.read.n_images)
        pools = gather(
            scorer.read,
            scorer.source,
            max(needs.size, min(config.mis.n_top, scorer.read.n_images // 2)),
            config.seed,
            config.mis.image_activation,
            device=lab.device,
        )
        found = further_scores(
            scorer.read,
            scorer.source,
            pools,
            scorer.embedding,
            classes(lab),
            config.mis,
            config.seed,
            lab.device,
        )
        found.write(folder)
        write_json(folder / SUMMARY, found.numbers())

    return lab.store.get(recipe, build)


def curves(lab: Lab, site: str, kind: str) -> Artifact:
    """Mean scores over hardness and over pool size, of some of the units."""
    units, config = _units(lab, site, kind), lab.config
    asked = {name: plain(getattr(config.mis, name)) for name in ("hardness", "quantiles", "n_control_units")}
    recipe = Recipe(
        "curves",
        VERSIONS["curves"],
        {"kind": kind, **_scoring(lab, config.mis), **asked},
        _inputs(lab, units, by_class=False),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer = _Scorer(lab, units)
        points = score_curves(
            _without_intervals(config.mis),
            scorer.read.n_images,
            lambda at_point: scorer.scores(at_point, config.seed, scorer.sample),
        )
        _write_points(folder, points)

    return lab.store.get(recipe, build)


def reseeds(lab: Lab, site: str, kind: str) -> Artifact:
    """Scores of some of the units drawn anew with other seeds: what is noise of ties, pools and tasks."""
    units, config = _units(lab, site, kind), lab.config
    asked = {"n_reseeds": config.mis.n_reseeds, "n_control_units": config.mis.n_control_units}
    recipe = Recipe(
        "reseeds",
        VERSIONS["reseeds"],
        {"kind": kind, **_scoring(lab, config.mis), **asked},
        _inputs(lab, units, Negatives.within_class in config.mis.negatives),
        label=f"{kind} at {config.model.name} {site}, {config.mis.n_reseeds} seeds from {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer, once_more = _Scorer(lab, units), _without_intervals(config.mis)
        drawn = [
            scorer.scores(once_more, derive_seed(config.seed, "reseed", number), scorer.sample)
            for number in range(config.mis.n_reseeds)
        ]
        noise: list[dict[str, Any]] = []
        for negatives in drawn[0].by_negatives:
            for measure in NOISY:
                scores_ur = np.stack(
                    [np.asarray(getattr(scores.of(negatives).scores, measure).estimate) for scores in drawn], 1
                )
                if np.isfinite(scores_ur).all(1).sum() >= 2:
                    noise.append({"negatives": negatives, "measure": measure, **asdict(reseed_noise(scores_ur))})
        write_json(folder / NOISE, noise)
        write_json(
            folder / SUMMARY,
            {
                f"{one['negatives']}/{one['measure']}/{name}": one[name]
                for one in noise
                for name in ("within_sd", "mean_sd")
            },
        )

    return lab.store.get(recipe, build)


def course(lab: Lab, site: str) -> Artifact:
    """Scores of features in the course of training, the same features in every copy of the SAE."""
    units, config = _units(lab, site, "feature"), lab.config
    recipe = Recipe(
        "course",
        VERSIONS["course"],
        {**_scoring(lab, config.mis), "n_control_units": config.mis.n_control_units},
        _inputs(lab, units, Negatives.within_class in config.mis.negatives),
        label=f"features at {config.model.name} {site}, {config.trainer.n_snapshots} times in training",
    )

    def build(folder: Path) -> None:
        trained = sae(lab, site).path
        points: list[CurvePoint] = []
        for step, copy in {**snapshots(trained), config.trainer.n_steps: trained}.items():
            scorer = _Scorer(lab, units, Features(sae_io.load(copy).to(lab.device)))
            scores = scorer.scores(_without_intervals(config.mis), config.seed, scorer.sample)
            points += summarise_point("step", step, scores)
            lab.log(
                f"course/{site}",
                {f"{point.negatives}/soft": float(point.soft.estimate) for point in points if point.x == step},
                step,
            )
        _write_points(folder, points)

    return lab.store.get(recipe, build)


def has_course(lab: Lab) -> bool:
    """Whether there are copies of the SAEs from the course of their training."""
    return lab.has_sae and lab.config.trainer.n_snapshots > 0


def _without_intervals(config: MisConfig) -> MisConfig:
    """Where means over units are told, intervals of single units are work for nothing."""
    return replace(config, n_bootstrap=1)


def _write_points(folder: Path, points: list[CurvePoint]) -> None:
    write_json(folder / POINTS, [point.as_json() for point in points])
    write_json(
        folder / SUMMARY,
        {
            f"{point.setting}/{point.x:g}/{point.negatives}/{name}": float(getattr(point, name).estimate)
            for point in points
            for name in ("soft", "hard")
        },
    )


def read_points(artifact: Artifact) -> list[CurvePoint]:
    """The points of a curve, or of a course."""
    return [CurvePoint.from_json(told) for told in read_json(artifact.path / POINTS)]
