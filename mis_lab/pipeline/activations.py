"""Stage ``activations``: those of every site, stored in one pass over the images, or computed live."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

from mis_lab.activations.extract import extract
from mis_lab.activations.live import LiveActivations
from mis_lab.activations.paired import PairedActivations
from mis_lab.activations.shards import StoredActivations
from mis_lab.core.errors import ConfigError
from mis_lab.core.files import write_json
from mis_lab.core.keys import plain
from mis_lab.core.store import Artifact, Recipe
from mis_lab.model.sites import resolve_sites
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.splice import replacement

Activations = StoredActivations | LiveActivations | PairedActivations


def recipes(lab: Lab, split: str) -> dict[str, Recipe]:
    """By site, what its activations over a split are made from."""
    model, dataset = lab.config.model, lab.data[split]
    return {
        site: Recipe(
            "activations",
            VERSIONS["activations"],
            {
                "site": site,
                "layout": model.layout.name,
                "tokens": model.tokens.name,
                "network": model.network,
                "input": plain(model.input),
                "precision": lab.config.activations.precision.name,
            },
            {"weights": lab.model.fingerprint, "data": dataset.fingerprint},
            label=f"{model.name} {site} on {dataset.name}/{split}",
        )
        for site in lab.sites
    }


def activations(lab: Lab, split: str) -> dict[str, Artifact]:
    """By site, the activations of all images of a split; one pass writes all that are missing."""
    wanted, model = recipes(lab, split), lab.config.model

    def build(folders: Mapping[str, Path]) -> None:
        missing = {site: folders[recipe.key] for site, recipe in wanted.items() if recipe.key in folders}
        extract(lab.model, lab.data[split], missing, lab.config.activations, model.layout, model.tokens)
        for folder in missing.values():
            stored = StoredActivations(folder)
            write_json(
                folder / SUMMARY,
                {"n_images": stored.n_images, "n_positions": stored.n_positions, "width": stored.width},
            )

    return dict(zip(wanted, lab.store.get_many(list(wanted.values()), build), strict=True))


def read(lab: Lab, split: str, site: str, earlier: Mapping[str, Autoencoder] | None = None) -> Activations:
    """The activations of a site over a split: from the store, or live where training is to leave nothing on disk, or
    where SAEs at `earlier` sites replace their vectors by reconstructions."""
    if not earlier and not (lab.config.activations.live and split == "train"):
        return StoredActivations(activations(lab, split)[site].path)
    model, config = lab.config.model, lab.config.activations
    resolved = {found.path: found for found in resolve_sites(lab.model, lab.sites, model.layout, model.tokens)}
    replaced = {resolved[path]: replacement(sae) for path, sae in (earlier or {}).items()}
    return LiveActivations(lab.model, lab.data[split], resolved[site], config.batch_size, config.workers, replaced)


def read_for_sae(lab: Lab, split: str, site: str, earlier: Mapping[str, Autoencoder] | None = None) -> Activations:
    """What the SAE of a site learns from and is judged on: its site's activations, for a transcoder those of both."""
    source = lab.reads(site)
    if source == site:
        return read(lab, split, site, earlier)
    if earlier or lab.config.activations.live:
        raise ConfigError(
            "transcoders learn from stored activations", fix="Leave out activations.live and trainer.stacked."
        )
    stored = activations(lab, split)
    return PairedActivations(StoredActivations(stored[source].path), StoredActivations(stored[site].path))
