"""Pictures in the page: orientation and scale of heat-maps, strips, shared sprites."""

from __future__ import annotations

import base64
import io

import numpy as np
import pytest
from PIL import Image

from mis_lab.report.data import UnitImage
from mis_lab.report.images import (
    SpriteSheet,
    data_uri,
    gradient_uri,
    heat_overlay,
    largest_activation,
    strip,
    thumbnail,
    to_rgb,
)


def decoded(uri: str) -> Image.Image:
    head, content = uri.split(",", 1)
    assert head == "data:image/webp;base64"
    return Image.open(io.BytesIO(base64.b64decode(content)))


def brightness(image: Image.Image) -> np.ndarray:
    """What the overlay adds to a mid-grey picture: negative where it darkens."""
    rgba = np.asarray(image, dtype=float)
    alpha = rgba[..., 3:] / 255
    return (rgba[..., :3] * alpha + 128 * (1 - alpha)).mean(-1)


def test_the_hot_cell_is_where_the_unit_is_active():
    heat = np.zeros((4, 4))
    heat[0, 3] = 2.0
    light = brightness(heat_overlay(heat, 2.0, 32))
    assert np.unravel_index(light.argmax(), light.shape)[0] < 8
    assert np.unravel_index(light.argmax(), light.shape)[1] >= 24
    assert light[28, 4] < 80  # silent parts are darkened


def test_colours_are_relative_to_the_units_largest_activation():
    one, half = (np.asarray(heat_overlay(np.full((3, 3), value), 2.0, 8)) for value in (2.0, 1.0))
    assert np.array_equal(np.asarray(heat_overlay(np.full((3, 3), 1.0), 1.0, 8)), one)
    assert np.array_equal(
        np.asarray(heat_overlay(np.full((3, 3), 9.0), 2.0, 8)), one
    )  # more than the largest is clipped
    assert not np.array_equal(one, half)


def test_negative_activation_is_cool_and_positive_is_warm():
    warm, cool = (np.asarray(heat_overlay(np.full((2, 2), value), 1.0, 4))[0, 0] for value in (1.0, -1.0))
    assert warm[0] > warm[2]
    assert cool[2] > cool[0]


@pytest.mark.parametrize("largest", [0.0, -1.0])
def test_a_unit_that_never_fires_is_dark_everywhere(largest):
    silent = np.asarray(heat_overlay(np.zeros((3, 3)), 1.0, 8))
    assert np.array_equal(np.asarray(heat_overlay(np.zeros((3, 3)), largest, 8)), silent)
    assert len(np.unique(silent.reshape(-1, 4), axis=0)) == 1


def test_a_strip_keeps_the_order_of_its_tiles():
    colours = [(255, 0, 0), (0, 255, 0), (0, 0, 255)]
    whole = decoded(data_uri(strip([Image.new("RGB", (16, 16), colour) for colour in colours])))
    assert whole.size == (48, 16)
    for place, colour in enumerate(colours):
        assert np.argmax(whole.getpixel((16 * place + 8, 8))) == np.argmax(colour)


@pytest.mark.parametrize(
    "picture", [np.full((10, 20), 7, np.uint8), np.full((10, 20, 3), 7, np.uint8), Image.new("L", (20, 10), 7)]
)
def test_grey_and_colour_arrays_and_images_become_rgb_thumbnails(picture):
    small = thumbnail(picture, 8, 6)
    assert (small.mode, small.size) == ("RGB", (8, 6))
    assert small.getpixel((4, 3)) == (7, 7, 7)


@pytest.mark.parametrize(
    "picture", [np.zeros((4, 4), np.float32), np.zeros((4, 4, 4), np.uint8), np.zeros(4, np.uint8)]
)
def test_what_is_no_picture_is_refused(picture):
    with pytest.raises(ValueError, match="a picture is uint8"):
        to_rgb(picture)


def unit_image(value: int, heat=None) -> UnitImage:
    return UnitImage(np.full((8, 8, 3), value, np.uint8), 1.0, "scene", "scene/0", heat)


def test_equal_strips_share_a_class_and_maps_need_every_image():
    sprites = SpriteSheet(8)
    first = sprites.images([unit_image(10), unit_image(20)])
    assert sprites.images([unit_image(10), unit_image(20)]) == first
    assert sprites.images([unit_image(20), unit_image(10)]) != first
    assert sprites.heat([unit_image(1, np.ones((2, 2))), unit_image(1)], 1.0) is None
    assert sprites.heat([unit_image(1)], 1.0) is None
    assert sprites.heat([unit_image(1, np.ones((2, 2)))], 1.0) not in (None, first)
    assert sprites.rules().count("url(data:image/webp;base64,") == 3


def test_the_largest_activation_is_of_the_maps():
    assert (
        largest_activation([unit_image(1, np.array([[0.5, 3.0]])), unit_image(1, np.array([[2.0]])), unit_image(1)])
        == 3.0
    )
    assert largest_activation([unit_image(1)]) == 0.0


def test_the_legend_runs_from_dark_to_bright():
    row = np.asarray(decoded(gradient_uri()).convert("L"), dtype=float)[4]
    assert row[0] < 40
    assert row[-1] > 180
    assert (np.diff(row.reshape(-1, 8).mean(1)) > 0).all()
