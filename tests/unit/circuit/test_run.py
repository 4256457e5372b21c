"""The whole stage on a tiny network and made-up photographs, and its result on disk."""

from __future__ import annotations

import dataclasses
import json
import logging
from collections.abc import Mapping
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import nn

from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.circuit.circuit import ERROR, overlap
from mis_lab.circuit.comparisons import cmd_difference
from mis_lab.circuit.config import Baseline, EdgeMethod, EffectMethod, Objective, Target, Topology
from mis_lab.circuit.result import CircuitResult
from mis_lab.core.errors import ConfigError, DataError, MisLabError, StoreError
from mis_lab.core.keys import plain


def same(a: object, b: object) -> bool:
    return json.dumps(a) == json.dumps(b)  # NaN equals NaN here


def assert_equal(a: object, b: object, where: str = "result") -> None:
    """Two results are the same in every field, arrays to the bit."""
    if dataclasses.is_dataclass(a):
        assert type(a) is type(b), where
        for each in dataclasses.fields(a):
            assert_equal(getattr(a, each.name), getattr(b, each.name), f"{where}.{each.name}")
    elif isinstance(a, torch.Tensor):
        assert a.dtype == b.dtype, where
        np.testing.assert_array_equal(a.numpy(), b.numpy(), err_msg=where)
    elif isinstance(a, Mapping):
        assert list(a) == list(b), where
        for name in a:
            assert_equal(a[name], b[name], f"{where}.{name}")
    elif isinstance(a, tuple | list):
        assert len(a) == len(b), where
        for place, (one, other) in enumerate(zip(a, b, strict=True)):
            assert_equal(one, other, f"{where}[{place}]")
    else:
        np.testing.assert_array_equal(a, b, err_msg=where)


def test_it_finds_circuits_of_both_kinds(run, stage_config) -> None:
    result = run()
    assert list(result.kinds) == ["feature", "neuron"]
    assert len(result.discovery_ids) == len(result.discovery_targets) == 6
    assert len(result.evaluation_ids) == len(result.evaluation_targets) == 5
    assert {name.split("/")[0] for name in result.discovery_ids} == {"noise"}
    assert not set(result.discovery_ids) & set(result.evaluation_ids)
    assert result.settings == plain(stage_config)
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
    assert len(run(n_discovery=0, n_evaluation=100).discovery_ids) == 12


def test_mean_image_and_targets_are_the_networks(run, make_toy, noise) -> None:
    result, dataset = run(), noise()
    torch.manual_seed(0)
    model = make_toy("relu", dtype=torch.float32).problem.model
    images = torch.stack([model.transform(dataset.image(dataset.ids.index(name))) for name in result.discovery_ids])
    torch.testing.assert_close(result.mean_image, images.double().mean(0))
    assert torch.equal(result.discovery_targets, model.module(images).argmax(1))


def test_labels_as_targets(run) -> None:
    result = run(target=Target.label)
    assert result.discovery_targets.tolist() == [int(name.split("/")[1]) % 4 for name in result.discovery_ids]


PER_POSITION = (Baseline.mean_per_position, Baseline.resample)


@pytest.mark.parametrize("method", EffectMethod)
@pytest.mark.parametrize("baseline", Baseline)
def test_every_method_and_baseline_runs_and_disk_gives_it_back(run, tmp_path, method, baseline) -> None:
    small = {"n_steps": 2, "n_discovery": 4, "n_evaluation": 4, "sizes": 3, "n_shown": 4, "n_random": 1}
    network = "tokens" if baseline in PER_POSITION else "relu"
    result = run(method=method, baseline=baseline, network=network, target=Target.label, n_exact=2, **small)
    result.write(tmp_path)
    again = CircuitResult.read(tmp_path)
    assert_equal(again, result)
    for kind, found in result.kinds.items():
        gaps = [site.attribution_gap for site in found.sites]
        assert np.isnan(gaps).all() if method is EffectMethod.atp_absolute else np.isfinite(gaps).all()
        assert len(again.kinds[kind].shown_maps) == (0 if method is EffectMethod.exact else 4)
        assert len(found.edges)
    second = tmp_path / "again"
    again.write(second)
    for path in sorted(path for path in tmp_path.rglob("*") if path.is_file() and second not in path.parents):
        assert path.read_bytes() == (second / path.relative_to(tmp_path)).read_bytes(), path.name


