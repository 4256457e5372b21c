"""The whole stage on a tiny network and made-up photographs, and its result on disk."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.circuit.baselines import BASELINES
from mis_lab.circuit.circuit import ERROR
from mis_lab.circuit.config import CircuitConfig, EffectMethod, Target
from mis_lab.circuit.result import CircuitResult
from mis_lab.circuit.run import discover_and_evaluate
from mis_lab.core.errors import ConfigError, DataError, MisLabError, StoreError
from mis_lab.core.keys import plain
from mis_lab.core.seeding import numpy_generator
from mis_lab.dataset.base import ImageDataset

CONFIG = CircuitConfig(
    n_steps=3,
    n_discovery=6,
    n_evaluation=5,
    sizes=4,
    n_random=2,
    n_bootstrap=50,
    n_shown=5,
    batch_size=4,
    min_effect=1e-9,
)


class Noise(ImageDataset):
    """Noise of 6×6 pixels, four images a group; the last image has no label."""

    def __init__(self, n: int = 24) -> None:
        labels = [index % 4 for index in range(n - 1)] + [-1]
        super().__init__(
            "noise", "score", [f"noise/{i}" for i in range(n)], [f"g{i // 4}" for i in range(n)], labels, list("abcd")
        )

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(numpy_generator(0, "noise", index).integers(0, 256, (6, 6, 3), dtype=np.uint8))


@pytest.fixture
def run(make_toy) -> Callable[..., CircuitResult]:
    """run(config=..., toy=..., **changes): the stage on groups 0 to 2, evaluated on 3 to 5."""

    def stage(config: CircuitConfig = CONFIG, network: str = "relu", seed: int = 0, **changes) -> CircuitResult:
        torch.manual_seed(0)
        toy = make_toy(network, dtype=torch.float32)
        arguments = {
            "model": toy.problem.model,
            "sites": toy.problem.sites,
            "saes": toy.saes,
            "dataset": Noise(),
            "discovery": range(12),
            "evaluation": range(12, 23),
        }
        return discover_and_evaluate(**(arguments | changes), config=config, seed=seed)

    return stage


def same(a: object, b: object) -> bool:
    return json.dumps(a) == json.dumps(b)  # NaN equals NaN here


def test_it_finds_circuits_of_both_kinds(run) -> None:
    result = run()
    assert list(result.kinds) == ["feature", "neuron"]
    assert len(result.discovery_ids) == len(result.discovery_targets) == 6
    assert len(result.evaluation_ids) == len(result.evaluation_targets) == 5
    assert {name.split("/")[0] for name in result.discovery_ids} == {"noise"}
    assert not set(result.discovery_ids) & set(result.evaluation_ids)
    assert result.settings == plain(CONFIG)
    for kind, found in result.kinds.items():
        assert found.circuit.kind == found.curve.kind == kind
        assert [site.path for site in found.sites] == ["1", "3"]
        assert sum(site.n_live for site in found.sites) == len(found.circuit) == found.curve.sizes[-1]
        assert found.shown_effects.shape == (5, 6)
        assert found.curve.values.shape == (len(found.curve.sizes), 5)
        torch.testing.assert_close(found.shown_effects.mean(1, dtype=torch.float64), found.shown.effect)
    assert any(node.feature == ERROR for node in result.features.circuit.nodes)
    assert [site.n_nodes for site in result.neurons.sites] == [5, 7]


def test_images_are_spread_over_the_groups(run) -> None:
    chosen = {int(name.split("/")[1]) // 4 for name in run().discovery_ids}
    assert chosen == {0, 1, 2}
    assert len(run(replace(CONFIG, n_discovery=0, n_evaluation=100)).discovery_ids) == 12


def test_mean_image_and_targets_are_the_networks(run, make_toy) -> None:
    result, dataset = run(), Noise()
    torch.manual_seed(0)
    model = make_toy("relu", dtype=torch.float32).problem.model
    images = torch.stack([model.transform(dataset.image(dataset.ids.index(name))) for name in result.discovery_ids])
    torch.testing.assert_close(result.mean_image, images.double().mean(0))
    assert torch.equal(result.discovery_targets, model.module(images).argmax(1))


def test_labels_as_targets(run) -> None:
    result = run(replace(CONFIG, target=Target.label))
    assert result.discovery_targets.tolist() == [int(name.split("/")[1]) % 4 for name in result.discovery_ids]


@pytest.mark.parametrize("method", EffectMethod)
@pytest.mark.parametrize("baseline", BASELINES)
@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_every_method_and_baseline_runs_and_disk_gives_it_back(run, tmp_path, method, baseline, network) -> None:
    result = run(replace(CONFIG, method=method, baseline=baseline), network)
    result.write(tmp_path)
    again = CircuitResult.read(tmp_path)
    assert again.discovery_ids == result.discovery_ids
    assert again.settings == result.settings
    assert torch.equal(again.mean_image, result.mean_image)
    for kind, found in result.kinds.items():
        assert again.kinds[kind].circuit.nodes == found.circuit.nodes
        assert same(plain(again.kinds[kind].sites), plain(found.sites))
        gaps = [site.attribution_gap for site in found.sites]
        assert np.isnan(gaps).all() if method is EffectMethod.atp_absolute else np.isfinite(gaps).all()
        assert torch.equal(again.kinds[kind].shown_effects, found.shown_effects)
        for name in ("sizes", "values", "random_values", "live_values"):
            assert np.array_equal(getattr(again.kinds[kind].curve, name), getattr(found.curve, name))
        assert np.array_equal(again.kinds[kind].curve.faithfulness.low, found.curve.faithfulness.low)
    second = tmp_path / "again"
    again.write(second)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and second not in path.parents):
        assert path.read_bytes() == (second / path.relative_to(tmp_path)).read_bytes(), path.name


def test_what_it_writes_is_for_people_too(run, tmp_path) -> None:
    result = run()
    result.write(tmp_path)
    told = json.loads((tmp_path / "circuit.json").read_text())["kinds"]["feature"]
    assert told["faithfulness"][0] == 0
    assert told["faithfulness"][-1] == 1
    assert all(
        low <= f <= high
        for low, f, high in zip(told["low"], told["faithfulness"], told["high"], strict=True)
        if low == low
    )
    assert len(told["shown"]) == 5
    assert told["shown"][0]["effect"] == float(result.features.circuit.effect[0])
    assert all(
        low <= middle <= high
        for low, middle, high in zip(*(told["random"][name] for name in ("lowest", "mean", "highest")), strict=True)
    )
    assert (tmp_path / "feature" / "circuit.dot").read_text().startswith("digraph")


def test_same_seed_same_result_and_batches_hardly_matter(run) -> None:
    a, b, c = run(), run(), run(replace(CONFIG, batch_size=1))
    assert same(a.features._told(), b.features._told())
    np.testing.assert_allclose(c.features.curve.values, a.features.curve.values, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(c.features.circuit.effect.abs(), a.features.circuit.effect.abs(), rtol=1e-4, atol=1e-6)


def test_without_saes_neurons_alone(run, tmp_path) -> None:
    result = run(saes={})
    assert result.features is None
    assert list(result.kinds) == ["neuron"]
    result.write(tmp_path)
    assert CircuitResult.read(tmp_path).features is None
    assert not (tmp_path / "feature").exists()


def test_strongest_images_are_those_with_the_largest_effect_in_the_nodes_sign(run) -> None:
    whole = run().features
    circuit = replace(whole.circuit.top(2), effect=torch.tensor([1.0, -1.0], dtype=torch.float64))
    effects = torch.tensor([[0.0, 4.0, -9.0, 9.0], [4.0, -5.0, -9.0, 6.0]])
    found = replace(whole, circuit=circuit, shown_effects=effects)
    assert found.strongest_images(3).tolist() == [[3, 1, 0], [2, 1, 0]]
    assert found.strongest_images(99).shape == (2, 4)


def test_gap_and_curve_are_logged(run, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.INFO)
    logged: list[tuple[dict[str, float], int]] = []
    result = run(log=lambda values, size: logged.append((dict(values), size)))
    site = result.features.sites[0]
    assert f"feature effects at 1: attribution gap {100 * site.attribution_gap:.1f} %" in caplog.text
    assert ({"feature/1/attribution_gap": site.attribution_gap, "feature/1/error_share": site.error_share}, 0) in logged
    curve = [(size, values["feature/faithfulness"]) for values, size in logged if "feature/faithfulness" in values]
    assert curve == list(zip(result.features.curve.sizes, result.features.curve.faithfulness.estimate, strict=True))


def test_it_draws_from_no_global_generator(run) -> None:
    run()
    before = torch.get_rng_state()
    torch.manual_seed(0)
    run()
    after_building = torch.get_rng_state()
    torch.manual_seed(0)
    run(replace(CONFIG, n_random=7, n_bootstrap=9))
    assert torch.equal(torch.get_rng_state(), after_building)
    torch.set_rng_state(before)


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        ({"discovery": []}, DataError, "no discovery images"),
        ({"evaluation": []}, DataError, "no evaluation images"),
        ({"evaluation": range(11, 20)}, DataError, "1 images are for discovery and for evaluation, noise/11"),
        ({"sites": ()}, ConfigError, "at least one site"),
    ],
)
def test_sets_of_images_and_sites_are_checked(run, changes, error, message) -> None:
    with pytest.raises(error, match=message):
        run(**changes)


def test_an_sae_for_every_site_or_for_none(run, make_toy) -> None:
    saes = make_toy("relu", dtype=torch.float32).saes
    with pytest.raises(ConfigError, match=r"no SAE for site 3; looked in 1\."):
        run(saes={"1": saes["1"]})
    with pytest.raises(ConfigError, match=r"SAE for site 1 has width 7, the site 5"):
        run(saes={"1": saes["3"], "3": saes["3"]})


def test_labels_that_cannot_be_targets_are_named(run, make_toy) -> None:
    config = replace(CONFIG, target=Target.label, n_evaluation=0)
    with pytest.raises(DataError, match=r"image noise/23 of noise has no label.*circuit.target=prediction"):
        run(config, evaluation=range(12, 24))
    model = replace(make_toy("relu", dtype=torch.float32).problem.model, n_classes=3)
    with pytest.raises(DataError, match=r"image noise/3 of noise has label 3, but toy has 3 classes"):
        run(replace(config, n_discovery=0), model=model)


def test_a_network_that_does_not_care_is_told(run) -> None:
    with pytest.raises(MisLabError, match=r"circuit.min_effect=1e\+06"):
        run(replace(CONFIG, min_effect=1e6))


def test_reading_what_is_not_there_or_too_new(run, tmp_path) -> None:
    with pytest.raises(StoreError, match="no circuits in"):
        CircuitResult.read(tmp_path)
    run().write(tmp_path)
    path = tmp_path / "circuit.json"
    path.write_text(path.read_text().replace('"version": 2', '"version": 99', 1))
    with pytest.raises(StoreError, match="version 99"):
        CircuitResult.read(tmp_path)
