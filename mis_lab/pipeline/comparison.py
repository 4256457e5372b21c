"""Stage ``compare``: which kind of unit is more interpretable, by how much, and how sure.

Units of two kinds at every site and over the sites; each feature beside the neuron that correlates best with it; how
many units are interpretable at all; whether other scores rank units alike; and how much of it is noise of the draw.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np

from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import Neurons
from mis_lab.core.files import write_json
from mis_lab.core.store import Artifact, Recipe
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.mis.agreement import spearman_matrix
from mis_lab.mis.compare import Comparison, compare_sites
from mis_lab.mis.discovery import InterpretableUnits, interpretable_units
from mis_lab.mis.further import FurtherScores
from mis_lab.mis.over_sites import over_sites
from mis_lab.mis.pairs import Matches, best_partners, compare_pairs, image_chunks, partner_scores
from mis_lab.mis.run import PERMUTED
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.pipeline.activations import activations
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.mis import mis
from mis_lab.pipeline.mis_beside import further
from mis_lab.pipeline.saes import sae
from mis_lab.pipeline.units import kinds_of_units
from mis_lab.sae import io as sae_io
from mis_lab.sae.dead import Fates
from mis_lab.sae.units import Features

COMPARISONS, PAIRS, OVER_SITES = "comparisons.json", "pairs.json", "over_sites.json"
INTERPRETABLE, AGREEMENT, PARTNERS = "interpretable.json", "agreement.json", "partners.safetensors"
MEASURES = ("soft", "hard", "delta_over_tau")  # the first for every pair of kinds, all for features against neurons
MAIN = ("feature", "neuron")
NEVER_REVIVED = "never revived"

Scored = Mapping[tuple[str, str], UnitScores]


def partners(lab: Lab, site: str) -> Artifact:
    """The neuron whose image activations correlate best with each feature's."""
    config, stored, trained = lab.config, activations(lab, "score"), sae(lab, site)
    recipe = Recipe(
        "partners",
        VERSIONS["partners"],
        {"image_activation": config.mis.image_activation.name},
        {"activations": stored[site].key, "source": stored[lab.reads(site)].key, "sae": trained.key},
        label=f"features and neurons at {config.model.name} {site}",
    )

    def build(folder: Path) -> None:
        read = StoredActivations(stored[site].path)
        features = Features(sae_io.load(trained.path).to(lab.device))
        chunks = image_chunks(read, features, Neurons(read.width), config.mis.image_activation, lab.device)
        found = best_partners(chunks)
        write_tensors(folder / PARTNERS, found._asdict())
        write_json(folder / SUMMARY, {"correlation": float(found.correlation.nanmedian())})

    return lab.store.get(recipe, build)


def read_partners(artifact: Artifact) -> Matches:
    """What :func:`partners` found."""
    return Matches(**read_tensors(artifact.path / PARTNERS))


def has_partners(lab: Lab) -> bool:
    """Whether features are of the same vectors as the site's neurons, so that they can be matched."""
    return lab.has_sae and all(lab.reads(site) == site for site in lab.config.model.sites)


def compare(lab: Lab) -> Artifact:
    """Stage ``compare``: features against neurons, and each kind against the controls."""
    sites, kinds = lab.config.model.sites, kinds_of_units(lab)
    scored = {(site, kind): mis(lab, site, kind) for site in sites for kind in kinds}
    others = {(site, kind): further(lab, site, kind) for site in sites for kind in kinds if kind in MAIN}
    matched = {site: partners(lab, site) for site in sites} if has_partners(lab) else {}
    trained = {site: sae(lab, site) for site in sites} if lab.has_sae else {}
    recipe = Recipe(
        "compare",
        VERSIONS["compare"],
        {"n_bootstrap": lab.config.mis.n_bootstrap, "seed": lab.config.seed},
        {f"{site}/{kind}": artifact.key for (site, kind), artifact in scored.items()}
        | {f"further/{site}/{kind}": artifact.key for (site, kind), artifact in others.items()}
        | {f"partners/{site}": artifact.key for site, artifact in matched.items()}
        | {f"sae/{site}": artifact.key for site, artifact in trained.items()},
        label=f"{', '.join(kinds)} at {', '.join(sites)}",
    )

    def build(folder: Path) -> None:
        scores = {of: UnitScores.read(artifact.path) for of, artifact in scored.items()}
        revived = {site: _revived(artifact) for site, artifact in trained.items()}
        told = _comparisons(lab, kinds, scores, revived)
        main = [comparison for of, comparison in told if of == MAIN]
        pairs = _pairs(lab, scores, {site: read_partners(artifact) for site, artifact in matched.items()})
        counted = [
            one
            for (site, kind), of_kind in scores.items()
            for one in interpretable_units(of_kind, kind, scores.get((site, PERMUTED)))
        ]
        write_json(folder / COMPARISONS, [{"kinds": list(of), **comparison.as_json()} for of, comparison in told])
        write_json(folder / OVER_SITES, [one.as_json() for one in over_sites(main)])
        write_json(folder / PAIRS, pairs)
        write_json(folder / INTERPRETABLE, [asdict(one) for one in counted])
        write_json(folder / AGREEMENT, _agreement(scores, others))
        write_json(folder / SUMMARY, _numbers(main) | _pair_numbers(pairs) | _shares(counted))

    return lab.store.get(recipe, build)


