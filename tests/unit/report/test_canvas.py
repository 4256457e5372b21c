"""Pictures are drawn in the page's colours, and text stays where there is room for it."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mis_lab.core.errors import ConfigError
from mis_lab.report.canvas import ELLIPSIS, Canvas, font, palette, require_png, save_png, shortened


def colours(canvas: Canvas) -> set[tuple[int, ...]]:
    return {colour for _, colour in canvas.image.getcolors(1 << 24)}


def test_colours_are_those_of_light_charts():
    assert palette()["paper"] == "#fdfcf9"
    assert {"ink", "muted", "rule", "feature", "neuron", "pos", "neg", "random-direction"} <= set(palette())
    assert colours(Canvas(4, 4)) == {(0xFD, 0xFC, 0xF9)}


def test_the_font_has_the_letters_of_scores():
    unknown = bytes(font(40).getmask("\U0010ffff"))
    for letter in "Δτσ−…✓▲·–≥=[]":
        drawn = bytes(font(40).getmask(letter))
        assert any(drawn), letter
        assert drawn != unknown, letter


@pytest.mark.parametrize("most", [3, 20, 57.5, 200, 1000])
def test_text_is_shortened_to_its_room(most):
    face, text = font(14), "lpips_baseline_squeeze, τ = 1.02"
    told = shortened(text, most, face)
    assert told == text if face.getlength(text) <= most else face.getlength(told) <= max(most, face.getlength(ELLIPSIS))
    assert told == text or (told.endswith(ELLIPSIS) and text.startswith(told[:-1]))


def test_a_tile_has_its_picture_and_its_frame():
    canvas = Canvas(60, 60)
    canvas.tile(Image.new("L", (30, 10), 128), 20, 20, 24, "feature", 3)
    pixels = np.asarray(canvas.image)
    assert (pixels[20:44, 20:44] == 128).all()
    framed = tuple(bytes.fromhex(palette()["feature"][1:]))
    assert [tuple(pixels[32, x]) for x in (17, 19, 44, 46)] == [framed] * 4
    assert tuple(pixels[32, 16]) == tuple(pixels[32, 47]) == (0xFD, 0xFC, 0xF9)


def test_an_overlay_mixes_by_its_opacity():
    canvas = Canvas(30, 30)
    canvas.tile(Image.new("RGB", (8, 8), (100, 100, 100)), 5, 5, 16)
    canvas.overlay(Image.new("RGBA", (4, 4), (200, 0, 100, 51)), 5, 5, 16)  # a fifth
    assert np.asarray(canvas.image)[13, 13] == pytest.approx([120, 80, 100], abs=1)


def test_a_bar_may_go_to_the_left():
    left, right = Canvas(40, 10), Canvas(40, 10)
    left.bar(30, 2, -20, 5, "neg")
    right.bar(10, 2, 20, 5, "neg")
    assert np.array_equal(np.asarray(left.image), np.asarray(right.image))


def test_only_png_is_written(tmp_path):
    path = save_png(Canvas(5, 4).image, tmp_path / "new" / "a.png")
    with Image.open(path) as picture:
        assert (picture.format, picture.size) == ("PNG", (5, 4))
    with pytest.raises(ConfigError, match=r"a\.jpg is no name of a PNG file\. Use .*a\.png\."):
        require_png(tmp_path / "a.jpg")
