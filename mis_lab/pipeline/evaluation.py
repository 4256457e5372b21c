"""Stage ``evaluate``: how good the SAE of a site is, and what its features and the site's neurons are like.

Where images have no labels, the network's own predictions stand for classes.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from mis_lab.activations.paired import PairedActivations
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import Neurons, UnitSource
from mis_lab.core.files import write_json
from mis_lab.core.keys import plain
from mis_lab.core.records import read_record, write_record
from mis_lab.core.store import Artifact, Recipe
from mis_lab.model.sites import Site
from mis_lab.pipeline.activations import activations, read, read_for_sae, recipes
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.saes import load_earlier, sae
from mis_lab.sae import io as sae_io
from mis_lab.sae.ablation import Ablated, Outputs, ablate, outputs
from mis_lab.sae.amortisation import amortisation_gap
from mis_lab.sae.base import Autoencoder, Sae
from mis_lab.sae.baseline_config import SignedConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.geometry import geometry
from mis_lab.sae.selectivity import count_classes, selectivity
from mis_lab.sae.splice import Reference, Splice, Spliced, evaluate_splices
from mis_lab.sae.thesis_metrics import evaluate_as_thesis
from mis_lab.sae.units import Features

SPLICE, THESIS, SEARCH = "splice.json", "thesis.json", "search.json"
GEOMETRY, SELECTIVITY, OUTPUTS, ABLATED = "geometry", "selectivity", "outputs", "ablated"
logger = logging.getLogger(__name__)
PARTS = {"seen": False, "held_out": True}  # of the split score: whether its groups are held out


def predicted(lab: Lab) -> Artifact:
    """What the network makes of every image of the split ``score``."""
    dataset, model = lab.data["score"], lab.config.model
    recipe = Recipe(
        "predictions",
        VERSIONS["predictions"],
        {"network": model.network, "input": plain(model.input)},
        {"weights": lab.model.fingerprint, "data": dataset.fingerprint},
        label=f"{model.name} on {dataset.name}/score",
    )

    def build(folder: Path) -> None:
        config = lab.config.activations
        found = outputs(lab.model, dataset, config.batch_size, config.workers)
        write_record(folder, OUTPUTS, found)
        write_json(folder / SUMMARY, {"n_images": len(dataset), "n_classes": len(found.class_n.unique())})

    return lab.store.get(recipe, build)


def ablations(lab: Lab) -> dict[str, Artifact]:
    """By site, what zero and mean ablation cost on every image of the split ``score``; the same for all SAEs."""
    dataset, config = lab.data["score"], lab.config
    original = predicted(lab)
    wanted = {
        site: Recipe(
            "ablation",
            VERSIONS["ablation"],
            {},
            {
                "activations": recipes(lab, "score")[site].key,
                "train": recipes(lab, "train")[site].key,
                "predictions": original.key,
            },
            label=f"{config.model.name} {site} on {dataset.name}/score",
        )
        for site in config.model.sites
    }

    def build(folders: Mapping[str, Path]) -> None:
        missing = {site: folders[recipe.key] for site, recipe in wanted.items() if recipe.key in folders}
        trained_on = {site: read(lab, "train", site) for site in missing}
        means = {stored.site: stored.moments.mean.float() for stored in trained_on.values()}
        untouched = read_record(Outputs, original.path, OUTPUTS)
        found = ablate(lab.model, means, dataset, untouched, config.activations.batch_size, config.activations.workers)
        for site, folder in missing.items():
            write_record(folder, ABLATED, found[site])
            write_json(folder / SUMMARY, {"loss_zero": float(found[site].loss_zero_n.mean())})

    return dict(zip(wanted, lab.store.get_many(list(wanted.values()), build), strict=True))


def is_labelled(lab: Lab) -> bool:
    """Whether every image of the split ``score`` has a label."""
    return min(lab.data["score"].labels) >= 0


def classes(lab: Lab) -> Tensor:
    """(n images of the split score,) int64: the labels, or where an image has none, the network's predictions."""
    if is_labelled(lab):
        return torch.tensor(lab.data["score"].labels)
    return read_record(Outputs, predicted(lab).path, OUTPUTS).class_n