def test_everything_off_comes_back_as_well(run, tmp_path) -> None:
    result = run(edges=EdgeMethod.none, n_map_images=0)
    result.write(tmp_path)
    again = CircuitResult.read(tmp_path)
    assert_equal(again, result)
    found = again.features
    assert (found.edges, found.agreement, found.shown_maps, found.edge_agreement) == (None, None, (), {})


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
    a, b, c = run(), run(), run(batch_size=1)
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
    run(n_random=7)
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
    with pytest.raises(DataError, match=r"image noise/23 of noise has no label.*circuit.target=prediction"):
        run(target=Target.label, n_evaluation=0, evaluation=range(12, 24))
    model = replace(make_toy("relu", dtype=torch.float32).problem.model, n_classes=3)
    with pytest.raises(DataError, match=r"image noise/3 of noise has label 3, but toy has 3 classes"):
        run(target=Target.label, n_discovery=0, n_evaluation=0, model=model)


def test_a_network_that_does_not_care_is_told(run) -> None:
    with pytest.raises(MisLabError, match=r"circuit.min_effect=1e\+06"):
        run(min_effect=1e6)


def test_reading_what_is_not_there_or_too_new(run, tmp_path) -> None:
    with pytest.raises(StoreError, match="no circuits in"):
        CircuitResult.read(tmp_path)
    run().write(tmp_path)
    path = tmp_path / "circuit.json"
    path.write_text(path.read_text().replace('"version": 3', '"version": 99', 1))
    with pytest.raises(StoreError, match="version 99"):
        CircuitResult.read(tmp_path)


# ---- edges, maps, measures


def test_edges_join_neighbouring_sites_and_the_objective(run) -> None:
    features = run(method=EffectMethod.atp, n_edge_images=0, n_shown=9).features
    edges, shown = features.edges, set(features.shown.nodes)
    assert edges.sites == ("1", "3")
    assert list(edges.methods) == ["1→3"]
    for source, target in edges.ends:
        assert source in shown or source.feature == ERROR
        assert target is None if source.site == "3" else target.site == "3"
    assert {(source.site, source.feature) for source, target in edges.ends if target is None} >= {
        (node.site, node.feature) for node in shown if node.site == "3"
    }
    # With all nodes downstream chosen, what is passed on is all there is.
    whole = run(method=EffectMethod.atp, n_edge_images=0, n_shown=99).features.edges
    torch.testing.assert_close(whole.coverage, torch.ones_like(whole.coverage), rtol=1e-4, atol=1e-4)


def test_edges_of_all_nodes_sum_up_to_attribution_patching(run) -> None:
    features = run(method=EffectMethod.atp, n_edge_images=0, n_shown=99).features
    effect = dict(zip(features.circuit.nodes, features.circuit.effect.tolist(), strict=True))
    passed: dict[object, float] = {}
    for (source, _), weight in zip(features.edges.ends, features.edges.weight.tolist(), strict=True):
        passed[source] = passed.get(source, 0.0) + weight
    assert passed.keys() <= effect.keys()
    for node, told in effect.items():
        assert passed.get(node, 0.0) == pytest.approx(told, rel=1e-3, abs=1e-6)


def test_edges_of_kl_take_the_gradient_along_the_path(run) -> None:
    weights = run(objective=Objective.kl).features.edges.weight
    assert weights.isfinite().all()
    assert weights.abs().max() > 0
    with pytest.raises(ConfigError, match=r"method=atp takes the gradient at the image"):
        run(objective=Objective.kl, method=EffectMethod.atp)


def test_linear_and_exact_edges_agree_where_the_network_is_linear(run) -> None:
    found = run(network="linear", check_edges=3, n_shown=12).neurons.edge_agreement["1→3"]
    assert found.pearson == pytest.approx(1, abs=1e-6)
    assert found.same_sign == 1


