"""The thesis' formulas by its own toy cases, and by direct evaluation."""

# B images  P positions  D width  F features

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.sae.reconstructions import VectorsInMemory
from mis_lab.sae.thesis_metrics import UnitActivity, density_histogram, evaluate_as_thesis

WIDTH = 4


@pytest.fixture(scope="module")
def maps() -> Tensor:
    """(B, P, D) rectified activations with a mean."""
    return (torch.randn(12, 9, WIDTH, generator=torch.Generator().manual_seed(0)) + 0.3).relu()


@pytest.fixture(scope="module")
def vectors(maps: Tensor) -> Tensor:
    return maps.flatten(0, 1)[:, None]


@pytest.mark.parametrize("kind", ["maps", "vectors"])
@pytest.mark.parametrize(("gain", "deficit"), [(1.0, 0.0), (0.0, 1.0), (2.0, -3.0), (-1.0, 0.0)])
def test_the_variance_deficit_is_not_what_it_was_called(
    kind: str, gain: float, deficit: float, request: pytest.FixtureRequest, stored: type, affine: type
) -> None:
    """Called variance explained, it gives the perfect reconstruction 0, none at all 1, and −x as much as x."""
    quality = evaluate_as_thesis(affine(WIDTH, gain), stored(request.getfixturevalue(kind)))
    assert quality.variance_deficit == pytest.approx(deficit, abs=1e-12)


def test_the_variance_is_over_positions_for_maps_and_over_dimensions_for_vectors(
    maps: Tensor, vectors: Tensor, stored: type, affine: type
) -> None:
    gains = torch.tensor([1.0, 0.5, 0.0, 3.0])
    sae = affine(WIDTH)
    with torch.no_grad():
        sae.W_dec.copy_(torch.diag(gains))
    x = maps.double().numpy()
    decoded = x * gains.numpy()
    over_positions = 1 - decoded.var(1).mean() / x.var(1).mean()
    over_dimensions = 1 - decoded.var(2).mean() / x.var(2).mean()
    assert abs(over_positions - over_dimensions) > 0.01
    assert evaluate_as_thesis(sae, stored(maps)).variance_deficit == pytest.approx(over_positions, rel=1e-12)
    assert evaluate_as_thesis(sae, stored(vectors)).variance_deficit == pytest.approx(over_dimensions, rel=1e-12)


def test_density_by_hand(stored: type, affine: type) -> None:
    """The thesis' toy: of 2 channels one is active in both images, one at a single position of one of them: 3 of 4."""
    x = torch.zeros(2, 4, 2)
    x[:, :2, 0] = 1.0
    x[1, 3, 1] = -2.0
    original = evaluate_as_thesis(affine(2), stored(x)).original
    assert original.relative_density == 0.75
    assert original.relative_density_by_position == pytest.approx(5 / 8 / 2)
    assert (original.n_active_image, original.dead_share) == (1.5, 0.0)
    assert original.image_density_u.tolist() == [1.0, 0.5]
    assert original.density_u.tolist() == [0.5, 0.125]


def test_density_is_relative_to_the_original_width() -> None:
    """8 features on 2 dimensions, all active: 4 times the width, where a share could be 1 at most."""
    activity = UnitActivity(2, torch.ones(8).double(), torch.ones(8).double())
    assert (activity.relative_density, activity.relative_density_by_position) == (4.0, 4.0)
    assert activity.unused_share_of_width == -3.0


def test_the_two_older_sparsities() -> None:
    """8 features (K = 4) of which 2 are dead; 1.5 are active in an image."""
    image_density = torch.tensor([0.5, 0.5, 0.25, 0.125, 0.0625, 0.0625, 0.0, 0.0]).double()
    activity = UnitActivity(2, image_density / 2, image_density)
    assert activity.dead_share == 0.25
    assert activity.inactive_share_of_living == pytest.approx(1 - 1.5 / (8 - 2))
    assert activity.unused_share_of_width == pytest.approx(1 - 1.5 / (8 / 4))
    dead = UnitActivity(2, torch.zeros(8).double(), torch.zeros(8).double())
    assert math.isnan(dead.inactive_share_of_living)
    assert dead.dead_share == 1.0


def test_codes_original_and_reconstruction_are_counted_each(maps: Tensor, stored: type, affine: type) -> None:
    sae = affine(WIDTH)
    with torch.no_grad():
        sae.W_dec.copy_(torch.diag(torch.tensor([1.0, 1.0, 0.0, 0.0])))
    quality = evaluate_as_thesis(sae, stored(maps), [5, 1, 7, 1])
    x = maps[[1, 5, 7]].numpy()
    for activity, a in (
        (quality.codes, x),
        (quality.original, x),
        (quality.reconstruction, x * np.array([1, 1, 0, 0])),
    ):
        np.testing.assert_allclose(activity.density_u, (a != 0).mean((0, 1)), rtol=1e-12)
        np.testing.assert_allclose(activity.image_density_u, (a != 0).any(1).mean(0), rtol=1e-12)
    assert quality.reconstruction.dead_share == 0.5
    assert (quality.n_images, quality.n_vectors) == (3, 27)
    assert quality.numbers()["reconstruction/dead_share"] == 0.5
    assert quality.numbers()["variance_deficit"] == quality.variance_deficit
    assert len(quality.numbers()) == 16


@pytest.mark.parametrize("chunk_vectors", [1, 20, 50])
def test_no_number_depends_on_the_chunks(maps: Tensor, stored: type, affine: type, chunk_vectors: int) -> None:
    one = evaluate_as_thesis(affine(WIDTH, 0.7, 0.2), stored(maps))
    other = evaluate_as_thesis(affine(WIDTH, 0.7, 0.2), stored(maps), None, chunk_vectors)
    assert one.numbers() == pytest.approx(other.numbers(), rel=1e-9)


def test_flat_activations_have_no_deficit(stored: type, affine: type) -> None:
    quality = evaluate_as_thesis(affine(WIDTH), stored(torch.ones(3, 4, WIDTH)))
    assert math.isnan(quality.variance_deficit)
    assert quality.original.relative_density == 1.0


def test_no_images(maps: Tensor, stored: type, affine: type) -> None:
    with pytest.raises(DataError, match="no images"):
        evaluate_as_thesis(affine(WIDTH), stored(maps), [])
    with pytest.raises(DataError, match="not finite"):
        evaluate_as_thesis(affine(WIDTH, float("inf")), VectorsInMemory(maps[0]))


def test_histogram_of_densities() -> None:
    density = torch.rand(1000, generator=torch.Generator().manual_seed(1)).double()
    density[:30] = 0.0
    density[30] = 1.0
    counts, edges, n_dead = density_histogram(density)
    expected, expected_edges = np.histogram(density[30:].numpy(), bins=40, range=(0, 1))
    assert counts.tolist() == expected.tolist()
    np.testing.assert_allclose(edges, expected_edges, atol=1e-15)
    assert n_dead == 30
    counts, edges, n_dead = density_histogram(torch.tensor([0.5, 1.0, 0.49, 0.0]), 2)
    assert (counts.tolist(), edges.tolist(), n_dead) == ([1, 2], [0, 0.5, 1], 1)
    for bad in (1.1, -0.1, float("nan")):
        with pytest.raises(DataError, match="between 0 and 1"):
            density_histogram(torch.tensor([bad]))
