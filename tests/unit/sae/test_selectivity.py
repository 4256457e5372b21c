"""Classes of units against counts by hand, and entropy and Gini against other formulas."""

# B images  P positions  U units  C classes

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import entropy
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.units import Neurons, RandomDirections
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.sae.selectivity import ClassCounts, Per, Share, count_classes, selectivity
from mis_lab.sae.units import Features

N_IMAGES, N_POSITIONS, WIDTH, N_CLASSES = 40, 3, 5, 4


@pytest.fixture(scope="module")
def x_bpd() -> Tensor:
    return torch.randn(N_IMAGES, N_POSITIONS, WIDTH, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module")
def classes() -> Tensor:
    return torch.arange(N_IMAGES) ** 2 % 7 % N_CLASSES


def counts_of(active_uc: list[list[float]], n_items_c: list[float]) -> ClassCounts:
    active = torch.tensor(active_uc, dtype=torch.float64)
    return ClassCounts(active, 2 * active, torch.tensor(n_items_c, dtype=torch.float64), 0.0)


@pytest.mark.parametrize("per", list(Per))
@pytest.mark.parametrize("indices", [None, [7, 3, 30, 31, 3]])
def test_counts_by_hand(x_bpd: Tensor, classes: Tensor, stored: type, per: Per, indices: list[int] | None) -> None:
    counts = count_classes(
        stored(x_bpd),
        Neurons(WIDTH),
        classes,
        N_CLASSES,
        threshold=0.3,
        per=per,
        image_activation=ImageActivation.max,
        indices=indices,
    )
    n_active, total, n_items = np.zeros((WIDTH, N_CLASSES)), np.zeros((WIDTH, N_CLASSES)), np.zeros(N_CLASSES)
    for image in range(N_IMAGES) if indices is None else set(indices):
        items = x_bpd[image].numpy() if per is Per.vector else x_bpd[image].amax(0, keepdim=True).numpy()
        for item in items:
            n_items[classes[image]] += 1
            for unit in range(WIDTH):
                if item[unit] > 0.3:
                    n_active[unit, classes[image]] += 1
                    total[unit, classes[image]] += float(item[unit])
    np.testing.assert_array_equal(counts.active_uc, n_active)
    np.testing.assert_array_equal(counts.n_items_c, n_items)
    np.testing.assert_allclose(counts.total_uc, total, rtol=1e-12)
    assert counts.threshold == 0.3


@pytest.mark.parametrize("chunk_images", [1, 7, 33])
def test_no_number_depends_on_the_chunks(x_bpd: Tensor, classes: Tensor, stored: type, chunk_images: int) -> None:
    source = RandomDirections(WIDTH, 12, seed=0)
    one = count_classes(stored(x_bpd), source, classes, N_CLASSES)
    other = count_classes(stored(x_bpd), source, classes, N_CLASSES, chunk_images=chunk_images)
    assert torch.equal(one.active_uc, other.active_uc)
    torch.testing.assert_close(one.total_uc, other.total_uc, rtol=1e-9, atol=0)


def test_features_are_units_too(x_bpd: Tensor, classes: Tensor, stored: type, affine: type) -> None:
    features = count_classes(stored(x_bpd), Features(affine(WIDTH)), classes, N_CLASSES)
    assert torch.equal(features.active_uc, count_classes(stored(x_bpd), Neurons(WIDTH), classes, N_CLASSES).active_uc)


def test_the_toy_case() -> None:
    """One class, all classes alike, two of four, and none at all; 10 images a class."""
    units = [[0, 6, 0, 0], [5, 5, 5, 5], [0, 4, 0, 4], [0, 0, 0, 0]]
    found = selectivity(counts_of(units, [10, 10, 10, 10]))
    assert found.n_active_classes_u.tolist() == [1, 4, 2, 0]
    assert found.histogram.tolist() == [1, 1, 1, 0, 1]
    assert found.entropy_u[:3].tolist() == pytest.approx([0, 1, 0.5])
    assert found.gini_u[:3].tolist() == pytest.approx([0.75, 0, 0.5])
    assert found.top_class_u.tolist() == [1, 0, 1, -1]
    assert found.top_share_u[:3].tolist() == pytest.approx([1, 0.25, 0.5])
    assert all(math.isnan(values[3]) for values in (found.entropy_u, found.gini_u, found.top_share_u))
    assert found.n_dead == 1
    assert found.active_classes_mean == pytest.approx(7 / 3)
    assert found.active_classes_std == pytest.approx(np.std([1, 4, 2]))


def test_a_large_class_is_no_favourite_by_rate() -> None:
    """A unit that fires on half of everything: by counts it seems to prefer the class with 90 of 100 images."""
    counts = counts_of([[45, 5]], [90, 10])
    assert selectivity(counts).entropy_u.item() == pytest.approx(1)
    by_count = selectivity(counts, Share.count)
    assert (by_count.top_class_u.item(), by_count.top_share_u.item()) == (0, pytest.approx(0.9))


def test_shares_of_activation_are_of_class_means() -> None:
    counts = ClassCounts(
        torch.tensor([[2.0, 2.0]]).double(), torch.tensor([[6.0, 4.0]]).double(), torch.tensor([3.0, 1.0]), 0.0
    )
    assert selectivity(counts, Share.activation).top_share_u.item() == pytest.approx(4 / (2 + 4))


def test_classes_that_do_not_occur_are_left_out() -> None:
    """Eight more possible classes must not lower the entropy of a unit that treats the two seen ones alike."""
    found = selectivity(counts_of([[0, 3, 0, 3, 0, 0]], [0, 5, 0, 5, 0, 0]))
    assert found.n_classes == 2
    assert found.entropy_u.item() == pytest.approx(1)
    assert found.gini_u.item() == pytest.approx(0)
    assert found.top_class_u.item() == 1
    assert len(found.histogram) == 3


@given(st.lists(st.integers(0, 50), min_size=2, max_size=12).filter(any))
def test_entropy_and_gini_by_other_formulas(counts: list[int]) -> None:
    found = selectivity(counts_of([counts], [50] * len(counts)))
    p = np.array(counts) / sum(counts)
    assert found.entropy_u.item() == pytest.approx(entropy(p, base=len(p)), abs=1e-12)
    pairs = np.abs(p[:, None] - p[None]).mean() / (2 * p.mean())
    assert found.gini_u.item() == pytest.approx(pairs, abs=1e-12)


def test_no_living_unit_has_no_mean() -> None:
    found = selectivity(counts_of([[0, 0]], [3, 3]))
    assert math.isnan(found.active_classes_mean)
    assert found.histogram.tolist() == [1, 0, 0]


def test_bad_input(x_bpd: Tensor, classes: Tensor, stored: type) -> None:
    with pytest.raises(ConfigError, match="40 stored images need as many classes"):
        count_classes(stored(x_bpd), Neurons(WIDTH), classes[:5], N_CLASSES)
    with pytest.raises(DataError, match=r"40 images have a class outside 0 to 3.*predictions"):
        count_classes(stored(x_bpd), Neurons(WIDTH), torch.full((N_IMAGES,), -1), N_CLASSES)
    with pytest.raises(DataError, match="no images"):
        count_classes(stored(x_bpd), Neurons(WIDTH), classes, N_CLASSES, indices=[])
    with pytest.raises(DataError, match="at least two classes"):
        selectivity(counts_of([[3, 0]], [5, 0]))
    below = ClassCounts(torch.ones(1, 2), -torch.ones(1, 2), torch.ones(2), -5.0)
    with pytest.raises(DataError, match="negative activations"):
        selectivity(below, Share.activation)
