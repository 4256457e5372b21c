"""Pictures inside the page: sprite strips of a unit's images, and its activation maps to lay over them.

A strip holds all images of one set side by side in one file, so that a page of a thousand pictures stays light. A
style rule shows each tile its part; the heat-map is a second strip with transparency, over the first.
"""

# n images of a strip  p side of a tile in pixels  h, w of an activation map

from __future__ import annotations

import base64
import io
from collections.abc import Sequence

import numpy as np
from PIL import Image, ImageOps

from mis_lab.report.about import Picture
from mis_lab.report.data import UnitImage

QUALITY = 80
HEAT_PX = 32  # the map is smooth: the browser enlarges it

# Activation as a share of the unit's largest → red, green, blue, opacity. Silent parts are darkened, active parts stay
# visible under a warm tint, negative activations are cool.
_STOPS = np.array([-1.0, -0.35, 0.0, 0.3, 0.65, 1.0])
_COLOURS = np.array(
    [
        [120, 215, 255, 0.50],
        [40, 95, 190, 0.60],
        [10, 8, 34, 0.68],
        [88, 22, 104, 0.54],
        [226, 78, 40, 0.38],
        [255, 222, 80, 0.32],
    ]
)


def to_rgb(picture: Picture) -> Image.Image:
    """Any picture as an RGB image.

    Raises:
        ValueError: for an array that is not uint8 of (H, W) or (H, W, 3).
    """
    if isinstance(picture, np.ndarray):
        if picture.dtype != np.uint8 or picture.ndim not in (2, 3) or (picture.ndim == 3 and picture.shape[2] != 3):
            raise ValueError(f"a picture is uint8 of (H, W) or (H, W, 3), not {picture.dtype} {picture.shape}")
        picture = Image.fromarray(picture)
    return picture.convert("RGB")


def thumbnail(picture: Picture, width: int, height: int) -> Image.Image:
    """The picture cut to the shape width × height around its centre, and resized."""
    return ImageOps.fit(to_rgb(picture), (width, height), Image.Resampling.LANCZOS)


def heat_overlay(heat: np.ndarray, largest: float, px: int = HEAT_PX) -> Image.Image:
    """An activation map as a transparent picture (px, px) to lay over its image.

    Args:
        heat: (h, w) activations.
        largest: activation that gets the full colour.
    """
    share = np.clip(np.asarray(heat, dtype=np.float32) / largest if largest > 0 else np.zeros_like(heat), -1, 1)
    smooth = Image.fromarray(share.astype(np.float32)).resize((px, px), Image.Resampling.BICUBIC)
    values = np.clip(np.asarray(smooth, dtype=np.float64), -1, 1)
    channels = [np.interp(values, _STOPS, _COLOURS[:, channel]) for channel in range(4)]
    channels[3] = channels[3] * 255
    return Image.fromarray(np.stack(channels, -1).round().astype(np.uint8))


def strip(tiles: Sequence[Image.Image]) -> Image.Image:
    """Tiles of one size side by side."""
    width, height = tiles[0].size
    whole = Image.new(tiles[0].mode, (width * len(tiles), height))
    for place, tile in enumerate(tiles):
        whole.paste(tile, (place * width, 0))
    return whole


def data_uri(image: Image.Image, quality: int = QUALITY) -> str:
    """The image as a WebP data URI."""
    buffer = io.BytesIO()
    image.save(buffer, "WEBP", quality=quality, method=2, alpha_quality=80)
    return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


def gradient_uri(width: int = 120, height: int = 8) -> str:
    """The heat-map's colours from 0 to the largest activation, opaque, for a legend."""
    values = np.linspace(0, 1, width)
    rgb = np.stack([np.interp(values, _STOPS, _COLOURS[:, channel]) for channel in range(3)], -1)
    return data_uri(Image.fromarray(np.tile(rgb.round().astype(np.uint8), (height, 1, 1))))


class SpriteSheet:
    """Collects strips and gives each the name of a style class; equal strips share one.

    Args:
        px: side of a tile in pixels.
    """

    def __init__(self, px: int) -> None:
        self.px = px
        self._class_of: dict[str, str] = {}

    def images(self, images: Sequence[UnitImage]) -> str:
        """Class whose background is the strip of these images."""
        return self._add(data_uri(strip([thumbnail(image.image, self.px, self.px) for image in images])))

    def heat(self, images: Sequence[UnitImage], largest: float) -> str | None:
        """Class whose overlay is the strip of their activation maps; None unless every image has one."""
        maps = [image.heat for image in images if image.heat is not None]
        if not maps or len(maps) < len(images):
            return None
        return self._add(data_uri(strip([heat_overlay(heat, largest) for heat in maps]), quality=60))

    def rules(self) -> str:
        """Style rules of all classes."""
        return "\n".join(f".{name}{{--strip:url({uri})}}" for uri, name in self._class_of.items())

    def _add(self, uri: str) -> str:
        return self._class_of.setdefault(uri, f"p{len(self._class_of)}")


def largest_activation(images: Sequence[UnitImage]) -> float:
    """The largest activation on any of the images' maps, 0 without maps: what a unit's colours are relative to."""
    return max((float(np.max(image.heat)) for image in images if image.heat is not None), default=0.0)
