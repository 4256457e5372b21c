"""LPIPS 0.1 (Zhang et al. 2018, arXiv 1801.03924): calibrated heads on torchvision's official trunk.

The heads are in the `lpips` package; the trunk's file must be here already, nothing is fetched.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torchvision.models import AlexNet_Weights, SqueezeNet1_1_Weights, VGG16_Weights

from mis_lab.core.errors import MissingFileError
from mis_lab.core.keys import hash_file
from mis_lab.metric.config import LpipsConfig
from mis_lab.metric.lpips_maps import LpipsMaps
from mis_lab.model.load import read_state_dict

# What the package's constructor asks torchvision for, and what the heads were fitted to.
SOURCES: dict[str, str] = {
    "alex": AlexNet_Weights.IMAGENET1K_V1.url,
    "vgg": VGG16_Weights.IMAGENET1K_V1.url,
    "squeeze": SqueezeNet1_1_Weights.IMAGENET1K_V1.url,
}


class Lpips(LpipsMaps):
    """Distance = the package's; similarity its negative. d = 31,872 at 64 pixels with AlexNet.

    Raises:
        MissingFileError: when the trunk's file is missing, or its sha256 is another than expected.
        DataError: when it cannot be read, or holds another network.
    """

    def __init__(self, config: LpipsConfig, device: torch.device | str = "cpu") -> None:
        told = {"metric": "lpips", "net": config.net}
        trunk = read_state_dict(trunk_file(config))
        super().__init__(config, config.net, trunk, calibrated=True, told=told, device=device)


def trunk_file(config: LpipsConfig) -> Path:
    """The file with the trunk's weights, its sha256 checked; torchvision's file names end in how it begins."""
    url = SOURCES[config.net]
    name = url.rpartition("/")[2]
    place = Path(config.trunk).expanduser() if config.trunk else Path(torch.hub.get_dir()) / "checkpoints"
    path = place if place.is_file() or place.suffix else place / name
    if not path.is_file():
        raise MissingFileError(
            f"metric {config.name} needs the trunk {path.name}, which is not there",
            looked=path.parent.absolute(),
            fix=f"Put {url} there, or set metric.trunk to its file or folder.",
        )
    found, expected = hash_file(path), (config.sha256 or Path(name).stem.rpartition("-")[2]).lower()
    if not found.startswith(expected):
        raise MissingFileError(
            f"{path} is not the file expected (sha256 {found[:12]}, not {expected[:12]})",
            fix=f"Fetch {url} again, or set metric.sha256 if another trunk is meant.",
        )
    return path
