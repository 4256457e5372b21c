"""Networks for benchmarks of circuits that are trained here in seconds: a CNN and a ViT on the digits, with SAEs.

Everything comes from seeds, so that two runs on one machine study the same networks.
"""

# N images or vectors  D site width  F features

from __future__ import annotations

import tempfile
from collections import OrderedDict
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import timm
import torch
from torch import Tensor, nn

from mis_lab.circuit.baselines import BaselineFunction, NodeSet, mean
from mis_lab.circuit.dictionaries import Neurons, SaeFeatures
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.core.seeding import generator
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import MnistConfig, TransformConfig
from mis_lab.dataset.loading import batches
from mis_lab.dataset.mnist import Mnist
from mis_lab.dataset.splits import spread
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.capture import Capture, predictions
from mis_lab.model.config import ClassifierTrainingConfig, Optimizer, Tokens
from mis_lab.model.load import wrap_module
from mis_lab.model.sites import Site, resolve_sites
from mis_lab.model.train import evaluate_classifier, train_classifier
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.base import Sae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.train import train
from mis_lab.sae.trainer_config import TrainerConfig

INPUT = TransformConfig(size=28, channels=1, mean=[0.1307], std=[0.3081], interpolation="nearest")
N_FEATURES, K = 128, 8


def cnn() -> nn.Module:
    """Three strided convolutions with ReLUs and a linear read-out of their mean: 14×14, 7×7 and 4×4 positions."""
    layers: OrderedDict[str, nn.Module] = OrderedDict()
    for number, (n_in, n_out, side) in enumerate([(1, 16, 5), (16, 32, 3), (32, 32, 3)], start=1):
        layers[f"conv{number}"] = nn.Conv2d(n_in, n_out, side, stride=2, padding=side // 2)
        layers[f"act{number}"] = nn.ReLU()
    return nn.Sequential(layers | {"pool": nn.AdaptiveAvgPool2d(1), "flat": nn.Flatten(), "head": nn.Linear(32, 10)})


def vit() -> nn.Module:
    """Three blocks of width 48 over 16 patches and a class token."""
    return timm.create_model(
        "vit_tiny_patch16_224",
        img_size=28,
        patch_size=7,
        in_chans=1,
        embed_dim=48,
        depth=3,
        num_heads=4,
        num_classes=10,
    )


# Name → what makes the network, its sites, its learning rate.
NETWORKS: dict[str, tuple[Callable[[], nn.Module], tuple[str, ...], float]] = {
    "cnn": (cnn, ("act1", "act2", "act3"), 3e-3),
    "vit": (vit, ("blocks.0", "blocks.1", "blocks.2"), 1e-3),
}


@dataclass(frozen=True)
class Digits:
    """A network trained on the digits.

    Attributes:
        problem: the network, its sites and the logit of a class.
        accuracy: on digits it was not trained on.
        saes: site path → SAE of the vectors there.
        dataset, score: digits it was trained on, and others.
    """

    problem: Problem
    accuracy: float
    saes: dict[str, Sae]
    dataset: ImageDataset
    score: ImageDataset

    @property
    def dtype(self) -> torch.dtype:
        return next(self.problem.model.module.parameters()).dtype

    def images(self, n: int, held_out: bool = False) -> Tensor:
        """`n` digits, as many of each as there are, as the network gets them."""
        dataset = self.score if held_out else self.dataset
        chosen = spread([str(label) for label in dataset.labels], n)
        found = [batch.images_bchw for batch in batches(dataset, self.problem.model.transform, n, indices=chosen)]
        return self.problem.model.to_input(torch.cat(found)).to(self.dtype)

    def targets(self, images_nchw: Tensor) -> Tensor:
        """The network's own classes."""
        return predictions(self.problem.model, images_nchw).argmax(1)

    def nodes(self, images: list[Tensor], baseline: BaselineFunction = mean) -> dict[str, NodeSet]:
        """Kind → nodes at every site."""
        sites, like = self.problem.sites, images[0]
        dictionaries = {
            "feature": {site.path: SaeFeatures.at(site, self.saes[site.path]) for site in sites},
            "neuron": {site.path: Neurons.at(site, like) for site in sites},
        }
        return baseline(self.problem, dictionaries, images)

    def double(self) -> Digits:
        """The same, in place, in float64: numbers of two programs can then be told from rounding."""
        self.problem.model.module.double()
        for sae in self.saes.values():
            sae.double()
        return self


class Kept:
    """Vectors in memory as batches to train on; batch by batch in the order of a seed."""

    def __init__(self, vectors_nd: Tensor, n_vectors: int, batch_size: int, seed: int) -> None:
        self.vectors_nd, self.n_vectors, self.batch_size, self.seed = vectors_nd, n_vectors, batch_size, seed

    def batch(self, step: int) -> Tensor:
        return self._drawn(self.batch_size, "batch", step)

    def sample(self, n: int) -> Tensor:
        return self._drawn(n, "sample")

    def _drawn(self, n: int, *scope: str | int) -> Tensor:
        random = generator(self.seed, "digits", *scope)
        return self.vectors_nd[torch.randint(len(self.vectors_nd), (n,), generator=random)]


def make(name: str, epochs: int = 12, n_vectors: int = 200_000, seed: int = 0) -> Digits:
    """Train network `name` and a TopK SAE at each of its sites."""
    dataset, score = Mnist(MnistConfig(), "train"), Mnist(MnistConfig(), "score")
    make_network, paths, lr = NETWORKS[name]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        module = make_network()
    training = ClassifierTrainingConfig(epochs=epochs, batch_size=64, optimizer=Optimizer.adam, lr=lr)
    train_classifier(module, dataset, ImageTransform(INPUT), training, seed)
    model = wrap_module(module, f"digits {name}", INPUT)
    sites = resolve_sites(model, paths, tokens=Tokens.all)
    accuracy = evaluate_classifier(model, score).accuracy.estimate
    images = [batch.images_bchw for batch in batches(dataset, model.transform, 256, indices=range(0, len(dataset), 2))]
    with Capture(model, sites) as capture:
        found = [capture.run(images_bchw) for images_bchw in images]
    saes = {}
    for site in sites:
        vectors = torch.cat([vectors[site.path] for vectors in found]).flatten(0, 1)
        saes[site.path] = train_sae(site, vectors, n_vectors, seed)
    return Digits(Problem(model, sites, logit), accuracy, saes, dataset, score)


def train_sae(
    site: Site, vectors_nd: Tensor, n_vectors: int, seed: int, n_features: int = N_FEATURES, k: int = K
) -> Sae:
    """A TopK SAE of these vectors, each drawn again and again."""
    sae = TopKSae(TopKConfig(n_features=n_features, k=k, name="topk"), site.width)
    config = TrainerConfig(n_vectors=n_vectors)
    with tempfile.TemporaryDirectory() as folder:
        batched = Kept(vectors_nd, n_vectors, config.batch_size, seed)
        train(sae, batched, config, seed, Path(folder), lambda numbers, step: None)
    return sae.eval().requires_grad_(False)
