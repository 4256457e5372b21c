"""Pools: each unit's most and least activating images, gathered exactly while activations stream by.

A pool is the start or the end of the unit's total order of images (see :mod:`mis_lab.activations.order`), so
chunks, order of arrival and order of units change nothing. With at most c images of a group, a pool is the
greedy basis of a truncated partition matroid; the basis of a union is that of the union of the bases, so
merging stays exact: of chunks, and of what several jobs gathered from images of their own.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.order import (
    EMPTY,
    decode,
    descending,
    encode,
    hash_keys,
    image_ordinals,
    largest,
    mix,
    unmix,
    within_cap,
)
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import UnitSource, image_activations, permute_images
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import content_key
from mis_lab.core.progress import progress

# U units  S pool size  B images of a chunk  N images of the data set  M keys

KEYS_AT_ONCE = {"cpu": 2**18}  # of a block of units: its few int64 copies stay in the cache


class Pools(NamedTuple):
    """Images of each unit; −1 (and NaN for a value) where there are fewer than S.

    Attributes:
        top, bottom: (U, S) int32 image indices, the most extreme first.
        top_values, bottom_values: (U, S) float32 image activations.
        random: (U, S) int32, images outside the top pool in random order; (U, 0) where not asked for.
        n_active: (U,) int64, images with an activation above zero.
        minimum, maximum: (U,) float32 over all images.
        n_images: images seen.
    """

    top: Tensor
    top_values: Tensor
    bottom: Tensor
    bottom_values: Tensor
    random: Tensor
    n_active: Tensor
    minimum: Tensor
    maximum: Tensor
    n_images: int

    def of_units(self, units: slice | Sequence[int] | Tensor) -> Pools:
        """The pools of some units, by their places here."""
        at = units if isinstance(units, slice) else torch.as_tensor(units)
        return self._replace(**{name: part[at] for name, part in self._asdict().items() if name != "n_images"})


class PoolGatherer:
    """Collects pools from image activations that come in any order and any chunks, each image once.

    Args:
        n_units: U.
        size: S, images of a pool.
        ids: (N,) image ids; an image's index is its place here. Ties follow the ids, not the places.
        seed: of ties and of the random pool.
        groups: (N,) group of each image; needed for `per_group`.
        per_group: at most so many images of a group in a pool (0 = any number).
        positive_only: the top pool takes only images with an activation above zero.
        units: (U,) what each unit is called, a number or a name; its number by default. Under the same name
            it breaks ties in the same way, wherever it stands.
        device: where keys are kept.
        measure: what an image's activation is, in a word; only what has one measure can be merged.
    """

    def __init__(
        self,
        n_units: int,
        size: int,
        ids: Sequence[str],
        seed: int,
        groups: Sequence[str] | None = None,
        per_group: int = 0,
        positive_only: bool = False,
        units: Sequence[int | str] | None = None,
        device: torch.device | str = "cpu",
        measure: str = "",
    ) -> None:
        if size < 1 or per_group < 0:
            raise ValueError(f"pools of {size} images, {per_group} a group")
        self.size, self.per_group, self.positive_only = size, per_group, positive_only
        self.ids = ids
        self.units = list(range(n_units)) if units is None else list(units)
        if len(self.units) != n_units:
            raise ValueError(f"{len(self.units)} names for {n_units} units")
        self._settings = {
            "seed": str(seed),
            "size of the pools": str(size),
            "images of a group": str(per_group),
            "only positive": str(positive_only),
            "measure": measure,
        }
        self._groups = groups if per_group else None
        self._ordinals = image_ordinals(ids).to(device)
        self._index_of = self._ordinals.argsort().to(torch.int32)
        self._tie_keys = hash_keys(seed, "ties", self.units).to(device)
        self._random_keys = hash_keys(seed, "random pool", self.units).to(device)
        if per_group:
            if groups is None or len(groups) != len(ids):
                raise ValueError("per_group needs a group for every image")
            numbers = {group: number for number, group in enumerate(dict.fromkeys(groups))}
            group_of = torch.tensor([numbers[group] for group in groups], dtype=torch.int32)
            self._group_of_ordinal = group_of.to(device)[self._index_of.long()]
        self._top = torch.full((n_units, size), EMPTY, device=device)
        self._bottom = torch.full((n_units, size), EMPTY, device=device)  # complements: largest = least
        self._seen = torch.zeros(len(ids), dtype=torch.bool)
        self._n_active = torch.zeros(n_units, dtype=torch.int64, device=device)
        self._minimum = torch.full((n_units,), torch.inf, device=device)
        self._maximum = torch.full((n_units,), -torch.inf, device=device)
        self._waiting: list[tuple[Tensor, Tensor]] = []  # (a_bu, ordinals_b) not merged yet
        self._n_waiting = 0

    def update(self, a_bu: Tensor, indices: Sequence[int]) -> None:
        """Add images.

        Args:
            a_bu: (B, U) image activations; compared as float32.
            indices: (B) the images' places in `ids`.

        Raises:
            DataError: naming unit and image, when an activation is NaN or infinite.
        """
        places = torch.as_tensor(indices, dtype=torch.int64)
        if tuple(a_bu.shape) != (len(places), len(self.units)):
            n_units = len(self.units)
            raise ValueError(f"{tuple(a_bu.shape)} activations for {len(places)} images and {n_units} units")
        if not len(places):
            return
        if self._seen[places].any() or len(places.unique()) < len(places):
            raise ValueError("an image came twice")
        self._seen[places] = True
        a_bu = a_bu.detach().to(self._top.device, torch.float32, copy=True)  # kept: the caller may use its own again
        lowest, highest = a_bu.amin(0) + 0.0, a_bu.amax(0) + 0.0  # −0.0 + 0.0 = 0.0, whatever came first
        if not (lowest.isfinite() & highest.isfinite()).all():
            self._refuse(a_bu, places)
        self._minimum = torch.minimum(self._minimum, lowest)
        self._maximum = torch.maximum(self._maximum, highest)
        self._n_active += (a_bu > 0).sum(0)
        self._waiting.append((a_bu, self._ordinals[places.to(a_bu.device)]))
        self._n_waiting += len(places)
        if self._n_waiting >= 4 * self.size:  # as much memory as the pools; merging every chunk costs more
            self._merge()

    def _refuse(self, a_bu: Tensor, places: Tensor) -> None:
        image, unit = (~a_bu.isfinite()).nonzero()[0].tolist()
        kind = "NaN" if a_bu[image, unit].isnan() else "infinite"
        raise DataError(
            f"activation of unit {self.units[unit]} on image {self.ids[int(places[image])]} is {kind}",
            fix="Such a unit cannot be ranked: look at that image, or at the SAE's training.",
        )

    def _blocks(self, n_keys: int) -> Iterator[slice]:
        """Units so few that `n_keys` keys of each fit into the cache."""
        step = max(1, KEYS_AT_ONCE.get(self._top.device.type, 2**25) // n_keys)
        return (slice(start, start + step) for start in range(0, len(self.units), step))

    def _merge(self) -> None:
        if not self._waiting:
            return
        ordinals_b = torch.cat([ordinals for _, ordinals in self._waiting])
        for block in self._blocks(self.size + len(ordinals_b)):
            a_ub = torch.cat([a_bu[:, block] for a_bu, _ in self._waiting]).T.contiguous()
            keys = encode(a_ub, mix(ordinals_b, self._tie_keys[block]))
            least = torch.cat([self._bottom[block], ~keys], 1)
            self._bottom[block] = self._best(least, block, complement=True)
            if self.positive_only:
                keys.masked_fill_(a_ub <= 0, EMPTY)
            self._top[block] = self._best(torch.cat([self._top[block], keys], 1), block)
        self._waiting, self._n_waiting = [], 0

    def _best(self, keys_um: Tensor, block: slice, complement: bool = False) -> Tensor:
        """The S largest keys (U, S) of each unit, no more than `per_group` of a group."""
        if self.per_group:
            _, ties = decode(~keys_um if complement else keys_um)
            # An empty place may count for any group: its key comes after all others.
            ordinals = unmix(ties, self._tie_keys[block]).long().masked_fill_(keys_um == EMPTY, 0)
            capped = within_cap(keys_um, self._group_of_ordinal[ordinals], self.per_group)
            keys_um = keys_um.masked_fill(~capped, EMPTY)
        return largest(keys_um, self.size)

    def result(self, random: bool = True) -> Pools:
        """The pools of the images seen so far, with or without random ones; gathering may go on afterwards."""
        self._merge()
        top, top_values = self._read(descending(self._top))
        bottom, bottom_values = self._read(descending(self._bottom), complement=True)
        return Pools(
            top.cpu(),
            top_values.cpu(),
            bottom.cpu(),
            bottom_values.cpu(),
            self._random_pool(top).cpu() if random else torch.empty((len(top), 0), dtype=torch.int32),
            self._n_active.cpu(),
            self._minimum.cpu(),
            self._maximum.cpu(),
            int(self._seen.sum()),
        )

    def state(self) -> dict[str, Tensor]:
        """What was gathered so far, for a file and :meth:`merge`: the same images give the same bytes."""
        self._merge()
        tensors = {
            "top": descending(self._top),
            "bottom": descending(self._bottom),
            "seen": self._seen.clone(),
            "n_active": self._n_active.clone(),
            "minimum": self._minimum.clone(),
            "maximum": self._maximum.clone(),
        }
        return {name: tensor.cpu() for name, tensor in tensors.items()} | self._about()

    def merge(self, state: Mapping[str, Tensor]) -> None:
        """Add what a gatherer with the same settings saw of other images; afterwards it is as if all had come here.

        Args:
            state: of the other gatherer, from :meth:`state`.

        Raises:
            ConfigError: naming what differs.
            DataError: naming an image that both saw.
        """
        differing = [
            name for name, key in self._about().items() if name not in state or not torch.equal(key, state[name])
        ]
        if differing:
            raise ConfigError(
                f"these parts of the pools do not belong together: they differ in {', '.join(differing)}",
                fix="Gather all parts with the same settings, units and list of images.",
            )
        if len(twice := (self._seen & state["seen"]).nonzero()):
            raise DataError(
                f"image {self.ids[int(twice[0])]} is in two parts of the pools ({len(twice)} are)",
                fix="Give every job images of its own.",
            )
        device = self._top.device
        for block in self._blocks(2 * self.size):
            top, bottom = state["top"][block].to(device), state["bottom"][block].to(device)
            self._top[block] = self._best(torch.cat([self._top[block], top], 1), block)
            self._bottom[block] = self._best(torch.cat([self._bottom[block], bottom], 1), block, complement=True)
        self._seen |= state["seen"]
        self._n_active += state["n_active"].to(device)
        self._minimum = torch.minimum(self._minimum, state["minimum"].to(device))
        self._maximum = torch.maximum(self._maximum, state["maximum"].to(device))

    def _about(self) -> dict[str, Tensor]:
        """Keys of what parts must have in common."""
        common = self._settings | {"images": self.ids, "units": self.units, "groups": self._groups}
        return {name: torch.tensor([*bytes.fromhex(content_key(it))], dtype=torch.uint8) for name, it in common.items()}

    def _read(self, keys_us: Tensor, complement: bool = False) -> tuple[Tensor, Tensor]:
        """Image indices and activations of keys."""
        images = torch.empty_like(keys_us, dtype=torch.int32)
        activations = torch.empty_like(keys_us, dtype=torch.float32)
        for block in self._blocks(self.size):
            empty = keys_us[block] == EMPTY
            values, ties = decode(~keys_us[block] if complement else keys_us[block])
            ordinals = unmix(ties, self._tie_keys[block]).long().masked_fill_(empty, 0)
            images[block] = self._index_of[ordinals].masked_fill_(empty, -1)
            activations[block] = values.masked_fill_(empty, torch.nan)
        return images, activations

    def _random_pool(self, top: Tensor) -> Tensor:
        """(U, S) images outside the top pool, by a hash that knows nothing of activations."""
        images = self._seen.nonzero()[:, 0].to(top.device)
        n_images = len(images)
        column = torch.full((len(self.ids),), n_images, device=top.device)  # image → its place in `images`
        column[images] = torch.arange(n_images, device=top.device)
        random = torch.full_like(top, -1)
        k = min(self.size, n_images)
        for block in self._blocks(max(1, n_images)):
            keys = mix(self._ordinals[images], self._random_keys[block]).long()
            taken = torch.zeros((len(keys), n_images + 1), dtype=torch.bool, device=top.device)
            in_top = torch.where(top[block] >= 0, column[top[block].clamp_min(0).long()], n_images)
            taken.scatter_(1, in_top, True)  # padding goes into the column too many
            keys.masked_fill_(taken[:, :-1], EMPTY)
            if self.per_group:
                groups = self._group_of_ordinal[self._ordinals[images].long()].expand_as(keys)
                keys.masked_fill_(~within_cap(keys, groups, self.per_group), EMPTY)
            chosen = descending(largest(keys, k))
            empty = chosen == EMPTY
            ordinals = unmix(chosen.masked_fill(empty, 0).to(torch.int32), self._random_keys[block]).long()
            random[block, :k] = self._index_of[ordinals.masked_fill_(empty, 0)].masked_fill_(empty, -1)
        return random


def gather(
    stored: StoredActivations,
    source: UnitSource,
    size: int,
    seed: int,
    image_activation: ImageActivation = ImageActivation.mean,
    per_group: int = 0,
    positive_only: bool = False,
    units: Sequence[int] | None = None,
    permute_seed: int | None = None,
    device: torch.device | str = "cpu",
) -> Pools:
    """Pools of the units of `source` over all stored images; arguments and errors as of :func:`gather_part`."""
    return gather_part(
        stored, source, size, seed, image_activation, per_group, positive_only, units, permute_seed, device
    ).result()


def gather_part(
    stored: StoredActivations,
    source: UnitSource,
    size: int,
    seed: int,
    image_activation: ImageActivation = ImageActivation.mean,
    per_group: int = 0,
    positive_only: bool = False,
    units: Sequence[int] | None = None,
    permute_seed: int | None = None,
    device: torch.device | str = "cpu",
    images: range | None = None,
) -> PoolGatherer:
    """What one job gathers; the parts of several jobs are merged (:meth:`PoolGatherer.merge`).

    Args:
        size, seed, per_group, positive_only: see :class:`PoolGatherer`; groups are the store's.
        units: numbers of the units wanted, in this order; all by default.
        permute_seed: give every unit's activations to other images (:func:`permute_images`): a control. It
            holds all images' activations of these units at once, so choose few.
        device: where activations are computed, and ranked if it is a CUDA device.
        images: which are seen, one of :func:`~mis_lab.activations.units.image_slices` or ``range(0)``; all by default.

    Raises:
        DataError: naming unit and image, when an activation is NaN or infinite.
    """
    if permute_seed is not None and images is not None:
        raise ValueError("a permutation needs all images")
    numbers = list(range(source.n_units)) if units is None else list(units)
    names = [f"{stored.site.path}/{source.kind}/{number}" for number in numbers]
    gatherer = PoolGatherer(
        len(numbers),
        size,
        stored.ids,
        seed,
        stored.groups,
        per_group,
        positive_only,
        names,
        device=device if torch.device(device).type == "cuda" else "cpu",
        measure=f"{image_activation.name} permuted by {permute_seed}",
    )
    columns = None if units is None else torch.tensor(numbers, dtype=torch.int64, device=device)
    chunks = (
        (indices, a_bu if columns is None else a_bu.index_select(1, columns))
        for indices, a_bu in image_activations(stored, source, image_activation, device, images)
    )
    shown = progress(chunks, f"{source.kind}s of {stored.site.path}, images", unit="chunk")
    if permute_seed is None:
        for indices, a_bu in shown:
            gatherer.update(a_bu, indices)
    else:
        a_nu = torch.cat([a_bu for _, a_bu in shown])
        by_id = image_ordinals(stored.ids).argsort()
        gatherer.update(permute_images(a_nu[by_id.to(a_nu.device)], permute_seed, names), by_id.tolist())
    return gatherer
