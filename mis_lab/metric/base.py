"""What a metric is (images → embedding), and the embedding of a whole data set.

Both kinds of similarity are inner products in a fixed embedding, so one forward pass an image serves all pairs, and
a MIS task is (q₊ − q₋)·(mean E₊ − mean E₋) times a constant. For few images the Gram matrix says it all.
"""

# n images in all  B images in a batch  d width of the embedding

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Self

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mis_lab.core.device import resolve_device
from mis_lab.core.errors import DataError, StoreError
from mis_lab.core.files import full_disk_is_told, read_json, write_json
from mis_lab.core.progress import progress
from mis_lab.core.seeding import generator
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric.config import MetricConfig
from mis_lab.metric.sketch import sketch_error

# Margin of a task over (q₊ − q₋)·(mean E₊ − mean E₋): −‖a − b‖² = 2 a·b − ‖a‖² − ‖b‖², and the norms cancel.
MARGIN_FACTORS = {"cosine": 1.0, "squared_euclidean": 2.0}
GRAM_UP_TO = 4096  # images: beyond, n² numbers are no longer few
ROWS_GIB = 8.0  # the rows of more images would not fit in memory
COLUMNS = 4096  # columns multiplied at once: float32 inside, float64 between
BLOCK = 512  # rows multiplied at once: the half below the diagonal is copied, not computed
UNIT_TOLERANCE = 1e-3
ERROR_SAMPLE = 256  # images on which a sketch is compared with what it sketches


