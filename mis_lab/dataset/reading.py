"""Read an image file as RGB or grey, or say in one line which image of which file cannot be read.

Also: find a file that came with an installed package.
"""

from __future__ import annotations

import struct
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from mis_lab.core.errors import DataError, MissingFileError

# What Pillow raises for files that are missing, no images, cut short or damaged.
UNREADABLE = (OSError, SyntaxError, ValueError, EOFError, struct.error, Image.DecompressionBombError)


def read_image(path: Path, image_id: str) -> Image.Image:
    """The image in `path`, wholly decoded, in mode RGB or L (:func:`as_rgb_or_grey`).

    Raises:
        DataError: naming `image_id` and `path`, when the file is missing, no image, cut short or damaged.
    """
    try:
        with Image.open(path) as image:
            return as_rgb_or_grey(image)
    except UNREADABLE as error:
        raise DataError(
            f"image {image_id} cannot be read ({_reason(error)})",
            looked=path,
            fix="Replace or remove it; dataset.on_broken=skip leaves such files of an image folder out.",
        ) from error


def _reason(error: BaseException) -> str:
    if isinstance(error, Image.UnidentifiedImageError):
        return "not an image"  # Pillow's own line repeats the path
    return getattr(error, "strerror", None) or str(error) or type(error).__name__


def as_rgb_or_grey(image: Image.Image) -> Image.Image:
    """`image` in mode RGB or L: 16-bit grey is scaled to 8 bits, transparency laid over white.

    Raises:
        ValueError: for floating-point pixels, whose range nothing states.
    """
    if image.mode in ("RGB", "L"):
        return image.copy()
    if image.mode == "F":
        raise ValueError("floating-point pixels; convert it to 8 or 16 bits")
    if image.mode.startswith("I"):
        wide = np.asarray(image).astype(np.int64)
        return Image.fromarray((wide.clip(0, 65535) / 257).round().astype(np.uint8))
    if image.mode == "1":
        return image.convert("L")
    if image.mode in ("RGBA", "LA", "PA", "La", "RGBa") or "transparency" in image.info:
        clear = image.convert("RGBA")
        return Image.alpha_composite(Image.new("RGBA", clear.size, "white"), clear).convert("RGB")
    return image.convert("RGB")


def packaged_file(distribution: str, place: str) -> Path:
    """The file `place` ("sklearn/datasets/images/china.jpg") of an installed package, which is not imported.

    Raises:
        MissingFileError: when the package, or the file in it, is missing.
    """
    module, _, below = place.partition("/")
    spec = find_spec(module)
    paths = [Path(folder) / below for folder in (spec.submodule_search_locations or [])] if spec else []
    for path in paths:
        if path.exists():
            return path
    raise MissingFileError(
        f"{place} of the package {distribution} is not there",
        looked=paths[0] if paths else "the installed packages",
        fix=f"Install {distribution} from its wheel: the file comes with it.",
    )
