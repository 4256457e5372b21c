"""The schema of one run, put together from the schemas that each package declares in its own torch-free config.py.

YAML presets under ``conf/`` fill these schemas; a wrong group, key, type or enum fails when composed, a wrong range in
``__post_init__`` (run by :func:`validate`), and all missing values are reported together. docs/configuration.md.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, fields, is_dataclass
from enum import Enum
from pathlib import Path
from typing import Any

from hydra.core.config_store import ConfigStore
from omegaconf import MISSING, DictConfig, OmegaConf, ValidationError

from mis_lab.activations.config import ActivationsConfig
from mis_lab.circuit.config import CircuitConfig
from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import content_key
from mis_lab.dataset.config import (
    DatasetConfig,
    ExternalDatasetConfig,
    ImageFolderConfig,
    MnistConfig,
    PhotoPatchesConfig,
)
from mis_lab.metric.config import (
    DreamSimConfig,
    EmbeddingConfig,
    ExternalMetricConfig,
    LabelsConfig,
    LpipsBaselineSqueezeConfig,
    LpipsConfig,
    MetricConfig,
)
from mis_lab.mis.config import MisConfig
from mis_lab.model.config import ModelConfig
from mis_lab.report.config import ReportConfig
from mis_lab.sae.baseline_config import FrozenDecoderConfig, NeuronsConfig, NmfConfig, PcaConfig, RandomConfig
from mis_lab.sae.config import (
    BatchTopKConfig,
    EvaluateConfig,
    ExternalSaeConfig,
    GatedConfig,
    JumpReluConfig,
    MatryoshkaConfig,
    NoSaeConfig,
    ReluConfig,
    SaeConfig,
    TopKConfig,
)
from mis_lab.sae.further_config import ArchetypalConfig, ConvConfig, TranscoderConfig
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.tracking.config import LoggerConfig


class Stage(Enum):
    """The stages of a run, in order."""

    activations = 0
    sae = 1
    evaluate = 2
    mis = 3
    circuit = 4
    report = 5


@dataclass
class PathsConfig:
    """Where things are; never part of a key.

    Attributes:
        output: where runs land.
        store: the artifact store.
        data: where data sets that are not packaged are looked for.
    """

    output: str = "multirun_outputs"
    store: str = "multirun_outputs/.store"
    data: str = "data"


@dataclass
class RunConfig:
    """One run: every option, by package.

    Attributes:
        name: folder of the run, and its group in W&B.
        seed: of everything random in this run (start of SAEs, tasks, controls, bootstrap), but for the order of the
            data in training (trainer.order_seed).
        device: auto, cpu, cuda, cuda:N, mps.
        threads: CPU threads of torch (0 = its own choice).
        stages: which stages to run; those left out are read from the store where a later one needs them.
        together: axes of a grid, as a sweep has them (``["sae.k=8,16", "seed=0,1"]``): these SAEs are trained in the
            same pass over the data as this run's, and a sweep over the same grid finds them done.
        plugins: packages whose names configurations may use (``my_package.``); set it in conf/local.
    """

    model: ModelConfig = MISSING
    dataset: DatasetConfig = MISSING
    activations: ActivationsConfig = MISSING
    sae: SaeConfig = MISSING
    trainer: TrainerConfig = MISSING
    metric: MetricConfig = MISSING
    mis: MisConfig = MISSING
    circuit: CircuitConfig = MISSING
    logger: LoggerConfig = MISSING
    paths: PathsConfig = MISSING
    evaluate: EvaluateConfig = field(default_factory=EvaluateConfig)
    report: ReportConfig = field(default_factory=ReportConfig)
    name: str = "default"
    seed: int = 0
    device: str = "auto"
    threads: int = 0
    stages: list[Stage] = field(default_factory=lambda: list(Stage))
    plugins: list[str] = field(default_factory=list)
    together: list[str] = field(default_factory=list)


# What cannot change a result, and so is no part of a run's key.
NOT_IN_RUN_KEY = ("logger", "paths", "device", "threads", "name", "plugins", "together")

SCHEMAS: dict[str, dict[str, type]] = {
    "model": {"base": ModelConfig},
    "dataset": {
        "photo_patches": PhotoPatchesConfig,
        "mnist": MnistConfig,
        "image_folder": ImageFolderConfig,
        "external": ExternalDatasetConfig,
    },
    "activations": {"base": ActivationsConfig},
    "sae": {
        "none": NoSaeConfig,
        "relu": ReluConfig,
        "gated": GatedConfig,
        "topk": TopKConfig,
        "batch_topk": BatchTopKConfig,
        "jump_relu": JumpReluConfig,
        "matryoshka": MatryoshkaConfig,
        "archetypal": ArchetypalConfig,
        "conv": ConvConfig,
        "transcoder": TranscoderConfig,
        "neurons": NeuronsConfig,
        "pca": PcaConfig,
        "random": RandomConfig,
        "frozen_decoder": FrozenDecoderConfig,
        "nmf": NmfConfig,
        "external": ExternalSaeConfig,
    },
    "trainer": {"base": TrainerConfig},
    "metric": {
        "lpips_baseline_squeeze": LpipsBaselineSqueezeConfig,
        "embedding": EmbeddingConfig,
        "lpips": LpipsConfig,
        "dreamsim": DreamSimConfig,
        "labels": LabelsConfig,
        "external": ExternalMetricConfig,
    },
    "mis": {"base": MisConfig},
    "circuit": {"base": CircuitConfig},
    "logger": {"base": LoggerConfig},
    "paths": {"base": PathsConfig},
}


def conf_dir() -> Path:
    """The ``conf`` folder: the checkout's when there is one, else the copy inside the installed package."""
    package = Path(__file__).resolve().parent
    checkout = package.parent / "conf"
    return checkout if (checkout / "config.yaml").exists() else package / "conf"


