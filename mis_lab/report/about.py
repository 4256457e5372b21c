"""What a page says about its run before any result: the run, the network, the images, the sites."""

# H, W of a picture

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

Picture = Image.Image | np.ndarray  # RGB or grey; arrays (H, W, 3) or (H, W), uint8


@dataclass(frozen=True)
class ArtifactRef:
    """An artifact that a run used or made: stage, a few words, key."""

    stage: str
    label: str
    key: str


@dataclass(frozen=True)
class RunSummary:
    """Which run this is.

    Attributes:
        name, key: folder name and key of the run.
        command: what to type to get it again.
        finished_at: when, in words; empty leaves it out.
        versions: package → version.
        config_yaml: the whole configuration.
        stages: those that were run, in order.
    """

    name: str
    key: str
    command: str
    seed: int
    device: str
    versions: Mapping[str, str]
    config_yaml: str
    artifacts: Sequence[ArtifactRef]
    stages: Sequence[str]
    finished_at: str = ""


@dataclass(frozen=True)
class ModelSummary:
    """The network under study.

    Attributes:
        weights: where they come from, in words.
        fingerprint: hash of the weights.
        input_px: side of its input.
        accuracy: top-1 on the data set where it has labels (0 to 1), else None.
    """

    name: str
    weights: str
    fingerprint: str
    n_parameters: int
    input_px: int
    accuracy: float | None = None


@dataclass(frozen=True)
class Scene:
    """A group of images on the contact sheet.

    Attributes:
        held_out: no SAE trained on it and no circuit was found on it.
        credit: who made it, and under which terms.
    """

    name: str
    image: Picture
    n_train: int
    n_score: int
    held_out: bool
    credit: str = ""


@dataclass(frozen=True)
class DatasetSummary:
    """The images.

    Attributes:
        group_word: what a group is called, singular ("scene", "image").
        n_train, n_score: images that SAEs train on, images that units are scored on.
        n_groups, n_held_out: groups in all, and those held out.
        scenes: the contact sheet: every group, or some of many.
    """

    name: str
    group_word: str
    n_train: int
    n_score: int
    n_groups: int
    n_held_out: int
    scenes: Sequence[Scene]


@dataclass(frozen=True)
class SiteSummary:
    """A site: its path, width D, positions P an image, and its SAE's features (0 without one)."""

    path: str
    width: int
    n_positions: int
    n_features: int = 0
