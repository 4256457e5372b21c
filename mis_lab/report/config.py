"""Options of the report (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass

from mis_lab.core.errors import ConfigError


@dataclass
class ReportConfig:
    """What the report shows.

    Attributes:
        units: units a kind and row (best, worst, random) at each site.
        images: top images a unit.
        image_px: side of an image in the page.
        max_mib: the page may not be larger; fewer images are shown then.
    """

    units: int = 4
    images: int = 9
    image_px: int = 96
    max_mib: float = 10.0

    def __post_init__(self) -> None:
        if min(self.units, self.images, self.image_px) < 1:
            raise ConfigError(f"report needs positive numbers, got {self}")
