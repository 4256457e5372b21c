"""A whole run at small size, and everything a user does with it afterwards."""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from mis_lab.core.store import Artifact, Recipe
from mis_lab.pipeline.run import headline_numbers
from tests.integration.conftest import Lab

SMOKE = ("experiment=quickstart", "debug=smoke", "logger=files")


@pytest.fixture(scope="module")
def done(new_lab: Callable[[str], Lab]) -> Lab:
    """A lab with one finished smoke run of the quickstart."""
    lab = new_lab("done")
    lab.run(*SMOKE)
    return lab


def result_of(lab: Lab) -> dict[str, Any]:
    (path,) = (lab.outputs / "quickstart").glob("*/result.json")
    return json.loads(path.read_text())


def built(store: Path) -> dict[str, float]:
    """Artifact → when its manifest was written."""
    return {
        f"{path.parent.parent.name}/{path.parent.name}": path.stat().st_mtime
        for path in store.glob("*/*/manifest.json")
    }


def test_every_stage_left_an_artifact_that_the_result_names(done: Lab) -> None:
    result = result_of(done)
    stages = {"activations", "predictions", "ablation", "sae", "evaluate"}
    stages |= {"metric", "mis", "further", "curves", "reseeds", "course", "partners", "compare", "circuit", "report"}
    assert {name.partition("/")[0] for name in result["artifacts"]} == stages
    keys = {name.partition("/")[2] for name in built(done.store)}
    assert set(result["artifacts"].values()) == keys
    assert result["config"]["sae"]["k"] == 16
    assert result["seed"] == 0


def test_every_number_of_the_result_is_finite_or_left_out(done: Lab) -> None:
    numbers = result_of(done)["metrics"]
    assert len(numbers) > 100
    assert all(math.isfinite(value) for value in numbers.values())
    for site in ("blocks.2", "blocks.4", "blocks.6"):
        assert 0 < numbers[f"evaluate/{site}/held_out/fvu"] < 2
        assert numbers[f"evaluate/{site}/seen/l0"] <= 16


def test_a_mean_over_no_unit_is_left_out(tmp_path: Path) -> None:
    (tmp_path / "summary.json").write_text('{"random/soft": NaN, "loss": null, "scored_share": 0.0}')
    artifact = Artifact(Recipe("mis", 1, {}), "key", tmp_path)
    assert headline_numbers({"mis/site/feature": artifact}) == {"mis/site/feature": {"scored_share": 0.0}}


def test_permuted_activations_score_chance(done: Lab) -> None:
    numbers = result_of(done)["metrics"]
    means = [value for name, value in numbers.items() if re.fullmatch(r"mis/.*/permuted/(random|bottom)/hard", name)]
    assert len(means) == 6
    # 16 units of 3 tasks each a site and kind of negatives: standard error of all together about 0.03.
    assert sum(means) / len(means) == pytest.approx(0.5, abs=0.12)


def test_features_are_scored_in_the_course_of_training(done: Lab) -> None:
    numbers = result_of(done)["metrics"]
    names = [name for name in numbers if name.startswith("course/blocks.4/step/") and name.endswith("random/soft")]
    assert [int(name.split("/")[3]) for name in names] == [0, 16]
    assert all(0 < numbers[name] < 1 for name in names)


def test_a_finished_run_is_skipped(done: Lab) -> None:
    before = built(done.store)
    assert "skip" in done.run(*SMOKE).stdout
    assert built(done.store) == before


def test_a_run_without_its_result_is_put_together_from_the_store(done: Lab) -> None:
    (path,) = (done.outputs / "quickstart").glob("*/result.json")
    before, result = built(done.store), result_of(done)
    path.unlink()
    done.run(*SMOKE)
    assert built(done.store) == before
    assert result_of(done)["artifacts"] == result["artifacts"]
    assert result_of(done)["metrics"] == result["metrics"]


def test_metrics_are_logged_while_saes_train(done: Lab) -> None:
    (path,) = (done.outputs / "quickstart").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    steps = [line["step"] for line in lines if line.get("stage") == "sae/blocks.2" and line.get("step") is not None]
    assert steps == sorted(set(steps))
    assert len(steps) >= 4


def test_figures_and_a_table_of_all_units_are_tracked(done: Lab) -> None:
    (path,) = (done.outputs / "quickstart").glob("*/metrics.jsonl")
    lines = [json.loads(line) for line in path.read_text().splitlines()]
    figures = {line["name"] for line in lines if line["kind"] == "figure"}
    assert {"figures/differences", "figures/faithfulness", "figures/density/blocks.4"} <= figures
    (table,) = {line["path"] for line in lines if line["kind"] == "table"}
    rows = (path.parent / table).read_text().splitlines()
    widths = (40, 112, 320)
    assert len(rows) == 1 + sum(widths) + sum(2 * width for width in widths)  # neurons, and features at expansion 2


def test_the_attribution_gap_is_printed(done: Lab) -> None:
    (log,) = (done.outputs / "quickstart").glob("*/*.log")
    assert len(re.findall(r"feature effects at blocks\.\d: attribution gap \d", log.read_text())) == 3


def test_store_commands(done: Lab) -> None:
    listed = done.run("store", "ls", "sae").stdout
    assert listed.count("topk at tf_efficientnet_lite0") == 3
    keys = [line.split()[1] for line in listed.splitlines()[1:]]
    assert "activations" in done.run("store", "why", keys[0], keys[1]).stdout
    assert "0 damaged" in done.run("store", "verify").stdout
    assert "0 folders" in done.run("store", "gc", "--older-than", "0").stdout  # the run uses everything


