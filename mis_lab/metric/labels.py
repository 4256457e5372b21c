"""Similarity of labels: 1 for two images of the same class, 0 for others."""

# B images  C classes

from __future__ import annotations

from collections.abc import Sequence

import torch
from PIL import Image
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.keys import content_key
from mis_lab.dataset.base import NO_LABEL, ImageDataset
from mis_lab.metric.base import Metric


class Labels(Metric):
    """Embedding = the class, one-hot. Margins are multiples of 1/K, so that many tasks are ties and count one half."""

    similarity = "cosine"
    fingerprint = content_key({"metric": "labels"})

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Refused: a picture alone has no label."""
        raise DataError(
            f"metric {self.name} knows images by their class, not by their pixels", fix="Embed a data set with labels."
        )

    def embed_images(self, dataset: ImageDataset, indices: Sequence[int]) -> Tensor:
        """Embeddings (B, C).

        Raises:
            DataError: for an image without a label.
        """
        labels = [dataset.labels[index] for index in indices]
        if NO_LABEL in labels:
            raise DataError(
                f"image {dataset.ids[indices[labels.index(NO_LABEL)]]} of {dataset.name} has no label, and metric "
                f"{self.name} compares labels",
                fix="Use another metric, or a data set with labels.",
            )
        return torch.nn.functional.one_hot(torch.tensor(labels), len(dataset.class_names)).float()
