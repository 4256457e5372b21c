"""``mis-lab mis import`` in this process: a table summed up, and a run's scores beside it."""

from __future__ import annotations

import csv
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from mis_lab.commands import COMMANDS

COMMAND = "mis"
TABLE = """layer,unit,hard,confidence
mixed3a_1x1_pre_relu_conv,0,1.0,0.9
mixed3a_3x3_pre_relu_conv,0,0.8,0.5
mixed3a_3x3_bottleneck_pre_relu_conv,0,0.1,0.1
mixed3b_1x1_pre_relu_conv,0,0.75,0.625
"""


@pytest.fixture
def table(tmp_path: Path) -> Path:
    path = tmp_path / "googlenet.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


@pytest.fixture
def run_dir(tmp_path: Path) -> Path:
    """A finished run that scored neurons at two sites, with a metric of its own."""
    import torch

    from mis_lab.core.files import write_json
    from mis_lab.core.store import MANIFEST
    from mis_lab.mis.score import score
    from mis_lab.mis.tasks import Tasks
    from mis_lab.mis.unit_scores import NegativesScores, Settings, UnitScores

    # Every field of a setting is a text, a truth or a number.
    kinds = {"str": "", "bool": False, "int": 1, "float": 0.16}
    settings = {name: kinds[kind] for name, kind in Settings.__annotations__.items()}
    settings |= {"protocol": "extreme", "n_explanations": 9, "n_tasks": 20, "image_activation": "mean"}
    settings |= {"pool_size": 200, "metric": "lpips", "temperature": 0.4}
    artifacts = {}
    for number, site in enumerate(("mixed3a", "inception3b")):
        delta = torch.tensor(np.random.default_rng(number).normal(0.3, 0.3, (6, 20)))
        counts, images = torch.full((6,), 20), torch.zeros(6, 20, dtype=torch.int32)
        tasks = Tasks(images[..., None], images, images[..., None], images, counts)
        status = torch.zeros(6, dtype=torch.int64)
        result = NegativesScores(status, tasks, delta, score(delta, counts, 0.4, 1e-6, 10, 0))
        scores = UnitScores(
            site=site,
            kind="neuron",
            control="",
            units=torch.arange(6),
            unit_names=[str(unit) for unit in range(6)],
            settings=Settings(**settings),
            seed=0,
            n_active=counts,
            minimum=torch.zeros(6),
            maximum=torch.ones(6),
            image_ids=["a"],
            image_groups=["a"],
            by_negatives={"bottom": result},
        )
        scores.write(tmp_path / "store" / "mis" / f"key{number}")
        write_json(tmp_path / "store" / "mis" / f"key{number}" / MANIFEST, {"inputs": {}})
        artifacts[f"mis/{site}/neuron"] = f"key{number}"
    config = {"paths": {"store": str(tmp_path / "store")}}
    write_json(tmp_path / "run" / "result.json", {"artifacts": artifacts, "config": config})
    return tmp_path / "run"


def test_a_table_is_summed_up(mis_lab: Callable[..., list[str]], table: Path, tmp_path: Path) -> None:
    header, *rows = mis_lab("import", table)
    assert header.split() == ["layer", "n_units", "n_scored", "soft_mean", "soft_median", "hard_mean", "hard_median"]
    assert [row.split() for row in rows] == [
        ["mixed3a", "2", "2", "0.700", "0.700", "0.900", "0.900"],
        ["mixed3b", "1", "1", "0.625", "0.625", "0.750", "0.750"],
    ]
    out = tmp_path / "new" / "summary.csv"
    assert mis_lab("import", table, "--layer", "mixed3b", "--out", out)[-1] == f"also in {out}"
    with open(out, newline="", encoding="utf-8") as file:
        (row,) = csv.DictReader(file)
    assert (row["layer"], float(row["soft_median"])) == ("mixed3b", 0.625)


def test_a_run_beside_it(mis_lab: Callable[..., list[str]], table: Path, run_dir: Path, tmp_path: Path) -> None:
    words = ("import", table, "--run", run_dir, "--site", "mixed3a=mixed3a", "--site", "inception3b=mixed3b")
    lines = mis_lab(*words)
    rows = [line.split() for line in lines if " hard " in f" {line} "]
    assert [row[:4] for row in rows] == [["mixed3a", "mixed3a", "hard", "6"], ["inception3b", "mixed3b", "hard", "6"]]
    assert [row[6:9] for row in rows] == [["2", "0.900", "0.900"], ["1", "0.750", "0.750"]]
    assert "note: metric is lpips, not dreamsim" in lines
    assert lines[-1] == "note: soft scores of different metrics or temperatures are not compared"
    assert any(" soft " in f" {line} " for line in mis_lab(*words, "--metric", "lpips")[6:])
    os.rename(tmp_path / "store", tmp_path / "moved")
    assert mis_lab(*words, "--store", tmp_path / "moved") == lines


def test_mistakes_are_told_in_a_line(mis_lab: Callable[..., list[str]], table: Path, run_dir: Path) -> None:
    for words, told in (
        ((table.with_name("none.csv"),), "there is no table"),
        ((table, "--layer", "mixed9"), "no layer with 'mixed9' in its name"),
        ((table, "--run", run_dir), "no layer with 'inception3b' in its name"),
        ((table, "--run", run_dir, "--site", "mixed3a"), "--site mixed3a. Write --site SITE=LAYER."),
        ((table, "--run", run_dir, "--site", "x=mixed3a"), "--site x: the run scored no neurons there"),
        ((table, "--run", run_dir, "--kind", "feature"), "scored no units of kind feature. It scored neuron."),
        ((table, "--run", run_dir / "none"), "none is no finished run"),
        ((table, "--run", run_dir, "--site", "mixed3a=mixed3a", "--negatives", "random"), "no scores with random"),
    ):
        (line,) = mis_lab("import", *words, expect=2)
        assert told in line


def test_the_command_is_known_and_help_comes_without_torch() -> None:
    assert "mis" in COMMANDS
    code = (
        "import sys; from mis_lab.mis_commands import mis\n"
        "try: mis(sys.argv[1:])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    for words, said in ((["--help"], "import"), (["import"], "required: file")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=os.environ
        )
        assert said in done.stdout + done.stderr
