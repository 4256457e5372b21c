"""The artifact store: immutable, content-addressed folders, one per result of a stage.

An artifact's key follows from its :class:`Recipe` alone (stage, version of the stage's code, configuration, keys of
its inputs), so it is known before the work is done. Work happens in a ``.building`` folder under a lock; the manifest
is written last and the folder renamed, so a reader sees a whole artifact or none. Layout and contract: docs/store.md.
"""

from __future__ import annotations

import json
import logging
import os
import shutil
import socket
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from filelock import FileLock, Timeout

from mis_lab.core.errors import StoreError
from mis_lab.core.files import full_disk_is_told, read_json, write_json
from mis_lab.core.keys import content_key, hash_file, plain

MANIFEST, BUILDING = "manifest.json", ".building-"
WHOLE = ".whole"  # in a folder under construction: finished, to be published even if another of the same build fails
SECONDS_BETWEEN_WAITING_LINES = 30.0
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Recipe:
    """What an artifact is made from; its key depends on nothing else.

    Attributes:
        stage: kind of artifact, one word (``activations``, ``sae``, ...).
        version: number of the stage's mathematics, raised by hand when results change.
        config: what was asked for, defaults included; only what can change the result.
        inputs: role → key of an input artifact, or content hash of weights or data.
        label: a few words for people; not part of the key.
        resumable: keep the building folder after a crash, so that the next try goes on from its checkpoint.
    """

    stage: str
    version: int
    config: Mapping[str, Any]
    inputs: Mapping[str, str] = field(default_factory=dict)
    label: str = ""
    resumable: bool = False

    @property
    def key(self) -> str:
        return content_key({"stage": self.stage, "version": self.version, "config": self.config, "inputs": self.inputs})


@dataclass(frozen=True)
class Artifact:
    """A published result: read-only folder `path`, named by `key`."""

    recipe: Recipe
    key: str
    path: Path


Build = Callable[[Path], None]


class Store:
    """Artifacts below one folder.

    Args:
        root: the store's folder; made when missing.
    """

    def __init__(self, root: Path) -> None:
        self.root = Path(root)

    def path(self, recipe: Recipe) -> Path:
        """Where the artifact of `recipe` is, or will be."""
        return self.root / recipe.stage / recipe.key

    def find(self, recipe: Recipe) -> Artifact | None:
        """The artifact of `recipe` if it is published."""
        path = self.path(recipe)
        return Artifact(recipe, recipe.key, path) if (path / MANIFEST).exists() else None

    def get(self, recipe: Recipe, build: Build) -> Artifact:
        """The artifact of `recipe`, built by `build` (which fills the folder it is given) when it is missing."""
        return self.get_many([recipe], lambda folders: build(folders[recipe.key]))[0]

    def get_many(self, recipes: Sequence[Recipe], build: Callable[[Mapping[str, Path]], None]) -> list[Artifact]:
        """The artifacts of `recipes`; those missing are built together, in one call.

        Args:
            recipes: what is wanted, each key once.
            build: gets key → folder for the missing ones only and fills every folder. A folder into which it has put
                the file ``WHOLE`` is published even if the build fails afterwards.
        """
        if any(self.find(recipe) is None for recipe in recipes):
            with ExitStack() as locks:
                for recipe in sorted(recipes, key=lambda recipe: recipe.key):  # one order: no deadlock
                    if self.find(recipe) is None:
                        locks.enter_context(self._lock(recipe))
                missing = [recipe for recipe in recipes if self.find(recipe) is None]
                if missing:
                    self._build(missing, build)
        return [Artifact(recipe, recipe.key, self.path(recipe)) for recipe in recipes]

    def _build(self, missing: Sequence[Recipe], build: Callable[[Mapping[str, Path]], None]) -> None:
        folders = {recipe.key: self.path(recipe).with_name(BUILDING + recipe.key) for recipe in missing}
        started = time.time()
        try:
            for recipe in missing:
                folder = folders[recipe.key]
                if folder.exists() and not recipe.resumable:
                    shutil.rmtree(folder)
                folder.mkdir(parents=True, exist_ok=True)
            names = ", ".join(f"{recipe.stage}/{recipe.key[:8]} {recipe.label}".strip() for recipe in missing)
            logger.info("building %s", names)
            with full_disk_is_told(self.root):
                build(folders)
                for recipe in missing:
                    self._publish(recipe, folders[recipe.key], time.time() - started)
        except BaseException:
            for recipe in missing:
                folder = folders[recipe.key]
                if (folder / WHOLE).exists():
                    self._publish(recipe, folder, time.time() - started)
                    continue
                if not (recipe.resumable and folder.exists() and any(folder.iterdir())):  # nothing to go on from
                    shutil.rmtree(folder, ignore_errors=True)
            raise

    def _publish(self, recipe: Recipe, folder: Path, seconds: float) -> None:
        (folder / WHOLE).unlink(missing_ok=True)
        files = {
            str(path.relative_to(folder)): {"bytes": path.stat().st_size, "sha256": hash_file(path)}
            for path in sorted(folder.rglob("*"))
            if path.is_file() and path.name != MANIFEST
        }
        write_json(
            folder / MANIFEST,
            {
                "stage": recipe.stage,
                "version": recipe.version,
                "key": recipe.key,
                "label": recipe.label,
                "config": plain(recipe.config),
                "inputs": plain(recipe.inputs),
                "files": files,
                "built": {
                    "seconds": round(seconds, 3),
                    "at": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()),
                    "host": socket.gethostname(),
                },
            },
        )
        if self.path(recipe).exists():  # without a manifest: what an interrupted removal left
            shutil.rmtree(self.path(recipe))
        os.replace(folder, self.path(recipe))

    def _lock_path(self, stage: str, key: str) -> Path:
        return self.root / ".locks" / f"{stage}-{key}"

    @contextmanager
    def _lock(self, recipe: Recipe) -> Iterator[None]:
        with held_lock(self._lock_path(recipe.stage, recipe.key), f"{recipe.stage}/{recipe.key[:8]}"):
            yield

    def manifests(self) -> list[dict[str, Any]]:
        """Manifests of all published artifacts, oldest first; ``path`` added to each."""
        found = []
        for path in self.root.glob(f"*/*/{MANIFEST}"):
            if not path.parent.name.startswith("."):
                found.append(read_json(path) | {"path": str(path.parent)})
        return sorted(found, key=lambda manifest: (manifest["built"]["at"], manifest["key"]))

    def abandoned(self) -> list[Path]:
        """Building folders that no process works in: of killed builds, kept where a next try can go on from them."""
        found = []
        for folder in sorted(self.root.glob(f"*/{BUILDING}*")):
            key = folder.name.removeprefix(BUILDING)
            lock = FileLock(self._lock_path(folder.parent.name, key).with_suffix(".lock"))
            try:
                with lock.acquire(timeout=0):
                    found.append(folder)
            except Timeout:
                continue
        return found

    def match(self, start: str) -> dict[str, Any]:
        """The manifest of the one artifact named ``[stage/]key`` or the start of a key.

        Raises:
            StoreError: when none or several match.
        """
        stage, _, key = start.rpartition("/")
        found = [
            manifest
            for manifest in self.manifests()
            if manifest["key"].startswith(key) and (not stage or manifest["stage"] == stage)
        ]
        if len(found) != 1:
            which = ", ".join(f"{manifest['stage']}/{manifest['key']}" for manifest in found)
            raise StoreError(
                f"{start} names {'several artifacts: ' + which if found else 'no artifact'}",
                looked=self.root,
                fix="'mis-lab store ls' lists them.",
            )
        return found[0]


