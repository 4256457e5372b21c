"""Shuffled batches of stored vectors for training: batch number `step` depends on seed and `step` alone.

Where all vectors fit into the memory given, an epoch is one permutation of all of them. Otherwise blocks of
images that lie together on disk come in random order, as many as fit are held at once, and what is held is
permuted: disks read in long runs, and a batch still mixes vectors of many places.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.activations.paired import PairedActivations
from mis_lab.activations.shards import StoredActivations
from mis_lab.core.errors import DataError
from mis_lab.core.seeding import generator, numpy_generator

# N vectors  I items (vectors, or whole images)  B items of a batch  P positions  D width

BLOCK_MIB = 4  # read at once: long enough for any disk
LEAST_BLOCKS = 16  # held at once, so that small memories mix too
ORDER_BYTES = 8  # of an item's place in the permutation


class _Buffer(NamedTuple):
    """Some blocks held in memory at once; its items are number `start` to `stop` of their epoch."""

    number: int
    blocks: tuple[int, ...]
    start: int
    stop: int


class VectorLoader:
    """An endless stream of batches over the vectors of some images.

    Each epoch visits every vector once in a fresh order; the last ``n_vectors % batch_size`` of that order
    are left out, so that no batch mixes two epochs. With fewer vectors than `batch_size`, a batch is all of
    them. All this holds of images in the place of vectors where whole images are asked for.

    Args:
        stored: where the vectors are (of two sites side by side, for a transcoder).
        batch_size: vectors a batch.
        seed: of the order.
        indices: the images to use, a set (held-out groups left out); all by default.
        memory_mib: how much to hold at once, in the precision of the store.
        device: where batches are wanted; what is held is held there.
        whole_images: a batch is whole images (B, P, D), as many as `batch_size` vectors hold, one at least.

    Attributes:
        n_vectors: vectors of the images used.
        batch_size: vectors of a batch, at most `n_vectors`; with whole images a multiple of P.
        steps_per_epoch: batches of an epoch.

    Raises:
        DataError: when there is no image to train on.
    """

    def __init__(
        self,
        stored: StoredActivations | PairedActivations,
        batch_size: int,
        seed: int,
        indices: Sequence[int] | None = None,
        memory_mib: float = 2048,
        device: torch.device | str = "cpu",
        whole_images: bool = False,
    ) -> None:
        self.whole_images = whole_images
        self.stored, self.seed, self.device = stored, seed, torch.device(device)
        wanted = range(stored.n_images) if indices is None else indices
        self._images = np.unique(np.asarray(wanted, dtype=np.int64))
        if not len(self._images):
            raise DataError(
                f"no images to take vectors from at site {stored.site.path}",
                fix="Lower dataset.split.hold_out or use more images.",
            )
        self.n_vectors = len(self._images) * stored.n_positions
        vectors_per_item = stored.n_positions if whole_images else 1
        self._items_per_image = stored.n_positions // vectors_per_item
        self._n_items = len(self._images) * self._items_per_image
        self._items_per_batch = min(max(1, batch_size // vectors_per_item), self._n_items)
        self.batch_size = self._items_per_batch * vectors_per_item
        self.steps_per_epoch = self._n_items // self._items_per_batch

        image_bytes = stored.n_positions * (stored.width * stored.dtype.itemsize + ORDER_BYTES)
        fitting = max(1, int(memory_mib * 2**20) // image_bytes)  # images held at once
        self._images_per_block = max(1, min(BLOCK_MIB * 2**20 // image_bytes, fitting // LEAST_BLOCKS))
        n_blocks = -(-len(self._images) // self._images_per_block)
        blocks_held = fitting // self._images_per_block
        self._n_blocks = n_blocks
        self._n_buffers = 1 if fitting >= len(self._images) else -(-n_blocks // blocks_held)

        self._planned: tuple[int, list[_Buffer]] = (-1, [])
        self._held_blocks: tuple[int, ...] = ()
        self._held = torch.empty(0)
        self._order: tuple[tuple[int, int], Tensor] = ((-1, -1), torch.empty(0))

    def batch(self, step: int) -> Tensor:
        """Batch `step` of the endless stream, (B, D) or (B, P, D), float32; steps may be asked for in any order.

        Going through the steps in order reads every block once an epoch.
        """
        epoch, place = divmod(step, self.steps_per_epoch)
        start = place * self._items_per_batch
        stop = start + self._items_per_batch
        parts = []
        for buffer in self._plan(epoch):
            if buffer.start < stop and start < buffer.stop:
                order = self._hold(epoch, buffer)
                now = order[max(start - buffer.start, 0) : stop - buffer.start]
                parts.append(self._held.index_select(0, now))
        return (parts[0] if len(parts) == 1 else torch.cat(parts)).float()

    def sample(self, n: int) -> Tensor:
        """`n` distinct vectors (n, D) drawn by the seed, in stored order; all where there are not so many.

        With whole images as many as `n` vectors hold (one at least), (B, P, D).
        """
        random = numpy_generator(self.seed, "sample of vectors")
        wanted = min(max(1, n // self.stored.n_positions) if self.whole_images else n, self._n_items)
        chosen = np.sort(random.choice(self._n_items, wanted, replace=False, shuffle=False))
        if self.whole_images:
            return self.stored.take(self._images[chosen]).to(self.device)
        image, position = np.divmod(chosen, self.stored.n_positions)
        return self.stored.vectors(self._images[image] * self.stored.n_positions + position).to(self.device)

    def _plan(self, epoch: int) -> list[_Buffer]:
        if self._planned[0] != epoch:
            self._planned = (epoch, list(self._buffers(epoch)))
        return self._planned[1]

    def _buffers(self, epoch: int) -> Iterator[_Buffer]:
        if self._n_buffers == 1:  # all that is held stays held; its order alone changes
            yield _Buffer(0, tuple(range(self._n_blocks)), 0, self._n_items)
            return
        blocks = torch.randperm(self._n_blocks, generator=generator(self.seed, "blocks", epoch)).tolist()
        start = 0
        for number in range(self._n_buffers):  # of nearly equal size: a small last one would mix badly
            first, last = (self._n_blocks * (number + extra) // self._n_buffers for extra in (0, 1))
            held = tuple(blocks[first:last])
            stop = start + sum(len(self._images_of(block)) for block in held) * self._items_per_image
            yield _Buffer(number, held, start, stop)
            start = stop

    def _images_of(self, block: int) -> np.ndarray:
        return self._images[block * self._images_per_block : (block + 1) * self._images_per_block]

    def _hold(self, epoch: int, buffer: _Buffer) -> Tensor:
        """Have the items of `buffer` in memory; their order in this epoch, (I,) places."""
        n_items = buffer.stop - buffer.start
        if self._held_blocks != buffer.blocks:
            self._held = torch.empty(0)  # let go first: two buffers at once would be twice the memory
            image = (self.stored.n_positions,) if self.whole_images else ()
            shape = (n_items, *image, self.stored.width)
            self._held = torch.empty(shape, dtype=self.stored.dtype, device=self.device)
            at = 0
            for block in buffer.blocks:
                x_bpd = self.stored.take(self._images_of(block), self.stored.dtype)
                items = x_bpd if self.whole_images else x_bpd.flatten(0, 1)
                self._held[at : at + len(items)] = items.to(self.device)
                at += len(items)
            self._held_blocks = buffer.blocks
        if self._order[0] != (epoch, buffer.number):
            order = torch.randperm(n_items, generator=generator(self.seed, "vectors", epoch, buffer.number))
            self._order = ((epoch, buffer.number), order.to(self.device))
        return self._order[1]
