"""What is told beside the scores of the stage ``mis``.

Further scores of the same units, curves over hardness and pool size, scores drawn anew (their noise), and scores of
features in the course of training. Each is an artifact of its own, so that asking for one more computes that one alone.
"""

from __future__ import annotations

from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np

from mis_lab.activations.pools import gather_part
from mis_lab.core.files import read_json, write_json
from mis_lab.core.keys import plain
from mis_lab.core.seeding import derive_seed
from mis_lab.core.store import Artifact, Recipe
from mis_lab.mis.agreement import reseed_noise
from mis_lab.mis.config import MisConfig, Negatives
from mis_lab.mis.curves import CurvePoint, score_curves, summarise_point
from mis_lab.mis.further import further_scores
from mis_lab.mis.tasks import pool_needs
from mis_lab.pipeline.evaluation import classes
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.saes import sae
from mis_lab.pipeline.units import Scorer, inputs_of, scoring, units_of
from mis_lab.sae import io as sae_io
from mis_lab.sae.snapshots import snapshots
from mis_lab.sae.units import Features

POINTS, NOISE = "points.json", "noise.json"
NOISY = ("soft", "hard")  # measures whose noise is told


def further(lab: Lab, site: str, kind: str) -> Artifact:
    """Scores beside the MIS, of the same units; not of permuted ones, whose images mean nothing."""
    units, config = units_of(lab, site, kind), lab.config
    sampled = {"n_control_units": config.mis.n_control_units} if kind == "random_directions" else {}
    recipe = Recipe(
        "further",
        VERSIONS["further"],
        {"kind": kind, **scoring(lab, config.mis), "n_top": config.mis.n_top, **sampled},
        inputs_of(lab, units, by_class=True),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer = Scorer(lab, units)
        needs = pool_needs(config.mis, scorer.read.n_images)
        pools = gather_part(
            scorer.read,
            scorer.source,
            max(needs.size, min(config.mis.n_top, scorer.read.n_images // 2)),
            config.seed,
            config.mis.image_activation,
            device=lab.device,
        ).result()
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
    units, config = units_of(lab, site, kind), lab.config
    asked = {name: plain(getattr(config.mis, name)) for name in ("hardness", "quantiles", "n_control_units")}
    recipe = Recipe(
        "curves",
        VERSIONS["curves"],
        {"kind": kind, **scoring(lab, config.mis), **asked},
        inputs_of(lab, units, by_class=False),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer = Scorer(lab, units)
        points = score_curves(
            _without_intervals(config.mis),
            scorer.read.n_images,
            lambda at_point: scorer.scores(at_point, config.seed, scorer.sample),
        )
        _write_points(folder, points)

    return lab.store.get(recipe, build)


def reseeds(lab: Lab, site: str, kind: str) -> Artifact:
    """Scores of some of the units drawn anew with other seeds: what is noise of ties, pools and tasks."""
    units, config = units_of(lab, site, kind), lab.config
    asked = {"n_reseeds": config.mis.n_reseeds, "n_control_units": config.mis.n_control_units}
    recipe = Recipe(
        "reseeds",
        VERSIONS["reseeds"],
        {"kind": kind, **scoring(lab, config.mis), **asked},
        inputs_of(lab, units, Negatives.within_class in config.mis.negatives),
        label=f"{kind} at {config.model.name} {site}, {config.mis.n_reseeds} seeds from {config.seed}",
    )

    def build(folder: Path) -> None:
        scorer, once_more = Scorer(lab, units), _without_intervals(config.mis)
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
    units, config = units_of(lab, site, "feature"), lab.config
    recipe = Recipe(
        "course",
        VERSIONS["course"],
        {**scoring(lab, config.mis), "n_control_units": config.mis.n_control_units},
        inputs_of(lab, units, Negatives.within_class in config.mis.negatives),
        label=f"features at {config.model.name} {site}, {config.trainer.n_snapshots} times in training",
    )

    def build(folder: Path) -> None:
        trained = sae(lab, site).path
        points: list[CurvePoint] = []
        for step, copy in {**snapshots(trained), config.trainer.n_steps: trained}.items():
            scorer = Scorer(lab, units, Features(sae_io.load(copy).to(lab.device)))
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
