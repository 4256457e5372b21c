from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from mis_lab.core.errors import DataError, MissingFileError
from mis_lab.dataset.reading import as_rgb_or_grey, packaged_file, read_image


def _photo(side: int = 32) -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (side, side, 3), dtype=np.uint8))


@pytest.mark.parametrize("suffix", ["png", "bmp", "tiff", "webp"])
def test_pixels_survive_lossless_formats(tmp_path, suffix):
    options = {"lossless": True} if suffix == "webp" else {}
    _photo().save(tmp_path / f"a.{suffix}", **options)
    assert np.array_equal(read_image(tmp_path / f"a.{suffix}", "a"), _photo())


def test_grey_stays_grey(tmp_path):
    _photo().convert("L").save(tmp_path / "a.png")
    assert read_image(tmp_path / "a.png", "a").mode == "L"


@pytest.mark.parametrize("mode", ["1", "P", "CMYK", "YCbCr", "HSV", "LAB"])
def test_other_modes_become_rgb_or_grey(mode):
    image = as_rgb_or_grey(_photo().convert(mode) if mode != "LAB" else Image.new("LAB", (4, 4)))
    assert image.mode == ("L" if mode == "1" else "RGB")


def test_sixteen_bits_are_scaled_and_not_cut_off():
    wide = Image.fromarray(np.array([[0, 257, 32896, 65535]], dtype=np.uint16))
    assert wide.mode == "I;16"
    assert np.asarray(as_rgb_or_grey(wide)).tolist() == [[0, 1, 128, 255]]


def test_transparency_is_laid_over_white():
    clear = Image.new("RGBA", (1, 1), (0, 0, 0, 0))
    half = Image.new("RGBA", (1, 1), (255, 0, 0, 128))
    assert as_rgb_or_grey(clear).getpixel((0, 0)) == (255, 255, 255)
    red, green, blue = as_rgb_or_grey(half).getpixel((0, 0))
    assert red == 255
    assert green == blue
    assert 125 <= green <= 129


def test_the_transparent_colour_of_a_palette_is_white(tmp_path):
    palette = Image.new("P", (2, 1), 0)
    palette.putpalette([0, 0, 0, 10, 20, 30])
    palette.putpixel((1, 0), 1)
    palette.save(tmp_path / "a.png", transparency=0)
    image = read_image(tmp_path / "a.png", "a")
    assert [image.getpixel((x, 0)) for x in (0, 1)] == [(255, 255, 255), (10, 20, 30)]


def _truncated(path):
    _photo(64).save(path, format="JPEG" if path.suffix == ".jpg" else "PNG")
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def _wrong_length(path):
    _photo().save(path)
    good = path.read_bytes()
    start = good.index(b"IDAT") - 4
    half = int.from_bytes(good[start : start + 4], "big") // 2
    path.write_bytes(good[:start] + half.to_bytes(4, "big") + good[start + 4 :])


@pytest.mark.parametrize(
    ("name", "make", "word"),
    [
        ("cut.jpg", _truncated, "truncated"),
        ("cut.png", _truncated, ""),
        ("chunk.png", _wrong_length, "broken PNG file"),
        ("text.png", lambda path: path.write_text("no picture"), "not an image"),
        ("empty.jpg", lambda path: path.write_bytes(b""), "not an image"),
        ("gone.jpg", lambda path: None, "No such file"),
        ("folder.jpg", lambda path: path.mkdir(), "Is a directory"),
        ("float.tiff", lambda path: Image.new("F", (2, 2)).save(path), "floating-point"),
    ],
)
def test_a_file_that_cannot_be_read_is_named_with_its_image(tmp_path, name, make, word):
    make(tmp_path / name)
    with pytest.raises(DataError) as raised:
        read_image(tmp_path / name, f"cats/{name}")
    line = str(raised.value)
    assert "\n" not in line
    for part in (f"image cats/{name} cannot be read", word, str(tmp_path / name), "on_broken=skip"):
        assert part in line


def test_a_damaged_header_never_escapes_as_another_error(tmp_path):
    _photo(48).save(tmp_path / "good.png")
    good = (tmp_path / "good.png").read_bytes()
    rng = np.random.default_rng(1)
    n_refused = 0
    for _ in range(200):
        damaged = bytearray(good)
        for position in rng.integers(0, 60, 3):
            damaged[position] = int(rng.integers(256))
        (tmp_path / "bad.png").write_bytes(damaged)
        try:
            read_image(tmp_path / "bad.png", "bad")
        except DataError:
            n_refused += 1
    assert n_refused > 100


def test_a_packaged_file_is_found_or_named():
    assert packaged_file("scikit-learn", "sklearn/datasets/images/china.jpg").is_file()
    with pytest.raises(MissingFileError, match=r"sklearn/none\.jpg of the package scikit-learn is not there"):
        packaged_file("scikit-learn", "sklearn/none.jpg")
    with pytest.raises(MissingFileError, match="Install no-package from its wheel"):
        packaged_file("no-package", "no_such_package/a.jpg")
