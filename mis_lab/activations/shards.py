"""Activations of one site on disk: written once in image order, read back as memory maps.

The format (version 1) is a contract, written down in docs/store.md: ``metadata.json``, shards
``shard-00000.npy`` of [image, position, D], ids, groups and labels of the images, and float64 statistics.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from types import TracebackType
from typing import IO, Any

import numpy as np
import torch
from torch import Tensor

from mis_lab.activations.config import Precision
from mis_lab.core.errors import DataError, StoreError
from mis_lab.core.files import full_disk_is_told, read_json, write_json
from mis_lab.core.statistics import Moments
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.model.sites import Site

# B images  P positions  D width  N vectors

FORMAT, VERSION = "mis_lab.activations", 1
METADATA, STATISTICS = "metadata.json", "statistics.safetensors"
DTYPES = {Precision.float32: torch.float32, Precision.float16: torch.float16}
ON_DISK: dict[Precision, np.dtype] = {Precision.float32: np.dtype("<f4"), Precision.float16: np.dtype("<f2")}
MAX_OPEN_SHARDS = 64  # every memory map holds a file open
MOMENTS_BLOCK = 2**16  # numbers; float64 copies of this size stay in the cache, three times as fast


class ActivationWriter:
    """Writes the activations of one site, image after image.

    Use it as a context manager, or call :meth:`close`; a folder without ``metadata.json`` was never finished.

    Args:
        folder: an empty folder, made when missing.
        site: what is written; gives P and D.
        ids, groups, labels: of all images, in the order they will come.
        precision: of the stored numbers. Statistics are those of the stored numbers.
        shard_mib: most MiB of a shard (one image at least).
        about: a few more entries of the metadata, JSON types (names of model and data set, class names).
    """

    def __init__(
        self,
        folder: Path,
        site: Site,
        ids: Sequence[str],
        groups: Sequence[str],
        labels: Sequence[int],
        precision: Precision = Precision.float32,
        shard_mib: int = 256,
        about: Mapping[str, Any] | None = None,
    ) -> None:
        if not len(ids) == len(groups) == len(labels):
            raise ValueError(f"{len(ids)} ids, {len(groups)} groups and {len(labels)} labels")
        self.folder, self.site, self.precision = Path(folder), site, precision
        self._ids, self._groups, self._labels = list(ids), list(groups), list(labels)
        self._about = dict(about or {})
        image_bytes = site.n_positions * site.width * ON_DISK[precision].itemsize
        self._images_per_shard = max(1, shard_mib * 2**20 // image_bytes)
        self._moments = Moments()
        self._n_taken = self._n_written = 0
        self._file: IO[bytes] | None = None
        # Writing copies into the page cache: beside the next forward pass it costs no time.
        self._thread = ThreadPoolExecutor(1, f"write {site.path}")
        self._pending: Future[None] | None = None
        self.folder.mkdir(parents=True, exist_ok=True)

    def append(self, x_bpd: Tensor, indices: Sequence[int]) -> None:
        """Write the vectors of the next images.

        Args:
            x_bpd: (B, P, D) floating, on any device; not to be written to until the next call.
            indices: (B) their places in the data set, which must follow on those written before.

        Raises:
            DataError: naming site and image, when a number is NaN or infinite (or does not fit into float16).
            StoreError: when the disk is full; it may be the disk of the images before these.
        """
        stop = self._n_taken + len(x_bpd)
        if list(indices) != list(range(self._n_taken, stop)) or stop > len(self._ids):
            raise ValueError(f"image {self._n_taken} of {self.site.path} comes next, not {list(indices)}")
        if tuple(x_bpd.shape[1:]) != (self.site.n_positions, self.site.width):
            raise ValueError(f"site {self.site.path}: {tuple(x_bpd.shape)} is not (B, P, D) of {self.site}")
        stored_bpd = x_bpd.detach().to("cpu", DTYPES[self.precision]).contiguous()
        for vectors_nd in stored_bpd.flatten(0, 1).split(max(1, MOMENTS_BLOCK // self.site.width)):
            self._moments.update(vectors_nd)
        # A sum of finite float32 numbers is finite in float64, so the mean tells whether all were.
        if not self._moments.mean.isfinite().all():
            self._refuse(x_bpd, stored_bpd)
        self._wait()
        self._n_taken = stop
        array_bpd = stored_bpd.numpy().astype(ON_DISK[self.precision], copy=False)
        self._pending = self._thread.submit(self._write, array_bpd)

    def _wait(self) -> None:
        """Until what was taken is written; raises what went wrong there."""
        pending, self._pending = self._pending, None
        if pending is not None:
            pending.result()

    def _refuse(self, x_bpd: Tensor, stored_bpd: Tensor) -> None:
        bad = int((~stored_bpd.isfinite()).flatten(1).any(1).nonzero()[0])
        where = f"site {self.site.path}: activations of image {self._ids[self._n_taken + bad]}"
        image = x_bpd[bad].detach()
        if image.isfinite().all():
            raise DataError(
                f"{where} reach {float(image.abs().max()):.3g}, too large for float16",
                fix="Use activations.precision=float32.",
            )
        kind = "NaN" if image.isnan().any() else "infinite"
        raise DataError(f"{where} are {kind}", fix="Check that image, the weights and the input's scaling.")

    def _write(self, array_bpd: np.ndarray) -> None:
        while len(array_bpd):
            place = self._n_written % self._images_per_shard
            with full_disk_is_told(self.folder):
                if place == 0:
                    self._open_next()
                assert self._file is not None
                now = array_bpd[: self._images_per_shard - place]
                left = now.data.cast("B")
                while left:  # streamed: a memory map would end in a bus error on a full disk
                    left = left[self._file.write(left) :]
            self._n_written += len(now)
            array_bpd = array_bpd[len(now) :]

    def _open_next(self) -> None:
        self._close_file()
        n_images = min(self._images_per_shard, len(self._ids) - self._n_written)
        shape = (n_images, self.site.n_positions, self.site.width)
        path = self.folder / shard_name(self._n_written // self._images_per_shard)
        self._file = open(path, "wb", buffering=0)  # noqa: SIM115 (closed by the next, or by close)
        np.lib.format.write_array_header_1_0(
            self._file, {"descr": ON_DISK[self.precision].str, "fortran_order": False, "shape": shape}
        )

    def _close_file(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    def close(self) -> None:
        """Write what describes the shards; the metadata comes last."""
        self._wait()
        self._thread.shutdown()
        self._close_file()
        if self._n_written != len(self._ids):
            n_written, n_images = self._n_written, len(self._ids)
            raise ValueError(f"site {self.site.path}: {n_written} of {n_images} images were written")
        write_json(self.folder / "ids.json", self._ids)
        write_json(self.folder / "groups.json", self._groups)
        write_json(self.folder / "labels.json", self._labels)
        write_tensors(self.folder / STATISTICS, self._moments.state())
        n_shards = math.ceil(self._n_written / self._images_per_shard)
        write_json(
            self.folder / METADATA,
            {
                "format": FORMAT,
                "version": VERSION,
                "site": dataclasses.asdict(self.site),
                "precision": self.precision.name,
                "n_images": self._n_written,
                "n_positions": self.site.n_positions,
                "width": self.site.width,
                "images_per_shard": self._images_per_shard,
                "shards": [shard_name(number) for number in range(n_shards)],
                "about": self._about,
            },
        )

    def __enter__(self) -> ActivationWriter:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        try:
            if error is None:
                self.close()
        finally:
            self._thread.shutdown()
            self._close_file()


def shard_name(number: int) -> str:
    """File name of shard `number`."""
    return f"shard-{number:05d}.npy"


def _is_whole(path: Path, shape: tuple[int, ...], dtype: np.dtype) -> bool:
    """Whether the file is an array of this shape and type, down to its last byte."""
    with open(path, "rb") as file:
        try:
            np.lib.format.read_magic(file)
            found_shape, fortran_order, found_dtype = np.lib.format.read_array_header_1_0(file)
        except ValueError:
            return False
        end = file.tell() + math.prod(shape) * dtype.itemsize
    return (found_shape, fortran_order, found_dtype) == (shape, False, dtype) and path.stat().st_size == end


class StoredActivations:
    """The activations of one site, read from the folder an :class:`ActivationWriter` filled.

    Attributes:
        site: where they come from.
        ids, groups, labels: of the images, in stored order.
        moments: float64 statistics over all vectors.
        dtype: of the stored numbers.
        about: names of model and data set, class names.

    Raises:
        StoreError: when the folder holds no activations, another version of the format, or a shard cut short.
    """

    def __init__(self, folder: Path) -> None:
        self.folder = Path(folder)
        metadata = self._metadata()
        site = metadata["site"]
        self.site = Site(**site | {"grid": tuple(site["grid"])})
        self.precision = Precision[metadata["precision"]]
        self.dtype = DTYPES[self.precision]
        self.about: dict[str, Any] = metadata["about"]
        self.n_images: int = metadata["n_images"]
        self.n_positions: int = metadata["n_positions"]
        self.width: int = metadata["width"]
        self.ids: list[str] = read_json(self.folder / "ids.json")
        self.groups: list[str] = read_json(self.folder / "groups.json")
        self.labels: list[int] = read_json(self.folder / "labels.json")
        self.moments = Moments.from_state(read_tensors(self.folder / STATISTICS))
        self._images_per_shard: int = metadata["images_per_shard"]
        self._names: list[str] = metadata["shards"]
        self._check_shards()
        self._shard = functools.lru_cache(MAX_OPEN_SHARDS)(self._map)

    def _metadata(self) -> dict[str, Any]:
        path = self.folder / METADATA
        if not path.exists():
            raise StoreError("no activations", looked=self.folder, fix=f"A finished folder has a {METADATA}.")
        metadata: dict[str, Any] = read_json(path)
        found = metadata.get("format"), metadata.get("version")
        if found != (FORMAT, VERSION):
            raise StoreError(
                f"{path} is {found[0]} version {found[1]}; this mis_lab reads {FORMAT} version {VERSION}",
                fix="Extract the activations again, or use the mis_lab that wrote them.",
            )
        return metadata

    def _check_shards(self) -> None:
        for number, name in enumerate(self._names):
            n_images = min(self._images_per_shard, self.n_images - number * self._images_per_shard)
            shape = (n_images, self.n_positions, self.width)
            path = self.folder / name
            if not path.exists():
                trouble = "is missing"
            elif not _is_whole(path, shape, ON_DISK[self.precision]):
                trouble = f"is damaged or cut short: no array of {shape} {self.precision.name}"
            else:
                continue
            raise StoreError(
                f"{path} {trouble}",
                fix="Remove the artifact and run again; 'mis-lab store verify' finds every damaged one.",
            )

    def _map(self, number: int) -> np.ndarray:
        array: np.ndarray = np.load(self.folder / self._names[number], mmap_mode="r", allow_pickle=False)
        return array

    def __len__(self) -> int:
        """Number of vectors, images × positions."""
        return self.n_images * self.n_positions

    def read(self, start: int, stop: int, dtype: torch.dtype = torch.float32) -> Tensor:
        """The vectors (B, P, D) of images `start` to `stop` (excluded), on the CPU."""
        if not 0 <= start <= stop <= self.n_images:
            raise IndexError(f"images {start} to {stop} of {self.n_images}")
        x_bpd = torch.empty((stop - start, self.n_positions, self.width), dtype=dtype)
        into, per_shard = x_bpd.numpy(), self._images_per_shard
        at = start
        while at < stop:
            number, place = divmod(at, per_shard)
            upto = min(stop, (number + 1) * per_shard)
            into[at - start : upto - start] = self._shard(number)[place : place + upto - at]
            at = upto
        return x_bpd

    def images(self, batch: int, of: range | None = None) -> Iterator[tuple[range, Tensor]]:
        """Yield (indices, x_bpd) of at most `batch` images, in stored order, float32; `of` a run of images or all."""
        run = range(self.n_images) if of is None else of
        for start in range(run.start, run.stop, batch):
            stop = min(start + batch, run.stop)
            yield range(start, stop), self.read(start, stop)

    def take(self, indices: Sequence[int] | np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        """The vectors (B, P, D) of some images, in the order of `indices`; fast where they are runs."""
        wanted = np.asarray(indices, dtype=np.int64)
        if len(wanted) and (np.diff(wanted) == 1).all():
            return self.read(int(wanted[0]), int(wanted[-1]) + 1, dtype)
        x_bpd = torch.empty((len(wanted), self.n_positions, self.width), dtype=dtype)
        for at, shard, place in self._by_shard(wanted):
            x_bpd.numpy()[at] = shard[place]
        return x_bpd

    def vectors(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """Single vectors (N, D), float32; vector `image · P + position` in the order of `numbers`."""
        wanted, position = np.divmod(np.asarray(numbers, dtype=np.int64), self.n_positions)
        x_nd = torch.empty((len(wanted), self.width))
        for at, shard, place in self._by_shard(wanted):
            x_nd.numpy()[at] = shard[place, position[at]]
        return x_nd

    def _by_shard(self, images: np.ndarray) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray]]:
        """For each shard needed: which of `images` lie in it, the shard, and their places in it."""
        if len(images) and not (images.min() >= 0 and images.max() < self.n_images):
            raise IndexError(f"images {images.min()} to {images.max()} of {self.n_images}")
        number = images // self._images_per_shard
        for one in np.unique(number):
            at = np.flatnonzero(number == one)
            yield at, self._shard(int(one)), images[at] % self._images_per_shard
