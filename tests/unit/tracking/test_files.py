"""metrics.jsonl: strict JSON, there at once, whole after a crash."""

from __future__ import annotations

import csv
import json
import math

import numpy as np
import pytest

from mis_lab.tracking.files import FilesTracker


def lines(run_dir):
    text = (run_dir / "metrics.jsonl").read_text(encoding="utf-8")

    def refuse(constant):
        raise AssertionError(f"{constant} is not strict JSON")

    return [json.loads(line, parse_constant=refuse) for line in text.splitlines()]


def test_every_line_is_on_disk_before_the_run_ends(tmp_path):
    tracker = FilesTracker(tmp_path)
    tracker.log("sae/blocks.2", {"loss": 0.5, "l0": np.float32(16)}, step=25)
    first = lines(tmp_path)
    assert [(line["kind"], line["stage"], line["step"], line["metrics"]) for line in first] == [
        ("metrics", "sae/blocks.2", 25, {"loss": 0.5, "l0": 16.0})
    ]
    tracker.summary({"mis/blocks.2/feature": 0.8, "label": "x"})
    tracker.finish(1)
    assert [line["kind"] for line in lines(tmp_path)] == ["metrics", "summary", "finish"]
    assert lines(tmp_path)[-1]["exit_code"] == 1
    times = [line["time"] for line in lines(tmp_path)]
    assert times == sorted(times)


def test_a_number_that_is_not_finite_is_null(tmp_path):
    tracker = FilesTracker(tmp_path)
    tracker.log("sae", {"loss": math.nan, "norm": np.float64("inf"), "fine": 1}, step=0)
    tracker.finish()
    assert lines(tmp_path)[0]["metrics"] == {"loss": None, "norm": None, "fine": 1}


def test_a_second_try_goes_on_after_a_half_written_line(tmp_path):
    (tmp_path / "metrics.jsonl").write_text('{"kind": "metrics", "step": 1}\n{"kind": "met', encoding="utf-8")
    tracker = FilesTracker(tmp_path)
    tracker.log("sae", {"loss": 1.0}, step=2)
    tracker.finish()
    whole = (tmp_path / "metrics.jsonl").read_text(encoding="utf-8").splitlines()
    assert whole[1] == '{"kind": "met'
    assert json.loads(whole[2])["step"] == 2


def test_a_table_is_csv_and_the_log_names_it(tmp_path):
    tracker = FilesTracker(tmp_path)
    tracker.table("mis/units", ["unit", "kind"], [[1, "neuron"], [2, 'a "feature", quoted']])
    tracker.finish()
    line = lines(tmp_path)[0]
    assert (line["kind"], line["name"], line["path"]) == ("table", "mis/units", "tables/mis_units.csv")
    with open(tmp_path / line["path"], encoding="utf-8", newline="") as file:
        assert list(csv.reader(file)) == [["unit", "kind"], ["1", "neuron"], ["2", 'a "feature", quoted']]


def test_a_row_of_the_wrong_length_is_refused(tmp_path):
    tracker = FilesTracker(tmp_path)
    with pytest.raises(ValueError, match="row 1 has 1 values for 2 columns"):
        tracker.table("units", ["unit", "kind"], [[1, "neuron"], [2]])
    tracker.finish()
    assert not (tmp_path / "tables").exists()


def test_a_figure_is_named_relative_to_the_run(tmp_path):
    tracker = FilesTracker(tmp_path / "run")
    tracker.figure("scores", tmp_path / "run" / "figures" / "scores.svg")
    tracker.figure("elsewhere", tmp_path / "other.svg")
    tracker.finish()
    inside, outside = lines(tmp_path / "run")[:2]
    assert inside["path"] == "figures/scores.svg"
    assert outside["path"] == str((tmp_path / "other.svg").resolve())


def test_finishing_twice_writes_once_and_logging_afterwards_is_a_bug(tmp_path):
    tracker = FilesTracker(tmp_path)
    tracker.finish()
    tracker.finish(1)
    assert [line["kind"] for line in lines(tmp_path)] == ["finish"]
    with pytest.raises(ValueError, match="is closed"):
        tracker.log("sae", {"loss": 1.0})
