"""What circuits are compared with, and by how much they win."""

from __future__ import annotations

import logging
from dataclasses import replace

import numpy as np
import pytest
import torch

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.circuit import rank
from mis_lab.circuit.comparisons import by_change, node_changes
from mis_lab.circuit.config import EffectMethod, Target
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.images import choose
from mis_lab.circuit.quadrature import midpoint
from mis_lab.circuit.quality import differences, rivals
from mis_lab.circuit.states import States

SIZES = np.array([0, 1, 4])


def curve(values: list[list[float]], random: list[list[list[float]]] | None = None) -> Curve:
    drawn = np.array([values] if random is None else random, dtype=np.float64)
    return Curve(
        "neuron", SIZES, np.array(values, dtype=np.float64), drawn, np.ones(len(values[0])), np.arange(len(values[0]))
    )


def test_the_best_of_the_random_circuits_is_the_one_to_beat(stage_config) -> None:
    own = curve([[0, 0], [0.9, 0.9], [1, 1]], [[[0, 0], [0, 0], [1, 1]], [[0, 0], [0.5, 0.5], [1, 1]]])
    found = differences(own, {"other": curve([[0, 0], [1, 1], [1, 1]])}, {}, stage_config)
    # With a quarter of the nodes kept: the area between faithfulness and 1, over shares 0, ¼ and 1.
    area = {value: 0.125 * (1 + 1 - value) + 0.375 * (1 - value) for value in (0.9, 0.5, 1.0)}
    assert found["best_random"].estimate == pytest.approx(area[0.9] - area[0.5])
    assert found["other"].estimate == pytest.approx(area[0.9] - area[1.0])
    assert found["best_random"].low == found["best_random"].high, "both images are alike"


def test_circuits_of_classes_meet_on_the_images_of_one(stage_config) -> None:
    own = curve([[0, 0, 0], [0.5, 0.5, 0.5], [1, 1, 1]])
    others = {
        "class a": curve([[0, 0, 0], [1, 1, 0], [1, 1, 1]]),
        "class b": curve([[0, 0, 0], [0, 0, 1], [1, 1, 1]]),
    }
    masks = {"a": torch.tensor([True, True, False]), "b": torch.tensor([False, False, True])}
    found = differences(own, others, masks, stage_config)
    assert found["class a against class b"].estimate == pytest.approx(-0.5)
    assert found["class b against class a"].estimate == pytest.approx(-0.5)
    none = {"a": masks["a"], "b": torch.zeros(3, dtype=torch.bool)}
    assert "class b against class a" not in differences(own, others, none, stage_config)
    still = {name: replace(one, values=one.values * [[1, 1, 0]]) for name, one in others.items()}
    kept = differences(own, still, masks, stage_config)
    assert "class a against class b" in kept
    assert "class b against class a" not in kept, "its images do not move"


def test_a_class_circuit_is_ranked_on_the_images_of_the_class(
    make_toy, noise, stage_config, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    toy = make_toy("relu", dtype=torch.float32)
    config = replace(stage_config, target=Target.label)
    discovery = choose(toy.problem.model, noise(), range(12), 0, config)
    dictionaries = {"feature": toy.dictionaries("feature")}
    states = States.of(toy.problem, dictionaries, discovery, discovery, config, 0)
    path = InputPath(mean_image(discovery.images), midpoint(2))

    def effects(some):
        nodes = states.on(some)
        return node_effects(toy.problem, nodes, some.images, some.rows_n, EffectMethod.ig_inputs, path)["feature"]

    everything = effects(discovery)
    circuit = rank("feature", everything)
    masks = {"1": discovery.targets_n == 1, "missing": torch.zeros(12, dtype=torch.bool)}
    found = rivals(toy.problem, states, circuit, everything, masks, discovery)
    assert list(found) == ["by_change", "class 1"]
    assert "no discovery image is of class missing" in caplog.text
    alone = effects(discovery.take([1, 5, 9]))
    told = dict(zip(found["class 1"].nodes, found["class 1"].effect.tolist(), strict=True))
    for node in circuit.nodes:
        assert told[node] == pytest.approx(float(alone[node.site].mean[node.feature]), rel=1e-3, abs=1e-6)
    changes = node_changes(toy.problem, states.on(discovery)["feature"], discovery.images)
    assert found["by_change"].nodes == by_change(circuit, changes).nodes
