"""What a metric is (images → embedding), and the embedding of a whole data set.

Both kinds of similarity are inner products in a fixed embedding, so one forward pass an image serves all pairs, and
a MIS task is (q₊ − q₋)·(mean E₊ − mean E₋) times a constant. For few images the Gram matrix says it all.
"""

# n images in all  B images in a batch  d width of the embedding

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mis_lab.core.errors import DataError, StoreError
from mis_lab.core.files import full_disk_is_told, read_json, write_json
from mis_lab.core.progress import progress
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric.config import MetricConfig

# Margin of a task over (q₊ − q₋)·(mean E₊ − mean E₋): −‖a − b‖² = 2 a·b − ‖a‖² − ‖b‖², and the norms cancel.
MARGIN_FACTORS = {"cosine": 1.0, "squared_euclidean": 2.0}
GRAM_UP_TO = 4096  # images: beyond, n² numbers are no longer few
ROWS_GIB = 8.0  # the rows of more images would not fit in memory
COLUMNS = 4096  # columns multiplied at once: float32 inside, float64 between
BLOCK = 512  # rows multiplied at once: the half below the diagonal is copied, not computed
UNIT_TOLERANCE = 1e-3


class Metric:
    """How alike images look. Subclasses set `similarity` and `fingerprint` and implement :meth:`embed`.

    Attributes:
        name: short name for tables.
        similarity: ``cosine`` (embeddings are unit vectors) or ``squared_euclidean`` (similarity is its negative).
        temperature: τ of the soft score; 0 measures it.
        batch_size: images that :meth:`embed` gets at once.
        fingerprint: content key of whatever decides the embedding (weights, site, input).
    """

    similarity: str
    fingerprint: str

    def __init__(self, config: MetricConfig | None = None, device: torch.device | str = "cpu") -> None:
        self.device = torch.device(device)
        self.take_options(config or MetricConfig(name=type(self).__name__))

    def take_options(self, config: MetricConfig) -> None:
        """Take over what every metric's configuration has."""
        self.name, self.temperature, self.batch_size = config.name, config.temperature, config.batch_size

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings (B, d) in float32, on any device; of length 1 when the similarity is a cosine."""
        raise NotImplementedError(f"{type(self).__name__} must implement embed(images)")


@dataclass(frozen=True, eq=False)
class Embedding:
    """The images of a data set in the space of a metric: their Gram matrix, or the rows themselves.

    Attributes:
        metric: name of the metric.
        ids: of the images, in the order of rows and columns.
        similarity: see :class:`Metric`.
        scale: mean squared length of the rows (1 for unit vectors); margins are of this size.
        fingerprint: of the metric.
        rows: (n, d) float32, or None.
        gram: (n, n) float32 inner products, symmetric, or None.
    """

    metric: str
    ids: list[str]
    similarity: str
    scale: float
    fingerprint: str
    rows: Tensor | None = None
    gram: Tensor | None = None

    @property
    def margin_factor(self) -> float:
        """c of margin = c (q₊ − q₋)·(mean E₊ − mean E₋)."""
        return MARGIN_FACTORS[self.similarity]

    def write(self, folder: Path) -> None:
        """Write ``embedding.safetensors`` and ``embedding.json``."""
        tensors = {"gram": self.gram, "rows": self.rows}
        write_tensors(
            folder / "embedding.safetensors",
            {name: tensor for name, tensor in tensors.items() if tensor is not None},
        )
        write_json(
            folder / "embedding.json",
            {
                "metric": self.metric,
                "similarity": self.similarity,
                "scale": self.scale,
                "fingerprint": self.fingerprint,
                "ids": self.ids,
            },
        )

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read back what :meth:`write` wrote.

        Raises:
            StoreError: when a file is missing or damaged, or the two do not fit.
        """
        if not (folder / "embedding.json").exists():
            raise StoreError("there is no embedding", looked=folder)
        told, tensors = read_json(folder / "embedding.json"), read_tensors(folder / "embedding.safetensors")
        if {len(tensor) for tensor in tensors.values()} != {len(told["ids"])}:
            raise StoreError(f"the embedding in {folder} does not have one row an id", fix="Remove it and run again.")
        return cls(**told, rows=tensors.get("rows"), gram=tensors.get("gram"))


