"""Cosine of the pooled features of any network: cheap, narrow, and for images of every kind a network exists for.

Not with the network under study: its own features would judge themselves.
"""

# B images  P positions  D width of the site

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mis_lab.core.keys import content_key, plain
from mis_lab.metric.base import Metric
from mis_lab.metric.config import EmbeddingConfig
from mis_lab.model.capture import Capture
from mis_lab.model.load import load_model
from mis_lab.model.sites import resolve_sites


class PooledFeatures(Metric):
    """Embedding = mean over the positions of ``config.model.sites[0]``, divided by its length.

    Raises:
        ConfigError: for an unknown network or site, or an input that is too small for the network.
        MissingFileError: for weights that are not there or cannot be fetched.
    """

    similarity = "cosine"

    def __init__(self, config: EmbeddingConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.model = load_model(config.model, self.device)
        self.sites = resolve_sites(self.model, config.model.sites, config.model.layout, config.model.tokens)
        self.fingerprint = content_key(
            {
                "metric": "embedding",
                "weights": self.model.fingerprint,
                "network": config.model.network,
                "site": plain(self.sites[0]),
                "input": plain(config.model.input),
            }
        )

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings (B, D) of length 1 (of length 0 for an image without any feature)."""
        images_bchw = torch.stack([self.model.transform(image) for image in images])
        with Capture(self.model, self.sites) as capture:
            x_bpd = capture.run(images_bchw)[self.sites[0].path]
        return torch.nn.functional.normalize(x_bpd.mean(1), dim=1)
