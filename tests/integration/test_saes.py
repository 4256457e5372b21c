"""The stage ``sae`` in all its ways: many in one pass, live, stacked, every preset."""

from __future__ import annotations

import json
import re
from typing import Any

import pytest

from tests.integration.conftest import Lab
from tests.integration.test_run import built

SMOKE = ("experiment=quickstart", "debug=smoke", "logger=files", "dataset.split.limit=36")
SAES = ("model.sites=[blocks.6]", "stages=[activations,sae,evaluate]")


def metrics(lab: Lab) -> list[dict[str, Any]]:
    return [json.loads(path.read_text())["metrics"] for path in sorted(lab.outputs.rglob("result.json"))]


def test_a_grid_is_trained_in_one_pass_and_a_sweep_finds_it_done(lab: Lab) -> None:
    lab.run(*SMOKE, *SAES, 'together=["sae.k=4,8","seed=0,1"]', "sae.k=4")
    together = built(lab.store)
    assert sum(name.startswith("sae/") for name in together) == 4
    lab.run("-m", *SMOKE, *SAES, "sae.k=4,8", "seed=0,1")
    after = built(lab.store)
    assert {name: when for name, when in after.items() if not name.startswith("evaluate/")} == {
        name: when for name, when in together.items() if not name.startswith("evaluate/")
    }
    assert len(metrics(lab)) == 4  # the first run was one of the sweep's


def test_one_that_diverges_costs_the_others_nothing(lab: Lab) -> None:
    words = (*SMOKE, *SAES, "stages=[activations,sae]", 'together=["trainer.lr=0.01,1e30"]')
    assert "training diverged" in lab.run(*words, expect=2).stdout
    assert sum(name.startswith("sae/") for name in built(lab.store)) == 1  # the run's own
    lab.run(*SMOKE, *SAES, "stages=[activations,sae]")
    assert sum(name.startswith("sae/") for name in built(lab.store)) == 1
    lab.run(*words, expect=2)  # a run that is done still owes the SAEs beside it


def test_the_evaluation_knows_how_images_are_made_of_maps(lab: Lab) -> None:
    lab.run(*SMOKE, *SAES)
    lab.run(*SMOKE, *SAES, "mis.image_activation=max")
    assert sum(name.startswith("evaluate/") for name in built(lab.store)) == 2


@pytest.mark.parametrize(
    "words",
    [
        pytest.param(("sae=pca", "evaluate.search_images=2"), marks=pytest.mark.slow),
        ("sae=transcoder", "+sae.source={blocks.6: blocks.5}"),
        ("sae=conv", "trainer.batch_size=64"),
    ],
)
def test_other_kinds_of_autoencoders_go_all_the_way(lab: Lab, words: tuple[str, ...]) -> None:
    lab.run(*SMOKE, *SAES, *words)
    assert metrics(lab)[0]["evaluate/blocks.6/held_out/fvu"] > 0


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("sae=transcoder", "+sae.source={blocks.6: blocks.6}"), "read blocks.6 itself"),
        (("sae=transcoder",), "does not say which site"),
        (("sae.expansion=nan",), "sae.expansion=nan is no finite number"),
        (("+trainer.lrr=3",), "no option trainer.lrr"),
        (("trainer.stacked=true", 'together=["sae.k=4,8"]'), "no two grids share a pass"),
        (("sae=conv", "trainer.batch_size=4"), "Set trainer.batch_size to 9 at least"),
    ],
)
def test_settings_that_cannot_work_are_one_line(lab: Lab, words: tuple[str, ...], said: str) -> None:
    found = lab.run(*SMOKE, *SAES, *words, expect=2)
    assert said in found.stdout + found.stderr


@pytest.mark.parametrize(
    ("axis", "said"),
    [
        ("sae.q=1,2", "together.*'q' not in 'TopKConfig'"),
        ("trainer.batch_size=64,128", "batch_size cannot differ between SAEs trained in one pass"),
        ("model.sites=[a]", "model.sites cannot differ"),
        ("sae.k=", "together"),
    ],
)
def test_an_axis_that_cannot_be_is_one_line(lab: Lab, axis: str, said: str) -> None:
    found = lab.run(*SMOKE, *SAES, f'together=["{axis}"]', expect=2)
    assert re.search(said, found.stdout + found.stderr)


def test_live_training_leaves_no_training_activations_on_disk(lab: Lab) -> None:
    lab.run(*SMOKE, *SAES, "activations.live=true")
    names = list(built(lab.store))
    assert sum(name.startswith("activations/") for name in names) == 1  # of the split score
    (live,) = metrics(lab)
    lab.run(*SMOKE, *SAES)
    stored = next(found for found in metrics(lab) if found != live)
    for name in ("held_out/fvu", "seen/fvu", "held_out/l0"):
        assert live[f"evaluate/blocks.6/{name}"] == pytest.approx(stored[f"evaluate/blocks.6/{name}"], rel=0.02)


def test_stacked_saes_are_trained_behind_each_other(lab: Lab) -> None:
    sites = ("model.sites=[blocks.4,blocks.6]", "stages=[activations,sae,evaluate]")
    lab.run(*SMOKE, *sites, "trainer.stacked=true")
    (stacked,) = metrics(lab)
    lab.run(*SMOKE, *sites)
    alone = next(found for found in metrics(lab) if found != stacked)
    first, second = "evaluate/blocks.4/seen/fvu", "evaluate/blocks.6/seen/fvu"
    assert stacked[first] == pytest.approx(alone[first], rel=0.02)  # nothing is spliced before the first site
    assert stacked[second] != pytest.approx(alone[second], rel=0.02)
    inputs = [json.loads(path.read_text())["inputs"] for path in (lab.store / "sae").glob("*/manifest.json")]
    assert sum("sae/blocks.4" in found for found in inputs) == 1


def test_without_labels_the_networks_predictions_are_the_classes(lab: Lab) -> None:
    lab.run(*SMOKE, *SAES, "evaluate.search_images=2")
    (found,) = metrics(lab)
    assert 0 < found["evaluate/blocks.6/selectivity/neuron/entropy"] <= 1
    assert found["evaluate/blocks.6/geometry/features_per_dimension"] > 0
    assert found["evaluate/blocks.6/held_out/amortisation_gap"] >= 0
    assert len(list((lab.store / "predictions").glob("*/manifest.json"))) == 1
