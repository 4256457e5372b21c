"""The environment: the lock holds what pyproject.toml asks for, and no address of any machine or mirror."""

from __future__ import annotations

import os
import re
import subprocess
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

ROOT = Path(__file__).resolve().parent.parent
LOCK = (ROOT / "requirements.lock").read_text(encoding="utf-8")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
LOCKED = [Requirement(line) for line in LOCK.splitlines() if line and not line.startswith("#")]
ASKED = [
    Requirement(entry)
    for entries in (PROJECT["project"]["dependencies"], *PROJECT["dependency-groups"].values())
    for entry in entries
    if isinstance(entry, str)
]


def test_the_lock_names_exact_versions_and_no_addresses() -> None:
    for requirement in LOCKED:
        assert re.fullmatch(r"==[\w.+!]+", str(requirement.specifier)), requirement
        assert requirement.url is None
    assert not re.search(r"://|--index|--find-links|--extra|@ |/\w", LOCK)


@pytest.mark.parametrize("asked", ASKED, ids=str)
def test_the_lock_holds_what_is_asked_for(asked: Requirement) -> None:
    found = [lock for lock in LOCKED if canonicalize_name(lock.name) == canonicalize_name(asked.name)]
    assert found, f"{asked}: 'make lock' brings requirements.lock up to date"
    for lock in found:
        assert asked.specifier.contains(str(lock.specifier)[2:]), f"{lock} is locked, {asked} is asked for"


def test_every_dependency_has_a_lowest_version() -> None:
    """What `make test-lowest` installs must be a promise, not whatever was released first."""
    lowest = [requirement for requirement in ASKED if not re.search(r">=|==", str(requirement.specifier))]
    assert not lowest


def test_the_makefile_takes_uv_from_the_lock() -> None:
    dry = subprocess.run(
        ["make", "--dry-run", "--always-make", "test"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    found = re.search(r"pip install .*\"\$\((sed .*)\)\"", dry.stdout)
    assert found
    pin = subprocess.run(["sh", "-c", found[1]], cwd=ROOT, capture_output=True, text=True, check=True).stdout.strip()
    assert pin in LOCK.splitlines()
    assert pin.startswith("uv==")
    assert "-m pytest" in dry.stdout
    assert '-m "not slow"' in dry.stdout


def test_an_old_python_is_told() -> None:
    made = subprocess.run(
        ["make", "--dry-run", "--always-make", "env"], cwd=ROOT, capture_output=True, text=True, check=True
    )
    code = re.search(r"-c '(import sys; .*)'", made.stdout)
    assert code
    check = code[1].replace("import sys; ", "import sys; sys.version_info = (3, 10, 1); sys.version = '3.10.1 (x)'; ")
    done = subprocess.run(["python3", "-c", check], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "Python 3.11 or newer is needed, not 3.10.1" in done.stderr


def test_the_ci_script_is_a_program() -> None:
    script = ROOT / ".ci" / "run"
    assert os.access(script, os.X_OK)
    subprocess.run(["bash", "-n", str(script)], check=True)
