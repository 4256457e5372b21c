"""DreamSim (Fu et al. 2023, arXiv 2306.09344) by the package `dreamsim`: cosine of fine-tuned ViT features.

From files in a folder, or fetched by the package when asked to.
"""

# B images  P patches  D width of the class token and the patches  d width of the embedding

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

import torch
from PIL import Image
from torch import Tensor

from mis_lab.core.keys import content_key
from mis_lab.metric.base import Metric
from mis_lab.metric.config import DreamSimConfig
from mis_lab.metric.dreamsim_files import find_type, present, require_files
from mis_lab.metric.dreamsim_loading import load_network


class DreamSim(Metric):
    """Embedding = the package's, of length 1: d = 1,792 (ensemble), 768 or 512, and twice 768 with patches.

    Files are checked at once. The network is built with the first image: importing the package takes long, and an
    embedding that is in the store needs none.

    Raises:
        ConfigError: for an unknown type, or a device that is not there.
        MissingFileError: for files that are missing, could not be fetched, or have another sha256 than given.
    """

    similarity = "cosine"

    def __init__(self, config: DreamSimConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.kind, self.folder = find_type(config.type), Path(config.folder).expanduser()
        if config.download and present(self.kind, self.folder)[1]:
            self.network = load_network(self.kind, self.folder, self.device, download=True)
        files = require_files(self.kind, self.folder, config.sha256)
        self.fingerprint = content_key({"metric": "dreamsim", "type": config.type, "files": files})

    @cached_property
    def network(self) -> tuple[Any, Callable[..., Tensor]]:
        """The package's network and its transform of an image."""
        return load_network(self.kind, self.folder, self.device, download=False)

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings (B, d) of length 1."""
        network, transform = self.network
        x_bchw = torch.cat([transform(image) for image in images]).to(self.device)
        with torch.inference_mode():
            found = network.embed(x_bchw)
            if self.kind.is_patch:  # (B, 1 + P, D): the package compares the class token beside the mean of the patches
                found = torch.cat([found[:, 0], found[:, 1:].mean(1)], dim=1)
            return torch.nn.functional.normalize(found, dim=1)
