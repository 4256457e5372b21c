"""Options of networks and sites (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum
from typing import Any

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT
from mis_lab.dataset.config import TransformConfig


class Layout(Enum):
    """How a site's output is laid out.

    ``auto`` reads it off the shape: two dimensions are vectors, three a sequence of tokens; of four, inputs
    being square, the two equal extents are the map (C, H, H: bchw; H, H, C: bhwc, as in Swin).
    """

    auto = 0
    bchw = 1
    bhwc = 2
    btd = 3
    bd = 4


class Tokens(Enum):
    """Which tokens of a sequence are vectors: all, patches, or the prefix (class token, registers)."""

    all = 0
    patches = 1
    prefix = 2


class Optimizer(Enum):
    adam = 0
    sgd = 1


@dataclass
class ClassifierTrainingConfig:
    """Training the network itself, for networks small enough (the thesis' MLPs on digits).

    Attributes:
        epochs, batch_size, lr, momentum, weight_decay: as usual.
        lr_step: epochs after which the rate falls tenfold, again and again (0 = never).
    """

    epochs: int = 10
    batch_size: int = 64
    optimizer: Optimizer = Optimizer.sgd
    lr: float = 0.1
    momentum: float = 0.0
    weight_decay: float = 0.0
    lr_step: int = 0

    def __post_init__(self) -> None:
        if self.epochs < 1 or self.batch_size < 1 or self.lr <= 0:
            raise ConfigError(f"model.training needs positive epochs, batch_size and lr, got {self}")
        if not 0 <= self.momentum < 1 or self.weight_decay < 0 or self.lr_step < 0:
            raise ConfigError(f"model.training needs momentum, weight_decay and lr_step from 0 on, got {self}")


@dataclass
class ModelConfig:
    """A network, its weights, its sites and its input.

    Attributes:
        name: short name for tables.
        network: ``_target_`` and keywords of what makes the module (``timm.create_model``, a torchvision
            function, a class of your own). Pretrained weights of timm or torchvision are asked for here
            (``pretrained: true``, ``weights: IMAGENET1K_V1``).
        weights: where weights come from: ``none`` (as the network's constructor leaves them, from
            `init_seed`), ``random`` (the same, but pretrained weights are not asked for, whatever `network` says),
            ``package:NAME`` (see mis_lab/model/packaged.py), ``file:PATH`` (safetensors, or a state dict that
            loads with weights_only), or ``train`` (trained here, see `training`).
        init_seed: seed of random initial weights.
        sites: module paths, in the order of the network.
        layout, tokens: see :class:`Layout`, :class:`Tokens`.
        input: how images become its input.
        training: used with ``weights: train``.
        class_names: ``imagenet`` for the 1,000 names, ``dataset`` for the data set's own, or ``none``.
        channels_last: keep feature maps with channels innermost in memory (twice as fast on CPUs).
    """

    name: str = "???"
    network: dict[str, Any] = field(default_factory=dict)
    weights: str = "none"
    init_seed: int = 0
    sites: list[str] = field(default_factory=list)
    layout: Layout = Layout.auto
    tokens: Tokens = Tokens.patches
    input: TransformConfig = field(default_factory=TransformConfig)
    training: ClassifierTrainingConfig = field(default_factory=ClassifierTrainingConfig)
    class_names: str = "none"
    channels_last: bool = field(default=True, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        if not self.sites:
            raise ConfigError(
                f"model.sites is empty for {self.name}",
                fix="Name at least one module; 'mis-lab model sites model=...' lists them.",
            )
        if len(set(self.sites)) != len(self.sites):
            raise ConfigError(f"model.sites names a module twice: {', '.join(self.sites)}")
        kind, _, which = self.weights.partition(":")
        if kind not in ("none", "random", "package", "file", "train") or (kind in ("package", "file")) != bool(which):
            raise ConfigError(
                f"model.weights={self.weights} is unknown", fix="Use none, random, package:NAME, file:PATH or train."
            )
        if self.class_names not in ("imagenet", "dataset", "none"):
            raise ConfigError(f"model.class_names={self.class_names} is unknown", fix="Use imagenet, dataset or none.")
