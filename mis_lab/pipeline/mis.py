"""Stage ``mis``: units of every kind scored."""

from __future__ import annotations

from pathlib import Path

from mis_lab.core.files import write_json
from mis_lab.core.store import Artifact, Recipe
from mis_lab.mis.config import Negatives
from mis_lab.mis.run import PERMUTED
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.mis_parts import means, score_part
from mis_lab.pipeline.units import Scorer, inputs_of, scoring, units_of


def mis(lab: Lab, site: str, kind: str) -> Artifact:
    """Stage ``mis``: pools gathered from the stored activations, tasks drawn from them, units scored."""
    units, config = units_of(lab, site, kind), lab.config
    sampled = {"n_control_units": config.mis.n_control_units} if kind in (PERMUTED, "random_directions") else {}
    recipe = Recipe(
        "mis",
        VERSIONS["mis"],
        {"kind": kind, **scoring(lab, config.mis), **sampled},
        inputs_of(lab, units, Negatives.within_class in config.mis.negatives),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        if is_shared(lab, kind):
            parts = [score_part(lab, site, kind, number) for number in range(config.mis.parts)]
            scores = UnitScores.concatenate([UnitScores.read(part.path) for part in parts])
        else:
            scorer = Scorer(lab, units)
            scores = scorer.scores(config.mis, config.seed, scorer.sample if units.is_permuted else None)
        scores.write(folder)
        write_json(folder / SUMMARY, means(scores))

    return lab.store.get(recipe, build)


def is_shared(lab: Lab, kind: str) -> bool:
    """Whether the units of a kind are scored in parts: controls are few, and permuted ones need all images at once."""
    return lab.config.mis.parts > 1 and kind in ("neuron", "feature")
