"""Where a shared SAE comes from: read from a finished run, written into ``sae.json`` and told by the model card."""

from __future__ import annotations

import math
import shlex
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

from mis_lab.core.errors import StoreError, nearest_first
from mis_lab.core.files import read_json
from mis_lab.core.store import MANIFEST

ENTRY = "provenance"  # in sae.json
RESULT, SUMMARY, METADATA = "result.json", "summary.json", "metadata.json"  # of a run, a stage, stored activations
SPLITS = ("train", "score")
PRIVATE = ("paths.", "logger", "hydra.", "device", "threads")  # options that say where a run ran, not what it did
QUALITY = ("fvu", "l0", "dead_share", "recovered_mean", "recovered_zero", "kl", "agreement", "n_images", "n_vectors")


@dataclass(frozen=True)
class Provenance:
    """What is known of an SAE's making; what is not known is left empty.

    Attributes:
        site: path, layout, width, n_positions, grid ... of the place in the network.
        network: name and fingerprint (hash of the weights).
        dataset: name, split and fingerprint of what it was trained on; of the split ``score`` where activations were
            computed live and no others are stored.
        artifact: ``sae/<key>`` in the store of the run.
        command: what to type to get the run again.
        seeds: by what they decide.
        training: options of the trainer.
        evaluation: part of the evaluation images (``seen``, ``held_out``) → number by name.
        origin: of an imported SAE: format, file, its hash, what the file said.
        versions: of mis_lab and the libraries that trained it.
    """

    site: Mapping[str, Any] = field(default_factory=dict)
    network: Mapping[str, str] = field(default_factory=dict)
    dataset: Mapping[str, str] = field(default_factory=dict)
    artifact: str = ""
    command: str = ""
    seeds: Mapping[str, int] = field(default_factory=dict)
    training: Mapping[str, Any] = field(default_factory=dict)
    evaluation: Mapping[str, Mapping[str, float]] = field(default_factory=dict)
    origin: Mapping[str, Any] = field(default_factory=dict)
    versions: Mapping[str, str] = field(default_factory=dict)

    def as_json(self) -> dict[str, Any]:
        """Its entries that are not empty."""
        return {name: value for name, value in asdict(self).items() if value}


class FinishedRun:
    """What a finished run says about its SAEs.

    Args:
        folder: the run's folder, below ``multirun_outputs/``.
        store: the artifact store; where the run had it by default.

    Attributes:
        sites: those that it has SAEs of.

    Raises:
        StoreError: when the run is not finished.
    """

    def __init__(self, folder: Path, store: Path | None = None) -> None:
        path = folder / RESULT
        if not path.is_file():
            raise StoreError(f"{folder} is no finished run", looked=path, fix="Give a folder below multirun_outputs/.")
        self.folder, self.result = folder, read_json(path)
        self.config: Mapping[str, Any] = self.result["config"]
        self.store = store or Path(self.config["paths"]["store"])
        self.sites = [name.removeprefix("sae/") for name in self.result["artifacts"] if name.startswith("sae/")]

    def sae_folder(self, site: str) -> Path:
        """The artifact of the SAE at `site`.

        Raises:
            StoreError: when the run has none there, or it is gone from the store.
        """
        if site not in self.sites:
            near = ", ".join(nearest_first(site, self.sites)) or "no site: run it with sae=topk and the stage sae"
            raise StoreError(f"the run {self.folder} has no SAE at {site}", fix=f"It has SAEs at {near}.")
        return self.artifact("sae", self.result["artifacts"][f"sae/{site}"])

    def place(self, site: str) -> Provenance:
        """Site, network and data set of whatever is trained on the run's activations at `site`.

        Raises:
            StoreError: when the run has no activations there, or they are gone from the store.
        """
        split, folder = self._activations(site)
        inputs = read_json(folder / MANIFEST)["inputs"]
        return Provenance(
            site=read_json(folder / METADATA)["site"],
            network={"name": self.config["model"]["name"], "fingerprint": inputs.get("weights", "")},
            dataset={"name": self.config["dataset"]["name"], "split": split, "fingerprint": inputs.get("data", "")},
        )

    def provenance(self, site: str) -> Provenance:
        """Where the SAE at `site` comes from."""
        manifest = read_json(self.sae_folder(site) / MANIFEST)
        split = self.config["dataset"].get("split") or {}
        seeds = {
            "run": self.config["seed"],
            "network": self.config["model"].get("init_seed"),
            "held-out groups": split.get("hold_out_seed"),
        }
        return replace(
            self.place(site),
            artifact=f"sae/{manifest['key']}",
            command=self.command,
            seeds={name: seed for name, seed in seeds.items() if seed is not None},
            training=manifest["config"].get("trainer") or {},
            evaluation=self._evaluation(site),
            versions=self.result.get("versions") or {},
        )

    @property
    def command(self) -> str:
        """What to type to get the run again, without the options that say where it ran."""
        return shlex.join(["mis-lab", *(word for word in self.result["overrides"] if not _is_private(word))])

    def _evaluation(self, site: str) -> dict[str, dict[str, float]]:
        key = self.result["artifacts"].get(f"evaluate/{site}")
        if key is None:
            return {}
        numbers: dict[str, dict[str, float]] = {}
        for name, value in read_json(self.artifact("evaluate", key) / SUMMARY).items():
            part, _, measure = name.partition("/")
            if measure in QUALITY and value is not None and math.isfinite(value):
                numbers.setdefault(part, {})[measure] = value
        return numbers

    def _activations(self, site: str) -> tuple[str, Path]:
        """Split and folder of the activations an SAE was trained on; else (it was trained live, there is none) of any
        that the run stored at `site`."""
        artifacts: Mapping[str, str] = self.result["artifacts"]
        keys = [(split, artifacts.get(f"activations/{split}/{site}")) for split in SPLITS]
        if site in self.sites:
            inputs = read_json(self.sae_folder(site) / MANIFEST)["inputs"]
            keys = [("train", inputs.get("activations")), *keys, ("score", inputs.get("held_out"))]
        wanted = [(split, key) for split, key in keys if key is not None]
        if not wanted:
            stored = {name.split("/", 2)[2] for name in artifacts if name.startswith("activations/")}
            near = ", ".join(nearest_first(site, {*stored, *self.sites})) or "no site"
            raise StoreError(f"the run {self.folder} has no activations at {site}", fix=f"It has some at {near}.")
        there = [(split, key) for split, key in wanted if self._is_stored("activations", key)]
        split, key = (there or wanted)[0]
        return split, self.artifact("activations", key)

    def _is_stored(self, stage: str, key: str) -> bool:
        return (self.store / stage / key / MANIFEST).is_file()

    def artifact(self, stage: str, key: str) -> Path:
        """The folder of an artifact of the run.

        Raises:
            StoreError: when it is gone from the store.
        """
        folder = self.store / stage / key
        if not self._is_stored(stage, key):
            raise StoreError(
                f"the artifact {stage}/{key} of {self.folder} is not in the store",
                looked=folder.absolute(),
                fix="Say where its store is with --store, or run it again: mis-lab rerun RUN_DIR.",
            )
        return folder


def _is_private(word: str) -> bool:
    return word.lstrip("+~").startswith(PRIVATE)
