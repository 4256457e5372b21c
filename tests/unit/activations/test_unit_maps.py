"""Single units on chosen images are what all units on all images are."""

from __future__ import annotations

import pytest
import torch

from mis_lab.activations import unit_maps
from mis_lab.activations.config import ImageActivation
from mis_lab.activations.unit_maps import MapReader
from mis_lab.activations.units import Neurons, RandomDirections


@pytest.mark.parametrize("image_activation", list(ImageActivation))
def test_values_and_maps_are_those_of_the_unit_on_the_images(write, image_activation, monkeypatch):
    x_npd = torch.randn(20, 6, 5, generator=torch.Generator().manual_seed(0))
    stored, source = write(x_npd), RandomDirections(5, 7, seed=1)
    images = [3, 19, 0, 3]
    reader = MapReader(stored, source, image_activation)
    found = reader.of(4, images)
    expected = (x_npd.double() @ source.directions_ud[4]).float()[images]
    torch.testing.assert_close(found.maps, expected.view(4, 1, 6))
    whole = expected.amax(1) if image_activation is ImageActivation.max else expected.double().mean(1).float()
    torch.testing.assert_close(found.values, whole)
    monkeypatch.setattr(unit_maps, "CHUNK_NUMBERS", 2 * 6 * 7)  # two images at once
    again = reader.of(4, images)
    assert torch.equal(again.maps, found.maps)
    assert torch.equal(again.values, found.values)


def test_no_image_is_no_map(write):
    found = MapReader(write(torch.zeros(4, 6, 5)), Neurons(5)).of(0, [])
    assert found.values.shape == (0,)
    assert found.maps.shape == (0, 1, 6)
