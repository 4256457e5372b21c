"""The stages of a run: activations → sae → evaluate → {mis → compare, circuit}; the page is in `page.py`.

Each function returns its artifact from the store and asks the functions before it for what it needs, so a stage can be
called alone. What enters a key is written out in each recipe; fields that cannot change a result are left out of it.
Every artifact has a ``summary.json``: its headline numbers, flat.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import Neurons, RandomDirections, UnitSource
from mis_lab.circuit.result import CircuitResult
from mis_lab.circuit.run import discover_and_evaluate
from mis_lab.config import Stage
from mis_lab.core.errors import ConfigError
from mis_lab.core.files import write_json
from mis_lab.core.keys import plain
from mis_lab.core.store import Artifact, Recipe
from mis_lab.metric.base import Embedding, embed_dataset
from mis_lab.mis.compare import compare_sites, summarise
from mis_lab.mis.config import Negatives
from mis_lab.mis.run import sample_units, score_units
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.pipeline.activations import activations
from mis_lab.pipeline.evaluation import ablations, classes, evaluate, is_labelled, predicted
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.saes import load_saes, sae
from mis_lab.sae import io as sae_io
from mis_lab.sae.further_config import ConvConfig, TranscoderConfig
from mis_lab.sae.units import Features

COMPARISONS = "comparisons.json"
MEASURES = ("soft", "hard", "delta_over_tau")  # the first for every pair of kinds, all for features against neurons


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
    return ["neuron", *(["feature"] if lab.has_sae else []), *lab.config.mis.controls]


def mis(lab: Lab, site: str, kind: str) -> Artifact:
    """Stage ``mis``: pools gathered from the stored activations, tasks drawn from them, units scored.

    The control ``permuted`` is of features where there are any, else of neurons.
    """
    from_sae = kind == "feature" or (kind == "permuted" and lab.has_sae)
    stored, embedded = activations(lab, "score")[lab.reads(site) if from_sae else site], embedding(lab)
    config = lab.config
    by_class = Negatives.within_class in config.mis.negatives
    scoring = plain(config.mis)
    for name in ("controls", *(() if kind in config.mis.controls else ("n_control_units",))):
        del scoring[name]  # which controls are asked for changes no unit's score
    recipe = Recipe(
        "mis",
        VERSIONS["mis"],
        {"kind": kind, "mis": scoring, "temperature": lab.metric.temperature, "seed": config.seed},
        {"activations": stored.key, "metric": embedded.key}
        | ({"sae": sae(lab, site).key} if from_sae else {})
        | ({"classes": lab.data["score"].fingerprint if is_labelled(lab) else predicted(lab).key} if by_class else {}),
        label=f"{kind} at {config.model.name} {site}, seed {config.seed}",
    )

    def build(folder: Path) -> None:
        read = StoredActivations(stored.path)
        source: UnitSource = Neurons(read.width)
        if kind == "random_directions":
            source = RandomDirections(read.width, config.mis.n_control_units, config.seed)
        elif from_sae:
            source = Features(sae_io.load(sae(lab, site).path).to(lab.device))
        permuted = kind == "permuted"
        scores = score_units(
            read,
            source,
            Embedding.read(embedded.path),
            config.mis,
            config.seed,
            temperature=lab.metric.temperature,
            units=sample_units(source.n_units, config.mis.n_control_units, config.seed) if permuted else None,
            control="permuted" if permuted else "",
            device=lab.device,
            classes=classes(lab) if by_class else None,
        )
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


def compare(lab: Lab) -> Artifact:
    """Stage ``compare``: features against neurons, and each kind against the control of permuted activations."""
    sites, kinds = lab.config.model.sites, kinds_of_units(lab)
    scored = {(site, kind): mis(lab, site, kind) for site in sites for kind in kinds}
    recipe = Recipe(
        "compare",
        VERSIONS["compare"],
        {"n_bootstrap": lab.config.mis.n_bootstrap, "seed": lab.config.seed},
        {f"{site}/{kind}": artifact.key for (site, kind), artifact in scored.items()},
        label=f"{', '.join(kinds)} at {', '.join(sites)}",
    )

    def build(folder: Path) -> None:
        scores = {of: UnitScores.read(artifact.path) for of, artifact in scored.items()}
        pairs = [
            ("feature", "neuron"),
            ("feature", "random_directions"),
            ("neuron", "random_directions"),
            ("feature", "permuted"),
            ("neuron", "permuted"),
        ]
        found: list[dict[str, Any]] = []
        numbers: dict[str, float] = {}
        for a, b in pairs:
            if a not in kinds or b not in kinds:
                continue
            of_sites = {site: (scores[site, a], scores[site, b]) for site in sites}
            for measure in MEASURES if (a, b) == pairs[0] else MEASURES[:1]:
                for comparison in compare_sites(of_sites, measure, lab.config.mis.n_bootstrap, lab.config.seed):
                    found.append({"kinds": [a, b], **comparison.as_json()})
                    if (a, b) == pairs[0]:
                        at = f"{measure}/{comparison.site}/{comparison.negatives}"
                        numbers[f"{at}/mean_difference"] = float(comparison.mean_difference.estimate)
                        numbers[f"{at}/cliffs_delta"] = float(comparison.cliffs_delta.estimate)
                        numbers[f"{at}/p_holm"] = comparison.p_holm
        write_json(folder / COMPARISONS, found)
        write_json(folder / SUMMARY, numbers)

    return lab.store.get(recipe, build)


def circuit(lab: Lab) -> Artifact:
    """Stage ``circuit``: found on the groups of ``score`` that are not held out, evaluated on those that are."""
    config = lab.config
    if isinstance(config.sae, ConvConfig | TranscoderConfig):
        raise ConfigError(
            f"circuits need codes of single vectors and of the same site, which sae={config.sae.name} does not have",
            fix="Leave the stage out: stages=[activations,sae,evaluate,mis,report].",
        )
    saes = {site: sae(lab, site) for site in config.model.sites} if lab.has_sae else {}
    stored = activations(lab, "score")
    recipe = Recipe(
        "circuit",
        VERSIONS["circuit"],
        {"circuit": plain(config.circuit), "held_out": sorted(lab.held_out), "seed": config.seed},
        {f"activations/{site}": artifact.key for site, artifact in stored.items()}
        | {f"sae/{site}": artifact.key for site, artifact in saes.items()},
        label=f"{config.model.name}, {config.sae.name}, {config.circuit.method.name}",
    )

    def build(folder: Path) -> None:
        result = discover_and_evaluate(
            lab.model,
            [StoredActivations(stored[site].path).site for site in config.model.sites],
            load_saes(lab) if lab.has_sae else {},
            lab.data["score"],
            lab.images("score", held_out=False),
            lab.images("score", held_out=True),
            config.circuit,
            config.seed,
            lambda numbers, size: lab.log("circuit", numbers, size),
        )
        result.write(folder)
        write_json(folder / SUMMARY, _areas(result))

    return lab.store.get(recipe, build)


def _areas(result: CircuitResult) -> dict[str, float]:
    """CPR, CMD, and per site the attribution gap and error share, by kind of nodes."""
    numbers = {}
    for kind, found in result.kinds.items():
        numbers[f"{kind}/cpr"], numbers[f"{kind}/cmd"] = (
            float(found.curve.cpr.estimate),
            float(found.curve.cmd.estimate),
        )
        numbers[f"{kind}/random_cmd"] = float(found.curve.random_cmd.mean())
        for site in found.sites:
            numbers[f"{kind}/{site.path}/attribution_gap"] = site.attribution_gap
            numbers[f"{kind}/{site.path}/error_share"] = site.error_share
    return numbers


def of_stages(lab: Lab) -> dict[str, Artifact]:
    """Every artifact but the page of the stages asked for, by a name that says what it is; of all stages where only
    the page is asked for."""
    sites, wanted = lab.config.model.sites, set(lab.config.stages) - {Stage.report} or set(Stage)
    made: dict[str, Artifact] = {}
    if Stage.activations in wanted:
        for split in ("train", "score") if lab.has_sae and not lab.config.activations.live else ("score",):
            made |= {f"activations/{split}/{site}": artifact for site, artifact in activations(lab, split).items()}
    if Stage.sae in wanted and lab.has_sae:
        made |= {f"sae/{site}": sae(lab, site) for site in sites}
    if Stage.evaluate in wanted and lab.has_sae:
        made["predictions"] = predicted(lab)
        made |= {f"ablation/{site}": artifact for site, artifact in ablations(lab).items()}
        made |= {f"evaluate/{site}": evaluate(lab, site) for site in sites}
    if Stage.mis in wanted:
        made["metric"] = embedding(lab)
        made |= {f"mis/{site}/{kind}": mis(lab, site, kind) for site in sites for kind in kinds_of_units(lab)}
        made["compare"] = compare(lab)
    if Stage.circuit in wanted:
        made["circuit"] = circuit(lab)
    return made
