"""Drawing pictures for people: text, tiles and boxes on a light ground, as PNG.

Colours are those of the page's charts (templates/chart.css); the font comes with matplotlib and has Greek letters.
"""

from __future__ import annotations

import re
from functools import cache
from importlib.resources import files
from pathlib import Path

from matplotlib import get_data_path
from PIL import Image, ImageDraw, ImageFont

from mis_lab.core.errors import ConfigError
from mis_lab.core.files import full_disk_is_told
from mis_lab.report.about import Picture
from mis_lab.report.images import thumbnail

ELLIPSIS = "…"


@cache
def palette() -> dict[str, str]:
    """Name → colour of the page's light style (``ink``, ``muted``, ``paper``, ``feature``, ``pos``, ...)."""
    style = files("mis_lab.report").joinpath("templates/chart.css").read_text(encoding="utf-8")
    light = style[style.index("{") : style.index("}")]
    return dict(re.findall(r"--([\w-]+): (#\w+)", light))


@cache
def font(size: int, bold: bool = False) -> ImageFont.FreeTypeFont:
    """DejaVu Sans of so many pixels."""
    name = "DejaVuSans-Bold.ttf" if bold else "DejaVuSans.ttf"
    return ImageFont.truetype(Path(get_data_path()) / "fonts" / "ttf" / name, size)


class Canvas:
    """A picture to draw on; colours are names of the :func:`palette`, anchors are Pillow's.

    Attributes:
        image: what was drawn.
    """

    def __init__(self, width: int, height: int) -> None:
        self.image = Image.new("RGB", (width, height), palette()["paper"])
        self._draw = ImageDraw.Draw(self.image)

    def text(
        self,
        x: float,
        y: float,
        text: str,
        size: int = 15,
        colour: str = "ink",
        bold: bool = False,
        anchor: str = "la",
        most: float | None = None,
    ) -> float:
        """Write `text`, shortened to `most` pixels; returns its width."""
        face = font(size, bold)
        if most is not None:
            text = shortened(text, most, face)
        self._draw.text((x, y), text, palette()[colour], face, anchor)
        return face.getlength(text)

    def text_width(self, text: str, size: int = 15, bold: bool = False) -> float:
        """How wide `text` would be."""
        return font(size, bold).getlength(text)

    def tile(self, picture: Picture, x: int, y: int, px: int, frame: str = "rule", thick: int = 1) -> None:
        """A picture cut square, `px` a side, with a frame around it."""
        self._draw.rectangle((x - thick, y - thick, x + px + thick - 1, y + px + thick - 1), palette()[frame])
        self.image.paste(thumbnail(picture, px, px), (x, y))

    def overlay(self, veil: Image.Image, x: int, y: int, px: int) -> None:
        """Lay a transparent picture over a tile."""
        self.image.paste(veil.resize((px, px), Image.Resampling.BICUBIC), (x, y), veil.resize((px, px)))

    def box(
        self, x: float, y: float, width: float, height: float, fill: str = "surface", line: str = "rule", round: int = 8
    ) -> None:
        """A rectangle with round corners and a thin line."""
        colours = palette()
        self._draw.rounded_rectangle((x, y, x + width, y + height), round, colours[fill], colours[line])

    def bar(self, x: float, y: float, width: float, height: float, colour: str) -> None:
        """A filled rectangle; `width` may be negative (to the left of `x`)."""
        left, right = sorted((x, x + width))
        self._draw.rectangle((left, y, right, y + height), palette()[colour])

    def line(self, x1: float, y1: float, x2: float, y2: float, colour: str = "rule", thick: int = 1) -> None:
        self._draw.line((x1, y1, x2, y2), palette()[colour], thick)

    def dot(self, x: float, y: float, radius: float, colour: str) -> None:
        """A disc, with a ring of paper around it so that neighbours stay apart."""
        colours = palette()
        self._draw.ellipse((x - radius, y - radius, x + radius, y + radius), colours[colour], colours["paper"])


def shortened(text: str, most: float, face: ImageFont.FreeTypeFont) -> str:
    """`text`, or its beginning with an ellipsis, no wider than `most` pixels."""
    if face.getlength(text) <= most:
        return text
    while text and face.getlength(text + ELLIPSIS) > most:
        text = text[:-1]
    return text.rstrip() + ELLIPSIS


def require_png(path: Path) -> None:
    """Refuse a name that says another format.

    Raises:
        ConfigError: when `path` does not end in ``.png``.
    """
    if path.suffix.lower() != ".png":
        raise ConfigError(f"{path} is no name of a PNG file", fix=f"Use {path.with_suffix('.png')}.")


def save_png(image: Image.Image, path: Path) -> Path:
    """Write the picture to `path`, in folders made when missing.

    Raises:
        ConfigError: when `path` does not end in ``.png``.
        StoreError: when the disk is full.
    """
    require_png(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    with full_disk_is_told(path):
        image.save(path, "PNG", optimize=True)
    return path
