"""mis_lab as a library, without Hydra: a network and images of your own, one SAE, neurons against features.

    python examples/own_model.py

Takes about half a minute on two cores, most of it for the images' perceptual similarities.
"""

from __future__ import annotations

import logging
import tempfile
from pathlib import Path

import torch
from torch import nn

from mis_lab.activations.config import ActivationsConfig
from mis_lab.activations.extract import extract
from mis_lab.activations.loader import VectorLoader
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import Neurons
from mis_lab.dataset.config import PhotoPatchesConfig, TransformConfig
from mis_lab.dataset.load import load_dataset
from mis_lab.metric.base import embed_dataset
from mis_lab.metric.config import LpipsBaselineSqueezeConfig
from mis_lab.metric.load import load_metric
from mis_lab.mis.compare import compare
from mis_lab.mis.config import MisConfig
from mis_lab.mis.run import score_units
from mis_lab.model.load import wrap_module
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.train import train
from mis_lab.sae.trainer_config import TrainerConfig
from mis_lab.sae.units import Features


class MyNetwork(nn.Module):
    """Any module that maps images (B, 3, H, W) to logits; this one has random weights."""

    def __init__(self, generator: torch.Generator) -> None:
        super().__init__()
        self.body = nn.Sequential(nn.Conv2d(3, 32, 7, stride=4), nn.ReLU(), nn.Conv2d(32, 48, 3, stride=2), nn.ReLU())
        self.head = nn.Linear(48, 10)
        for parameter in self.parameters():
            nn.init.normal_(parameter, std=0.1, generator=generator)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return self.head(self.body(images).mean((2, 3)))


def main(folder: Path, n_vectors: int = 200_000) -> str:
    """Train and score in `folder`; returns the verdict."""
    images = PhotoPatchesConfig()
    patches, tiles = load_dataset(images, "train"), load_dataset(images, "score")
    model = wrap_module(MyNetwork(torch.Generator().manual_seed(0)), "mine", TransformConfig(size=64))

    for dataset in (patches, tiles):
        extract(model, dataset, {"body": folder / dataset.split}, ActivationsConfig())
    stored, scored = StoredActivations(folder / "train"), StoredActivations(folder / "score")

    trainer = TrainerConfig(n_vectors=n_vectors)
    sae = TopKSae(TopKConfig(k=8, expansion=4), width=stored.width)
    train(sae, VectorLoader(stored, trainer.batch_size, seed=0), trainer, 0, folder / "sae", lambda numbers, step: None)

    similarity = embed_dataset(load_metric(LpipsBaselineSqueezeConfig()), tiles)
    features = score_units(scored, Features(sae), similarity, MisConfig(), seed=0)
    neurons = score_units(scored, Neurons(scored.width), similarity, MisConfig(), seed=0)
    return compare(features, neurons, negatives="random").verdict


if __name__ == "__main__":
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with tempfile.TemporaryDirectory() as temporary:
        logging.info("%s", main(Path(temporary)))