def embed_dataset(metric: Metric, dataset: ImageDataset, scratch_dir: Path | None = None) -> Embedding:
    """Embed every image of `dataset`, in its order.

    Up to 4,096 images the result holds the Gram matrix, else the rows. The rows of a wide embedding (118,976 numbers
    for a SqueezeNet) are never all in memory on the way to the Gram matrix: they go through a temporary file.

    Args:
        metric: what embeds.
        dataset: its images.
        scratch_dir: folder for the temporary file (4 n d bytes); the system's by default.

    Raises:
        DataError: when an image cannot be read, its embedding is not finite or not of length 1 where it should
            be, or the rows of many images do not fit in memory.
    """
    if len(dataset) <= GRAM_UP_TO:
        gram_nn = _gram(metric, dataset, scratch_dir)
        scale, found = float(gram_nn.diagonal().double().mean()), {"gram": gram_nn}
    else:
        rows_nd = _rows(metric, dataset)
        squared = [block.double().square().sum() for block in rows_nd.split(BLOCK)]
        scale, found = float(torch.stack(squared).sum() / len(dataset)), {"rows": rows_nd}
    return Embedding(
        metric=metric.name,
        ids=list(dataset.ids),
        similarity=metric.similarity,
        scale=scale,
        fingerprint=metric.fingerprint,
        **found,
    )


def _embedded(metric: Metric, dataset: ImageDataset) -> Iterator[Tensor]:
    """Rows (B, d) on the CPU, batch by batch, checked."""
    starts = range(0, len(dataset), metric.batch_size)
    for start in progress(starts, f"{metric.name} of {dataset.name}/{dataset.split}", unit="batch"):
        indices = range(start, min(start + metric.batch_size, len(dataset)))
        rows_bd = metric.embed([dataset.image(index) for index in indices]).to("cpu", torch.float32)
        length_b = torch.linalg.vector_norm(rows_bd, dim=1, dtype=torch.float64)
        for index, length in zip(indices, length_b.tolist(), strict=True):
            if not np.isfinite(length):
                raise DataError(f"metric {metric.name} gives image {dataset.ids[index]} numbers that are not finite")
            if metric.similarity == "cosine" and abs(length - 1) > UNIT_TOLERANCE:
                raise DataError(
                    f"metric {metric.name} gives image {dataset.ids[index]} an embedding of length {length:.3g}",
                    fix="A metric with cosine similarity must give vectors of length 1.",
                )
        yield rows_bd


def _rows(metric: Metric, dataset: ImageDataset) -> Tensor:
    rows_nd = torch.empty(0, 0)
    start = 0
    for rows_bd in _embedded(metric, dataset):
        if start == 0:
            gib = len(dataset) * rows_bd.shape[1] * 4 / 2**30
            if gib > ROWS_GIB:
                raise DataError(
                    f"metric {metric.name} needs {gib:.0f} GiB for the {len(dataset)} images of {dataset.name}",
                    fix=f"Score at most {GRAM_UP_TO} images (dataset.split.limit) or take a narrower metric "
                    "(metric=embedding).",
                )
            rows_nd = torch.empty(len(dataset), rows_bd.shape[1])
        rows_nd[start : start + len(rows_bd)] = rows_bd
        start += len(rows_bd)
    return rows_nd


def _gram(metric: Metric, dataset: ImageDataset, scratch_dir: Path | None) -> Tensor:
    """(n, n) inner products: rows go to disk cut into columns, which are read back and multiplied chunk by chunk."""
    with tempfile.TemporaryDirectory(prefix="mis_lab-embedding-", dir=scratch_dir) as folder:
        paths: list[Path] = []
        with full_disk_is_told(Path(folder) / "columns"):
            for rows_bd in _embedded(metric, dataset):
                chunks = rows_bd.split(COLUMNS, dim=1)
                paths = [Path(folder) / f"columns_{number:05d}" for number in range(len(chunks))]
                for path, chunk_bk in zip(paths, chunks, strict=True):
                    with open(path, "ab") as file:
                        file.write(chunk_bk.contiguous().numpy().data)
        device = metric.device if metric.device.type == "cuda" else torch.device("cpu")  # float64 is not everywhere
        gram_nn = torch.zeros(len(dataset), len(dataset), dtype=torch.float64, device=device)
        for path in progress(paths, f"{metric.name}: inner products", unit="chunk"):
            columns_nk = torch.from_numpy(np.fromfile(path, np.float32)).reshape(len(dataset), -1).to(device)
            for start in range(0, len(dataset), BLOCK):
                block = slice(start, start + BLOCK)
                gram_nn[block, start:] += columns_nk[block] @ columns_nk[start:].T
    return (gram_nn.triu() + gram_nn.triu(1).T).float().cpu()
