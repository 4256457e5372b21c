"""Curves: ends to the bit, the middle by hand, intervals by hand."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import t as student

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.circuit import rank
from mis_lab.circuit.config import CircuitConfig, EffectMethod
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.faithfulness import MIB_FRACTIONS, Curve, circuit_sizes, evaluate, fraction_sizes
from mis_lab.circuit.objectives import kl, with_targets
from mis_lab.circuit.quadrature import midpoint
from mis_lab.circuit.running import objective_of_circuits
from mis_lab.circuit.targets import clean_logits
from mis_lab.core.errors import DataError, MisLabError
from mis_lab.core.seeding import generator

CONFIG = CircuitConfig(sizes=5, n_random=2, min_effect=1e-9)


def circuit_of(toy, kind: str):
    path = InputPath(mean_image(toy.images), midpoint(3))
    found = node_effects(toy.problem, toy.node_sets, toy.images, toy.targets_n, EffectMethod.ig_inputs, path)
    return rank(kind, found[kind])


def curve_of(toy, kind: str, config: CircuitConfig = CONFIG, seed: int = 0, images=None, targets_n=None) -> Curve:
    images = toy.images if images is None else images
    targets_n = toy.targets_n if targets_n is None else targets_n
    return evaluate(toy.problem, toy.node_sets[kind], circuit_of(toy, kind), images, targets_n, config, seed)


@given(st.integers(1, 10_000), st.integers(1, 40))
def test_sizes_go_from_none_over_one_to_all(n_live: int, n_sizes: int) -> None:
    sizes = circuit_sizes(n_live, n_sizes)
    assert sizes[0] == 0
    assert sizes[-1] == n_live
    assert (np.diff(sizes) > 0).all()
    assert len(sizes) <= n_sizes + 1
    assert sizes[1] == 1 or n_sizes == 1


def test_sizes_are_even_in_their_logarithm() -> None:
    assert circuit_sizes(1000, 4).tolist() == [0, 1, 10, 100, 1000]


@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_ends_are_exactly_0_and_1(make_toy, network, baseline, kind) -> None:
    toy = make_toy(network, baseline=baseline, dtype=torch.float32)
    curve = curve_of(toy, kind)
    for interval in curve.faithfulness:
        assert interval[0] == 0
        assert interval[-1] == 1
    assert (curve.random[:, 0] == 0).all()
    assert (curve.random[:, -1] == 1).all()
    # The network itself to the bit, on the same batches: another batch size may round otherwise.
    batches = with_targets(toy.images, toy.targets_n)
    clean = torch.cat([toy.problem.observe(*batch).objective_b for batch in batches])
    assert torch.equal(torch.tensor(curve.values[-1]).float(), clean)
    empty = toy.objective(kind, toy.kept(kind, False))
    torch.testing.assert_close(torch.tensor(curve.values[0]).float(), empty, rtol=1e-6, atol=1e-6)


def test_values_in_between_are_those_of_the_ablated_network(make_toy, baseline, kind) -> None:
    toy = make_toy("relu", baseline=baseline)
    curve, circuit = curve_of(toy, kind, seed=3), circuit_of(toy, kind)
    orders = [circuit.shuffled(generator(3, "circuit", "random", kind, draw)) for draw in range(2)]
    full, empty = toy.clean()[0].mean(), toy.objective(kind, toy.kept(kind, False)).mean()
    for place, size in enumerate(curve.sizes.tolist()[:-1]):
        expected = toy.objective(kind, circuit.top(size).kept())
        np.testing.assert_allclose(curve.values[place], expected.numpy(), rtol=1e-10)
        faithfulness = (expected.mean() - empty) / (full - empty)
        assert curve.faithfulness.estimate[place] == pytest.approx(float(faithfulness), rel=1e-9, abs=1e-12)
        for order, random in zip(orders, curve.random_values[:, place], strict=True):
            np.testing.assert_allclose(random, toy.objective(kind, order.top(size).kept()).numpy(), rtol=1e-10)
    assert curve.fractions.tolist() == (curve.sizes / len(circuit)).tolist()


def test_linear_network_a_circuit_keeps_the_sum_of_its_effects(make_toy, kind) -> None:
    # Where effects are exact and add up, faithfulness of the top n is Σ_top E / Σ E.
    toy = make_toy("linear")
    toy.problem = replace(toy.problem, sites=toy.problem.sites[1:])
    toy.__post_init__()
    curve, circuit = curve_of(toy, kind), circuit_of(toy, kind)
    expected = [float(circuit.top(size).effect.sum() / circuit.effect.sum()) for size in curve.sizes.tolist()]
    np.testing.assert_allclose(curve.faithfulness.estimate, expected, rtol=1e-9, atol=1e-12)


def test_complement_of_everything_is_nothing(make_toy, kind) -> None:
    toy = make_toy("relu")
    everything = toy.kept(kind)
    complement = {path: ~mask for path, mask in everything.items()}
    values = objective_of_circuits(
        toy.problem, toy.node_sets[kind], [complement, everything], toy.images, toy.targets_n
    )
    curve = curve_of(toy, kind)
    assert np.array_equal(values, curve.values[[0, -1]])


def test_silent_nodes_are_what_live_only_leaves_out(make_toy) -> None:
    toy = make_toy("relu", sae="topk", n=4)
    others = torch.randn(9, 3, 6, 6).double() * 3
    curve = curve_of(toy, "feature", images=[others], targets_n=torch.zeros(9, dtype=torch.int64))
    assert curve.faithfulness.estimate[-1] == 1
    toy_on_others = replace(toy, images=[others], targets_n=torch.zeros(9, dtype=torch.int64))
    toy_on_others.node_sets = toy.node_sets
    live = toy_on_others.objective("feature", circuit_of(toy, "feature").kept())
    np.testing.assert_allclose(curve.live_values, live.numpy(), rtol=1e-10)
    full, empty = curve.values[-1].mean(), curve.values[0].mean()
    assert curve.live_only == pytest.approx((float(live.mean()) - empty) / (full - empty))


@pytest.mark.parametrize("batch_size", [1, 7])
def test_batches_do_not_matter(make_toy, batch_size) -> None:
    toy = make_toy("relu")
    again = curve_of(toy, "feature", images=toy.all_images.split(batch_size))
    np.testing.assert_allclose(again.values, curve_of(toy, "feature").values, rtol=1e-9)


def test_same_seed_same_curve_other_seed_other_random_circuits(make_toy) -> None:
    toy = make_toy("relu")
    a, b, c = curve_of(toy, "feature", seed=1), curve_of(toy, "feature", seed=1), curve_of(toy, "feature", seed=2)
    assert np.array_equal(a.random_values, b.random_values)
    assert np.array_equal(a.faithfulness.low, b.faithfulness.low)
    assert not np.array_equal(a.random_values, c.random_values)
    assert np.array_equal(a.values, c.values)


def some_curve(n_images: int = 5) -> Curve:
    random = np.random.default_rng(0)
    values = np.sort(random.normal(size=(4, n_images)), axis=0)
    values[-1] += 5
    return Curve(
        "feature", np.array([0, 1, 4, 8]), values, values[None] - 0.1, values[-1] - 1, np.arange(n_images) // 2
    )


def test_interval_is_the_jackknife_over_groups_of_the_ratio_of_means() -> None:
    curve = some_curve()
    without = []
    for group in range(3):
        means = curve.values[:, curve.groups_n != group].mean(1)
        without.append((means - means[0]) / (means[-1] - means[0]))
    error = np.sqrt(2 / 3 * np.square(np.array(without) - np.mean(without, axis=0)).sum(0))
    half = student.ppf(0.975, 25 / (4 + 4 + 1) - 1) * error
    np.testing.assert_allclose(curve.faithfulness.low, curve.faithfulness.estimate - half, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(curve.faithfulness.high, curve.faithfulness.estimate + half, rtol=1e-9, atol=1e-12)


def test_images_of_a_group_count_as_one_another() -> None:
    alone, doubled = some_curve(12), some_curve(12)
    twice = np.repeat(np.arange(12), 2)
    doubled = replace(
        doubled,
        values=doubled.values[:, twice],
        random_values=doubled.random_values[:, :, twice],
        live_values=doubled.live_values[twice],
        groups_n=doubled.groups_n[twice],
    )
    for name in ("faithfulness", "cpr", "cmd", "cmd_log"):
        np.testing.assert_allclose(getattr(doubled, name), getattr(alone, name), rtol=1e-9, atol=1e-12)


def test_a_single_group_has_no_limits() -> None:
    curve = replace(some_curve(), groups_n=np.zeros(5, dtype=np.int64))
    assert np.isnan(curve.faithfulness.low).all()
    assert np.isnan(curve.cmd.high)
    assert np.isfinite(curve.cmd.estimate)


def test_faithfulness_is_a_ratio_of_means_not_a_mean_of_ratios() -> None:
    values = np.array([[0.0, 0.0], [1.0, 1.0], [1.0, 9.0]])
    curve = Curve("feature", np.array([0, 1, 2]), values, values[None], values[-1], np.arange(values.shape[1]))
    assert curve.faithfulness.estimate.tolist() == pytest.approx([0, 0.2, 1])


def test_areas_by_hand() -> None:
    values = np.array([[0.0], [0.5], [1.5], [1.0]])
    curve = Curve("neuron", np.array([0, 1, 5, 10]), values, values[None] * 0, values[-1], np.arange(values.shape[1]))
    assert curve.cpr.estimate == pytest.approx(0.1 * 0.25 + 0.4 * 1.0 + 0.5 * 1.25)
    assert curve.cmd.estimate == pytest.approx(0.1 * 0.75 + 0.4 * 0.5 + 0.5 * 0.25)


def test_the_interval_of_an_area_is_over_areas_without_a_group() -> None:
    curve = some_curve(12)
    without = [curve.on(curve.groups_n != group).cmd.estimate for group in range(6)]
    half = student.ppf(0.975, 5) * np.sqrt(5 / 6 * np.square(without - np.mean(without)).sum())
    assert tuple(curve.cmd)[1:] == pytest.approx((curve.cmd.estimate - half, curve.cmd.estimate + half))


def test_on_the_logarithmic_axis_a_decade_counts_as_much_as_any() -> None:
    # Faithfulness 0.2, 0.6, 1 at shares 0.01, 0.1, 1: means of the two decades are 0.4 and 0.8.
    values = np.array([[0.0], [0.2], [0.6], [1.0]])
    curve = Curve("feature", np.array([0, 1, 10, 100]), values, values[None], values[-1], np.arange(values.shape[1]))
    assert curve.cpr_log.estimate == pytest.approx(0.6)
    assert curve.cmd_log.estimate == pytest.approx(0.4)
    assert curve.cpr.estimate == pytest.approx(0.01 * 0.1 + 0.09 * 0.4 + 0.9 * 0.8)


def test_a_circuit_as_good_as_the_network_at_every_size_has_cpr_1_and_cmd_0_on_the_logarithmic_axis() -> None:
    values = np.array([[0.0], [5.0], [5.0], [5.0]])
    curve = Curve("feature", np.array([0, 1, 3, 100]), values, values[None], values[-1], np.arange(values.shape[1]))
    assert curve.cpr_log.estimate == pytest.approx(1)
    assert curve.cmd_log.estimate == 0
    single = Curve("feature", np.array([0, 1]), values[:2], values[None, :2], values[1], np.arange(1))
    assert (single.cpr_log.estimate, single.cmd_log.estimate) == (1, 0)


def test_shares_of_the_benchmark_become_sizes() -> None:
    assert fraction_sizes(1000).tolist() == [0, 1, 2, 5, 10, 20, 50, 100, 200, 500, 1000]
    assert fraction_sizes(12).tolist() == [0, 1, 2, 6, 12]
    assert fraction_sizes(40, (0.1, 0.5)).tolist() == [0, 4, 20, 40]


def test_a_curve_at_given_shares(make_toy) -> None:
    toy = make_toy("relu")
    circuit = circuit_of(toy, "feature")
    nodes, data = toy.node_sets["feature"], (toy.images, toy.targets_n)
    curve = evaluate(toy.problem, nodes, circuit, *data, CONFIG, 0, fractions=MIB_FRACTIONS)
    assert curve.sizes.tolist() == fraction_sizes(len(circuit)).tolist()
    for size, values in zip(curve.sizes[:-1].tolist(), curve.values[:-1], strict=True):
        np.testing.assert_allclose(values, toy.objective("feature", circuit.top(size).kept()), rtol=1e-10)


def test_faithfulness_of_any_objective_is_between_the_network_and_nothing(make_toy) -> None:
    toy = make_toy("relu")
    circuit, nodes = circuit_of(toy, "feature"), toy.node_sets["feature"]
    toy.problem = replace(toy.problem, objective=kl)
    clean = clean_logits(toy.problem.model, toy.images)
    curve = evaluate(toy.problem, nodes, circuit, toy.images, clean, CONFIG, 0)
    assert not curve.values[-1].any()
    assert (curve.values[:-1] <= 1e-12).all()
    assert curve.faithfulness.estimate[-1] == 1


def test_one_live_node_still_has_a_curve(make_toy) -> None:
    toy = make_toy("relu")
    nodes, circuit = toy.node_sets["neuron"], circuit_of(toy, "neuron").top(1)
    curve = evaluate(toy.problem, nodes, circuit, toy.images, toy.targets_n, CONFIG, 0)
    assert curve.sizes.tolist() == [0, 1]
    assert curve.faithfulness.estimate.tolist() == [0, 1]


def test_hardly_any_effect_is_an_error_not_a_division(make_toy) -> None:
    toy = make_toy("relu")
    toy.module[4].linear.weight.zero_()
    with pytest.raises(MisLabError, match=r"moves the objective by 0 only.*circuit.min_effect"):
        curve_of(toy, "feature", replace(CONFIG, min_effect=1e-3))


def test_no_live_node_and_no_image_are_told(make_toy) -> None:
    toy = make_toy("relu")
    nodes, circuit = toy.node_sets["neuron"], circuit_of(toy, "neuron")
    with pytest.raises(DataError, match="no neuron ever leaves its baseline"):
        evaluate(toy.problem, nodes, circuit.top(0), toy.images, toy.targets_n, CONFIG, 0)
    with pytest.raises(DataError, match="no images to evaluate"):
        evaluate(toy.problem, nodes, circuit, [], toy.targets_n[:0], CONFIG, 0)


def test_groups_of_other_images_are_refused(make_toy) -> None:
    toy = make_toy("relu")
    nodes, circuit = toy.node_sets["neuron"], circuit_of(toy, "neuron")
    with pytest.raises(ValueError, match="7 images have 3 groups"):
        evaluate(toy.problem, nodes, circuit, toy.images, toy.targets_n, CONFIG, 0, groups=["a", "b", "c"])


def test_an_objective_that_is_not_finite_is_told(make_toy) -> None:
    toy = make_toy("relu")
    images = [batch.clone() for batch in toy.images]
    images[0][0] = torch.nan
    with pytest.raises(DataError, match="not finite"):
        evaluate(toy.problem, toy.node_sets["neuron"], circuit_of(toy, "neuron"), images, toy.targets_n, CONFIG, 0)
