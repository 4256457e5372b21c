"""Activations computed when they are asked for, with nothing on disk: what loaders and evaluation need of a store.

Numbers are those that extraction would store, but for the rounding of a forward pass in other batches. Replacements at
earlier sites (reconstructions by SAEs) are in place while the network runs.
"""

# B images  P positions  D width  N single vectors

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress
from mis_lab.core.statistics import Moments
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import batches
from mis_lab.model.capture import Capture
from mis_lab.model.intervene import intervene
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site

Replace = Callable[[Tensor], Tensor]


class LiveActivations:
    """The activations of one site over a data set; stands where
    :class:`~mis_lab.activations.shards.StoredActivations` may.

    Args:
        batch_size, workers: of the forward passes.
        replaced: earlier site → what its vectors (B, P, D) become on the way.

    Attributes:
        site, ids, groups, labels, n_images, n_positions, width, dtype: as of stored ones.
    """

    dtype = torch.float32

    def __init__(
        self,
        model: LoadedModel,
        dataset: ImageDataset,
        site: Site,
        batch_size: int = 64,
        workers: int = 0,
        replaced: Mapping[Site, Replace] | None = None,
    ) -> None:
        self.model, self.dataset, self.site = model, dataset, site
        self.batch_size, self.workers, self.replaced = batch_size, workers, dict(replaced or {})
        self.ids, self.groups, self.labels = dataset.ids, dataset.groups, dataset.labels
        self.n_images, self.n_positions, self.width = len(dataset), site.n_positions, site.width

    def __len__(self) -> int:
        """Number of vectors, images × positions."""
        return self.n_images * self.n_positions

    def take(self, indices: Sequence[int] | np.ndarray, dtype: torch.dtype = torch.float32) -> Tensor:
        """The vectors (B, P, D) of some images, in the order of `indices`, on the CPU.

        Raises:
            DataError: when an image cannot be read, or its activations are NaN or infinite (naming it).
        """
        wanted = [int(index) for index in indices]
        x_bpd = torch.empty((len(wanted), self.n_positions, self.width), dtype=dtype)
        at = 0
        for batch_bpd in self._computed(wanted):
            x_bpd[at : at + len(batch_bpd)] = batch_bpd
            at += len(batch_bpd)
        return x_bpd

    def vectors(self, numbers: Sequence[int] | np.ndarray) -> Tensor:
        """Single vectors (N, D), float32; vector `image · P + position` in the order of `numbers`."""
        image, position = np.divmod(np.asarray(numbers, dtype=np.int64), self.n_positions)
        images, at = np.unique(image, return_inverse=True)
        x_nd, start = torch.empty((len(image), self.width)), 0
        for batch_bpd in self._computed(images.tolist()):
            here = np.flatnonzero((at >= start) & (at < start + len(batch_bpd)))
            x_nd[torch.from_numpy(here)] = batch_bpd[at[here] - start, position[here]]
            start += len(batch_bpd)
        return x_nd

    @cached_property
    def moments(self) -> Moments:
        """Float64 statistics over all vectors; a whole pass over the images."""
        return self.moments_of(range(self.n_images))

    def moments_of(self, indices: Sequence[int]) -> Moments:
        """Float64 statistics over the vectors of some images."""
        moments = Moments()
        n_batches = -(-len(indices) // self.batch_size)
        for x_bpd in progress(self._computed(indices), f"statistics {self.site.path}", n_batches, unit="batch"):
            moments.update(x_bpd.flatten(0, 1))
        return moments

    def _computed(self, indices: Sequence[int]) -> Iterator[Tensor]:
        """Yield the vectors (B, P, D) of batches of images, on the CPU."""
        with ExitStack() as stack:
            if self.replaced:
                stack.enter_context(intervene(self.model, self.replaced))
            capture = stack.enter_context(Capture(self.model, [self.site]))
            for batch in batches(self.dataset, self.model.transform, self.batch_size, self.workers, indices):
                x_bpd = capture.run(batch.images_bchw)[self.site.path].float().cpu()
                finite_b = torch.isfinite(x_bpd).flatten(1).all(1)
                if not finite_b.all():
                    bad = batch.indices[int((~finite_b).nonzero()[0])]
                    raise DataError(
                        f"activations of image {self.ids[bad]} at {self.site.path} are NaN or infinite",
                        fix="Check the image and the network's input range.",
                    )
                yield x_bpd
