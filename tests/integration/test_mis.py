"""The stage mis by itself: in parts, beside a control, and two runs compared."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.integration.conftest import Lab

SITE = "blocks.4"
SMOKE = ("experiment=quickstart", "debug=smoke", "logger=files", f"model.sites=[{SITE}]", "stages=[mis]")


@pytest.fixture(scope="module")
def scored(new_lab: Callable[[str], Lab]) -> Lab:
    """A lab with a run that scored, and one of a control."""
    lab = new_lab("scored")
    lab.run(*SMOKE)
    lab.run(*SMOKE, "control=sparse_neurons")
    return lab


def runs(lab: Lab) -> dict[str, dict[str, Any]]:
    """Folder → result of every finished run."""
    found = (lab.outputs / "quickstart").glob("*/result.json")
    return {str(path.parent): json.loads(path.read_text()) for path in found}


def run_of(lab: Lab, control: str) -> tuple[Path, dict[str, Any]]:
    for folder, result in runs(lab).items():
        words = [word.partition("=")[0] for word in result["overrides"]]
        if ("control" in words) == bool(control) and not {"mis.part", "trainer.resampling.kind"} & {*words}:
            return Path(folder), result
    raise AssertionError("no such run")


def comparisons(lab: Lab, result: dict[str, Any]) -> list[dict[str, Any]]:
    return json.loads((lab.store / "compare" / result["artifacts"]["compare"] / "comparisons.json").read_text())


def test_scores_in_parts_are_the_same_file(scored: Lab) -> None:
    run_dir, result = run_of(scored, "")
    folders = [scored.store / "mis" / result["artifacts"][f"mis/{SITE}/{kind}"] for kind in ("neuron", "feature")]
    before = [(folder / "scores.safetensors").read_bytes() for folder in folders]
    for folder in folders:
        shutil.rmtree(folder)
    (run_dir / "result.json").unlink()
    scored.run("-m", *SMOKE, "mis.parts=3", "mis.part=0,1,2")
    assert not any(folder.exists() for folder in folders)
    assert len(list(scored.store.glob("mis_part/*/scores.json"))) == 6
    scored.run(*SMOKE, "mis.parts=3")
    assert [(folder / "scores.safetensors").read_bytes() for folder in folders] == before
    assert run_of(scored, "")[1]["artifacts"] == result["artifacts"]


def test_a_part_beyond_the_last_is_a_mistake(lab: Lab) -> None:
    assert "mis.part=3 of mis.parts=3" in lab.run(*SMOKE, "mis.parts=3", "mis.part=3", expect=2).stdout


def test_two_runs_side_by_side(scored: Lab) -> None:
    (first, _), (second, _) = run_of(scored, ""), run_of(scored, "control")
    table, figure = scored.folder / "compared.csv", scored.folder / "compared.svg"
    told = scored.run(
        "mis",
        "compare",
        str(first),
        str(second),
        "--store",
        str(scored.store),
        "--out",
        str(table),
        "--figure",
        str(figure),
    ).stdout
    assert "control=sparse_neurons" in told
    assert "less the others" in told
    assert "agreement" not in told, "features of other SAEs are other units"
    assert "control=sparse_neurons" in table.read_text()
    assert figure.read_text().startswith("<svg")


def test_the_same_neurons_are_ranked_alike(scored: Lab) -> None:
    (first, _), (second, _) = run_of(scored, ""), run_of(scored, "control")
    words = ("mis", "compare", str(first), str(second), "--kind", "neuron", "--store", str(scored.store))
    told = scored.run(*words, "--measure", "hard").stdout
    assert "agreement on the same units" in told
    assert "1.000 (1.000 to 1.000)" in told


def test_runs_that_cannot_be_compared_say_why(scored: Lab) -> None:
    (first, _) = run_of(scored, "")
    there = ("--store", str(scored.store))
    assert "no finished run" in scored.run("mis", "compare", str(first), "/nowhere", *there, expect=2).stderr
    told = scored.run("mis", "compare", str(first), str(first), "--kind", "atom", *there, expect=2).stderr
    assert "scored no units of kind atom" in told
    assert told.count("\n") == 1


def test_revived_features_can_be_left_out(scored: Lab) -> None:
    resampling = ("trainer.resampling.kind=random", "trainer.resampling.at=[8]", "trainer.resampling.window=1")
    scored.run(*SMOKE, *resampling)
    (result,) = (one for one in runs(scored).values() if resampling[0] in one["overrides"])
    told = comparisons(scored, result)
    of_kinds = {tuple(one["kinds"]): one for one in told if one["measure"] == "soft" and one["negatives"] == "random"}
    without, everything = of_kinds["never_revived", "neuron"]["a"], of_kinds["feature", "neuron"]["a"]
    assert 0 < without["n_units"] < everything["n_units"]
    assert without["label"] == "never revived features"
    assert not any(one["kinds"][0] == "never_revived" for one in comparisons(scored, run_of(scored, "")[1]))
