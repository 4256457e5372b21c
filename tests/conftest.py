"""What holds for every test: it writes to temporary folders only, fetches nothing, does not depend on the
order of the tests, and under MIS_LAB_REQUIRE=all is not skipped.
"""

from __future__ import annotations

import importlib.util
import json
import os
import random
import shutil
import sys
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import settings

REQUIRE_ALL = os.environ.get("MIS_LAB_REQUIRE") == "all"
# Node id -> names of its markers, before deselection.
COLLECTED: pytest.StashKey[dict[str, list[str]]] = pytest.StashKey()
CHROMIUM = ("chromium", "chromium-browser", "google-chrome")


def _program(*names: str) -> Callable[[], str | None]:
    return lambda: None if any(map(shutil.which, names)) else f"no program {' or '.join(names)} on PATH"


def _package(name: str) -> Callable[[], str | None]:
    return lambda: None if importlib.util.find_spec(name) else f"the package {name} is not installed"


def _mount() -> str | None:
    return None if sys.platform == "linux" and os.geteuid() == 0 else "only root may mount a small disk"


# What @pytest.mark.needs(...) may ask for; each gives None, or why it is missing.
NEEDS: dict[str, Callable[[], str | None]] = {
    "chromium": _program(*CHROMIUM),
    "graphviz": _program("dot"),
    "uv": _package("uv"),
    "hatchling": _package("hatchling"),
    "mount": _mount,
}

SAME_EXAMPLES = REQUIRE_ALL or "CI" in os.environ
settings.register_profile("mis_lab", deadline=None, derandomize=SAME_EXAMPLES, print_blob=True)
settings.load_profile("mis_lab")


def pytest_configure(config: pytest.Config) -> None:
    """Set the environment before torch, huggingface_hub and wandb are imported: they read it once."""
    require = os.environ.get("MIS_LAB_REQUIRE", "")
    if require not in ("", "all"):
        raise pytest.UsageError(f"MIS_LAB_REQUIRE={require}: only 'all' means something")
    if "PYTEST_XDIST_WORKER" in os.environ:  # the rest is inherited: workers share one store, as jobs do
        os.environ |= {"OMP_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
        return
    folder = Path(tempfile.mkdtemp(prefix="mis_lab_tests_"))
    config.add_cleanup(lambda: shutil.rmtree(folder, ignore_errors=True))
    os.environ |= {
        "MIS_LAB_STORE": str(folder / "store"),
        "MIS_LAB_OUTPUT": str(folder / "outputs"),
        "MIS_LAB_DATA": str(folder / "data"),
        "XDG_CACHE_HOME": str(folder / "cache"),
        "XDG_CONFIG_HOME": str(folder / "config"),
        "HF_HOME": str(folder / "huggingface"),
        "HF_HUB_OFFLINE": "1",
        "TORCH_HOME": str(folder / "torch"),
        "WANDB_MODE": "offline",
        "WANDB_SILENT": "true",
        "WANDB_DIR": str(folder / "wandb"),
        "WANDB_CACHE_DIR": str(folder / "wandb_cache"),
        "WANDB_CONFIG_DIR": str(folder / "wandb_config"),
        "WANDB_DATA_DIR": str(folder / "wandb_data"),
        "MPLBACKEND": "Agg",
    }
    for secret in ("WANDB_API_KEY", "HF_TOKEN"):
        os.environ.pop(secret, None)
    if config.pluginmanager.hasplugin("cacheprovider"):  # kept between sessions: building it takes seconds
        os.environ["MPLCONFIGDIR"] = str(config.cache.mkdir("matplotlib"))  # type: ignore[union-attr]


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config: pytest.Config, items: list[pytest.Item]) -> None:
    collected = {item.nodeid: sorted({mark.name for mark in item.iter_markers()}) for item in items}
    config.stash[COLLECTED] = collected
    if "MIS_LAB_COLLECTED" in os.environ:  # how test_parity.py asks about files outside its own session
        Path(os.environ["MIS_LAB_COLLECTED"]).write_text(json.dumps(collected))


def pytest_runtest_setup(item: pytest.Item) -> None:
    for mark in item.iter_markers("needs"):
        for what in mark.args:
            if what not in NEEDS:
                raise pytest.UsageError(f"{item.nodeid} needs {what!r}; known: {', '.join(NEEDS)}")
            if missing := NEEDS[what]():
                pytest.skip(missing)


def _skip_fails(report: Any) -> Any:
    if REQUIRE_ALL and report.outcome == "skipped" and not hasattr(report, "wasxfail"):
        reason = report.longrepr[2] if isinstance(report.longrepr, tuple) else report.longrepr
        report.outcome = "failed"
        report.longrepr = f"skipped, and MIS_LAB_REQUIRE=all allows none: {reason}"
    return report


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_runtest_makereport() -> Any:
    return _skip_fails((yield))


@pytest.hookimpl(wrapper=True, tryfirst=True)
def pytest_make_collect_report() -> Any:
    return _skip_fails((yield))


@pytest.fixture(scope="session")
def collected(pytestconfig: pytest.Config) -> dict[str, list[str]]:
    """Node id → names of its markers, for every test that this session collected, deselected ones too."""
    return pytestconfig.stash[COLLECTED]


@pytest.fixture(autouse=True)
def _own_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each test has a store and an output folder of its own; fixtures of a wider scope use the session's."""
    monkeypatch.setenv("MIS_LAB_STORE", str(tmp_path / "store"))
    monkeypatch.setenv("MIS_LAB_OUTPUT", str(tmp_path / "outputs"))


def _global_rng() -> dict[str, Any]:
    states: dict[str, Any] = {"random": random.getstate()}
    if "numpy" in sys.modules:
        states["numpy"] = sys.modules["numpy"].random.get_state()
    if "torch" in sys.modules:
        states["torch"] = sys.modules["torch"].get_rng_state()
    return states


@pytest.fixture(autouse=True)
def _pinned_global_rng() -> Iterator[None]:
    """Constructors of torch modules know no generator: what a test draws so is the same in any order."""
    before = _global_rng()
    random.seed(0)
    if "numpy" in before:
        sys.modules["numpy"].random.seed(0)
    if "torch" in before:
        sys.modules["torch"].manual_seed(0)
    yield
    random.setstate(before["random"])
    if "numpy" in before:
        sys.modules["numpy"].random.set_state(before["numpy"])
    if "torch" in before:
        sys.modules["torch"].set_rng_state(before["torch"])


@contextmanager
def _touching_no_generator() -> Iterator[None]:
    before = _global_rng()
    yield
    after = _global_rng()
    touched = [name for name in before if _plain(before[name]) != _plain(after[name])]
    assert not touched, f"the global generators of {', '.join(touched)} were touched"


@pytest.fixture
def untouched_rng(_pinned_global_rng: None) -> Iterator[None]:
    """For tests of library code: afterwards no global generator has been drawn from or seeded."""
    with _touching_no_generator():
        yield


def _plain(state: Any) -> Any:
    if isinstance(state, tuple):
        return [_plain(part) for part in state]
    return state.tolist() if hasattr(state, "tolist") else state


@pytest.fixture(scope="session")
def chromium() -> str:
    """Path of a Chromium; for tests marked ``needs("chromium")``."""
    found = next(filter(None, map(shutil.which, CHROMIUM)), None)
    assert found, "mark the test with needs('chromium')"
    return found