def _revived(trained: Artifact) -> set[int]:
    """Features that were started anew at any time in training."""
    return set().union(*Fates.read(trained.path).revived.values())


def _comparisons(
    lab: Lab, kinds: Sequence[str], scores: Scored, revived: Mapping[str, set[int]]
) -> list[tuple[tuple[str, str], Comparison]]:
    sites, config = lab.config.model.sites, lab.config
    controls = [kind for kind in kinds if kind not in MAIN]
    pairs = [MAIN, *((kind, control) for control in controls for kind in MAIN)]
    found = []
    for a, b in pairs:
        if a in kinds and b in kinds:
            of_sites = {site: (scores[site, a], scores[site, b]) for site in sites}
            for measure in MEASURES if (a, b) == MAIN else MEASURES[:1]:
                found += [
                    ((a, b), one) for one in compare_sites(of_sites, measure, config.mis.n_bootstrap, config.seed)
                ]
    if any(revived.values()):
        of_sites = {
            site: (scores[site, "feature"].without(of_site, NEVER_REVIVED), scores[site, "neuron"])
            for site, of_site in revived.items()
        }
        compared = compare_sites(of_sites, MEASURES[0], config.mis.n_bootstrap, config.seed)
        found += [(("never_revived", "neuron"), one) for one in compared]
    return found


def _pairs(lab: Lab, scores: Scored, matched: Mapping[str, Matches]) -> list[dict[str, Any]]:
    """Features against their partners; features with the same partner count as one."""
    found = []
    for site, matches in matched.items():
        features, neurons = scores[site, "feature"], scores[site, "neuron"]
        for negatives in features.by_negatives:
            for measure in MEASURES[:2]:
                a, b = (np.asarray(getattr(one.of(negatives).scores, measure).estimate) for one in (features, neurons))
                compared = compare_pairs(
                    a,
                    partner_scores(matches, b),
                    matches.partner.numpy(),
                    lab.config.mis.n_bootstrap,
                    lab.config.seed,
                )
                found.append({"site": site, "negatives": negatives, "measure": measure, **asdict(compared)})
    return found


def _agreement(scores: Scored, others: Mapping[tuple[str, str], Artifact]) -> list[dict[str, Any]]:
    """Rank correlations of all scores of the same units, at every site."""
    found = []
    for (site, kind), artifact in others.items():
        values: dict[str, np.ndarray] = {}
        for negatives, result in scores[site, kind].by_negatives.items():
            for measure in MEASURES[:2]:
                values[f"{measure}/{negatives}"] = np.asarray(getattr(result.scores, measure).estimate)
        values |= FurtherScores.read(artifact.path).measures()
        matrix = spearman_matrix(values)
        found.append({"site": site, "kind": kind, "names": list(values), "spearman": matrix.tolist()})
    return found


def _numbers(comparisons: Sequence[Comparison]) -> dict[str, float]:
    numbers = {}
    for comparison in comparisons:
        at = f"{comparison.measure}/{comparison.site}/{comparison.negatives}"
        numbers[f"{at}/mean_difference"] = float(comparison.mean_difference.estimate)
        numbers[f"{at}/cliffs_delta"] = float(comparison.cliffs_delta.estimate)
        numbers[f"{at}/p_holm"] = comparison.p_holm
    return numbers


def _pair_numbers(pairs: Sequence[Mapping[str, Any]]) -> dict[str, float]:
    return {
        f"pairs/{one['measure']}/{one['site']}/{one['negatives']}/mean_difference": float(
            one["mean_difference"].estimate
        )
        for one in pairs
    }


def _shares(counted: Sequence[InterpretableUnits]) -> dict[str, float]:
    return {
        f"interpretable/{one.site}/{one.kind}/{one.negatives}": one.share_of_tested for one in counted if one.n_tested
    }
