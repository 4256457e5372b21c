"""Runs of the command in a process of its own, in a folder of its own."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Lab:
    """A folder in which `mis-lab` is called.

    Attributes:
        folder: where the command is started.
        environment: what it sees beside this process' environment.
    """

    folder: Path
    environment: dict[str, str]

    @property
    def outputs(self) -> Path:
        return self.folder / "multirun_outputs"

    def start(self, *arguments: str) -> subprocess.Popen[str]:
        return subprocess.Popen(
            [sys.executable, "-m", "mis_lab", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": f"{REPOSITORY}{os.pathsep}{self.folder}", "OMP_NUM_THREADS": "1"} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )

    def run(self, *arguments: str, expect: int = 0, timeout: float = 240) -> subprocess.CompletedProcess[str]:
        process = self.start(*arguments)
        try:
            out, err = process.communicate(timeout=timeout)
        finally:
            process.kill()
        assert process.returncode == expect, f"exit code {process.returncode}, expected {expect}\n{out}\n{err}"
        return subprocess.CompletedProcess(arguments, process.returncode, out, err)


@pytest.fixture()
def lab(tmp_path: Path) -> Lab:
    """An empty folder with a store of its own."""
    return Lab(tmp_path, {"MIS_LAB_OUTPUT": "multirun_outputs", "MIS_LAB_STORE": str(tmp_path / "store")})


@pytest.fixture(scope="session")
def shared_lab(tmp_path_factory: pytest.TempPathFactory, worker_id: str) -> Callable[[], Lab]:
    """One folder and store for the tests that look at a finished smoke run, so that it is computed once a worker."""
    folder = tmp_path_factory.mktemp("shared-lab")
    environment = {"MIS_LAB_OUTPUT": "multirun_outputs", "MIS_LAB_STORE": str(folder / "store")}
    return lambda: Lab(folder, environment)
