"""The stages of a run: activations → sae → evaluate → {mis → compare, circuit}; the page is in `page.py`.

Each function returns its artifact from the store and asks the functions before it for what it needs, so a stage can be
called alone. What enters a key is written out in each recipe; fields that cannot change a result are left out of it.
Every artifact has a ``summary.json``: its headline numbers, flat.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from mis_lab.activations.shards import StoredActivations
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.run import discover_and_evaluate
from mis_lab.config import Stage
from mis_lab.core.errors import ConfigError, MissingFileError
from mis_lab.core.files import write_json
from mis_lab.core.keys import content_key, hash_file, plain
from mis_lab.core.store import Artifact, Recipe
from mis_lab.mis.run import PERMUTED
from mis_lab.model.class_names import class_names
from mis_lab.pipeline.activations import activations
from mis_lab.pipeline.comparison import compare, has_partners, partners
from mis_lab.pipeline.evaluation import ablations, evaluate, predicted
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.mis import is_shared, mis
from mis_lab.pipeline.mis_beside import course, curves, further, has_course, reseeds
from mis_lab.pipeline.mis_parts import score_part
from mis_lab.pipeline.saes import load_saes, sae
from mis_lab.pipeline.units import embedding, kinds_of_units
from mis_lab.sae.further_config import ConvConfig, TranscoderConfig


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
    asked, pairs = plain(config.circuit), _pairs(config.circuit)
    if pairs:
        del asked["pairs_file"]  # what it holds counts, not where it lies
    names = class_names(config.model, lab.data["score"])
    recipe = Recipe(
        "circuit",
        VERSIONS["circuit"],
        {"circuit": asked, "held_out": sorted(lab.held_out), "seed": config.seed} | _named(config.circuit, names),
        {f"activations/{site}": artifact.key for site, artifact in stored.items()}
        | {f"sae/{site}": artifact.key for site, artifact in saes.items()}
        | pairs,
        label=f"{config.model.name}, {config.sae.name}, {config.circuit.method.name}",
    )

    def build(folder: Path) -> None:
        read = {site: StoredActivations(stored[site].path) for site in config.model.sites}
        result = discover_and_evaluate(
            lab.model,
            [of_site.site for of_site in read.values()],
            load_saes(lab) if lab.has_sae else {},
            lab.data["score"],
            lab.images("score", held_out=False),
            lab.images("score", held_out=True),
            config.circuit,
            config.seed,
            lambda numbers, size: lab.log("circuit", numbers, size),
            names,
            read,
        )
        result.write(folder)
        write_json(folder / SUMMARY, result.headline())

    return lab.store.get(recipe, build)


def _pairs(config: CircuitConfig) -> dict[str, str]:
    """The file of image pairs by its content; empty when none is asked for.

    Raises:
        MissingFileError: when there is no such file.
    """
    if not config.pairs_file:
        return {}
    path = Path(config.pairs_file)
    if not path.is_file():
        raise MissingFileError("there is no file of image pairs", looked=path, fix="Give one in circuit.pairs_file.")
    return {"pairs": hash_file(path)}


def _named(config: CircuitConfig, names: Sequence[str]) -> dict[str, str]:
    """What the names of classes are, where `config` gives a class by its name."""
    told = [config.target_class, config.other_class, *config.classes]
    return {"class_names": content_key(list(names))} if any(one and not one.isdigit() for one in told) else {}


def of_mis(lab: Lab) -> dict[str, Artifact]:
    """Every artifact of the stage ``mis``: scores, what is told beside them, and the comparison; one part of the scores
    where the run makes no more."""
    sites, config = lab.config.model.sites, lab.config.mis
    kinds = kinds_of_units(lab)
    if config.part >= 0:
        return {
            f"mis_part/{site}/{kind}": score_part(lab, site, kind, config.part)
            for site in sites
            for kind in kinds
            if is_shared(lab, kind)
        }
    main = [kind for kind in kinds if kind in ("neuron", "feature")]
    made = {"metric": embedding(lab)}
    made |= {f"mis/{site}/{kind}": mis(lab, site, kind) for site in sites for kind in kinds}
    made |= {f"further/{site}/{kind}": further(lab, site, kind) for site in sites for kind in kinds if kind != PERMUTED}
    if config.hardness or config.quantiles:
        made |= {f"curves/{site}/{kind}": curves(lab, site, kind) for site in sites for kind in main}
    if config.n_reseeds:
        made |= {f"reseeds/{site}/{kind}": reseeds(lab, site, kind) for site in sites for kind in main}
    if has_course(lab):
        made |= {f"course/{site}": course(lab, site) for site in sites}
    if has_partners(lab):
        made |= {f"partners/{site}": partners(lab, site) for site in sites}
    made["compare"] = compare(lab)
    return made


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
        made |= of_mis(lab)
    if Stage.circuit in wanted:
        made["circuit"] = circuit(lab)
    return made
