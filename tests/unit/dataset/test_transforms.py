from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torchvision.transforms import v2

from mis_lab.core.errors import ConfigError
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform

METHODS = {
    "nearest": v2.InterpolationMode.NEAREST,
    "bilinear": v2.InterpolationMode.BILINEAR,
    "bicubic": v2.InterpolationMode.BICUBIC,
}


def _photo(width: int, height: int, mode: str = "RGB") -> Image.Image:
    pixels = np.random.default_rng(0).integers(0, 256, (height, width, 3), dtype=np.uint8)
    return Image.fromarray(pixels).convert(mode)


@pytest.mark.parametrize("interpolation", METHODS)
@pytest.mark.parametrize("side", [(50, 31), (31, 50), (24, 24), (10, 70)])
@pytest.mark.parametrize("resize", [0, 24, 29])
def test_the_numbers_are_those_of_torchvision(interpolation, side, resize):
    config = TransformConfig(size=24, resize=resize, interpolation=interpolation)
    method = METHODS[interpolation]
    steps = [v2.Resize(resize, method), v2.CenterCrop(24)] if resize else [v2.Resize((24, 24), method)]
    steps += [v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True), v2.Normalize(config.mean, config.std)]
    ours, theirs = ImageTransform(config)(_photo(*side)), v2.Compose(steps)(_photo(*side))
    assert ours.shape == (3, 24, 24)
    assert ours.dtype == torch.float32
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-6)


def test_shrinking_filters_first():
    lines = Image.fromarray(np.tile(np.array([0, 255], dtype=np.uint8), (64, 32)))
    x_chw = ImageTransform(TransformConfig(size=16, channels=1, mean=[0.0], std=[1.0]))(lines)
    assert (x_chw - 0.5).abs().max() < 0.2  # without a filter every pixel would be 0 or 1


def test_grey_images_fill_three_channels_and_colour_becomes_grey():
    grey = ImageTransform(TransformConfig(size=8, mean=[0.0] * 3, std=[1.0] * 3))(_photo(9, 9, "L"))
    assert torch.equal(grey[0], grey[1])
    assert torch.equal(grey[0], grey[2])
    one = ImageTransform(TransformConfig(size=8, channels=1, mean=[0.0], std=[1.0]))(_photo(8, 8))
    assert torch.equal(one, v2.functional.pil_to_tensor(_photo(8, 8, "L")).float() / 255)


def test_scale_mean_and_std():
    config = TransformConfig(size=1, mean=[123.0, 117.0, 104.0], std=[1.0, 2.0, 1.0], scale=255.0)
    x_chw = ImageTransform(config)(Image.new("RGB", (1, 1), (123, 137, 0)))
    assert x_chw.flatten().tolist() == pytest.approx([0.0, 10.0, -104.0], abs=1e-4)


def test_the_input_of_tensorflows_inception():
    """Shorter side to 256, the middle 229, numbers from −117 to 138."""
    options = {"mean": [117.0] * 3, "std": [1.0] * 3, "interpolation": "bilinear"}
    config = TransformConfig(size=229, resize=256, scale=255.0, **options)
    photo = _photo(400, 300)
    pixels = v2.Compose([v2.Resize(256), v2.CenterCrop(229), v2.PILToTensor(), v2.ToDtype(torch.float32, scale=True)])
    torch.testing.assert_close(ImageTransform(config)(photo), pixels(photo) * 255 - 117, rtol=0, atol=1e-3)
    for colour, number in (("black", -117.0), ("white", 138.0)):
        x_chw = ImageTransform(config)(Image.new("RGB", (300, 300), colour))
        torch.testing.assert_close(x_chw, torch.full((3, 229, 229), number), rtol=0, atol=1e-4)


def test_the_picture_is_what_the_network_sees():
    transform = ImageTransform(TransformConfig(size=20, resize=25, mean=[0.0] * 3, std=[1.0] * 3))
    picture = transform.picture(_photo(40, 60))
    assert picture.size == (20, 20)
    assert torch.equal(transform(_photo(40, 60)), v2.functional.pil_to_tensor(picture).float() / 255)


def test_the_smallest_and_the_longest_images_fit():
    transform = ImageTransform(TransformConfig(size=8, resize=10))
    assert transform(_photo(1, 1)).shape == (3, 8, 8)
    assert transform(_photo(300, 1)).shape == (3, 8, 8)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"channels": 2}, "channels=2"),
        ({"channels": 1}, "need 1 numbers"),
        ({"interpolation": "lanczos"}, "interpolation=lanczos"),
        ({"size": 0}, "size=0"),
        ({"size": 64, "resize": 32}, "resize=32 is smaller than the crop of size=64"),
        ({"std": [1.0, 0.0, 1.0]}, "std must be positive"),
        ({"scale": -1.0}, "scale and std must be positive"),
    ],
)
def test_options_that_cannot_work_are_refused(options, words):
    with pytest.raises(ConfigError, match=words):
        TransformConfig(**options)