class PlannedStore(Store):
    """Says what would be computed, and computes nothing: every artifact is taken as published.

    Attributes:
        asked: every recipe that was asked for, by key.
    """

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.asked: dict[str, Recipe] = {}

    def get_many(self, recipes: Sequence[Recipe], build: Callable[[Mapping[str, Path]], None]) -> list[Artifact]:
        self.asked |= {recipe.key: recipe for recipe in recipes}
        return [Artifact(recipe, recipe.key, self.path(recipe)) for recipe in recipes]


@contextmanager
def held_lock(path: Path, what: str, wait: bool = True) -> Iterator[None]:
    """Hold the lock file `path`; while another process holds it, say who, every half minute.

    The lock itself is the operating system's (a dead process holds nothing; on a file system without locks
    ``filelock`` falls back to a file that names host and process). ``<path>.owner`` tells people who holds it.

    Raises:
        StoreError: with `wait` off, when the lock is held.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    lock, owner = FileLock(path.with_name(path.name + ".lock")), path.with_name(path.name + ".owner")
    while True:
        try:
            lock.acquire(timeout=SECONDS_BETWEEN_WAITING_LINES if wait else 0, poll_interval=0.2)
            break
        except Timeout:
            holder = _holder(owner)
            if not wait:
                raise StoreError(f"{what} is in use by {holder}", fix="Wait for it, or stop that process.") from None
            logger.info("waiting for %s, held by %s", what, holder)
    try:
        with full_disk_is_told(path):
            owner.write_text(
                json.dumps({"host": socket.gethostname(), "pid": os.getpid(), "since": time.strftime("%H:%M:%S")})
            )
        yield
    finally:
        owner.unlink(missing_ok=True)
        lock.release()


def _holder(owner: Path) -> str:
    try:
        told = json.loads(owner.read_text())
        return f"process {told['pid']} on {told['host']} since {told['since']}"
    except (OSError, ValueError, KeyError):
        return "another process"
