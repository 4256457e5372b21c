"""A finished run whose network is steered at one of its sites: network, nodes, images, as the run had them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

import torch
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.unit_maps import MapReader, UnitMaps
from mis_lab.activations.units import Neurons as NeuronUnits
from mis_lab.circuit.baselines import SiteNodes
from mis_lab.circuit.dictionaries import Neurons, NodeDictionary, SaeFeatures
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.steer import Strength
from mis_lab.config import RunConfig
from mis_lab.core.device import resolve_device
from mis_lab.core.errors import ConfigError, DataError, StoreError, nearest_first
from mis_lab.core.files import read_json
from mis_lab.core.seeding import generator
from mis_lab.core.store import MANIFEST, Store
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import batches
from mis_lab.model.class_names import class_names
from mis_lab.model.config import ModelConfig
from mis_lab.model.load import LoadedModel
from mis_lab.pipeline.lab import open_model
from mis_lab.pipeline.scored import ScoredRun
from mis_lab.sae import io as sae_io
from mis_lab.sae.base import Sae
from mis_lab.sae.units import Features

SCORED = "activations/score/"
BATCH_SIZE = 32


class Shown(NamedTuple):
    """Images to steer on: places in the data set, and why each was taken."""

    indices: list[int]
    reasons: list[str]


class SteerableRun:
    """A site of a finished run, with its features or neurons.

    Args:
        run_dir: the run's folder, below ``multirun_outputs/``.
        site: path of one of its sites.
        kind: ``feature`` or ``neuron``.
        store: the artifact store; where the run had it by default.

    Raises:
        StoreError: when the run is not finished, or has no such site or no SAE there.
        ConfigError: when the SAE's codes are not of single vectors of the site.
    """

    def __init__(self, run_dir: Path, site: str, kind: str = "feature", store: Path | None = None) -> None:
        self._scored = ScoredRun(run_dir, store)
        self.run, self.kind = self._scored.run, kind
        self.seed = int(self.run.result["seed"])
        artifacts: Mapping[str, str] = self.run.result["artifacts"]
        sites = [name.removeprefix(SCORED) for name in artifacts if name.startswith(SCORED)]
        if site not in sites:
            near = ", ".join(nearest_first(site, sites)) or "none: run the stage activations"
            raise StoreError(f"the run {run_dir} has no site {site}", fix=f"It has {near}.")
        folder = self.run.artifact("activations", artifacts[f"{SCORED}{site}"])
        self.stored, self._inputs = StoredActivations(folder), read_json(folder / MANIFEST)["inputs"]
        self.sae = self._open_sae(site) if kind == "feature" else None

    def _open_sae(self, site: str) -> Sae:
        sae = sae_io.load(self.run.sae_folder(site))
        if not isinstance(sae, Sae):
            raise ConfigError(
                f"codes of the {type(sae).__name__} at {site} are not of single vectors there",
                fix="Steer neurons: --kind neuron.",
            )
        return sae

    @cached_property
    def config(self) -> ModelConfig:
        """The network's configuration."""
        told: Mapping[str, Any] = self.run.config["model"]
        try:
            config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(ModelConfig), told))
        except OmegaConfBaseException as error:
            raise ConfigError(
                f"the run's network has options that this version does not know ({str(error).splitlines()[0]})",
                fix="Run it again with this version: mis-lab rerun RUN_DIR.",
            ) from error
        assert isinstance(config, ModelConfig)
        return config

    @cached_property
    def model(self) -> LoadedModel:
        """The network.

        Raises:
            DataError: when its weights are not those that the run had.
        """
        config = RunConfig(model=self.config, dataset=self._scored.dataset_config)
        model = open_model(config, Store(self.run.store), resolve_device("auto"))
        if model.fingerprint != self._inputs["weights"]:
            raise DataError(
                f"the weights of {model.name} are not those of the run",
                looked=f"{model.fingerprint[:8]}, {self._inputs['weights'][:8]} then",
                fix="Run it again: mis-lab rerun RUN_DIR.",
            )
        return model

    @cached_property
    def dataset(self) -> ImageDataset:
        """The images that the run scored.

        Raises:
            DataError: when they are others by now.
        """
        dataset = self._scored.dataset
        if dataset.ids != list(self.stored.ids):
            raise DataError(
                f"data set {dataset.name}/score has other images than the run had", fix="Put the run's data back."
            )
        return dataset

    @cached_property
    def names(self) -> list[str]:
        """Of the classes; empty where they have none."""
        return class_names(self.config, self.dataset)

    @property
    def problem(self) -> Problem:
        """The network with its one site."""
        return Problem(self.model, (self.stored.site,), logit)

    @cached_property
    def nodes(self) -> dict[str, SiteNodes]:
        """The site's nodes; removed ones become zero."""
        site, like = self.stored.site, next(self.model.module.parameters())
        dictionary: NodeDictionary = Neurons.at(site, like)
        if self.sae is not None:
            dictionary = SaeFeatures.at(site, self.sae.to(like.device).eval().requires_grad_(False))
        zeros = dictionary.offset.new_zeros(dictionary.n_features)
        return {site.path: SiteNodes.of(dictionary, zeros, torch.zeros_like(dictionary.offset))}

    def check(self, feature: int) -> None:
        """Raise a ConfigError unless the site has this node."""
        n_features = self.sae.n_features if self.sae is not None else self.stored.width
        if not 0 <= feature < n_features:
            raise ConfigError(
                f"{self.stored.site.path} has no {self.kind} {feature}", fix=f"They are 0 to {n_features - 1}."
            )

    def activations(self, feature: int) -> UnitMaps:
        """Of one node on every image."""
        source = NeuronUnits(self.stored.width) if self.sae is None else Features(self.sae)
        return MapReader(self.stored, source, ImageActivation.mean).of(feature, range(len(self.stored.ids)))

    def strength(self, feature: int) -> Strength:
        """The node's largest activation and the mean of those that are not zero, over all images."""
        maps = self.activations(feature).maps.double()
        active = maps[maps != 0]
        return Strength(float(maps.max()), float(active.mean()) if len(active) else 0.0)

    def most_activating(self, feature: int, n: int) -> Shown:
        """`n` images: the first half those with the largest image activation, the others drawn from the rest."""
        values_n = self.activations(feature).values
        order = values_n.argsort(descending=True, stable=True)
        n_top = (n + 1) // 2
        drawn = torch.randperm(len(order[n_top:]), generator=generator(self.seed, "steer", feature))
        rest = order[n_top:][drawn[: n - n_top]]
        reasons = ["most activating"] * len(order[:n_top]) + ["random"] * len(rest)
        return Shown([*order[:n_top].tolist(), *rest.tolist()], reasons)

    def wanted(self, ids: Sequence[str]) -> Shown:
        """The images of these ids.

        Raises:
            DataError: naming one that there is not.
        """
        place = {image_id: index for index, image_id in enumerate(self.dataset.ids)}
        for image_id in ids:
            if image_id not in place:
                near = ", ".join(nearest_first(image_id, place, 3))
                raise DataError(f"data set {self.dataset.name} has no image {image_id}", fix=f"Nearest: {near}.")
        return Shown([place[image_id] for image_id in ids], ["wanted"] * len(ids))

    def images(self, indices: Sequence[int]) -> list[Tensor]:
        """Batches of images as the network gets them."""
        found = batches(self.dataset, self.model.transform, BATCH_SIZE, indices=indices)
        return [self.model.to_input(batch.images_bchw) for batch in found]