def test_effects_agree_with_exact_ones_where_the_network_is_linear(run) -> None:
    found = run(network="linear", n_exact=4).neurons.agreement
    assert found.n_top == 4
    np.testing.assert_allclose(found.estimated, found.exact, rtol=1e-3, atol=1e-6)


def test_maps_sum_up_to_the_effect_on_the_strongest_images(run) -> None:
    for found in run(n_map_images=2).kinds.values():
        places = found.strongest_images(2)
        assert len(found.shown_maps) == 5
        for node, maps, effects, images in zip(
            found.shown.nodes, found.shown_maps, found.shown_effects, places, strict=True
        ):
            assert maps.shape == ((2, 6, 6) if node.site == "1" else (2, 3, 3))
            torch.testing.assert_close(maps.sum((1, 2)), effects[images], rtol=1e-4, atol=1e-6)


def test_maps_find_the_partner_of_their_image(run) -> None:
    for baseline in (Baseline.counterfactual, Baseline.resample):
        found = run(baseline=baseline, target=Target.label).features
        for maps, effects, images in zip(found.shown_maps, found.shown_effects, found.strongest_images(1), strict=True):
            torch.testing.assert_close(maps.sum((1, 2)), effects[images], rtol=1e-4, atol=1e-6)


def test_measures_belong_to_the_same_images_and_sizes(run) -> None:
    for kind, found in run().kinds.items():
        assert found.complement.sizes.tolist() == found.curve.sizes.tolist()
        assert np.array_equal(found.complement.values[0], found.curve.values[-1])
        assert np.array_equal(found.complement.values[-1], found.curve.values[0])
        assert found.minimality.circuit.nodes == found.shown.nodes
        assert list(found.others) == ["by_change"]
        assert sorted(found.cmd_differences) == sorted(["by_change", "best_random"] + ["neuron"] * (kind == "feature"))
        best = int(found.curve.random_cmd.argmin())
        random = replace(found.curve, values=found.curve.random_values[best])
        assert same(found.cmd_differences["best_random"], cmd_difference(found.curve, random))
        assert found.cmd_differences["best_random"].estimate == pytest.approx(
            found.curve.cmd.estimate - found.curve.random_cmd.min()
        )


def test_activity_is_that_of_the_discovery_images_beside_all(run, make_toy, noise) -> None:
    result = run(n_discovery=4)
    torch.manual_seed(0)
    toy, dataset = make_toy("relu", dtype=torch.float32), noise()

    def active(indices) -> torch.Tensor:
        images = torch.stack([toy.problem.model.transform(dataset.image(index)) for index in indices])
        vectors = toy.problem.observe(images, torch.zeros(len(images), dtype=torch.int64)).vectors["1"]
        return (toy.saes["1"].encode(vectors) != 0).any(1).double().mean(0)

    beside = result.features.activity["1"]
    assert (beside.circuit.n_images, beside.everything.n_images) == (4, 23)
    found_on = [dataset.ids.index(name) for name in result.discovery_ids]
    torch.testing.assert_close(beside.circuit.active_images, active(found_on))
    torch.testing.assert_close(beside.everything.active_images, active(range(23)))


def test_activity_reads_vectors_where_they_are_stored(run, make_toy, noise, tmp_path) -> None:
    torch.manual_seed(0)
    toy, dataset = make_toy("relu", dtype=torch.float32), noise()
    images = torch.stack([toy.problem.model.transform(dataset.image(index)) for index in range(len(dataset))])
    vectors = toy.problem.observe(images, torch.zeros(len(images), dtype=torch.int64)).vectors
    stored = {}
    for site in toy.problem.sites:
        with ActivationWriter(tmp_path / site.path, site, dataset.ids, dataset.groups, dataset.labels) as writer:
            writer.append(2 * vectors[site.path], range(len(dataset)))  # to be told from what the network gives
        stored[site.path] = StoredActivations(tmp_path / site.path)
    plain, told = run(n_discovery=4), run(n_discovery=4, stored=stored)
    for path, beside in plain.neurons.activity.items():
        torch.testing.assert_close(told.neurons.activity[path].everything.mean, 2 * beside.everything.mean)
        torch.testing.assert_close(told.neurons.activity[path].circuit.mean, 2 * beside.circuit.mean)
    assert told.features.activity["1"].everything.n_images == 23


