"""W&B offline, read back with W&B's own reader: distinct runs, right numbers, failed marked failed."""

from __future__ import annotations

import json
import logging
import os
import subprocess
from pathlib import Path

import pytest
import wandb
from PIL import Image
from wandb.util import get_core_path

from mis_lab.tracking.config import LoggerConfig, WandbMode
from mis_lab.tracking.several import open_tracker
from mis_lab.tracking.wandb import WandbTracker

OFFLINE = LoggerConfig(wandb=WandbMode.offline, project="tests", tags=["small"])
ONLINE = LoggerConfig(wandb=WandbMode.online)


@pytest.fixture(autouse=True)
def no_account(tmp_path, monkeypatch):
    """No credentials, no settings of this machine's user."""
    for name in [name for name in os.environ if name.startswith("WANDB_")]:
        monkeypatch.delenv(name)
    monkeypatch.setenv("HOME", str(tmp_path / "home"))
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    monkeypatch.setenv("WANDB_CONFIG_DIR", str(tmp_path / "config"))
    monkeypatch.setenv("WANDB_CACHE_DIR", str(tmp_path / "cache"))
    monkeypatch.setenv("WANDB_DATA_DIR", str(tmp_path / "data"))
    wandb.teardown()  # settings of an earlier test
    yield
    wandb.teardown()


def logs(run_dir: Path) -> list[Path]:
    return sorted(run_dir.glob("wandb/*/run-*.wandb"))


def inspect(path: Path, *options: str) -> str:
    """What `wandb leet inspect --json` prints; straight from its program, without a second Python."""
    where = ["--run-file", str(path), str(path.parents[1])]
    command = [get_core_path(), "leet", "inspect", "--no-observability", "--json", *options, *where]
    return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def test_three_runs_in_one_process_are_three_runs_and_the_failed_one_is_failed(tmp_path):
    for number, key in enumerate(["key0", "key1", "key2"]):
        try:
            with open_tracker(OFFLINE, tmp_path / key, key, "group", {"seed": number}, ["topk"]) as tracker:
                for step in (0, 10, 20):
                    tracker.log("sae/blocks.2", {"loss": number + 1 / (step + 1)}, step)
                tracker.log("evaluate/blocks.2", {"fvu": 0.1 * number})
                if key == "key1":
                    raise RuntimeError("boom")
                tracker.summary({"mis/median": float(number)})
        except RuntimeError:
            assert key == "key1"

    found = {}
    for key in ("key0", "key1", "key2"):
        (path,) = logs(tmp_path / key)
        found[key] = json.loads(inspect(path, "--summary"))
    assert [found[key]["run_id"] for key in found] == ["key0", "key1", "key2"]
    assert [found[key]["state"] for key in found] == ["finished", "failed", "finished"]
    assert [found[key]["exit_code"] for key in found] == [0, 1, 0]
    for number, key in enumerate(found):
        summary = {name: value for name, value in found[key]["summary"].items() if not name.startswith("_")}
        expected = {
            "sae/blocks.2/loss": number + 1 / 21,
            "sae/blocks.2/step": 20,
            "evaluate/blocks.2/fvu": pytest.approx(0.1 * number),
        }
        if key != "key1":
            expected["mis/median"] = number
        assert summary == expected, key
        assert found[key]["config"]["seed"] == number
        assert sorted(found[key]["tags"]) == ["small", "topk"]


def test_each_stage_has_its_axis_and_a_smaller_step_is_not_lost(tmp_path):
    tracker = WandbTracker(LoggerConfig(media=True), tmp_path, "key", "group", {})
    tracker.log("sae/a.1", {"loss": 3.0}, 100)
    tracker.log("sae/b", {"loss": 2.0}, 0)
    tracker.log("sae/a.1", {"loss": 1.0}, 50)  # resumed from an earlier checkpoint
    picture = tmp_path / "picture.png"
    Image.new("RGB", (4, 4), "red").save(picture)
    tracker.figure("figures/picture", picture)
    svg = tmp_path / "chart.svg"
    svg.write_text("<svg xmlns='http://www.w3.org/2000/svg'></svg>")
    tracker.figure("figures/chart", svg)
    tracker.table("mis/units", ["unit", "score"], [[1, 0.5], [2, 0.25]])
    tracker.finish()
    tracker.finish(1)

    (path,) = logs(tmp_path)
    records = [json.loads(line) for line in inspect(path).splitlines()]
    history = [record["history"]["item"] for record in records if record["type"] == "history"]
    assert [row["sae/a.1/loss"] for row in history if "sae/a.1/loss" in row] == [3.0, 1.0]
    assert [row["sae/a.1/step"] for row in history if "sae/a.1/loss" in row] == [100, 50]
    axes = {
        record["metric"]["glob_name"]: record["metric"]["step_metric"]
        for record in records
        if record["type"] == "metric" and "glob_name" in record["metric"]
    }
    assert axes == {"sae/a\\.1/*": "sae/a\\.1/step", "sae/b/*": "sae/b/step"}
    media = sorted(file.suffix for file in tmp_path.glob("wandb/*/files/media/*/**/*") if file.is_file())
    assert media == [".html", ".json", ".png"]
    assert [record["exit"]["exit_code"] for record in records if record["type"] == "exit"] == [0]


def test_media_off_sends_no_files_but_still_refuses_what_is_no_picture(tmp_path):
    tracker = WandbTracker(LoggerConfig(media=False), tmp_path, "key", "group", {})
    picture = tmp_path / "picture.png"
    Image.new("RGB", (4, 4)).save(picture)
    tracker.figure("figures/picture", picture)
    tracker.table("mis/units", ["unit"], [[1]])
    with pytest.raises(ValueError, match=r"\.txt is none of"):
        tracker.figure("figures/notes", tmp_path / "notes.txt")
    tracker.finish()
    assert not list(tmp_path.glob("wandb/*/files/media"))


def online_falls_back(tmp_path, caplog) -> str:
    with caplog.at_level(logging.WARNING, logger="mis_lab"):
        tracker = WandbTracker(ONLINE, tmp_path, "key", "group", {})
        tracker.log("sae", {"loss": 1.0}, 1)
        tracker.finish()
    assert logs(tmp_path)[0].parent.name.startswith("offline-run-")
    (warning,) = [record.getMessage() for record in caplog.records if record.name.startswith("mis_lab")]
    assert "writing offline" in warning
    return warning


def test_online_without_a_key_warns_once_and_writes_offline(tmp_path, caplog):
    assert "no API key" in online_falls_back(tmp_path, caplog)


def test_online_with_a_key_but_no_server_warns_once_and_writes_offline(tmp_path, caplog, monkeypatch):
    monkeypatch.setenv("WANDB_API_KEY", "a" * 40)
    monkeypatch.setenv("WANDB_BASE_URL", "http://127.0.0.1:9")  # the discard port: refused at once
    monkeypatch.setenv("WANDB_HTTP_TIMEOUT", "1")
    assert "127.0.0.1:9" in online_falls_back(tmp_path, caplog)


def test_a_server_that_answers_and_then_fails_warns_once_and_writes_offline(tmp_path, caplog, monkeypatch):
    real = wandb.init

    def init(mode, **keywords):
        if mode == "online":
            raise wandb.errors.CommError("timed out")
        return real(mode=mode, **keywords)

    monkeypatch.setattr(wandb, "login", lambda **_: True)
    monkeypatch.setattr(wandb, "init", init)
    assert "timed out" in online_falls_back(tmp_path, caplog)
