"""Stage ``sae``: SAEs trained at every site."""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from torch import Tensor

from mis_lab.activations.loader import VectorLoader
from mis_lab.config import RunConfig
from mis_lab.core.build import build as build_object
from mis_lab.core.files import write_json
from mis_lab.core.keys import plain
from mis_lab.core.store import WHOLE, Artifact, Recipe
from mis_lab.pipeline.activations import read_for_sae, recipes
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.together import siblings
from mis_lab.sae import io as sae_io
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.further_config import ConvConfig, TranscoderConfig
from mis_lab.sae.train import Job, TrainingSummary, train_together

N_MONITOR = 8192  # held-out vectors that an SAE is evaluated on in the course of training


def sae(lab: Lab, site: str) -> Artifact:
    """Stage ``sae``: trained on the images of ``train`` whose group is not held out; goes on after a crash. With a grid
    in ``together``, all its SAEs that are missing are trained in the same pass."""
    configs: dict[str, RunConfig] = {}
    wanted: list[Recipe] = []
    for config in (lab.config, *siblings(lab.config)):
        recipe = _recipe(lab, site, config)
        if recipe.key not in configs:
            configs[recipe.key] = config
            wanted.append(recipe)

    def build(folders: Mapping[str, Path]) -> None:
        _train(lab, site, {folder: configs[key] for key, folder in folders.items()})

    return lab.store.get_many(wanted, build)[0]


def _recipe(lab: Lab, site: str, config: RunConfig) -> Recipe:
    inputs = {"activations": recipes(lab, "train")[site].key, "held_out": recipes(lab, "score")[site].key}
    if (source := lab.reads(site)) != site:
        inputs["source"] = recipes(lab, "train")[source].key
    return Recipe(
        "sae",
        VERSIONS["sae"],
        {
            "sae": plain(config.sae),
            "trainer": plain(config.trainer),
            "memory_mib": config.activations.memory_mib,
            "live": config.activations.live,
            "held_out": sorted(lab.held_out),
            "seed": config.seed,
        },
        inputs | {f"sae/{earlier}": artifact.key for earlier, artifact in _earlier(lab, site).items()},
        label=f"{config.sae.name} at {config.model.name} {site}, seed {config.seed}",
        resumable=True,
    )


def _earlier(lab: Lab, site: str) -> dict[str, Artifact]:
    """The SAEs that are spliced in while the one of `site` is trained and evaluated: none, or those of all sites before
    it where SAEs are stacked."""
    if not lab.config.trainer.stacked:
        return {}
    return {before: sae(lab, before) for before in lab.config.model.sites[: lab.config.model.sites.index(site)]}


def load_earlier(lab: Lab, site: str) -> dict[str, Autoencoder]:
    """The trained SAEs of the sites before `site`, where SAEs are stacked; else none."""
    return {before: sae_io.load(made.path).to(lab.device) for before, made in _earlier(lab, site).items()}


def _train(lab: Lab, site: str, configs: Mapping[Path, RunConfig]) -> None:
    earlier, trainer = load_earlier(lab, site), lab.config.trainer
    stored = read_for_sae(lab, "train", site, earlier)
    autoencoders = {folder: _built(config, stored).to(lab.device) for folder, config in configs.items()}

    whole_images = next(iter(autoencoders.values())).reads_maps

    def loader(vectors: Any, images: list[int]) -> VectorLoader:
        return VectorLoader(
            vectors,
            trainer.batch_size,
            trainer.order_seed,
            images,
            lab.config.activations.memory_mib,
            lab.device,
            whole_images,
        )

    held_out_nd: Tensor | None = None
    if trainer.n_evaluations and (images := lab.images("score", held_out=True)):
        held_out_nd = loader(read_for_sae(lab, "score", site, earlier), images).sample(N_MONITOR)
    jobs = [
        Job(
            autoencoders[folder],
            config.trainer,
            config.seed,
            folder,
            partial(_log, lab, f"sae/{site}" if len(configs) == 1 else f"sae/{site}/{folder.name[-8:]}"),
        )
        for folder, config in configs.items()
    ]

    def finished(job: Job, summary: TrainingSummary) -> None:
        numbers = summary.final | {"n_vectors": summary.n_vectors, "n_features": job.sae.n_features}
        write_json(job.folder / SUMMARY, numbers)
        (job.folder / WHOLE).touch()

    train_together(jobs, loader(stored, lab.images("train", held_out=False)), held_out_nd, finished)


def _built(config: RunConfig, stored: Any) -> Autoencoder:
    """The SAE of a configuration for these activations, with what its architecture needs to know of the site."""
    if isinstance(config.sae, ConvConfig):
        return build_object(config.sae, width=stored.width, grid=stored.site.grid)
    if isinstance(config.sae, TranscoderConfig):
        return build_object(config.sae, width=stored.source.width, width_out=stored.target.width)
    return build_object(config.sae, width=stored.width)


def _log(lab: Lab, axis: str, numbers: Mapping[str, float], step: int) -> None:
    lab.log(axis, numbers, step)


def load_saes(lab: Lab) -> dict[str, Autoencoder]:
    """The trained SAE of every site, on the lab's device."""
    return {site: sae_io.load(sae(lab, site).path).to(lab.device) for site in lab.config.model.sites}
