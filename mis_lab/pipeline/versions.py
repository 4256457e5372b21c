"""What ran."""

from __future__ import annotations

import platform
from importlib.metadata import version

from mis_lab import __version__

LIBRARIES = ("torch", "torchvision", "timm", "numpy", "scipy", "lpips")


def versions() -> dict[str, str]:
    """This package, Python, and the libraries whose version can move a number."""
    return {"mis_lab": __version__, "python": platform.python_version(), **{name: version(name) for name in LIBRARIES}}