def test_verify_finds_a_changed_file(lab: Lab) -> None:
    lab.run(*SMOKE, "stages=[activations]", "model.sites=[blocks.6]", "dataset.split.limit=18")
    shard = next((lab.store / "activations").glob("*/shard-*.npy"))
    content = bytearray(shard.read_bytes())
    content[-1] ^= 1
    shard.write_bytes(content)
    assert f"changed: {shard}" in lab.run("store", "verify", expect=1).stdout
    (result,) = lab.outputs.rglob("result.json")
    result.unlink()
    assert "unused" in lab.run("store", "gc", "--older-than", "0").stdout
    assert shard.exists()
    lab.run("store", "gc", "--older-than", "0", "--delete")
    assert not shard.exists()


def test_rerun_and_report_of_a_run_folder(done: Lab) -> None:
    (run,) = (done.outputs / "quickstart").glob("*/")
    assert "skip" in done.run("rerun", str(run)).stdout
    done.run("report", str(run), "report.units=1")
    reports = list(done.outputs.rglob("report.html"))
    assert len(reports) == 2  # another configuration, so another folder; the first is untouched
    sizes = sorted(path.stat().st_size for path in reports)
    assert sizes[0] < sizes[1] <= 10 * 2**20


def test_model_sites_lists_what_can_be_a_site(lab: Lab) -> None:
    listed = lab.run("model", "sites", "model=mlp1", "dataset=mnist", "model.training.epochs=1").stdout
    assert [line.split()[0] for line in listed.splitlines()[1:]] == ["fc1", "act1", "fc2", "act2", "fc3"]


def test_a_sweep_shares_activations_and_does_only_what_is_missing(lab: Lab) -> None:
    words = ("-m", *SMOKE, "model.sites=[blocks.6]", "stages=[activations,sae,evaluate]", "sae.k=4,8", "seed=0,1")
    lab.run(*words)
    results = list((lab.outputs / "quickstart").glob("*/result.json"))
    assert len(results) == 4
    before = built(lab.store)
    assert sum(name.startswith("activations/") for name in before) == 2  # train and score, once
    assert sum(name.startswith("sae/") for name in before) == 4
    results[0].unlink()
    again = lab.run(*words)
    assert again.stdout.count("skip") == 3
    assert built(lab.store) == before
    table = lab.run("sweep", "quickstart").stdout
    assert "4 runs" in table
    rows = (lab.outputs / "quickstart" / "runs.csv").read_text().splitlines()
    assert len(rows) == 5
    assert {"sae.k", "seed", "evaluate/blocks.6/held_out/fvu"} <= set(rows[0].split(","))


def test_a_failing_job_does_not_stop_the_sweep(lab: Lab) -> None:
    few = ("model.sites=[blocks.6]", "stages=[activations,sae]", "dataset.split.limit=18")
    done = lab.run("-m", *SMOKE, *few, "sae.k=100000,4", expect=1)
    assert "1 of the sweep's jobs failed" in done.stderr
    assert len(list(lab.outputs.rglob("result.json"))) == 1
    logs = [path.read_text() for path in lab.outputs.rglob("*.log")]
    assert sum("100000" in log and "ERROR" in log for log in logs) == 1  # in the failed job's own log


def test_without_an_sae_neurons_are_scored(lab: Lab) -> None:
    lab.run(*SMOKE, "sae=none", "model.sites=[blocks.6]")
    result = result_of(lab)
    assert not any(name.startswith(("sae/", "evaluate/", "activations/train")) for name in result["artifacts"])
    assert "mis/blocks.6/neuron" in result["artifacts"]
    assert (next(lab.outputs.rglob("report.html"))).stat().st_size > 10_000
    before, others = built(lab.store), ("sae.expansion=3", "trainer.lr=0.5", "stages=[activations,mis,circuit]")
    lab.run(*SMOKE, "sae=none", "model.sites=[blocks.6]", *others)
    assert len(list(lab.outputs.rglob("result.json"))) == 2
    assert built(lab.store) == before  # options of SAEs and their training play no part


def test_digits_with_a_network_trained_here(lab: Lab) -> None:
    lab.run("experiment=mnist", "debug=smoke", "logger=files", "model.training.epochs=2", "dataset.split.limit=600")
    (path,) = (lab.outputs / "mnist").glob("*/result.json")
    assert "circuit/feature/cpr" in json.loads(path.read_text())["metrics"]
    (weights,) = (lab.store / "weights").glob("*/summary.json")
    assert json.loads(weights.read_text())["accuracy"] > 0.5


def test_wandb_offline_is_one_run_a_job(lab: Lab) -> None:
    few = ("model.sites=[blocks.6]", "stages=[activations,sae]", "dataset.split.limit=18", "logger=wandb_offline")
    lab.run("-m", "experiment=quickstart", "debug=smoke", *few, "seed=0,1")
    folders = list(lab.outputs.rglob("offline-run-*"))
    assert len({folder.name.rpartition("-")[2] for folder in folders}) == 2


def test_presets_of_the_score_run_and_keep_their_scores_apart(lab: Lab) -> None:
    few = ("sae=none", "model.sites=[blocks.6]", "stages=[mis]", "mis.controls=[]")
    small = ("mis.n_explanations=2", "mis.n_tasks=3", "mis.min_tasks=1", "mis.pool_size=0")
    for preset in ("within_class", "thesis", "hard"):
        lab.run(*SMOKE, *few, f"mis={preset}", *small)
    assert sum(name.startswith("mis/") for name in built(lab.store)) == 3
