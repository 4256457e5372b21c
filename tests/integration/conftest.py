"""`mis-lab` called in a folder of its own: in this process (torch is imported once), or in one that can be killed."""

from __future__ import annotations

import io
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from dataclasses import dataclass
from pathlib import Path
from unittest import mock

import pytest
from hydra.core.global_hydra import GlobalHydra

from mis_lab.cli import main

REPOSITORY = Path(__file__).parents[2]


@dataclass(frozen=True)
class Lab:
    """A folder in which `mis-lab` is called, with a store of its own."""

    folder: Path

    @property
    def outputs(self) -> Path:
        return self.folder / "multirun_outputs"

    @property
    def store(self) -> Path:
        return self.folder / "store"

    @property
    def environment(self) -> dict[str, str]:
        return {"MIS_LAB_OUTPUT": "multirun_outputs", "MIS_LAB_STORE": str(self.store)}

    def run(
        self, *arguments: str, expect: int = 0, environment: dict[str, str] | None = None
    ) -> subprocess.CompletedProcess[str]:
        """Call the command in this process.

        Args:
            expect: the exit code it must have.
            environment: variables beside the lab's own.
        """
        out, err = io.StringIO(), io.StringIO()
        with (
            _as_a_process(self.folder, self.environment | (environment or {})),
            redirect_stdout(out),
            redirect_stderr(err),
            pytest.raises(SystemExit) as ended,
        ):
            main(list(arguments))
        told = f"{out.getvalue()}\n{err.getvalue()}"
        assert ended.value.code == expect, f"exit code {ended.value.code}, expected {expect}\n{told}"
        return subprocess.CompletedProcess(arguments, expect, out.getvalue(), err.getvalue())

    @contextmanager
    def start(self, *arguments: str) -> Iterator[subprocess.Popen[str]]:
        """Call the command in a process of its own; what is left of it at the end is killed."""
        path = f"{REPOSITORY}{os.pathsep}{self.folder}"
        process = subprocess.Popen(
            [sys.executable, "-m", "mis_lab", *arguments],
            cwd=self.folder,
            env=os.environ | {"PYTHONPATH": path, "OMP_NUM_THREADS": "1"} | self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            preexec_fn=_hear_ctrl_c,
        )
        try:
            yield process
        finally:
            process.kill()
            if process.stdout and not process.stdout.closed:
                process.communicate()


def wait_for(folder: Path, pattern: str) -> None:
    """Wait until a file of that pattern is there, two minutes at most."""
    deadline = time.monotonic() + 120
    while not list(folder.glob(pattern)) and time.monotonic() < deadline:
        time.sleep(0.01)


def _hear_ctrl_c() -> None:
    # A session in the background ignores Ctrl-C, and children inherit that.
    signal.signal(signal.SIGINT, signal.SIG_DFL)


@contextmanager
def _as_a_process(folder: Path, environment: dict[str, str]) -> Iterator[None]:
    """Folder, environment, arguments, logging, signals and Hydra as a fresh process has them; put back after."""
    here, root, handler = Path.cwd(), logging.getLogger(), signal.getsignal(signal.SIGTERM)
    handlers, level = list(root.handlers), root.level
    os.chdir(folder)
    try:
        with mock.patch.dict(os.environ, environment), mock.patch.object(sys, "argv", list(sys.argv)):
            yield
    finally:
        os.chdir(here)
        signal.signal(signal.SIGTERM, handler)
        GlobalHydra.instance().clear()
        for old in set(root.handlers) - set(handlers):
            old.close()
        root.handlers[:], root.level = handlers, level


@pytest.fixture
def lab(tmp_path: Path) -> Lab:
    """An empty folder with a store of its own."""
    return Lab(tmp_path)


@pytest.fixture(scope="session")
def new_lab(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], Lab]:
    """Name → another such folder, for tests that need two or share one."""
    return lambda name: Lab(tmp_path_factory.mktemp(name))
