"""What must not go wrong: a killed run loses nothing and a full disk leaves nothing."""

from __future__ import annotations

import json
import signal
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from tests.integration.conftest import Lab, wait_for

FEW = ("experiment=quickstart", "debug=smoke", "logger=files", "model.sites=[blocks.6]", "stages=[activations,sae]")
LONG = (*FEW, "trainer.n_vectors=40000", "trainer.checkpoint_steps=10")


def weights(lab: Lab) -> bytes:
    (path,) = (lab.store / "sae").glob("*/sae.safetensors")
    return path.read_bytes()


def test_killed_training_goes_on_to_the_same_weights(lab: Lab, new_lab: Callable[[str], Lab]) -> None:
    checkpoints = lab.store / "sae"
    with lab.start(*LONG) as process:
        wait_for(checkpoints, ".building-*/checkpoint*")
        process.send_signal(signal.SIGKILL)
    assert not list(checkpoints.glob("*/sae.safetensors")), "the training was over before it could be killed"
    resumed = lab.run(*LONG)  # in one thread, as the killed one: sums of other threads round differently
    assert "going on from step" in resumed.stdout
    other = new_lab("uninterrupted")
    other.run(*LONG)
    assert weights(lab) == weights(other)
    (result,) = lab.outputs.rglob("result.json")
    assert json.loads(result.read_text())["artifacts"]


@pytest.fixture
def tiny_disk(tmp_path: Path) -> Iterator[Path]:
    """A disk of one MiB."""
    folder = tmp_path / "tiny"
    folder.mkdir()
    subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", str(folder)], check=True)
    yield folder
    subprocess.run(["umount", "--lazy", str(folder)], check=True)


@pytest.mark.needs("mount")
def test_a_full_disk_is_one_line_and_leaves_nothing(lab: Lab, tiny_disk: Path) -> None:
    store = {"MIS_LAB_STORE": str(tiny_disk / "store")}
    done = lab.run(*FEW, "dataset.split.limit=0", expect=2, environment=store)
    told = [line for line in done.stdout.splitlines() if "ERROR" in line]
    assert len(told) == 1
    assert "disk is full" in told[0]
    assert not list((tiny_disk / "store").glob("*/.building-*"))
    assert not list((tiny_disk / "store").glob("*/*/manifest.json"))
