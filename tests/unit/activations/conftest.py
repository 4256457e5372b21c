from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mis_lab.activations.config import Precision
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.model.sites import Site

Write = Callable[..., StoredActivations]


def site_of(n_positions: int, width: int) -> Site:
    return Site(path="blocks.2", layout="bchw", width=width, n_positions=n_positions, grid=(1, n_positions))


def write_store(
    folder: Path,
    x_npd: Tensor,
    ids: list[str] | None = None,
    groups: list[str] | None = None,
    precision: Precision = Precision.float32,
    chunk: int = 7,
) -> StoredActivations:
    """A store of these vectors, in shards of 1 MiB."""
    n_images, n_positions, width = x_npd.shape
    ids = ids or [f"image/{index:04d}" for index in range(n_images)]
    groups = groups or [f"scene {index // 3}" for index in range(n_images)]
    labels = [index % 4 - 1 for index in range(n_images)]
    about = {"dataset": "made_up", "class_names": ["a", "b", "c"]}
    site = site_of(n_positions, width)
    with ActivationWriter(folder, site, ids, groups, labels, precision, 1, about) as writer:
        for start in range(0, n_images, chunk):
            stop = min(start + chunk, n_images)
            writer.append(x_npd[start:stop], range(start, stop))
    return StoredActivations(folder)


@pytest.fixture
def write(tmp_path) -> Write:
    """write(x_npd, ids=, groups=, precision=, chunk=) -> StoredActivations, each in a folder of its own."""
    written: list[StoredActivations] = []

    def make(x_npd: Tensor, **options) -> StoredActivations:
        written.append(write_store(tmp_path / f"store{len(written)}", x_npd, **options))
        return written[-1]

    return make


@pytest.fixture
def numbered(write) -> Callable[..., StoredActivations]:
    """A store whose vector i (of all) is (i, -i, i/2, ...): every vector tells which one it is."""

    def make(n_images: int, n_positions: int, width: int = 2, **options) -> StoredActivations:
        number = torch.arange(n_images * n_positions, dtype=torch.float32).view(n_images, n_positions, 1)
        factors = torch.tensor([1.0, -1.0] + [0.5] * (width - 2))
        return write(number * factors, **options)

    return make
