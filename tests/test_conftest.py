"""The rules of conftest.py themselves: a skip fails under MIS_LAB_REQUIRE=all, surroundings are temporary."""

from __future__ import annotations

import os
import random
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

CONFTEST = Path(__file__).with_name("conftest.py")
TESTS = """
import random

import pytest

def test_runs():
    pass

@pytest.mark.skip(reason="marked")
def test_marked():
    pass

def test_calls():
    pytest.skip("called")

def test_imports():
    pytest.importorskip("no_such_package")

@pytest.mark.needs("nothing_has_this")
def test_needs():
    pass

@pytest.fixture
def skips():
    pytest.skip("in a fixture")

def test_fixture(skips):
    pass

@pytest.mark.xfail(reason="known", strict=True)
def test_expected_to_fail():
    assert False

@pytest.mark.needs("graphwiz")
def test_misspelt():
    pass

def test_draws(untouched_rng):
    random.random()
"""


def run_pytest(folder: Path, **environment: str) -> list[str]:
    """Lines that pytest prints about TESTS under a copy of conftest.py that knows one more thing to need."""
    (folder / "pytest.ini").write_text("[pytest]\naddopts = -ra --strict-markers\nmarkers = needs(*what)\n")
    (folder / "test_tests.py").write_text(TESTS)
    (folder / "test_module.py").write_text("import pytest\npytest.importorskip('no_such_package')\n")
    rules = CONFTEST.read_text() + '\nNEEDS["nothing_has_this"] = lambda: "not on this machine"\n'
    (folder / "conftest.py").write_text(rules)
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_XDIST")}
    surroundings.pop("MIS_LAB_REQUIRE", None)
    command = [
        sys.executable,
        "-m",
        "pytest",
        "-p",
        "no:cacheprovider",
        "-q",
        "--continue-on-collection-errors",
    ]
    done = subprocess.run(
        command, capture_output=True, text=True, cwd=folder, env=surroundings | environment, check=False
    )
    return (done.stdout + done.stderr).splitlines()


def test_what_is_missing_is_skipped_with_its_reason(tmp_path: Path) -> None:
    lines = run_pytest(tmp_path)
    assert "2 passed, 6 skipped, 1 xfailed, 2 errors" in lines[-1]
    assert any(line.startswith("SKIPPED") and "not on this machine" in line for line in lines)
    assert any("needs 'graphwiz'; known: chromium, " in line for line in lines)
    assert any("the global generators of random were touched" in line for line in lines)


def test_every_way_to_skip_fails_under_require_all(tmp_path: Path) -> None:
    lines = run_pytest(tmp_path, MIS_LAB_REQUIRE="all")
    assert "skipped" not in lines[-1]
    assert "2 failed, 2 passed, 1 xfailed, 6 errors" in lines[-1]  # called and imports fail; the rest never starts
    told = [line for line in lines if "MIS_LAB_REQUIRE=all allows none" in line]
    for reason in ("marked", "called", "no_such_package", "not on this machine", "in a fixture"):
        assert any(reason in line for line in told)


def rules_of(config: pytest.Config) -> Any:
    return config.pluginmanager.get_plugin(str(CONFTEST))


def test_an_unknown_requirement_is_refused(pytestconfig: pytest.Config, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIS_LAB_REQUIRE", "some")
    with pytest.raises(pytest.UsageError, match="MIS_LAB_REQUIRE=some: only 'all' means something"):
        rules_of(pytestconfig).pytest_configure(pytestconfig)


def test_surroundings_are_temporary(tmp_path: Path) -> None:
    assert os.environ["MIS_LAB_STORE"] == str(tmp_path / "store")
    assert os.environ["MIS_LAB_OUTPUT"] == str(tmp_path / "outputs")
    for name in ("HF_HOME", "TORCH_HOME", "XDG_CACHE_HOME", "WANDB_DIR"):
        assert Path(os.environ[name]).is_relative_to(tempfile.gettempdir())
    assert os.environ["HF_HUB_OFFLINE"] == "1"
    assert "WANDB_API_KEY" not in os.environ


def test_a_test_has_the_same_name_in_every_process(collected: dict[str, list[str]]) -> None:
    """Workers must collect the same: no address of an object in a name."""
    assert not [name for name in collected if " at 0x" in name]


@pytest.mark.parametrize("time", [1, 2])
def test_global_generators_start_the_same_in_every_test(time: int) -> None:
    assert torch.rand(()).item() == torch.rand((), generator=torch.Generator().manual_seed(0)).item()
    assert np.random.random() == np.random.RandomState(0).random()  # noqa: NPY002
    assert random.random() == random.Random(0).random()


def test_drawing_from_a_global_generator_is_noticed(pytestconfig: pytest.Config) -> None:
    untouched = rules_of(pytestconfig)._touching_no_generator
    with untouched():
        torch.rand(1, generator=torch.Generator())
    with pytest.raises(AssertionError, match="generators of torch were"), untouched():
        torch.rand(1)
    with pytest.raises(AssertionError, match="generators of numpy were"), untouched():
        np.random.random()  # noqa: NPY002


@pytest.mark.needs("chromium")
def test_chromium_is_a_program(chromium: str) -> None:
    assert os.access(chromium, os.X_OK)
