from __future__ import annotations

import numpy as np
import pytest
import torch
from scipy.stats import kstest

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.units import (
    Neurons,
    RandomDirections,
    aggregate,
    image_activations,
    image_slices,
    permute_images,
)


def test_neurons_are_the_channels():
    x_bpd = torch.randn(3, 4, 5)
    assert torch.equal(Neurons(5).activate(x_bpd), x_bpd)
    assert (Neurons(5).kind, Neurons(5).n_units) == ("neuron", 5)


@pytest.mark.usefixtures("untouched_rng")
def test_random_directions_are_of_unit_length_and_uniform():
    source = RandomDirections(width=3, n=4000, seed=1)
    assert torch.allclose(source.directions_ud.norm(dim=1), torch.ones(4000, dtype=torch.float64), atol=1e-12)
    # Archimedes: each coordinate of a uniform point of the sphere is uniform in [-1, 1].
    for axis in range(3):
        assert kstest(source.directions_ud[:, axis].numpy(), "uniform", args=(-1, 2)).pvalue > 1e-4
    assert torch.equal(source.directions_ud, RandomDirections(3, 4000, 1).directions_ud)
    assert not torch.equal(source.directions_ud, RandomDirections(3, 4000, 2).directions_ud)


def test_random_directions_project():
    source, x_bpd = RandomDirections(300, 7, seed=0), torch.randn(2, 3, 300)
    expected = np.einsum("bpd,ud->bpu", x_bpd.double().numpy(), source.directions_ud.numpy())
    # To the last bit of float32, which a product in float32 does not reach.
    assert np.array_equal(source.activate(x_bpd).numpy(), expected.astype(np.float32))


def test_aggregate_is_the_mean_or_maximum_over_positions():
    a_bpu = torch.randn(3, 49, 5)
    mean = aggregate(a_bpu, ImageActivation.mean)
    assert mean.dtype == torch.float32
    assert torch.equal(mean, (a_bpu.double().sum(1) / 49).float())
    assert torch.equal(aggregate(a_bpu, ImageActivation.max), a_bpu.max(1).values)
    assert torch.equal(aggregate(a_bpu[:, :1], ImageActivation.mean), a_bpu[:, 0])


@pytest.mark.parametrize("source", [Neurons(24), RandomDirections(24, 40, seed=2)], ids=["neurons", "directions"])
def test_no_bit_depends_on_the_chunk(source):
    x_bpd = torch.randn(65, 49, 24)
    whole = aggregate(source.activate(x_bpd), ImageActivation.mean)
    for chunk in (1, 2, 64):
        parts = [aggregate(source.activate(part), ImageActivation.mean) for part in x_bpd.split(chunk)]
        assert torch.equal(torch.cat(parts), whole)


def test_image_activations_cover_the_store_in_order(write, monkeypatch):
    monkeypatch.setattr("mis_lab.activations.units.CHUNK_NUMBERS", 4 * 6 * 3)
    x_npd = torch.randn(10, 4, 6)
    chunks = list(image_activations(write(x_npd), Neurons(6), ImageActivation.max))
    assert [list(indices) for indices, _ in chunks] == [[0, 1, 2], [3, 4, 5], [6, 7, 8], [9]]
    assert torch.equal(torch.cat([a_bu for _, a_bu in chunks]), x_npd.amax(1))


@pytest.mark.parametrize("n_slices", [1, 2, 3, 4, 9])
def test_slices_cover_the_store_in_chunks_of_the_whole(write, monkeypatch, n_slices):
    monkeypatch.setattr("mis_lab.activations.units.CHUNK_NUMBERS", 4 * 6 * 3)
    stored, source = write(torch.randn(11, 4, 6)), Neurons(6)
    slices = image_slices(stored, source, n_slices)
    assert len(slices) == min(n_slices, 4)
    assert all(len(images) for images in slices)
    parts = [chunk for images in slices for chunk in image_activations(stored, source, images=images)]
    whole = list(image_activations(stored, source))
    assert [indices for indices, _ in parts] == [indices for indices, _ in whole]
    assert all(torch.equal(one, other) for (_, one), (_, other) in zip(parts, whole, strict=True))


@pytest.mark.parametrize("images", [range(1, 6), range(0, 4), range(0, 6, 3)])
def test_a_slice_across_chunks_is_a_bug(write, monkeypatch, images):
    monkeypatch.setattr("mis_lab.activations.units.CHUNK_NUMBERS", 4 * 6 * 3)
    with pytest.raises(ValueError, match="does not begin and end where chunks of 3 images do"):
        next(image_activations(write(torch.randn(11, 4, 6)), Neurons(6), images=images))


def test_permuting_images_keeps_each_units_values_and_nothing_else():
    a_nu = torch.randn(500, 4)
    permuted = permute_images(a_nu, seed=0, units=["a", "b", "c", "d"])
    assert torch.equal(permuted.sort(0).values, a_nu.sort(0).values)
    assert (permuted == a_nu).float().mean() < 0.02
    places = [(permuted[:, None, u] == a_nu[None, :, u]).int().argmax(1) for u in range(4)]
    assert not torch.equal(places[0], places[1])
    assert torch.equal(permute_images(a_nu[:, [2, 0]], 0, ["c", "a"]), permuted[:, [2, 0]])
    assert not torch.equal(permute_images(a_nu, 1, ["a", "b", "c", "d"]), permuted)


def test_permuting_needs_a_name_for_each_unit():
    with pytest.raises(ValueError, match="3 names for 2 units"):
        permute_images(torch.randn(5, 2), 0, [1, 2, 3])
