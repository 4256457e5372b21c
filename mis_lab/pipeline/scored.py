"""What a finished run scored, read back for a closer look: scores, images, and the units' activations.

Keys come from the run's ``result.json`` and from the manifests in its store; no score is computed again.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.shards import METADATA, StoredActivations
from mis_lab.activations.unit_maps import MapReader
from mis_lab.activations.units import Neurons, RandomDirections, UnitSource
from mis_lab.circuit.result import CircuitResult
from mis_lab.config import SCHEMAS
from mis_lab.core.errors import ConfigError, DataError, StoreError, nearest_first
from mis_lab.core.files import read_json
from mis_lab.core.keys import content_key
from mis_lab.core.store import MANIFEST
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import DatasetConfig
from mis_lab.dataset.load import load_dataset
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.sae import io as sae_io
from mis_lab.sae.share.provenance import FinishedRun
from mis_lab.sae.units import Features

# What decides which units there are: inputs of their scores.
UNITS_OF = {"feature": "sae", "neuron": "activations"}
# Kinds whose activations can be looked up in the store: those of permuted units were given to other images, and those
# of sparse neurons belong to an SAE's evaluation.
WITH_MAPS = ("neuron", "feature", "random_directions")


class ScoredRun:
    """A finished run with scores.

    Args:
        run_dir: its folder, below ``multirun_outputs/``.
        store: the artifact store; where the run had it by default.

    Raises:
        StoreError: when the run is not finished.
    """

    def __init__(self, run_dir: Path, store: Path | None = None) -> None:
        self.run = FinishedRun(run_dir, store)
        self._keys: Mapping[str, str] = self.run.result["artifacts"]

    def scores(self, site: str, kind: str) -> UnitScores:
        """Scores of the units of one kind at a site (``neuron``, ``feature``, ``permuted``, ``random_directions``).

        Raises:
            StoreError: naming those that there are, when it has none, or they are gone from the store.
        """
        return UnitScores.read(self._folder(site, kind))

    def of_kind(self, kind: str) -> dict[str, UnitScores]:
        """Scores of the units of one kind at every site.

        Raises:
            StoreError: naming the kinds that there are, when it has none, or they are gone from the store.
        """
        return {site: self.scores(site, kind) for site in self._sites(kind)}

    def units_key(self, site: str, kind: str) -> str:
        """Key of what makes a site's units: equal keys, equal units; empty for controls."""
        if kind not in UNITS_OF:
            return ""
        inputs: Mapping[str, str] = read_json(self._folder(site, kind) / MANIFEST)["inputs"]
        return inputs[UNITS_OF[kind]]

    @property
    def overrides(self) -> list[str]:
        """What the run was asked for, beside Hydra's own options."""
        return [word for word in self.run.result["overrides"] if not word.startswith(("-", "hydra"))]

    @cached_property
    def dataset(self) -> ImageDataset:
        """The images that were scored.

        Raises:
            ConfigError: when the data set of the run's configuration cannot be opened here.
        """
        return load_dataset(self.dataset_config, "score")

    @cached_property
    def dataset_config(self) -> DatasetConfig:
        """The configuration of the run's data set.

        Raises:
            ConfigError: when this version does not know one of its options.
        """
        return _dataset_config(self.run.config["dataset"])

    def images_of(self, scores: UnitScores) -> ImageDataset:
        """The data set, when its images are those of the scores.

        Raises:
            DataError: when they are others by now.
        """
        if self.dataset.ids != scores.image_ids:
            raise DataError(
                f"data set {self.dataset.name}/score has other images than those that were scored",
                looked=f"{len(self.dataset)} images, {len(scores.image_ids)} were scored",
                fix="Put the run's data back, or run it again: mis-lab rerun RUN_DIR.",
            )
        return self.dataset

    def maps(self, site: str, kind: str) -> MapReader | None:
        """What looks the units' activations up; None for kinds that have none to look up (:data:`WITH_MAPS`).

        Raises:
            StoreError: when activations or SAE are gone from the store.
        """
        if kind not in WITH_MAPS:
            return None
        manifest = read_json(self._folder(site, kind) / MANIFEST)
        inputs, config = manifest["inputs"], manifest["config"]
        stored = StoredActivations(self.run.artifact("activations", inputs["activations"]))
        source: UnitSource = Neurons(stored.width)
        if "sae" in inputs:
            source = Features(sae_io.load(self.run.artifact("sae", inputs["sae"])))
        elif kind == "random_directions":
            source = RandomDirections(stored.width, config["mis"]["n_control_units"], config["seed"])
        return MapReader(stored, source, ImageActivation[config["mis"]["image_activation"]])

    @property
    def circuit(self) -> CircuitResult:
        """The circuit that it found.

        Raises:
            StoreError: when it found none, or it is gone from the store.
        """
        return CircuitResult.read(self._circuit_folder())

    def circuit_units(self, kind: str) -> dict[str, str]:
        """Site → what makes the nodes of one kind of its circuit: equal keys, equal nodes, whatever the images.

        Raises:
            StoreError: as :attr:`circuit`.
        """
        start = f"{UNITS_OF[kind]}/"
        keys = {name.removeprefix(start): key for name, key in self._circuit_inputs().items() if name.startswith(start)}
        return {site: self._neurons_key(key) for site, key in keys.items()} if kind == "neuron" else keys

    @property
    def circuit_data(self) -> str:
        """Fingerprint of the data set that the circuit's images are from; empty when no activations are left."""
        keys = [key for name, key in self._circuit_inputs().items() if name.startswith("activations/")]
        return next((told["data"] for key in keys if (told := self._activations_inputs(key))), "")

    def _neurons_key(self, activations_key: str) -> str:
        """Of network and site; of the activations themselves when these are gone from the store."""
        told = self._activations_inputs(activations_key)
        if not told:
            return activations_key
        folder = self.run.artifact("activations", activations_key)
        return content_key({"weights": told["weights"], "site": read_json(folder / METADATA)["site"]})

    def _activations_inputs(self, key: str) -> Mapping[str, str]:
        try:
            return read_json(self.run.artifact("activations", key) / MANIFEST)["inputs"]
        except StoreError:
            return {}

    def _circuit_inputs(self) -> Mapping[str, str]:
        return read_json(self._circuit_folder() / MANIFEST)["inputs"]

    def _circuit_folder(self) -> Path:
        if "circuit" not in self._keys:
            raise StoreError(f"the run {self.run.folder} has no circuit", fix="Run its stage circuit.")
        return self.run.artifact("circuit", self._keys["circuit"])

    def _sites(self, kind: str) -> list[str]:
        scored = [name.removeprefix("mis/").rpartition("/") for name in self._keys if name.startswith("mis/")]
        kinds = dict.fromkeys(of for _, _, of in scored)
        if kind not in kinds:
            raise StoreError(
                f"the run {self.run.folder} scored no units of kind {kind}",
                fix=f"It scored {', '.join(kinds) or 'none: run the stage mis'}.",
            )
        return [at for at, _, of in scored if of == kind]

    def _folder(self, site: str, kind: str) -> Path:
        sites = self._sites(kind)
        if site not in sites:
            raise StoreError(
                f"the run {self.run.folder} scored no units of kind {kind} at {site}",
                fix=f"It did at {', '.join(nearest_first(site, sites))}.",
            )
        return self.run.artifact("mis", self._keys[f"mis/{site}/{kind}"])


