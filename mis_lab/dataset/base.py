"""What a data set is: columns (ids, groups, labels), an image an index, and a manifest of what it holds.

Everything downstream is keyed by the image id; the manifest (ids, labels and the content of the files, never
their place) is what the store hashes.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any, NamedTuple

from PIL import Image

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import content_key, hash_file
from mis_lab.core.progress import progress
from mis_lab.core.seeding import numpy_generator

SPLITS = ("train", "score")
HASH_ALL_UP_TO = 10_000  # files; of more than these, a seeded sample is hashed
HASH_SAMPLE = 1_000
NO_LABEL = -1


def check_split(name: str, split: str) -> None:
    """Raise a ConfigError unless `split` is one of a data set's splits."""
    if split not in SPLITS:
        raise ConfigError(f"data set {name} has no split {split}", fix=f"Use {' or '.join(SPLITS)}.")


class SourceFile(NamedTuple):
    """A file that images are read from.

    Attributes:
        name: its name in the manifest: the same on every machine, so no absolute path.
        path: where it is here.
    """

    name: str
    path: Path


class ImageDataset:
    """One split of a data set. Subclasses give the columns and implement :meth:`image` (and :meth:`file`).

    Args:
        name: short name of the data set.
        split: "train" (what SAEs are trained on) or "score" (what units are scored on).
        ids: a stable string an image, unique.
        groups: what images have in common that must not leak; by default every image is its own group.
        labels: index into `class_names`, -1 for none; by default none has a label.
        class_names: empty when unlabelled.

    Raises:
        DataError: when two images share an id, columns differ in length, or a label has no class.
    """

    def __init__(
        self,
        name: str,
        split: str,
        ids: Sequence[str],
        groups: Sequence[str] | None = None,
        labels: Sequence[int] | None = None,
        class_names: Sequence[str] = (),
    ) -> None:
        self.name, self.split = name, split
        self.ids = list(ids)
        self.groups = list(self.ids if groups is None else groups)
        self.labels = [NO_LABEL] * len(self.ids) if labels is None else [int(label) for label in labels]
        self.class_names = list(class_names)
        self._check()

    def _check(self) -> None:
        where = f"data set {self.name}/{self.split}"
        if not len(self.ids) == len(self.groups) == len(self.labels):
            raise DataError(
                f"{where} has {len(self.ids)} ids, {len(self.groups)} groups and {len(self.labels)} labels",
                fix="Give one of each an image.",
            )
        if len(set(self.ids)) < len(self.ids):
            twice = [image_id for image_id, count in Counter(self.ids).items() if count > 1]
            raise DataError(
                f"{where} has {len(twice)} ids that name several images, {twice[0]} for one",
                fix="Make the ids unique.",
            )
        for image_id, label in zip(self.ids, self.labels, strict=True):
            if not NO_LABEL <= label < len(self.class_names):
                raise DataError(
                    f"{where}: label {label} of image {image_id} has no class",
                    looked=f"{len(self.class_names)} class names",
                    fix="Use -1 for an image without a label.",
                )

    def __len__(self) -> int:
        return len(self.ids)

    def image(self, index: int) -> Image.Image:
        """Image `index`, in mode RGB or L.

        Raises:
            DataError: naming the image and its file, when it cannot be read.
        """
        raise NotImplementedError(f"{type(self).__name__} must implement image(index)")

    def file(self, index: int) -> SourceFile | None:
        """The file of image `index`; None when it is made in memory (its pixels are hashed then)."""
        return None

    def portrait(self, group: str) -> Image.Image:
        """A picture of a group for a contact sheet: what its images are cut from, or its first image."""
        return self.image(self.groups.index(group))

    def credit(self, group: str) -> str:
        """Who made the images of a group, and under which terms; empty where nothing has to be said."""
        return ""

    @property
    def settings(self) -> dict[str, Any]:
        """What besides ids and files decides the pixels (the size of a tile, say); part of the manifest."""
        return {}

    @property
    def verify_all(self) -> bool:
        """Whether the manifest hashes every file, however many there are."""
        return False

    def subset(self, indices: Iterable[int]) -> ImageDataset:
        """The images at `indices`, in that order."""
        return Subset(self, indices)

    @cached_property
    def _manifest(self) -> dict[str, Any]:
        return {
            "name": self.name,
            "split": self.split,
            "n": len(self),
            "ids_sha256": _digest(self.ids),
            "groups_sha256": _digest(self.groups),
            "labels_sha256": _digest(str(label) for label in self.labels),
            "class_names": list(self.class_names),
            "settings": self.settings,
            "files": _files(self),
        }

    def manifest(self) -> dict[str, Any]:
        """What this split holds, as JSON types: digests of the columns, settings, size and sha256 of files.

        Up to 10,000 files are all hashed, of more a seeded 1,000 (their number always counts). The first call
        reads them.
        """
        return dict(self._manifest)

    @property
    def fingerprint(self) -> str:
        """Content key of the manifest: equal for equal images, wherever they lie."""
        return content_key(self._manifest)


