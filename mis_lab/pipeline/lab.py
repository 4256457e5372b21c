"""What every stage of a run works with: configuration, store, network, images, metric."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

import torch

from mis_lab.config import RunConfig
from mis_lab.core.errors import ConfigError
from mis_lab.core.files import write_json
from mis_lab.core.keys import plain
from mis_lab.core.store import Artifact, Recipe, Store
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.load import load_dataset
from mis_lab.dataset.splits import held_out_groups
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.metric.base import Metric
from mis_lab.metric.embedding import PooledFeatures
from mis_lab.metric.load import load_metric
from mis_lab.model.load import LoadedModel, build_network, load_model
from mis_lab.model.train import evaluate_classifier, train_classifier
from mis_lab.sae.further_config import TranscoderConfig

SUMMARY, WEIGHTS = "summary.json", "weights.safetensors"
# Raised by hand when a stage's results change for the same configuration.
VERSIONS = {
    "weights": 1,
    "activations": 1,
    "predictions": 1,
    "ablation": 2,
    "sae": 2,
    "evaluate": 2,
    "metric": 1,
    "mis": 3,
    "further": 1,
    "curves": 1,
    "reseeds": 1,
    "course": 1,
    "partners": 1,
    "compare": 2,
    "circuit": 3,
}
Log = Callable[[str, Mapping[str, float], int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Lab:
    """What every stage works with.

    Attributes:
        run_key: of the run's configuration.
        command: what to type to get the run again.
        log: called with (axis, named losses, step) while something trains.
    """

    config: RunConfig
    run_key: str
    command: str
    store: Store
    device: torch.device
    model: LoadedModel
    data: Mapping[str, ImageDataset]
    metric: Metric
    log: Log

    @cached_property
    def held_out(self) -> frozenset[str]:
        """Groups that no SAE trains on and no circuit is found on."""
        split = self.config.dataset.split
        return held_out_groups(self.data["score"].groups, split.hold_out, split.hold_out_seed)

    def images(self, split: str, held_out: bool) -> list[int]:
        """Indices of the images of `split` whose group is, or is not, held out."""
        return [index for index, group in enumerate(self.data[split].groups) if (group in self.held_out) == held_out]

    @property
    def sites(self) -> list[str]:
        """Every site whose activations the run needs: those of the model, and what transcoders read."""
        sites = self.config.model.sites
        return list(dict.fromkeys([*sites, *(self.reads(site) for site in sites)]))

    def reads(self, site: str) -> str:
        """The site whose vectors the SAE of `site` encodes: itself, unless it is a transcoder."""
        return self.config.sae.source_of(site) if isinstance(self.config.sae, TranscoderConfig) else site

    @property
    def has_sae(self) -> bool:
        return self.config.sae.name != "none"


def open_lab(config: RunConfig, run_key: str, command: str, store: Store, device: torch.device) -> Lab:
    """Load the network (trained first when its weights say so), the data and the metric."""
    data = {split: load_dataset(config.dataset, split) for split in ("train", "score")}
    network = open_model(config, store, device)
    metric = load_metric(config.metric, device)
    if isinstance(metric, PooledFeatures) and metric.model.fingerprint == network.fingerprint:
        raise ConfigError(
            f"metric={config.metric.name} is the network under study, which would judge itself",
            fix="Use metric=lpips_baseline_squeeze, or an embedding of another network.",
        )
    return Lab(config, run_key, command, store, device, network, data, metric, lambda axis, numbers, step: None)


def open_model(config: RunConfig, store: Store, device: torch.device) -> LoadedModel:
    """The network of a configuration; trained here first when its weights say so."""
    if config.model.weights != "train":
        return load_model(config.model, device)
    artifact = weights(config, store, device)
    return load_model(config.model, device, state_dict=read_tensors(artifact.path / WEIGHTS))


def weights(config: RunConfig, store: Store, device: torch.device) -> Artifact:
    """Stage ``weights``: a small classifier trained on the data set's ``train`` split."""
    dataset = load_dataset(config.dataset, "train")
    recipe = Recipe(
        "weights",
        VERSIONS["weights"],
        {
            "network": config.model.network,
            "init_seed": config.model.init_seed,
            "training": plain(config.model.training),
            "input": plain(config.model.input),
        },
        {"data": dataset.fingerprint},
        label=f"{config.model.name} on {dataset.name}",
    )

    def build(folder: Path) -> None:
        transform = ImageTransform(config.model.input)
        module = build_network(config.model)
        trained = train_classifier(module, dataset, transform, config.model.training, config.model.init_seed, device)
        write_tensors(folder / WEIGHTS, trained.state_dict)
        quality = evaluate_classifier(
            load_model(config.model, device, state_dict=trained.state_dict), load_dataset(config.dataset, "score")
        )
        logger.info(
            "%s is right on %.1f %% of %d held-out images",
            config.model.name,
            100 * quality.accuracy.estimate,
            quality.n_images,
        )
        write_json(
            folder / SUMMARY,
            {
                "accuracy": float(quality.accuracy.estimate),
                "cross_entropy": quality.cross_entropy,
                "train_loss": trained.losses[-1],
            },
        )

    return store.get(recipe, build)
