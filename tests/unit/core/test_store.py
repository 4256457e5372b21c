from __future__ import annotations

import errno
import json
import logging
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import NoReturn

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core import store as store_module
from mis_lab.core.errors import StoreError
from mis_lab.core.keys import hash_file
from mis_lab.core.store import MANIFEST, PlannedStore, Recipe, Store, held_lock

RECIPE = Recipe("sae", 1, {"k": 4}, {"activations": "abc"}, label="blocks.2")


def write(text: str = "result") -> store_module.Build:
    return lambda folder: (folder / "x.txt").write_text(text) and None


def never(folder: Path | Mapping[str, Path]) -> NoReturn:
    raise AssertionError("built again")


def contents(root: Path) -> set[str]:
    """Relative paths of all files but locks."""
    paths = (path.relative_to(root) for path in root.rglob("*") if path.is_file())
    return {str(path) for path in paths if path.parts[0] != ".locks"}


@pytest.fixture
def store(tmp_path: Path) -> Store:
    return Store(tmp_path / "store")


# ---- keys


def test_the_key_follows_from_stage_version_configuration_and_inputs_alone() -> None:
    variants = [
        RECIPE,
        Recipe("mis", 1, {"k": 4}, {"activations": "abc"}),
        Recipe("sae", 2, {"k": 4}, {"activations": "abc"}),
        Recipe("sae", 1, {"k": 5}, {"activations": "abc"}),
        Recipe("sae", 1, {"k": 4}, {"activations": "abd"}),
        Recipe("sae", 1, {"k": 4}, {"weights": "abc"}),
        Recipe("sae", 1, {"k": 4}),
    ]
    assert len({recipe.key for recipe in variants}) == len(variants)
    same = Recipe("sae", 1, {"k": 4}, {"activations": "abc"}, label="another", resumable=True)
    assert same.key == RECIPE.key


# ---- build and publish


def test_an_artifact_is_built_once_and_found_afterwards(store: Store) -> None:
    assert store.find(RECIPE) is None
    built = store.get(RECIPE, write())
    again = store.get(RECIPE, never)
    assert built == again == store.find(RECIPE)
    assert built.path == store.root / "sae" / RECIPE.key
    assert (built.path / "x.txt").read_text() == "result"


def test_the_manifest_says_what_it_is_and_hashes_every_file(store: Store) -> None:
    def build(folder: Path) -> None:
        (folder / "deep").mkdir()
        (folder / "deep" / "y.bin").write_bytes(b"12345")
        (folder / "x.txt").write_text("x")

    artifact = store.get(RECIPE, build)
    manifest = json.loads((artifact.path / MANIFEST).read_text())
    told = {name: manifest[name] for name in ("stage", "version", "key", "label", "config", "inputs")}
    assert told == {
        "stage": "sae",
        "version": 1,
        "key": RECIPE.key,
        "label": "blocks.2",
        "config": {"k": 4},
        "inputs": {"activations": "abc"},
    }
    assert manifest["files"].keys() == {"x.txt", "deep/y.bin"}
    y = artifact.path / "deep" / "y.bin"
    assert manifest["files"]["deep/y.bin"] == {"bytes": 5, "sha256": hash_file(y)}
    assert manifest["built"]["host"] == socket.gethostname()


def test_several_are_built_in_one_call_and_only_those_missing(store: Store) -> None:
    recipes = [Recipe("activations", 1, {"site": site}) for site in "abc"]
    store.get(recipes[1], write("b"))
    calls: list[set[str]] = []

    def build(folders: Mapping[str, Path]) -> None:
        calls.append(set(folders))
        for folder in folders.values():
            (folder / "x.txt").write_text("new")

    artifacts = store.get_many(recipes, build)
    assert calls == [{recipes[0].key, recipes[2].key}]
    assert [artifact.recipe for artifact in artifacts] == recipes
    assert [(artifact.path / "x.txt").read_text() for artifact in artifacts] == ["new", "b", "new"]
    assert store.get_many(recipes, never) == artifacts


@given(st.lists(st.integers(0, 5), unique=True, max_size=6), st.lists(st.integers(0, 5), unique=True, max_size=6))
def test_whatever_is_asked_for_in_whatever_order_is_there(
    tmp_path_factory: pytest.TempPathFactory, first: list[int], second: list[int]
) -> None:
    store = Store(tmp_path_factory.mktemp("store"))
    built: list[str] = []

    def build(folders: Mapping[str, Path]) -> None:
        for key, folder in folders.items():
            built.append(key)
            (folder / "key").write_text(key)

    for wanted in (first, second):
        recipes = [Recipe("mis", 1, {"unit": unit}) for unit in wanted]
        for recipe, artifact in zip(recipes, store.get_many(recipes, build), strict=True):
            assert (artifact.path / "key").read_text() == recipe.key
    assert len(built) == len(set(built)) == len({*first, *second})


def test_a_planned_store_computes_nothing(store: Store) -> None:
    planned = PlannedStore(store.root)
    artifact = planned.get(RECIPE, never)
    assert artifact.key == RECIPE.key
    assert artifact.path == store.path(RECIPE)
    assert not store.root.exists()