def run_key(root: DictConfig) -> str:
    """Hash of the resolved configuration without what cannot change results (the resolver ``${run_key:}``)."""
    config = _without_hydra(root)
    content = OmegaConf.to_container(config, resolve=True, throw_on_missing=False, enum_to_str=True)
    assert isinstance(content, dict)
    effective = _with_an_effect(content, config)
    return content_key({name: value for name, value in effective.items() if name not in NOT_IN_RUN_KEY}, length=12)


def _with_an_effect(content: dict[Any, Any], config: DictConfig) -> dict[Any, Any]:
    """`content` of `config` without the fields that its schemas mark ``NO_EFFECT``."""
    schema = OmegaConf.get_type(config)
    marks: dict[str, Mapping[Any, Any]] = {}
    if is_dataclass(schema):
        marks = {each.name: each.metadata for each in fields(schema)}
    return {
        name: _with_an_effect(value, config[name]) if isinstance(value, dict) else value
        for name, value in content.items()
        if marks.get(name, {}).get("affects_result", True)
    }


def _unknown(config: DictConfig, start: str = "") -> Iterator[str]:
    """Options that a ``+`` on the command line added beside those of the schema."""
    schema = OmegaConf.get_type(config)
    known = {each.name for each in fields(schema)} if is_dataclass(schema) else None
    for name in map(str, config):
        path = f"{start}{name}"
        if known is not None and name not in known:
            yield path
        elif not OmegaConf.is_missing(config, name) and OmegaConf.is_dict(config[name]):
            yield from _unknown(config[name], f"{path}.")


def _without_hydra(config: DictConfig) -> DictConfig:
    return OmegaConf.masked_copy(config, [str(name) for name in config if name != "hydra"])


def register() -> None:
    """Register schemas and resolvers with Hydra; harmless when called again."""
    store = ConfigStore.instance()
    store.store(name="run_schema", node=RunConfig)
    for group, schemas in SCHEMAS.items():
        for name, schema in schemas.items():
            store.store(group=f"schema/{group}", name=name, node=schema)
    OmegaConf.register_new_resolver("run_key", lambda *, _root_: run_key(_root_), replace=True)
    OmegaConf.register_new_resolver("option_groups", option_groups, replace=True)


def option_groups() -> str:
    """A line a configuration group with its presets, for the help text (schemas are nobody's choice)."""
    folders = sorted(path for path in conf_dir().rglob("*") if path.is_dir() and path.name not in ("hydra", "local"))
    presets = {folder: sorted(file.stem for file in folder.glob("*.yaml")) for folder in folders}
    return "\n".join(
        f"{folder.relative_to(conf_dir()).as_posix()}: {', '.join(names)}" for folder, names in presets.items() if names
    )


def validate(config: DictConfig) -> RunConfig:
    """The typed configuration, ranges checked.

    Raises:
        ConfigError: naming every missing value at once, or the first value out of range.
    """
    config = _without_hydra(config)
    missing = sorted(OmegaConf.missing_keys(config))
    if missing:
        raise ConfigError(
            f"no value for {', '.join(missing)}", fix=f"Set {missing[0]}=... on the command line or in a preset."
        )
    if unknown := sorted(_unknown(config)):
        raise ConfigError(
            f"no option {', '.join(unknown)}", fix="Leave out the '+', so that a typing error is told when composed."
        )
    try:
        groups: Any = OmegaConf.to_object(config)
        return RunConfig(**groups)
    except (ValidationError, TypeError, ValueError) as error:
        raise ConfigError(" ".join(str(error).split())) from error
