"""The command line as a user meets it: instant help, one-line errors, exit codes."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image

from tests.integration.conftest import REPOSITORY, Lab, wait_for


@pytest.mark.parametrize("arguments", [["--help"], ["--cfg", "job"], ["-sc", "query=bash"], ["store", "ls"]])
def test_answers_without_importing_torch(arguments: list[str], tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from mis_lab.cli import main\n"
        f"try: main({arguments!r})\n"
        "except SystemExit: pass\n"
        "heavy = {'torch', 'timm', 'torchvision', 'lpips', 'dreamsim', 'wandb', 'scipy'} & set(sys.modules)\n"
        "assert not heavy, heavy\n"
    )
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "MIS_LAB_STORE": str(tmp_path),
        "COMP_LINE": "mis-lab sae=",
        "COMP_POINT": "12",
    }
    done = subprocess.run([sys.executable, "-c", code], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_completion_offers_presets(tmp_path: Path) -> None:
    environment = os.environ | {
        "PYTHONPATH": str(REPOSITORY),
        "COMP_LINE": "mis-lab sae=",
        "COMP_POINT": "12",
        "_HYDRA_OLD_COMP": "1",
    }
    done = subprocess.run(
        [sys.executable, "-m", "mis_lab", "-sc", "query=bash"],
        cwd=tmp_path,
        env=environment,
        capture_output=True,
        text=True,
    )
    assert "sae=topk" in done.stdout
    assert "sae=relu" in done.stdout


def one_line(err: str) -> str:
    """The only line on standard error that is not an ordinary log line."""
    lines = [line for line in err.splitlines() if line.strip()]
    assert len(lines) == 1, err
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sae=topkk"], ["sae/topkk", "topk"]),
        (["sae.kk=3"], ["kk", "TopKConfig"]),
        (["sae.k=1.5"], ["sae.k", "Integer"]),
        (["sead=3"], ["sead"]),
        (["mis.protocol=fair"], ["fair", "extreme"]),
        (["-m", "sae.k=4,abc"], ["sae.k=abc", "Integer"]),
        (["frobnicate"], ["no subcommand frobnicate", "store"]),
        (["sweep", "nowhere"], ["no finished run called nowhere"]),
        (["rerun", "nowhere"], ["nowhere is no run folder"]),
    ],
)
def test_wrong_words_are_one_line_and_exit_2(lab: Lab, arguments: list[str], words: list[str]) -> None:
    line = one_line(lab.run(*arguments, expect=2).stderr)
    assert all(word in line for word in words), line


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["dataset=image_folder"], ["dataset.root"]),
        (["dataset=image_folder", "dataset.root=empty"], ["empty", "no image"]),
        (["dataset=image_folder", "dataset.root=nowhere"], ["nowhere"]),
        (["dataset=image_folder", "dataset.root=broken", "debug=smoke"], ["broken", "bad.png"]),
        (["mis.quantile=0.7"], ["quantile", "inverted"]),
        (["model.sites=[blocks.22]"], ["blocks.22", "blocks.2"]),
        (["model.sites=[]"], ["model.sites is empty"]),
        (["model.network._target_=os.system"], ["os.system", "not allowed"]),
        (["device=cuda:77"], ["cuda:77", "device=cpu"]),
        (["debug=smoke", "sae.k=500", "model.sites=[blocks.2]"], ["k", "500"]),
        (["model=resnet18"], ["resnet18-", ".pth", "checkpoints"]),
    ],
)
def test_bad_input_is_one_line_and_exit_2(lab: Lab, arguments: list[str], words: list[str]) -> None:
    (lab.folder / "empty").mkdir()
    broken = lab.folder / "broken" / "a"
    broken.mkdir(parents=True)
    for number in range(30):
        Image.new("RGB", (40, 40), (number * 8, 0, 99)).save(broken / f"{number}.png")
    (broken / "bad.png").write_bytes((broken / "1.png").read_bytes()[:60])
    done = lab.run(*arguments, "logger=files", expect=2)
    errors = [
        line for line in done.stdout.splitlines() + done.stderr.splitlines() if "][ERROR]" in line or "ERROR" in line
    ]
    assert len(errors) == 1, done.stdout + done.stderr
    assert all(word in errors[0] for word in words), errors[0]
    assert "Traceback" not in done.stdout + done.stderr
    assert not list(lab.store.glob("*/.building-*")), "something half-written in the store"
    assert not list(lab.outputs.rglob("result.json"))


def test_ctrl_c_exits_130_and_leaves_nothing_half_written(lab: Lab) -> None:
    activations = lab.store / "activations"
    with lab.start("logger=files", "trainer.n_vectors=100000000", "debug=smoke", "dataset.split.limit=0") as process:
        wait_for(activations, ".building-*")
        process.send_signal(signal.SIGINT)
        _, err = process.communicate(timeout=60)
    assert process.returncode == 130, err
    assert "interrupted" in err
    assert "Traceback" not in err
    assert not list(activations.glob(".building-*"))


def test_run_folder_in_use_by_another_process(lab: Lab) -> None:
    words = ("logger=files", "debug=smoke", "dataset.split.limit=0", "trainer.n_vectors=100000000")
    with lab.start(*words) as first:
        wait_for(lab.outputs, "**/*.owner")
        done = lab.run(*words, expect=2)
        assert f"in use by process {first.pid}" in done.stdout + done.stderr


def test_rerun_refuses_plugins_of_a_stored_configuration(lab: Lab) -> None:
    run = lab.folder / "run"
    (run / ".hydra").mkdir(parents=True)
    (run / ".hydra" / "overrides.yaml").write_text(json.dumps(["plugins=[os.]"]))
    assert "plugins" in one_line(lab.run("rerun", "run", expect=2).stderr)