class Subset(ImageDataset):
    """Some images of another data set."""

    def __init__(self, whole: ImageDataset, indices: Iterable[int]) -> None:
        self.whole, self.indices = whole, [int(index) for index in indices]
        super().__init__(
            whole.name,
            whole.split,
            [whole.ids[index] for index in self.indices],
            [whole.groups[index] for index in self.indices],
            [whole.labels[index] for index in self.indices],
            whole.class_names,
        )

    def image(self, index: int) -> Image.Image:
        return self.whole.image(self.indices[index])

    def file(self, index: int) -> SourceFile | None:
        return self.whole.file(self.indices[index])

    def portrait(self, group: str) -> Image.Image:
        return self.whole.portrait(group)

    def credit(self, group: str) -> str:
        return self.whole.credit(group)

    @property
    def settings(self) -> dict[str, Any]:
        return self.whole.settings

    @property
    def verify_all(self) -> bool:
        return self.whole.verify_all


def _digest(texts: Iterable[str]) -> str:
    digest = hashlib.sha256()
    for text in texts:
        encoded = text.encode()
        digest.update(f"{len(encoded)}:".encode() + encoded)  # the length keeps ["a", "b"] and ["ab"] apart
    return digest.hexdigest()


def _files(dataset: ImageDataset) -> dict[str, Any]:
    """Manifest of the files: their number, and name → bytes and sha256 of all or of a sample."""
    sources: dict[str, Path | int] = {}  # a path, or the index of an image without a file
    for index, image_id in enumerate(dataset.ids):
        file = dataset.file(index)
        sources[file.name if file else image_id] = file.path if file else index
    names = sorted(sources)
    if len(names) > HASH_ALL_UP_TO and not dataset.verify_all:
        chosen = numpy_generator(0, "manifest").choice(len(names), HASH_SAMPLE, replace=False)
        names = [names[position] for position in sorted(chosen)]
    hashed = {}
    for name in progress(names, f"hash {dataset.name}/{dataset.split}", unit="file"):
        source = sources[name]
        hashed[name] = _of_pixels(dataset.image(source)) if isinstance(source, int) else _of_file(name, source)
    return {"n": len(sources), "hashed": hashed}


def _of_file(name: str, path: Path) -> dict[str, Any]:
    try:
        return {"bytes": path.stat().st_size, "sha256": hash_file(path)}
    except OSError as error:
        raise DataError(f"file {name} cannot be read ({error.strerror})", looked=path) from error


def _of_pixels(image: Image.Image) -> dict[str, Any]:
    pixels = image.tobytes()
    shape = f"{image.mode} {image.width}x{image.height}|".encode()
    return {"bytes": len(pixels), "sha256": hashlib.sha256(shape + pixels).hexdigest()}
