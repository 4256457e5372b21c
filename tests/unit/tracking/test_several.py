"""open_tracker: what is opened, and how it is closed when a run fails."""

from __future__ import annotations

import json
import subprocess
import sys

import pytest

from mis_lab.core.errors import DataError
from mis_lab.tracking.config import LoggerConfig, WandbMode
from mis_lab.tracking.several import SeveralTrackers, open_tracker

OFF = LoggerConfig(wandb=WandbMode.off)


class ListTracker:
    def __init__(self):
        self.calls = []

    def log(self, stage, metrics, step=None):
        self.calls.append(("log", stage, metrics, step))

    def summary(self, values):
        self.calls.append(("summary", values))

    def figure(self, name, path):
        self.calls.append(("figure", name, path))

    def table(self, name, columns, rows):
        self.calls.append(("table", name, columns, rows))

    def finish(self, exit_code=0):
        self.calls.append(("finish", exit_code))


def exit_codes(run_dir):
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")
    return [line["exit_code"] for line in map(json.loads, text.splitlines()) if line["kind"] == "finish"]


def test_every_call_reaches_every_tracker_in_order(tmp_path):
    one, two = ListTracker(), ListTracker()
    several = SeveralTrackers([one, two])
    several.log("sae", {"loss": 1.0}, 5)
    several.summary({"a": 1})
    several.figure("f", tmp_path / "f.svg")
    several.table("t", ["a"], [[1]])
    several.finish(3)
    assert (
        one.calls
        == two.calls
        == [
            ("log", "sae", {"loss": 1.0}, 5),
            ("summary", {"a": 1}),
            ("figure", "f", tmp_path / "f.svg"),
            ("table", "t", ["a"], [[1]]),
            ("finish", 3),
        ]
    )


@pytest.mark.parametrize(
    ("error", "code"),
    [(RuntimeError("boom"), 1), (DataError("no images"), 2), (KeyboardInterrupt(), 130)],
    ids=["bug", "user", "ctrl-c"],
)
def test_a_failing_run_is_closed_with_its_exit_code_and_still_raises(tmp_path, error, code):
    def fail():
        with open_tracker(OFF, tmp_path, "key", "name", {}) as tracker:
            tracker.log("sae", {"loss": 1.0}, 1)
            raise error

    with pytest.raises(type(error)) as caught:
        fail()
    assert caught.value is error
    assert exit_codes(tmp_path) == [code]


def test_a_good_run_ends_with_0(tmp_path):
    with open_tracker(OFF, tmp_path, "key", "name", {}):
        pass
    assert exit_codes(tmp_path) == [0]


def test_with_wandb_off_neither_wandb_nor_torch_is_imported(tmp_path):
    program = (
        "import sys; from pathlib import Path; from mis_lab.tracking.several import open_tracker;"
        "from mis_lab.tracking.config import LoggerConfig, WandbMode\n"
        f"with open_tracker(LoggerConfig(wandb=WandbMode.off), Path({str(tmp_path)!r}), 'k', 'n', {{}}): pass\n"
        "print([name for name in ('wandb', 'torch') if name in sys.modules])"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"
