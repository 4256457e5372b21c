"""Images in batches, in order, read here or by worker processes."""

# B images  C channels  H, W input size

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from mis_lab.core.errors import MisLabError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.transforms import ImageTransform


class Batch(NamedTuple):
    """Some images, ready for a network.

    Attributes:
        images_bchw: float32, on the CPU.
        indices: (B) place of each image in the data set.
    """

    images_bchw: Tensor
    indices: list[int]


class _Batches(Dataset):
    """Batch number → batch, or the error that stopped it (raised in a worker it would become a traceback)."""

    def __init__(
        self, dataset: ImageDataset, transform: ImageTransform, batch_size: int, indices: Sequence[int]
    ) -> None:
        self.dataset, self.transform = dataset, transform
        self.batches = [list(indices[start : start + batch_size]) for start in range(0, len(indices), batch_size)]

    def __len__(self) -> int:
        return len(self.batches)

    def __getitem__(self, number: int) -> Batch | MisLabError:
        indices = self.batches[number]
        try:
            return Batch(torch.stack([self.transform(self.dataset.image(index)) for index in indices]), indices)
        except MisLabError as error:
            return error


def batches(
    dataset: ImageDataset,
    transform: ImageTransform,
    batch_size: int,
    workers: int = 0,
    indices: Sequence[int] | None = None,
) -> Iterator[Batch]:
    """Yield the images at `indices` (all by default), in that order, whatever the number of workers.

    Raises:
        DataError: naming image and file, when an image cannot be read.
    """
    source = _Batches(dataset, transform, batch_size, range(len(dataset)) if indices is None else indices)
    for batch in _read(source, workers):  # no name holds the reader: leaving the loop ends its workers at once
        if isinstance(batch, MisLabError):
            raise batch
        yield batch


def _read(source: _Batches, workers: int) -> Iterator[Batch | MisLabError]:
    if workers == 0:
        yield from (source[number] for number in range(len(source)))
        return
    # A generator of its own: the loader would draw the workers' seeds from the global one.
    yield from DataLoader(source, batch_size=None, num_workers=workers, generator=torch.Generator())
