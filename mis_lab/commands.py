"""The subcommands of ``mis-lab``. All but ``store``, ``report`` and ``rerun`` import torch, when they run."""

from __future__ import annotations

import argparse
import csv
import os
import shutil
import time
from collections.abc import Callable, Iterable
from difflib import unified_diff
from pathlib import Path
from typing import Any

import yaml

from mis_lab import config as schema
from mis_lab.circuit_commands import circuit
from mis_lab.core.errors import EXIT_FAILED, EXIT_OK, MisLabError, nearest_first
from mis_lab.core.files import read_json
from mis_lab.core.keys import hash_file
from mis_lab.core.store import MANIFEST, Store
from mis_lab.mis_commands import mis
from mis_lab.sae_commands import sae
from mis_lab.terminal import say, write_table


def run_command(argv: list[str]) -> int:
    """Run the subcommand `argv` names; returns its exit code."""
    name, *rest = argv
    if name not in COMMANDS:
        raise MisLabError(
            f"no subcommand {name}",
            fix=f"Nearest: {', '.join(nearest_first(name, COMMANDS, 3))}; options need '=' (see mis-lab --help).",
        )
    return COMMANDS[name](rest)


# ------------------------------------------------------------------------------------------------------------- store


def store(argv: list[str]) -> int:
    """``mis-lab store ls | why A B | verify | gc``."""
    parser = _parser("store", "the artifacts that runs share")
    parser.add_argument("--store", type=Path, default=None, help="the store's folder (default: as a run would use)")
    actions = parser.add_subparsers(dest="action", required=True)
    ls = actions.add_parser("ls", help="list artifacts")
    ls.add_argument("stage", nargs="?", help="only this stage")
    why = actions.add_parser("why", help="say why two artifacts differ")
    why.add_argument("a")
    why.add_argument("b")
    actions.add_parser("verify", help="hash every file again")
    gc = actions.add_parser("gc", help="list (or delete) what no finished run uses")
    gc.add_argument("--delete", action="store_true")
    gc.add_argument(
        "--older-than", type=float, default=24.0, metavar="HOURS", help="spare what is younger (default 24)"
    )
    arguments = parser.parse_args(argv)
    root = arguments.store or _paths()[1]
    if not root.exists():
        raise MisLabError("no store yet", looked=root.resolve(), fix="A first run makes it; MIS_LAB_STORE moves it.")
    found = Store(root)
    if arguments.action == "ls":
        return _ls(found, arguments.stage)
    if arguments.action == "why":
        return _why(found.match(arguments.a), found.match(arguments.b))
    if arguments.action == "verify":
        return _verify(found)
    return _gc(found, arguments.delete, arguments.older_than)


def _ls(found: Store, stage: str | None) -> int:
    rows = [
        (
            manifest["stage"],
            manifest["key"],
            _mib(manifest),
            f"{manifest['built']['seconds']:.1f} s",
            manifest["built"]["at"],
            manifest["label"],
        )
        for manifest in found.manifests()
        if stage in (None, manifest["stage"])
    ]
    write_table(("stage", "key", "MiB", "built in", "at", "what"), rows)
    return EXIT_OK


def _why(a: dict[str, Any], b: dict[str, Any]) -> int:
    def text(manifest: dict[str, Any]) -> list[str]:
        told = {name: manifest[name] for name in ("stage", "version", "config", "inputs")}
        return yaml.safe_dump(told, sort_keys=True).splitlines()

    differences = list(
        unified_diff(text(a), text(b), f"{a['stage']}/{a['key']}", f"{b['stage']}/{b['key']}", lineterm="", n=1)
    )
    say("\n".join(differences) if differences else "the same artifact")
    return EXIT_OK


def _verify(found: Store) -> int:
    damaged = 0
    manifests = found.manifests()
    for manifest in manifests:
        for name, expected in manifest["files"].items():
            path = Path(manifest["path"]) / name
            if not path.exists() or hash_file(path) != expected["sha256"]:
                damaged += 1
                say(f"{'missing' if not path.exists() else 'changed'}: {path}")
    say(
        f"{len(manifests)} artifacts verified, {damaged} damaged files"
        + (": remove their folders and run again" if damaged else "")
    )
    return EXIT_FAILED if damaged else EXIT_OK


def _gc(found: Store, delete: bool, older_than: float) -> int:
    by_key = {manifest["key"]: manifest for manifest in found.manifests()}
    used: set[str] = set()
    waiting = [key for result in _results(_paths()[0]) for key in result["artifacts"].values()]
    while waiting:
        key = waiting.pop()
        if key in by_key and key not in used:
            used.add(key)
            waiting.extend(by_key[key]["inputs"].values())
    folders = [Path(manifest["path"]) for key, manifest in by_key.items() if key not in used]
    folders += found.abandoned()
    folders = [folder for folder in folders if time.time() - folder.stat().st_mtime > older_than * 3600]
    freed = 0.0
    for folder in folders:
        size = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file()) / 2**20
        freed += size
        say(f"{'deleting' if delete else 'unused'} {size:8.1f} MiB  {folder}")
        if delete:
            (folder / MANIFEST).unlink(missing_ok=True)  # first: a reader must not find half an artifact
            shutil.rmtree(folder)
    say(f"{len(folders)} folders, {freed:.1f} MiB" + ("" if delete else "; 'mis-lab store gc --delete' deletes them"))
    return EXIT_OK


# ------------------------------------------------------------------------------------------------------------- model