def test_intervals_are_over_the_groups_of_the_evaluation_images(run, noise, tmp_path) -> None:
    found, groups = run().features.curve, noise().groups
    assert len(set(found.groups_n.tolist())) == len(set(groups[12:23])) == 3
    single = run(evaluation=range(12, 16))  # one group: an estimate and no limits
    single.write(tmp_path)
    for result in (single, CircuitResult.read(tmp_path)):
        curve = result.features.curve
        assert np.isfinite(curve.cmd.estimate)
        assert np.isnan([curve.cmd.low, curve.cmd.high, result.features.cmd_differences["neuron"].low]).all()


def test_the_headline_is_flat_and_says_what_was_measured(run) -> None:
    result = run(n_exact=3, check_edges=2, n_shown=30)
    numbers = result.headline()
    assert all(isinstance(number, int | float) for number in numbers.values())
    for kind, found in result.kinds.items():
        assert numbers[f"{kind}/cmd"] == found.curve.cmd.estimate
        assert numbers[f"{kind}/cmd_log"] == found.curve.cmd_log.estimate
        assert numbers[f"{kind}/completeness_shown"] in np.asarray(found.complement.completeness.estimate)
        assert numbers[f"{kind}/minimality"] == np.median(found.minimality.per_node)
        assert numbers[f"{kind}/needless_share"] == (found.minimality.per_node < 0.01).mean()
        assert numbers[f"{kind}/cmd_difference/by_change/low"] == found.cmd_differences["by_change"].low
        assert numbers[f"{kind}/n_edges"] == len(found.edges)
        assert numbers[f"{kind}/exact/top/pearson"] == found.agreement.top.pearson
        assert f"{kind}/edges/1→3/pearson" in numbers
    assert "feature/n_edges" not in run(edges=EdgeMethod.none).headline()


# ---- classes


def test_a_circuit_of_some_classes_uses_their_images_alone(run, noise) -> None:
    result = run(target=Target.label, classes=["b"], names=list("abcd"))
    assert result.discovery_targets.tolist() == [1] * 3
    assert {int(name.split("/")[1]) % 4 for name in result.evaluation_ids} == {1}
    assert list(result.features.others) == ["by_change"]
    with pytest.raises(ConfigError, match=r"circuit\.classes=e: no class has this name"):
        run(target=Target.label, classes=["e"], names=list("abcd"))
    with pytest.raises(DataError, match="no image has one of the classes d"):
        run(target=Target.label, classes=["d"], names=list("abcd"), discovery=range(3))


def test_each_of_several_classes_has_its_own_circuit_beside(run) -> None:
    result = run(target=Target.label, classes=["1", "2"], n_discovery=0, n_evaluation=0)
    found = result.features
    assert list(found.others) == ["by_change", "class 1", "class 2"]
    against = found.cmd_differences["class 1 against class 2"]
    here = result.evaluation_targets.numpy() == 1
    own, other = (found.others[name].on(here) for name in ("class 1", "class 2"))
    assert same(against, cmd_difference(own, other))
    assert against.estimate == pytest.approx(own.cmd.estimate - other.cmd.estimate)
    alone = run(target=Target.label, classes=["1"], n_discovery=0, n_evaluation=0).features
    apart = overlap(alone.circuit.top(6), found.circuit.top(6))
    assert apart.jaccard > 0


def test_labels_decide_among_classes_and_images_without_one_are_left_out(run) -> None:
    result = run(target=Target.label, classes=["3"], n_evaluation=0, evaluation=range(12, 24))
    assert result.evaluation_ids == ("noise/15", "noise/19")


def test_classes_of_a_chosen_target_are_what_the_network_sees(run) -> None:
    everything = run(n_discovery=0)
    seen = dict(zip(everything.discovery_ids, everything.discovery_targets.tolist(), strict=True))
    most = max(seen.values(), key=list(seen.values()).count)
    other = (most + 1) % 4
    result = run(target=Target.chosen, target_class=str(other), classes=[str(most)], n_discovery=0, n_evaluation=0)
    assert list(result.discovery_ids) == [name for name, number in seen.items() if number == most]
    assert set(result.discovery_targets.tolist()) == {other}