def evaluate(lab: Lab, site: str) -> Artifact:
    """Stage ``evaluate``: reconstruction, sparsity and the cost of splicing the SAE in, on the split ``score``, on
    groups the SAE was trained on (``seen``) and on held-out ones; how selective features and neurons are for classes,
    over all of it; the geometry of the dictionary."""
    stored, trained = activations(lab, "score")[site], sae(lab, site)
    recipe = Recipe(
        "evaluate",
        VERSIONS["evaluate"],
        {
            "held_out": sorted(lab.held_out),
            "evaluate": plain(lab.config.evaluate),
            "image_activation": lab.config.mis.image_activation.name,
        },
        {"activations": stored.key, "sae": trained.key, "train": recipes(lab, "train")[site].key}
        | {"source": activations(lab, "score")[lab.reads(site)].key}
        | {"predictions": predicted(lab).key, "ablation": ablations(lab)[site].key},
        label=f"{lab.config.sae.name} at {site}",
    )

    def build(folder: Path) -> None:
        autoencoder = sae_io.load(trained.path).to(lab.device)
        earlier = load_earlier(lab, site)
        scored = read_for_sae(lab, "score", site, earlier)
        behind: dict[Site, Spliced] = {read(lab, "score", before).site: one for before, one in earlier.items()}
        ablated = read_record(Ablated, ablations(lab)[site].path, ABLATED)
        reference = Reference(read_record(Outputs, predicted(lab).path, OUTPUTS), {site: ablated})
        numbers: dict[str, Any] = {}
        for part, held_out in PARTS.items():
            if chosen := lab.images("score", held_out):
                told = _quality(lab, autoencoder, scored, reference, behind, chosen, folder / part)
                numbers |= {f"{part}/{name}": value for name, value in told.items()}
        numbers |= _selectivity(lab, site, autoencoder, folder)
        if isinstance(autoencoder, Sae):
            shape = geometry(autoencoder.dictionary)
            write_record(folder, GEOMETRY, shape)
            numbers |= {
                f"geometry/{name}": getattr(shape, name)
                for name in ("features_per_dimension", "effective_rank", "participation_ratio", "coherence")
            }
        write_json(folder / SUMMARY, numbers)

    return lab.store.get(recipe, build)


def _quality(
    lab: Lab,
    autoencoder: Autoencoder,
    scored: Any,
    reference: Reference,
    behind: dict[Site, Spliced],
    chosen: list[int],
    folder: Path,
) -> dict[str, float]:
    """Everything about some images: right formulas, the thesis' own, the cost of splicing, search for better codes."""
    config = lab.config
    quality = evaluate_reconstruction(autoencoder, scored, chosen)
    quality.write(folder)
    thesis = evaluate_as_thesis(autoencoder, scored, chosen).numbers()
    write_json(folder / THESIS, thesis)
    in_its_place = Splice(autoencoder, scored.source.site) if isinstance(scored, PairedActivations) else autoencoder
    splice = evaluate_splices(
        lab.model,
        {scored.site: in_its_place},
        lab.data["score"],
        reference,
        chosen,
        config.activations.batch_size,
        config.activations.workers,
        behind,
        {scored.site: scored} if isinstance(scored, StoredActivations) else None,
    )[scored.site.path]
    write_json(folder / SPLICE, asdict(splice))
    numbers = quality.numbers() | {name: value for name, value in asdict(splice).items() if isinstance(value, float)}
    numbers |= {f"thesis/{name}": value for name, value in thesis.items()}
    if config.evaluate.search_images and isinstance(autoencoder, Sae):
        found = amortisation_gap(
            autoencoder,
            scored,
            chosen[: config.evaluate.search_images],
            nonnegative=not isinstance(config.sae, SignedConfig),
        )
        write_json(folder / SEARCH, asdict(found))
        numbers["amortisation_gap"] = found.gap
    return numbers


def _selectivity(lab: Lab, site: str, autoencoder: Autoencoder, folder: Path) -> dict[str, float]:
    """How features and neurons divide themselves among classes, over all images of the split."""
    present, class_n = classes(lab).unique(return_inverse=True)
    if len(present) < 2:
        logger.info("all images are of one class: no selectivity at %s", site)
        return {}
    encoded, neurons = read(lab, "score", lab.reads(site), load_earlier(lab, site)), read(lab, "score", site)
    sources: dict[str, tuple[Any, UnitSource]] = {
        "feature": (encoded, Features(autoencoder)),
        "neuron": (neurons, Neurons(neurons.width)),
    }
    numbers = {}
    for kind, (stored, source) in sources.items():
        found = selectivity(
            count_classes(
                stored,
                source,
                class_n,
                len(present),
                threshold=lab.config.evaluate.class_threshold,
                image_activation=lab.config.mis.image_activation,
                device=lab.device,
            )
        )
        write_record(folder, f"{SELECTIVITY}_{kind}", found)
        numbers[f"{SELECTIVITY}/{kind}/active_classes"] = found.active_classes_mean
        for name in ("entropy_u", "gini_u", "top_share_u"):
            numbers[f"{SELECTIVITY}/{kind}/{name.removesuffix('_u')}"] = float(getattr(found, name).nanmean())
    return numbers
