"""Classes by number and name, targets of images, and images of some classes."""

from __future__ import annotations

import pytest
import torch

from mis_lab.circuit.config import CircuitConfig, Objective, Target
from mis_lab.circuit.objectives import OBJECTIVES
from mis_lab.circuit.targets import class_number, clean_logits, objective_of, of_classes, rows_read, targets_of
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset.base import ImageDataset

NAMES = ["cat", "dog", "crane", "crane"]


@pytest.fixture
def dataset() -> ImageDataset:
    """Seven images with labels 0 to 3, the last without one."""
    return ImageDataset("seven", "score", list("abcdefg"), labels=[0, 1, 2, 3, 0, 1, -1], class_names=NAMES)


def test_a_class_is_told_by_number_or_name() -> None:
    assert class_number("dog", NAMES, 4, "circuit.target_class") == class_number("1", NAMES, 4, "x") == 1
    assert class_number("3", [], 4, "x") == 3


@pytest.mark.parametrize(
    ("told", "names", "message"),
    [
        ("dgo", NAMES, r"circuit.target_class=dgo: no class has this name.*Nearest: dog"),
        ("crane", NAMES, r"2 classes have this name.*\[2, 3\]"),
        ("4", NAMES, r"the network has 4 classes.*0 to 3"),
        ("-1", NAMES, r"the network has 4 classes"),
        ("dog", [], r"the classes have no names"),
    ],
)
def test_a_class_that_is_none_is_told(told, names, message) -> None:
    with pytest.raises(ConfigError, match=message):
        class_number(told, names, 4, "circuit.target_class")


def test_targets_are_predictions_labels_or_one_class(make_toy, dataset) -> None:
    toy = make_toy()
    model, some = toy.problem.model, [2, 0, 5]
    images = [toy.all_images[some]]
    found = targets_of(CircuitConfig(), model, dataset, some, images)
    assert torch.equal(found, model.module(images[0]).argmax(1))
    assert targets_of(CircuitConfig(target=Target.label), model, dataset, some, images).tolist() == [2, 0, 1]
    chosen = CircuitConfig(target=Target.chosen, target_class="dog")
    assert targets_of(chosen, model, dataset, some, images, NAMES).tolist() == [1, 1, 1]
    with pytest.raises(DataError, match="image g of seven has no label"):
        targets_of(CircuitConfig(target=Target.label), model, dataset, [6], images)


def test_images_of_some_classes_keep_their_order() -> None:
    targets_n = torch.tensor([0, 1, 2, 1, 0])
    config = CircuitConfig(classes=["dog", "2"])
    found = of_classes(config, 4, [10, 11, 12, 13, 14], targets_n, NAMES)
    assert found.indices == [11, 12, 13]
    assert found.targets_n.tolist() == [1, 2, 1]
    everything = of_classes(CircuitConfig(), 4, [10, 11, 12, 13, 14], targets_n, NAMES)
    assert everything.indices == [10, 11, 12, 13, 14]
    with pytest.raises(DataError, match="no image has one of the classes 3"):
        of_classes(CircuitConfig(classes=["3"]), 4, [10, 11, 12, 13, 14], targets_n, NAMES)


def test_the_objective_is_the_configured_one() -> None:
    logits, targets_n = torch.randn(3, 4), torch.tensor([0, 1, 0])
    for objective in Objective:
        assert objective_of(CircuitConfig(objective=objective), 4) is OBJECTIVES[objective]
    against = objective_of(CircuitConfig(objective=Objective.logit_diff, other_class="crane"), 4, NAMES[:3])
    assert torch.equal(against(logits, targets_n), logits[range(3), targets_n] - logits[:, 2])
    with pytest.raises(ConfigError, match="needs two classes"):
        objective_of(CircuitConfig(objective=Objective.logit_diff), 1)


def test_rows_are_classes_or_for_kl_clean_logits(make_toy) -> None:
    toy = make_toy()
    model, targets_n = toy.problem.model, toy.targets_n
    assert rows_read(CircuitConfig(), model, toy.images, targets_n) is targets_n
    rows = rows_read(CircuitConfig(objective=Objective.kl), model, toy.images, targets_n)
    torch.testing.assert_close(rows, model.module(toy.all_images))
    config = CircuitConfig(objective=Objective.logit_diff, other_class="2")
    assert rows_read(config, model, toy.images, torch.tensor([0, 1, 3])).tolist() == [0, 1, 3]
    with pytest.raises(DataError, match=r"target of 2 of 3 images is circuit.other_class=2 itself"):
        rows_read(config, model, toy.images, torch.tensor([2, 1, 2]))
    with pytest.raises(DataError, match="no images"):
        clean_logits(model, [])
