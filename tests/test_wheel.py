"""Installed as a wheel, mis-lab works from any folder: configuration and templates travel inside."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).resolve().parent.parent
NEEDED_TO_BUILD = ("pyproject.toml", "README.md", "LICENSE", ".gitignore")

pytestmark = pytest.mark.needs("uv", "hatchling")


def run(command: list[str], folder: Path, **environment: str) -> str:
    done = subprocess.run(
        command, cwd=folder, env=os.environ | environment, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def source(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of the sources on a machine that has its own conf/local."""
    copy = tmp_path_factory.mktemp("source")
    for name in NEEDED_TO_BUILD:
        shutil.copy(ROOT / name, copy / name)
    for name in ("mis_lab", "conf"):
        shutil.copytree(ROOT / name, copy / name, ignore=shutil.ignore_patterns("__pycache__", "local"))
    (copy / "conf" / "local").mkdir()
    (copy / "conf" / "local" / "default.yaml").write_text("# @package _global_\npaths: {data: /private}\n")
    return copy


@pytest.fixture(scope="module")
def wheel(source: Path) -> Path:
    run([sys.executable, "-m", "hatchling", "build", "--target", "wheel", "--directory", "dist"], source)
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="module")
def installed(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    target = tmp_path_factory.mktemp("installed")
    uv = [sys.executable, "-m", "uv", "pip", "install", "--python", sys.executable]
    run([*uv, "--no-deps", "--offline", "--target", str(target), str(wheel)], target)
    return target


def mis_lab(installed: Path, folder: Path, *arguments: str) -> str:
    script = installed / "bin" / "mis-lab"
    return run([sys.executable, str(script), *arguments], folder, PYTHONPATH=str(installed))


def test_the_wheel_holds_the_package_and_conf_and_nothing_private(source: Path, wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = {name for name in archive.namelist() if ".dist-info/" not in name}
    package = {str(path.relative_to(source)) for path in (source / "mis_lab").rglob("*") if path.is_file()}
    conf = {str(path.relative_to(source)) for path in (source / "conf").rglob("*.yaml")}
    assert names == package | {f"mis_lab/{name}" for name in conf if not name.startswith("conf/local/")}


def test_it_is_the_installed_package_that_runs(installed: Path, tmp_path: Path) -> None:
    code = "import mis_lab.config as c; print(c.__file__, c.conf_dir(), sep=chr(10))"
    printed = run([sys.executable, "-c", code], tmp_path, PYTHONPATH=str(installed)).splitlines()
    assert printed == [str(installed / "mis_lab" / "config.py"), str(installed / "mis_lab" / "conf")]


def test_help_and_configuration_answer_from_any_folder(installed: Path, tmp_path: Path) -> None:
    assert "mis-lab experiment=quickstart" in mis_lab(installed, tmp_path, "--help")
    printed = mis_lab(installed, tmp_path, "experiment=quickstart", "sae.k=8", "--cfg", "job")
    config = yaml.safe_load(printed)
    assert (config["name"], config["sae"]["k"]) == ("quickstart", 8)
    assert config["paths"]["data"] != "/private"
    assert not [*tmp_path.iterdir()], "printing a configuration writes nothing"