# ---- what cannot work


class Broken(nn.Module):
    """A last layer whose output cannot be a number."""

    def forward(self, x_bchw: torch.Tensor) -> torch.Tensor:
        return x_bchw.mean((2, 3))[:, :4] * float("nan")


def test_logits_that_are_no_numbers_are_told(run, make_toy, as_model) -> None:
    toy = make_toy("relu", dtype=torch.float32)
    network = nn.Sequential(*toy.module[:4], Broken())
    with pytest.raises(DataError, match="puts out numbers that are not finite"):
        run(model=as_model(network), saes={})


def test_a_site_that_is_passed_by_is_an_error_in_a_chain_and_told_of_branches(
    run, make_toy, as_model, caplog: pytest.LogCaptureFixture
) -> None:
    toy = make_toy("relu", dtype=torch.float32)

    class Skip(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.first, self.around = toy.module[0], nn.Conv2d(5, 7, 2, 2)
            self.branch, self.last = nn.Sequential(toy.module[1], toy.module[2]), toy.module[3:]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            x = self.first(images)
            return self.last(self.branch(x.clone()) + self.around(x))

    torch.manual_seed(1)
    model = as_model(Skip())
    sites = tuple(replace(site, path=path) for site, path in zip(toy.problem.sites, ("first", "branch"), strict=True))
    with pytest.raises(ConfigError, match="site branch of toy is no cut set"):
        run(model=model, sites=sites, saes={})
    result = run(model=model, sites=sites, saes={}, topology=Topology.parallel)
    assert "site branch of toy is no cut set" in caplog.text
    assert result.passes_by["branch"] > 1e-2 > result.passes_by["first"]
    assert list(result.neurons.edges.methods) == ["first→branch"]


def test_branches_side_by_side_have_no_edges_between_them(run, make_toy, as_model) -> None:
    toy = make_toy("relu", dtype=torch.float32)

    class Branches(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.left, self.right, self.last = nn.Conv2d(3, 7, 2, 2), nn.Conv2d(3, 7, 2, 2), toy.module[3:]

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            return self.last(self.left(images) + self.right(images))

    torch.manual_seed(1)
    sites = tuple(replace(toy.problem.sites[1], path=path) for path in ("left", "right"))
    options = {"model": as_model(Branches()), "sites": sites, "saes": {}, "topology": Topology.parallel}
    edges = run(**options, edges=EdgeMethod.vjp).neurons.edges
    assert edges.methods == {}
    assert {target for _, target in edges.ends} == {None}


def test_a_network_in_training_mode_is_refused(run, make_toy) -> None:
    toy = make_toy("relu", dtype=torch.float32)
    toy.module.train()
    with pytest.raises(ConfigError, match="toy is in training mode"):
        run(model=toy.problem.model)


def test_a_site_beside_the_way_is_named(run, make_toy, as_model) -> None:
    toy = make_toy("relu", dtype=torch.float32)

    class Beside(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.way, self.beside = toy.module, nn.Conv2d(3, 5, 3, padding=1)

        def forward(self, images: torch.Tensor) -> torch.Tensor:
            self.beside(images)
            return self.way(images)

    sites = (replace(toy.problem.sites[0], path="beside"), replace(toy.problem.sites[1], path="way.3"))
    with pytest.raises(ConfigError, match="site beside of toy is no cut set: 100 %"):
        run(model=as_model(Beside()), sites=sites, saes={})
    with pytest.raises(ConfigError, match="site beside is not on the way to the objective"):
        run(model=as_model(Beside()), sites=sites, saes={}, topology=Topology.parallel)


def test_a_circuit_without_nodes_is_told(run) -> None:
    with pytest.raises(DataError, match="no neuron ever leaves its baseline on the discovery images"):
        run(saes={}, baseline=Baseline.mean_per_position, discovery=[0])


def test_no_image_of_another_class_is_told(run) -> None:
    with pytest.raises(DataError, match="there is not an image of another class as the partner of noise/0"):
        run(target=Target.label, baseline=Baseline.counterfactual, discovery=[0, 4])