def run_labels(runs: Sequence[ScoredRun]) -> list[str]:
    """What each run was asked for that not all others were, or its folder's name; all different.

    An option that has one value wherever it is given is left out where labels stay different without it.
    """
    common = set(runs[0].overrides).intersection(*(run.overrides for run in runs[1:]))
    labels = [[word for word in run.overrides if word not in common] for run in runs]
    for word in list(dict.fromkeys(word for label in labels for word in label)):
        option = word.partition("=")[0]
        values = {other for label in labels for other in label if other.partition("=")[0] == option}
        fewer = [[other for other in label if other != word] for label in labels]
        if len(values) == 1 and all(fewer) and len(set(map(tuple, fewer))) == len(set(map(tuple, labels))):
            labels = fewer
    folders = [run.run.folder.name for run in runs]
    found = [" ".join(label) or folder for label, folder in zip(labels, folders, strict=True)]
    return [
        f"{label} ({folder})" if found.count(label) > 1 else label for label, folder in zip(found, folders, strict=True)
    ]


def _dataset_config(told: Mapping[str, Any]) -> DatasetConfig:
    """The typed configuration of a stored one."""
    known = {schema.__dict__.get("_target_"): schema for schema in SCHEMAS["dataset"].values()}
    schema = known.get(told.get("_target_"), SCHEMAS["dataset"]["external"])
    try:
        config = OmegaConf.to_object(OmegaConf.merge(OmegaConf.structured(schema), told))
    except OmegaConfBaseException as error:
        raise ConfigError(
            f"the run's data set {told.get('name')} has options that this version does not know"
            f" ({str(error).splitlines()[0]})",
            fix="Run it again with this version: mis-lab rerun RUN_DIR.",
        ) from error
    assert isinstance(config, DatasetConfig)
    return config