# ---- crashes


@pytest.mark.parametrize("error", [RuntimeError("bug"), KeyboardInterrupt(), SystemExit(143)], ids=repr)
def test_a_crash_leaves_nothing_and_the_next_try_starts_anew(store: Store, error: BaseException) -> None:
    def crash(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise error

    with pytest.raises(type(error)):
        store.get(RECIPE, crash)
    assert contents(store.root) == set()
    artifact = store.get(RECIPE, write())
    assert {path.name for path in artifact.path.iterdir()} == {"x.txt", MANIFEST}


def test_a_resumable_folder_is_kept_and_handed_over_again(store: Store) -> None:
    recipe = Recipe("sae", 1, {"k": 4}, resumable=True)

    def crash(folder: Path) -> None:
        (folder / "checkpoint").write_text("step 3")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        store.get(recipe, crash)
    assert store.find(recipe) is None
    assert store.manifests() == []

    def resume(folder: Path) -> None:
        assert (folder / "checkpoint").read_text() == "step 3"
        (folder / "checkpoint").rename(folder / "done")

    assert (store.get(recipe, resume).path / "done").exists()
    assert contents(store.root) == {f"sae/{recipe.key}/done", f"sae/{recipe.key}/{MANIFEST}"}


def test_what_a_killed_process_left_is_not_built_upon(store: Store) -> None:
    left = store.path(RECIPE).with_name(f".building-{RECIPE.key}")
    left.mkdir(parents=True)
    (left / "half.txt").write_text("half")
    artifact = store.get(RECIPE, write())
    assert {path.name for path in artifact.path.iterdir()} == {"x.txt", MANIFEST}
    assert not left.exists()


def test_what_an_interrupted_removal_left_is_replaced(store: Store) -> None:
    artifact = store.get(RECIPE, write("old"))
    (artifact.path / MANIFEST).unlink()
    assert store.find(RECIPE) is None
    assert (store.get(RECIPE, write("new")).path / "x.txt").read_text() == "new"


def test_one_of_several_that_fails_publishes_none_of_the_rest(store: Store) -> None:
    recipes = [Recipe("activations", 1, {"site": site}) for site in "ab"]

    def build(folders: Mapping[str, Path]) -> None:
        (folders[recipes[0].key] / "x.txt").write_text("whole")
        raise RuntimeError("bug")

    with pytest.raises(RuntimeError, match="bug"):
        store.get_many(recipes, build)
    assert contents(store.root) == set()


@pytest.mark.parametrize("where", ["while building", "while publishing"])
def test_a_full_disk_is_one_line_and_leaves_nothing(store: Store, monkeypatch: pytest.MonkeyPatch, where: str) -> None:
    full = OSError(errno.ENOSPC, "No space left on device")

    def build(folder: Path) -> None:
        (folder / "x.txt").write_text("x")
        if where == "while building":
            raise full

    def refuse(*_: object) -> None:
        raise full

    if where == "while publishing":
        monkeypatch.setattr(store_module, "write_json", refuse)
    with pytest.raises(StoreError, match=r"disk is full while writing .* \(\d+ MiB free\)\. .*store gc"):
        store.get(RECIPE, build)
    assert contents(store.root) == set()


# ---- processes

CHILD = """
import os, sys, time
from pathlib import Path
from mis_lab.core.store import Recipe, Store

root, seconds, log = Path(sys.argv[1]), float(sys.argv[2]), Path(sys.argv[3])
recipes = [Recipe("activations", 1, {"site": site}) for site in sys.argv[4]]

def build(folders):
    for key, folder in folders.items():
        with log.open("a") as file:
            file.write(key + chr(10))
        (folder / "half.txt").write_text("half")
        time.sleep(seconds)
        (folder / "x.txt").write_text(key)
        (folder / "half.txt").unlink()

for artifact in Store(root).get_many(recipes, build):
    assert (artifact.path / "x.txt").read_text() == artifact.key
    assert not (artifact.path / "half.txt").exists()
"""


def start(store: Store, seconds: float, log: Path, sites: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", CHILD, str(store.root), str(seconds), str(log), sites],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def wait_for(condition: object, seconds: float = 20) -> None:
    until = time.monotonic() + seconds
    while not condition():  # type: ignore[operator]
        assert time.monotonic() < until, "waited in vain"
        time.sleep(0.01)


def test_processes_that_want_the_same_at_once_build_it_once(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    wanted = ["ab", "ba", "bc", "ca"]  # overlapping and in different orders: no deadlock
    children = [start(store, 0.05, log, sites) for sites in wanted]
    for child in children:
        _, err = child.communicate(timeout=60)
        assert child.returncode == 0, err
    built = log.read_text().split()
    assert sorted(built) == sorted(Recipe("activations", 1, {"site": site}).key for site in "abc")
    assert len(store.manifests()) == 3


def test_a_killed_process_holds_nothing_and_leaves_no_artifact(store: Store, tmp_path: Path) -> None:
    log = tmp_path / "log"
    child = start(store, 600, log, "a")
    wait_for(log.exists)
    child.send_signal(signal.SIGKILL)
    child.communicate(timeout=20)
    recipe = Recipe("activations", 1, {"site": "a"})
    assert store.find(recipe) is None
    assert store.manifests() == []
    assert (store.get(recipe, write("mine")).path / "x.txt").read_text() == "mine"


def test_who_waits_says_for_what_and_for_whom(
    store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = tmp_path / "log"
    child = start(store, 1.0, log, "a")
    wait_for(log.exists)
    monkeypatch.setattr(store_module, "SECONDS_BETWEEN_WAITING_LINES", 0.3)
    with caplog.at_level(logging.INFO):
        store.get(Recipe("activations", 1, {"site": "a"}), never)
    _, err = child.communicate(timeout=20)
    assert child.returncode == 0, err
    expected = (
        rf"waiting for activations/\w{{8}}, held by process {child.pid} on {re.escape(socket.gethostname())} since"
    )
    assert any(re.match(expected, message) for message in caplog.messages)


# ---- locks


def test_a_held_lock_names_its_holder_and_a_free_one_does_not_stay(tmp_path: Path) -> None:
    path = tmp_path / "run"
    with held_lock(path, "the run folder x"):
        holder = f"process {os.getpid()} on {re.escape(socket.gethostname())} since"
        expected = rf"the run folder x is in use by {holder} .*stop that process"
        with pytest.raises(StoreError, match=expected), held_lock(path, "the run folder x", wait=False):
            pass
        (tmp_path / "run.owner").write_text("not json")
        with pytest.raises(StoreError, match="in use by another process"), held_lock(path, "x", wait=False):
            pass
    assert not (tmp_path / "run.owner").exists()
    with held_lock(path, "x", wait=False):
        pass


def test_a_lock_is_freed_whatever_happens(tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt), held_lock(tmp_path / "run", "x"):
        raise KeyboardInterrupt
    with held_lock(tmp_path / "run", "x", wait=False):
        pass


def test_a_full_disk_frees_the_lock(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> NoReturn:
        raise OSError(errno.ENOSPC, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(Path, "write_text", full)
        with pytest.raises(StoreError, match="disk is full"), held_lock(tmp_path / "run", "x"):
            pass
    with held_lock(tmp_path / "run", "x", wait=False):
        pass


# ---- finding by name


def test_artifacts_are_listed_oldest_first_and_unfinished_ones_are_not(
    store: Store, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipes = [Recipe("mis", 1, {"unit": unit}) for unit in range(3)]
    for minute, recipe in enumerate(recipes):
        monkeypatch.setattr(store_module.time, "strftime", lambda *_, m=minute: f"2026-01-01T00:0{9 - m}:00Z")
        store.get(recipe, write())
    unfinished = store.root / "mis" / ".building-123"
    unfinished.mkdir()
    (unfinished / MANIFEST).write_text("{}")
    listed = store.manifests()
    assert [manifest["key"] for manifest in listed] == [recipe.key for recipe in reversed(recipes)]
    assert listed[0]["path"] == str(store.path(recipes[2]))


def test_the_start_of_a_key_finds_one_artifact(store: Store) -> None:
    recipes = [Recipe(stage, 1, {"unit": unit}) for stage in ("mis", "sae") for unit in range(20)]
    for recipe in recipes:
        store.get(recipe, write())
    first = recipes[0]
    assert store.match(first.key)["key"] == first.key
    assert store.match(f"{first.stage}/{first.key}")["stage"] == first.stage
    with pytest.raises(StoreError, match=r"no artifact.*store ls"):
        store.match("zzz")
    with pytest.raises(StoreError, match="no artifact"):
        store.match(f"circuit/{first.key}")
    with pytest.raises(StoreError, match="several artifacts"):
        store.match("")


def test_a_damaged_manifest_is_told(store: Store) -> None:
    artifact = store.get(RECIPE, write())
    (artifact.path / MANIFEST).write_text('{"stage": ')
    with pytest.raises(StoreError, match=r"manifest\.json is not readable JSON"):
        store.manifests()


def test_an_empty_store_is_empty(store: Store) -> None:
    assert store.manifests() == []
    assert store.find(RECIPE) is None


def test_a_folder_somebody_builds_in_is_not_abandoned(tmp_path: Path) -> None:
    store = Store(tmp_path)
    seen: list[list[Path]] = []

    def crash(folder: Path) -> None:
        (folder / "checkpoint").write_text("half way")
        seen.append(store.abandoned())
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.get(Recipe("sae", 1, {}, resumable=True), crash)
    assert seen == [[]]
    assert [folder.name for folder in store.abandoned()] == [f".building-{Recipe('sae', 1, {}).key}"]


def test_a_resumable_build_that_left_nothing_leaves_no_folder(tmp_path: Path) -> None:
    store = Store(tmp_path)

    def crash(folder: Path) -> None:
        raise RuntimeError

    with pytest.raises(RuntimeError):
        store.get(Recipe("sae", 1, {}, resumable=True), crash)
    assert store.abandoned() == []
