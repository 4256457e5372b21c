"""A folder of your own images: one folder a class, nested as you like, with or without split folders."""

from __future__ import annotations

import logging
import os
from collections import defaultdict
from pathlib import Path
from typing import NamedTuple

from PIL import Image

from mis_lab.core.errors import DataError, MissingFileError
from mis_lab.core.progress import progress
from mis_lab.dataset.base import NO_LABEL, ImageDataset, SourceFile, check_split
from mis_lab.dataset.config import ImageFolderConfig
from mis_lab.dataset.reading import read_image
from mis_lab.dataset.splits import held_out_groups

SUFFIXES = (".jpg", ".jpeg", ".png", ".webp", ".bmp", ".gif", ".tif", ".tiff", ".ppm", ".pgm")
SPLIT_FOLDERS = {"train": ("train",), "score": ("score", "val", "validation", "test")}
logger = logging.getLogger(__name__)


class Found(NamedTuple):
    """An image file.

    Attributes:
        id: its path below the root, with slashes.
        class_name: "" when it lies in no class folder.
        folder: path of its folder below the root.
    """

    id: str
    class_name: str
    folder: str


class ImageFolder(ImageDataset):
    """Images below ``config.root``; id = path below it, label = first folder below it (or the split's).

    An image directly in the root (or in a split folder) has no label. Without split folders the score split
    is a fixed share of each class, chosen by a hash of the id (of the group, when images share groups), so
    that the same folder gives the same split everywhere.

    Raises:
        MissingFileError: when the root is no folder, or the folder of this split is missing.
        DataError: when there are no images; later, at an image that cannot be read.
    """

    def __init__(self, config: ImageFolderConfig, split: str) -> None:
        check_split(config.name, split)
        self.config, self.root = config, Path(config.root).expanduser()
        if not self.root.is_dir():
            raise MissingFileError(
                f"dataset.root={config.root} is not a folder",
                looked=self.root.absolute(),
                fix="Give the folder that holds one folder of images a class.",
            )
        mine, class_names = self._choose(split)
        if config.on_broken == "skip":
            mine = self._readable(mine, split)
        label_of = {name: label for label, name in enumerate(class_names)}
        super().__init__(
            config.name,
            split,
            ids=[found.id for found in mine],
            groups=[_group(found, config.group) for found in mine],
            labels=[label_of.get(found.class_name, NO_LABEL) for found in mine],
            class_names=class_names,
        )

    def image(self, index: int) -> Image.Image:
        return read_image(self.root / self.ids[index], self.ids[index])

    def file(self, index: int) -> SourceFile:
        return SourceFile(self.ids[index], self.root / self.ids[index])

    @property
    def verify_all(self) -> bool:
        return self.config.verify == "full"

    def _choose(self, split: str) -> tuple[list[Found], list[str]]:
        """The images of `split` in the order of their ids, and the class names of all splits."""
        folders = self._split_folders()
        by_split = {name: self._images(folder) for name, folder in folders.items()} if folders else {}
        if not folders:
            everything = self._images(self.root)
            score = _score_ids(everything, self.config)
            by_split = {
                "train": [found for found in everything if found.id not in score],
                "score": [found for found in everything if found.id in score],
            }
        class_names = sorted({found.class_name for images in by_split.values() for found in images} - {""})
        if not by_split[split]:
            raise DataError(
                f"there are no images for the split {split} of data set {self.config.name}",
                looked=f"{folders.get(split, self.root)} for {', '.join(SUFFIXES)}",
                fix="Check dataset.root; for a small folder raise or lower dataset.score_share.",
            )
        return by_split[split], class_names

    def _split_folders(self) -> dict[str, Path]:
        """Split → its folder, when the root is laid out in splits; else nothing.

        It is when it has folders for both splits, or when all its folders are named like splits: one class
        among others may well be called "train".
        """
        there = {path.name for path in self.root.iterdir() if path.is_dir() and not path.name.startswith(".")}
        found = {split: next((name for name in names if name in there), None) for split, names in SPLIT_FOLDERS.items()}
        known = {name for names in SPLIT_FOLDERS.values() for name in names}
        if all(found.values()):
            return {split: self.root / str(name) for split, name in found.items()}
        if there and there <= known:
            lacking = next(split for split, name in found.items() if name is None)
            raise MissingFileError(
                f"dataset.root={self.config.root} has no folder for the split {lacking}",
                looked=f"its folders: {', '.join(sorted(there))}",
                fix=f"Add {' or '.join(SPLIT_FOLDERS[lacking])}, or give {sorted(there)[0]} itself as root.",
            )
        return {}

    def _images(self, folder: Path) -> list[Found]:
        """Image files below `folder` (links to folders followed, hidden names left out), sorted by id."""
        images = []
        for place, folders, files in os.walk(folder, onerror=_unreadable_folder, followlinks=True):
            folders[:] = [name for name in folders if not name.startswith(".")]
            parts = Path(place).relative_to(folder).parts
            below = Path(place).relative_to(self.root).as_posix()
            for name in files:
                if name.lower().endswith(SUFFIXES) and not name.startswith("."):
                    image_id = name if below == "." else f"{below}/{name}"
                    images.append(Found(image_id, parts[0] if parts else "", below))
        return sorted(images)

    def _readable(self, images: list[Found], split: str) -> list[Found]:
        """Those that decode wholly; one line says how many do not."""
        readable, broken = [], []
        for found in progress(images, f"check {self.config.name}/{split}", unit="image"):
            try:
                read_image(self.root / found.id, found.id)
                readable.append(found)
            except DataError:
                broken.append(found.id)
        if broken:
            logger.warning(
                "%s/%s: %d of %d images cannot be read and are left out, %s for one",
                self.config.name, split, len(broken), len(images), broken[0],
            )  # fmt: skip
        if not readable:
            raise DataError(
                f"none of the {len(images)} images of {self.config.name}/{split} can be read",
                looked=self.root,
            )
        return readable


def _unreadable_folder(error: OSError) -> None:
    raise DataError(f"a folder cannot be read ({error.strerror})", looked=error.filename) from error


def _group(found: Found, kind: str) -> str:
    return {"none": found.id, "class": found.class_name, "folder": found.folder}[kind]


def _score_ids(images: list[Found], config: ImageFolderConfig) -> set[str]:
    """Ids of the score split: a share of each class, or of all groups when images share groups."""
    if config.group != "none":
        held_out = held_out_groups([_group(found, config.group) for found in images], config.score_share, 0, "score")
        return {found.id for found in images if _group(found, config.group) in held_out}
    by_class: dict[str, list[str]] = defaultdict(list)
    for found in images:
        by_class[found.class_name].append(found.id)
    return {image_id for ids in by_class.values() for image_id in held_out_groups(ids, config.score_share, 0, "score")}