def model(argv: list[str]) -> int:
    """``mis-lab model sites [option=value ...]``: every module that can be a site, with the shape of its output."""
    parser = _parser("model", "look into a network")
    parser.add_argument("action", choices=["sites"])
    parser.add_argument("overrides", nargs="*", metavar="option=value")
    arguments = parser.parse_args(argv)
    config = compose(arguments.overrides)
    from mis_lab.core.device import resolve_device
    from mis_lab.model.modules import list_modules
    from mis_lab.pipeline.lab import open_model

    rows = [
        (row.path, row.type, row.shape, row.layout)
        for row in list_modules(open_model(config, Store(Path(config.paths.store)), resolve_device(config.device)))
    ]
    write_table(("site", "module", "output", "layout"), rows)
    return EXIT_OK


# ------------------------------------------------------------------------------------------------- sweep, report, rerun


def sweep(argv: list[str]) -> int:
    """``mis-lab sweep NAME``: the runs of a name as one table, also as multirun_outputs/NAME/runs.csv, and as a page,
    sweep.html, with its charts in figures/."""
    parser = _parser("sweep", "one table and one page of all runs of a name")
    parser.add_argument("name")
    parser.add_argument("--rank-by", metavar="MEASURE,...", help="rank SAEs by these measures (default: see the page)")
    arguments = parser.parse_args(argv)
    folder = _paths()[0] / arguments.name
    results = list(_results(folder))
    if not results:
        raise MisLabError(f"no finished run called {arguments.name}", looked=folder.resolve())
    given = [_given(result["overrides"]) for result in results]
    overridden = sorted({option for words in given for option in words})
    metrics = sorted({name for result in results for name in result["metrics"]})
    rows = []
    for result, values in zip(results, given, strict=True):
        rows.append(
            [
                result["run_key"],
                *(values.get(name, "") for name in overridden),
                *(result["metrics"].get(name, "") for name in metrics),
            ]
        )
    with open(folder / "runs.csv", "w", newline="", encoding="utf-8") as file:
        csv.writer(file).writerows([["run", *overridden, *metrics], *rows])
    write_table(["run", *overridden, *metrics], rows, ".4g")
    from mis_lab.report.sweep import RANKED, read_sweep
    from mis_lab.report.sweep_page import write_sweep

    measures = arguments.rank_by.split(",") if arguments.rank_by else RANKED
    page = write_sweep(read_sweep(arguments.name, results, _paths()[1]), folder, measures)
    say(f"{len(rows)} runs; also in {folder / 'runs.csv'} and {page}")
    return EXIT_OK


def _given(overrides: Iterable[str]) -> dict[str, str]:
    """Option → value as typed; a word without a value (``~option``) has an empty one."""
    return {option: value for option, _, value in (word.partition("=") for word in overrides)}


def report(argv: list[str]) -> int:
    """``mis-lab report RUN_DIR``: write a run's report again (options of `report.*` may follow)."""
    return _replay("report", "write a run's report again", argv, ["stages=[report]"])


def rerun(argv: list[str]) -> int:
    """``mis-lab rerun RUN_DIR``: the same overrides again, more of them appended."""
    return _replay("rerun", "run a stored configuration again", argv, [])


def _replay(name: str, what: str, argv: list[str], more: list[str]) -> int:
    parser = _parser(name, what)
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("overrides", nargs="*", metavar="option=value")
    arguments = parser.parse_args(argv)
    stored = arguments.run_dir / ".hydra" / "overrides.yaml"
    if not stored.exists():
        raise MisLabError(
            f"{arguments.run_dir} is no run folder", looked=stored, fix="Give a folder below multirun_outputs/."
        )
    from mis_lab.cli import run_hydra

    words = yaml.safe_load(stored.read_text())
    plugins = [word for word in words if word.lstrip("+~").startswith("plugins")]
    if plugins and not any(word.startswith("plugins") for word in arguments.overrides):
        raise MisLabError(
            f"{arguments.run_dir} asks to trust {', '.join(plugins)}",
            fix="A stored configuration trusts nobody: say it again on the command line, or set plugins in conf/local.",
        )
    return run_hydra([*(word for word in words if word not in plugins), *more, *arguments.overrides])


# ------------------------------------------------------------------------------------------------------------- shared


def compose(overrides: list[str]) -> schema.RunConfig:
    """The validated configuration that these overrides give."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir

    schema.register()
    with initialize_config_dir(str(schema.conf_dir()), version_base="1.3", job_name="mis-lab"):
        return schema.validate(hydra_compose("config", overrides))


def _paths() -> tuple[Path, Path]:
    """The folders of runs and of the store, as a run started here would use them."""
    output = Path(os.environ.get("MIS_LAB_OUTPUT", "multirun_outputs"))
    return output, Path(os.environ.get("MIS_LAB_STORE", output / ".store"))


def _results(folder: Path) -> Iterable[dict[str, Any]]:
    return [read_json(path) for path in sorted(folder.rglob("result.json"))]


def _mib(manifest: dict[str, Any]) -> str:
    return f"{sum(file['bytes'] for file in manifest['files'].values()) / 2**20:.1f}"


def _parser(name: str, what: str) -> argparse.ArgumentParser:
    return argparse.ArgumentParser(prog=f"mis-lab {name}", description=what)


COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "store": store,
    "model": model,
    "sae": sae,
    "mis": mis,
    "circuit": circuit,
    "sweep": sweep,
    "report": report,
    "rerun": rerun,
}
