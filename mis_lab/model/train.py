"""Training and testing a classifier: for networks small enough to be trained here (MLPs on digits)."""

# N images  B batch  C channels  H, W input size  K classes

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.functional import cross_entropy

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.intervals import Interval, wilson
from mis_lab.core.progress import progress
from mis_lab.core.seeding import derive_seed, generator
from mis_lab.dataset.base import NO_LABEL, ImageDataset
from mis_lab.dataset.loading import Batch, batches
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.capture import predictions
from mis_lab.model.config import ClassifierTrainingConfig, Optimizer
from mis_lab.model.load import LoadedModel

KEEP_MIB = 1024  # data sets smaller than this are read once and kept in memory


@dataclass(frozen=True)
class TrainedClassifier:
    """Weights after training.

    Attributes:
        state_dict: on the CPU.
        losses: mean cross-entropy of each epoch, in nats.
    """

    state_dict: dict[str, Tensor]
    losses: tuple[float, ...]


@dataclass(frozen=True)
class ClassifierQuality:
    """How well a classifier does on labelled images.

    Attributes:
        n_images: tested.
        accuracy: share right, with its 95 % Wilson interval.
        cross_entropy: mean, in nats.
    """

    n_images: int
    accuracy: Interval
    cross_entropy: float


def train_classifier(
    module: nn.Module,
    train: ImageDataset,
    transform: ImageTransform,
    config: ClassifierTrainingConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> TrainedClassifier:
    """Train `module` (in place) on the labels of `train` with cross-entropy.

    The same seed gives the same weights: the order of each epoch has a generator of its own; dropout draws
    from the global generators, which are seeded for the time of the call and put back.

    Raises:
        DataError: when an image has no label.
        ConfigError: when a label is beyond the network's outputs, or training diverges.
    """
    labels_n = _labels(train)
    images = _Images(train, transform, config.batch_size)
    device = torch.device(device)
    module.to(device).train().requires_grad_(True)
    optimizer = _optimizer(module, config)
    schedule = torch.optim.lr_scheduler.StepLR(optimizer, config.lr_step) if config.lr_step else None
    losses = []
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        _seed_global(derive_seed(seed, "classifier", "dropout"), device)
        for epoch in progress(range(config.epochs), f"train on {train.name}/{train.split}", unit="epoch"):
            order = torch.randperm(len(train), generator=generator(seed, "classifier", "order", epoch))
            losses.append(_epoch(module, optimizer, images.in_order(order), labels_n, device))
            if schedule:
                schedule.step()
    module.eval()
    state = {name: tensor.detach().cpu().clone() for name, tensor in module.state_dict().items()}
    return TrainedClassifier(state, tuple(losses))


def _seed_global(seed: int, device: torch.device) -> None:
    # torch.manual_seed would seed every GPU, also those that nothing puts back.
    torch.random.default_generator.manual_seed(seed)
    if device.type == "cuda":
        with torch.cuda.device(device):
            torch.cuda.manual_seed(seed)


def evaluate_classifier(model: LoadedModel, dataset: ImageDataset, batch_size: int = 256) -> ClassifierQuality:
    """Accuracy and cross-entropy of `model` on the labels of `dataset`.

    Raises:
        DataError: when an image has no label.
        ConfigError: when a label is beyond the network's outputs.
    """
    labels_n = _labels(dataset)
    _check_outputs(model.n_classes, labels_n)
    n_right, loss = 0, 0.0
    n_batches = math.ceil(len(dataset) / batch_size)
    source = batches(dataset, model.transform, batch_size)
    for batch in progress(source, f"test on {dataset.name}/{dataset.split}", n_batches):
        logits_bk, labels_b = predictions(model, batch.images_bchw).cpu(), labels_n[batch.indices]
        n_right += int((logits_bk.argmax(1) == labels_b).sum())
        loss += cross_entropy(logits_bk.double(), labels_b, reduction="sum").item()
    accuracy = wilson(n_right / len(dataset), len(dataset))
    return ClassifierQuality(len(dataset), accuracy, loss / len(dataset))


def _epoch(
    module: nn.Module,
    optimizer: torch.optim.Optimizer,
    batched: Iterator[Batch],
    labels_n: Tensor,
    device: torch.device,
) -> float:
    total, n_seen = torch.zeros((), dtype=torch.float64, device=device), 0
    for images_bchw, indices in batched:
        logits_bk = module(images_bchw.to(device))
        if n_seen == 0:
            _check_outputs(logits_bk.shape[1] if logits_bk.ndim == 2 else 0, labels_n)
        loss = cross_entropy(logits_bk, labels_n[indices].to(device))
        optimizer.zero_grad(set_to_none=True)
        loss.backward()
        optimizer.step()
        total += loss.detach() * len(indices)
        n_seen += len(indices)
    mean = total.item() / n_seen
    if not math.isfinite(mean):
        raise ConfigError(f"training diverged (loss {mean})", fix="Lower model.training.lr.")
    return mean


class _Images:
    """Inputs in batches, in any order: kept in memory when they are few, else read anew each epoch."""

    def __init__(self, dataset: ImageDataset, transform: ImageTransform, batch_size: int) -> None:
        self.dataset, self.transform, self.batch_size = dataset, transform, batch_size
        first = transform(dataset.image(0))
        self.kept_nchw: Tensor | None = None
        if len(dataset) * first.numel() * first.element_size() <= KEEP_MIB * 2**20:
            self.kept_nchw = torch.cat([batch.images_bchw for batch in batches(dataset, transform, 256)])

    def in_order(self, order_n: Tensor) -> Iterator[Batch]:
        """The images at `order_n`, a batch at a time."""
        if len(order_n) > 1 and len(order_n) % self.batch_size == 1:
            order_n = order_n[:-1]  # batch normalisation cannot train on a batch of one image
        if self.kept_nchw is None:
            yield from batches(self.dataset, self.transform, self.batch_size, indices=order_n.tolist())
            return
        for indices_b in order_n.split(self.batch_size):
            yield Batch(self.kept_nchw[indices_b], indices_b.tolist())


def _labels(dataset: ImageDataset) -> Tensor:
    labels_n = torch.tensor(dataset.labels, dtype=torch.int64)
    if not len(dataset) or (labels_n == NO_LABEL).any():
        without = [image_id for image_id, label in zip(dataset.ids, dataset.labels, strict=True) if label == NO_LABEL]
        raise DataError(
            f"data set {dataset.name}/{dataset.split} has {len(without)} images without a label"
            + (f", {without[0]} for one" if without else ""),
            fix="A classifier needs a label for every image.",
        )
    return labels_n


def _check_outputs(n_outputs: int, labels_n: Tensor) -> None:
    n_labels = int(labels_n.max()) + 1
    if n_outputs < n_labels:
        raise ConfigError(
            f"the network has {n_outputs} outputs for {n_labels} classes",
            fix="Give model.network as many outputs as the data set has classes.",
        )


def _optimizer(module: nn.Module, config: ClassifierTrainingConfig) -> torch.optim.Optimizer:
    if config.optimizer is Optimizer.adam:
        return torch.optim.Adam(module.parameters(), lr=config.lr, weight_decay=config.weight_decay)
    return torch.optim.SGD(
        module.parameters(), lr=config.lr, momentum=config.momentum, weight_decay=config.weight_decay
    )