class Metric:
    """How alike images look. Subclasses set `similarity` and `fingerprint` and implement :meth:`embed`.

    Attributes:
        name: short name for tables.
        similarity: ``cosine`` (embeddings are unit vectors) or ``squared_euclidean`` (similarity is its negative).
        temperature: τ of the soft score; 0 measures it.
        z_score: whether :func:`embed_dataset` divides similarities by their spread.
        batch_size: images that :meth:`embed` gets at once.
        fingerprint: content key of whatever decides the embedding (weights, site, input).
        exact: the metric that this one approximates by a sketch; None for a metric that approximates nothing.

    Raises:
        ConfigError: when `device` is none that this machine has.
    """

    similarity: str
    fingerprint: str
    exact: Metric | None = None

    def __init__(self, config: MetricConfig | None = None, device: torch.device | str = "cpu") -> None:
        self.device = resolve_device(str(device))
        self.take_options(config or MetricConfig(name=type(self).__name__))

    def take_options(self, config: MetricConfig) -> None:
        """Take over what every metric's configuration has."""
        self.name, self.temperature, self.batch_size = config.name, config.temperature, config.batch_size
        self.z_score = config.z_score

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings (B, d) in float32, on any device; of length 1 when the similarity is a cosine."""
        raise NotImplementedError(f"{type(self).__name__} must implement embed(images)")

    def embed_images(self, dataset: ImageDataset, indices: Sequence[int]) -> Tensor:
        """Embeddings of these images of a data set; for metrics that want to know more than their pixels."""
        return self.embed([dataset.image(index) for index in indices])


@dataclass(frozen=True, eq=False)
class Embedding:
    """The images of a data set in the space of a metric: their Gram matrix, or the rows themselves.

    Attributes:
        metric: name of the metric.
        ids: of the images, in the order of rows and columns.
        similarity: see :class:`Metric`.
        scale: mean squared length of the rows (1 for unit vectors); margins are of this size.
        fingerprint: of the metric.
        quality: error of a sketch, mean and spread of z-scored similarities; empty where there is nothing to tell.
        rows: (n, d) float32, or None.
        gram: (n, n) float32 inner products, symmetric, or None.
    """

    metric: str
    ids: list[str]
    similarity: str
    scale: float
    fingerprint: str
    quality: dict[str, float] = field(default_factory=dict)
    rows: Tensor | None = None
    gram: Tensor | None = None

    @property
    def margin_factor(self) -> float:
        """c of margin = c (q₊ − q₋)·(mean E₊ − mean E₋)."""
        return MARGIN_FACTORS[self.similarity]

    def inner_products(self, rows: slice, columns: slice) -> Tensor:
        """Inner products of some images (rows) with others (columns), float32."""
        if self.gram is not None:
            return self.gram[rows, columns]
        assert self.rows is not None  # an embedding has one of them
        return self.rows[rows] @ self.rows[columns].T

    def z_scored(self) -> Self:
        """The same images with similarities in units of their standard deviation over all pairs of images.

        Margins do not see the mean: each is a difference of differences. So they, `scale` and the size of a tie are all
        divided by the same number, and no hard score changes. Mean and standard deviation go into `quality`.

        Raises:
            DataError: when all pairs of images are equally alike.
        """
        mean, deviation = self._moments()
        if not deviation > 1e-9 * self.scale:
            raise DataError(
                f"to the metric {self.metric} all pairs of images are equally alike: nothing to divide by",
                fix="Set metric.z_score=false, or use other images.",
            )
        return replace(
            self,
            scale=self.scale / deviation,
            rows=None if self.rows is None else self.rows / deviation**0.5,
            gram=None if self.gram is None else self.gram / deviation,
            quality=self.quality | {"similarity_mean": mean, "similarity_std": deviation},
        )

    def _moments(self) -> tuple[float, float]:
        """Mean and standard deviation of the similarity of two different images, over all pairs."""
        n = len(self.ids)
        if self.gram is not None:
            squared_n = self.gram.diagonal().double()
        else:
            assert self.rows is not None
            squared_n = torch.cat([block.double().square().sum(1) for block in self.rows.split(BLOCK)])
        parts = []
        for start in range(0, n, BLOCK):
            block = slice(start, min(start + BLOCK, n))
            similarity = self.inner_products(block, slice(start, n)).double()
            if self.similarity == "squared_euclidean":
                similarity = 2 * similarity - squared_n[block, None] - squared_n[start:]
            values = similarity[torch.ones_like(similarity, dtype=torch.bool).triu(1)]
            parts.append((len(values), float(values.sum()), float(values.square().sum())))
        count, total, squares = (sum(column) for column in zip(*parts, strict=True))
        mean = total / max(count, 1)
        return mean, max(squares / max(count, 1) - mean**2, 0.0) ** 0.5

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
                "quality": self.quality,
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
        rows_nd, gram_nn = None, _gram(metric, dataset, scratch_dir)
        scale = float(gram_nn.diagonal().double().mean())
    else:
        rows_nd, gram_nn = _rows(metric, dataset), None
        squared = [block.double().square().sum() for block in rows_nd.split(BLOCK)]
        scale = float(torch.stack(squared).sum() / len(dataset))
    embedding = Embedding(
        metric=metric.name,
        ids=list(dataset.ids),
        similarity=metric.similarity,
        scale=scale,
        fingerprint=metric.fingerprint,
        rows=rows_nd,
        gram=gram_nn,
    )
    if metric.exact is not None:
        embedding = replace(embedding, quality=_sketch_quality(metric.exact, dataset, embedding, scratch_dir))
    return embedding.z_scored() if metric.z_score else embedding


def _sketch_quality(
    exact: Metric, dataset: ImageDataset, sketched: Embedding, scratch_dir: Path | None
) -> dict[str, float]:
    """Error of a sketch on a seeded sample of the images, which are embedded once more, without it."""
    order = torch.randperm(len(dataset), generator=generator(0, "sketch error", "images"))
    sample = order[:ERROR_SAMPLE].sort().values
    exact_gram_nn = _gram(exact, dataset.subset(sample.tolist()), scratch_dir)
    if sketched.gram is not None:
        sketched_gram_nn = sketched.gram[sample][:, sample]
    else:
        assert sketched.rows is not None
        sketched_gram_nn = sketched.rows[sample] @ sketched.rows[sample].T
    return sketch_error(exact_gram_nn, sketched_gram_nn)


def _embedded(metric: Metric, dataset: ImageDataset) -> Iterator[Tensor]:
    """Rows (B, d) on the CPU, batch by batch, checked."""
    width = 0
    starts = range(0, len(dataset), metric.batch_size)
    for start in progress(starts, f"{metric.name} of {dataset.name}/{dataset.split}", unit="batch"):
        indices = range(start, min(start + metric.batch_size, len(dataset)))
        rows_bd = metric.embed_images(dataset, indices).to("cpu", torch.float32)
        width = width or rows_bd.shape[1]
        if rows_bd.shape[1] != width:
            raise DataError(
                f"metric {metric.name} gives image {dataset.ids[start]} an embedding of {rows_bd.shape[1]} numbers, "
                f"the first image one of {width}",
                fix="Images of several sizes are compared at one: set metric.size.",
            )
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
                    "(metric=embedding), or a sketch of a wide one (metric.sketch=4096).",
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
