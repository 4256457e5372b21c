"""Which images a circuit is found on, and what is known of each."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from mis_lab.circuit.config import Objective, Target
from mis_lab.circuit.images import check_apart, choose, own_classes
from mis_lab.core.errors import DataError

NAMES = list("abcd")


@pytest.fixture
def model(make_toy):
    return make_toy("relu", dtype=torch.float32).problem.model


def test_some_of_the_set_are_the_same_images_with_all_that_is_known_of_them(model, noise, stage_config) -> None:
    config = replace(stage_config, target=Target.label, objective=Objective.kl, classes=["a", "2"])
    chosen = choose(model, noise(), range(20), 0, config, NAMES)
    assert chosen.images.indices == [0, 2, 4, 6, 8, 10, 12, 14, 16, 18]
    some = chosen.take([3, 0])
    assert some.images.ids == ["noise/6", "noise/0"]
    assert some.targets_n.tolist() == [2, 0]
    assert {name: mask.tolist() for name, mask in some.masks.items()} == {"a": [False, True], "2": [True, False]}
    images = torch.cat(list(some.images))
    torch.testing.assert_close(some.rows_n, model.module(images))
    assert len(chosen) == 10
    assert len(chosen.spread(4)) == 4
    assert chosen.spread(99) == list(range(10))


def test_one_class_needs_no_circuit_of_its_own(model, noise, stage_config) -> None:
    config = replace(stage_config, target=Target.label, classes=["a"])
    assert choose(model, noise(), range(20), 3, config, NAMES).masks == {}


def test_images_are_of_their_label_where_labels_are_targets_else_of_the_networks_top_class(
    model, noise, stage_config
) -> None:
    chosen = choose(model, noise(), range(20, 24), 0, stage_config)
    seen = own_classes(chosen.images, stage_config)
    assert torch.equal(seen, model.module(torch.cat(list(chosen.images))).argmax(1))
    labelled = own_classes(chosen.images, replace(stage_config, target=Target.label))
    assert labelled.tolist() == [0, 1, 2, -1]


def test_two_sets_that_share_an_image_are_told(noise) -> None:
    check_apart(noise(), [0, 1], [2])
    with pytest.raises(DataError, match="1 images are for discovery and for evaluation, noise/1 for one"):
        check_apart(noise(), [0, 1], [1])
    with pytest.raises(DataError, match="no evaluation images"):
        check_apart(noise(), [0], [])
