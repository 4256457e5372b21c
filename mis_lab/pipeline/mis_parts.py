"""Scores made in parts that several jobs share: each ranks its share of the images, then scores its share of the units.

Put together they are what one job would have found, to the bit. docs/scale.md.
"""

from __future__ import annotations

from pathlib import Path

from mis_lab.activations.units import image_slices
from mis_lab.core.files import write_json
from mis_lab.core.store import Artifact, Recipe
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.mis.compare import summarise
from mis_lab.mis.config import Negatives
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.units import Scorer, inputs_of, scoring, units_of

POOLS = "pools.safetensors"


def pools_part(lab: Lab, site: str, kind: str, number: int) -> Artifact:
    """What one of ``mis.parts`` shares of the images tells of the pools of all units."""
    units, config = units_of(lab, site, kind), lab.config
    recipe = Recipe(
        "pools",
        VERSIONS["mis"],
        {"kind": kind, **scoring(lab, config.mis), "parts": config.mis.parts, "part": number},
        inputs_of(lab, units, by_class=False),
        label=f"{kind} at {config.model.name} {site}, images {number + 1}/{config.mis.parts}",
    )

    def build(folder: Path) -> None:
        scorer = Scorer(lab, units)
        slices = image_slices(scorer.read, scorer.source, config.mis.parts)
        mine = slices[number] if number < len(slices) else range(0)  # few images make fewer slices
        write_tensors(folder / POOLS, scorer.pools(mine).state())
        write_json(folder / SUMMARY, {"n_images": len(mine)})

    return lab.store.get(recipe, build)


def score_part(lab: Lab, site: str, kind: str, number: int) -> Artifact:
    """Scores of one of ``mis.parts`` shares of the units, from the pools of all images."""
    units, config = units_of(lab, site, kind), lab.config
    # Each job begins with a share of its own, so that jobs that start together find the others' done, or under way.
    order = [(number + step) % config.mis.parts for step in range(config.mis.parts)]
    gathered = {part: pools_part(lab, site, kind, part) for part in order}
    recipe = Recipe(
        "mis_part",
        VERSIONS["mis"],
        {"kind": kind, **scoring(lab, config.mis), "parts": config.mis.parts, "part": number},
        inputs_of(lab, units, Negatives.within_class in config.mis.negatives)
        | {f"pools/{part}": gathered[part].key for part in sorted(gathered)},
        label=f"{kind} at {config.model.name} {site}, units {number + 1}/{config.mis.parts}",
    )

    def build(folder: Path) -> None:
        scorer = Scorer(lab, units)
        whole = scorer.pools(range(0))
        for part in sorted(gathered):
            whole.merge(read_tensors(gathered[part].path / POOLS))
        n_units, n_parts = scorer.source.n_units, config.mis.parts
        mine = range(n_units * number // n_parts, n_units * (number + 1) // n_parts)
        pools = whole.result().of_units(slice(mine.start, mine.stop))
        scores = scorer.scores(config.mis, config.seed, mine, pools)
        scores.write(folder)
        write_json(folder / SUMMARY, means(scores) if mine else {})

    return lab.store.get(recipe, build)


def means(scores: UnitScores) -> dict[str, float]:
    """Mean soft and hard score and share of scored units, by kind of negatives."""
    numbers = {}
    for negatives in scores.by_negatives:
        for measure in ("soft", "hard"):
            summary = summarise(scores, negatives, measure)
            numbers[f"{negatives}/{measure}"] = summary.mean
        numbers[f"{negatives}/scored_share"] = summary.n_scored / summary.n_units
    return numbers
