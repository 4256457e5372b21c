"""The total order of images that a unit's pools are cut from: by activation, ties at random yet reproducible.

An image's place is one int64 key: the activation's bits, made sortable, above 31 bits that are a bijective
hash of the image's ordinal, keyed by unit and seed. So no two images of a unit are equal; chunks, the order
of arrival and the device change nothing; units break ties differently; and a key tells its image, because the
hash can be undone.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.seeding import derive_seed

# U units  B images  M keys

BITS = 31
MASK = 2**BITS - 1
EMPTY = -(2**63)  # below every key: keys lie within ±2**62
# Odd multipliers with good avalanche (those of the public-domain hash triple32, cut to 31 bits).
_MULTIPLIERS = (0x6C4C1B51, 0x31848BAB)
_INVERSES = tuple(pow(multiplier, -1, 2**BITS) for multiplier in _MULTIPLIERS)


def image_ordinals(ids: Sequence[str]) -> Tensor:
    """(N,) int32: rank of each image's id among the sorted ids, its name wherever it stands."""
    if len(set(ids)) < len(ids):
        raise ValueError("image ids are not unique")
    by_id = torch.tensor(sorted(range(len(ids)), key=lambda index: ids[index]), dtype=torch.int64)
    return by_id.argsort().to(torch.int32)


def hash_keys(seed: int, purpose: str, units: Sequence[int | str]) -> Tensor:
    """(U, 2) int32 in [0, 2^31): what keys the hash of each unit, from its number or name."""
    seeds = torch.tensor([derive_seed(seed, purpose, unit) for unit in units], dtype=torch.int64)
    return torch.stack([seeds & MASK, (seeds >> BITS) & MASK], 1).to(torch.int32)


def mix(ordinals: Tensor, keys_u2: Tensor) -> Tensor:
    """Hash ordinals, a bijection of [0, 2^31) for every unit.

    Args:
        ordinals: (B,) or (U, B) int32.
        keys_u2: (U, 2) from :func:`hash_keys`.

    Returns:
        (U, B) int32. Products wrap around; their low 31 bits are right all the same.
    """
    first, second = keys_u2[:, :1], keys_u2[:, 1:]
    x = ordinals ^ first
    x.mul_(_MULTIPLIERS[0]).bitwise_and_(MASK)
    x.bitwise_xor_(x >> 15).add_(second)
    return x.mul_(_MULTIPLIERS[1]).bitwise_and_(MASK)


def unmix(hashed: Tensor, keys_u2: Tensor) -> Tensor:
    """The ordinals (U, B) that :func:`mix` hashed."""
    first, second = keys_u2[:, :1], keys_u2[:, 1:]
    x = (hashed * _INVERSES[1]).sub_(second).bitwise_and_(MASK)
    x = x ^ (x >> 15) ^ (x >> 30)
    return x.mul_(_INVERSES[0]).bitwise_and_(MASK).bitwise_xor_(first)


def encode(a_ub: Tensor, ties_ub: Tensor) -> Tensor:
    """Keys (U, B) int64 that sort as (activation, tie).

    Args:
        a_ub: float32 without NaN; −0.0 equals 0.0.
        ties_ub: int32 in [0, 2^31).
    """
    bits = (a_ub + 0.0).view(torch.int32)  # −0.0 + 0.0 = 0.0
    bits = bits ^ ((bits >> 31) & MASK)  # negative floats sort backwards
    return bits.to(torch.int64).mul_(2**BITS).add_(ties_ub)


def decode(keys: Tensor) -> tuple[Tensor, Tensor]:
    """Activations (float32) and ties (int32) of keys; meaningless where a key is ``EMPTY``."""
    bits = (keys >> BITS).to(torch.int32)
    return (bits ^ ((bits >> 31) & MASK)).view(torch.float32), (keys & MASK).to(torch.int32)


def largest(keys_um: Tensor, k: int) -> Tensor:
    """The `k` largest of each row, in no order; `keys_um` is overwritten."""
    if keys_um.device.type == "cpu":
        # NumPy partitions integers with vector instructions, several times as fast as torch.topk on the CPU.
        array = keys_um.numpy()
        array.partition(array.shape[1] - k, axis=1)
        return keys_um[:, array.shape[1] - k :].clone()
    return keys_um.topk(k, dim=1, sorted=False).values


def descending(keys_um: Tensor) -> Tensor:
    """The keys of each row, the largest first."""
    if keys_um.device.type == "cpu":  # with vector instructions, as in :func:`largest`
        return torch.from_numpy(np.sort(keys_um.numpy(), axis=1)).flip(1)
    return keys_um.sort(1, descending=True).values


def within_cap(keys_um: Tensor, groups_um: Tensor, per_group: int) -> Tensor:
    """Which keys are among the `per_group` largest of their group and row, (U, M) bool."""
    descending = keys_um.argsort(dim=1, descending=True)
    by_group = descending.gather(1, groups_um.gather(1, descending).argsort(dim=1, stable=True))
    group = groups_um.gather(1, by_group)
    place = torch.arange(keys_um.shape[1], device=keys_um.device).expand_as(group)
    begins = torch.ones_like(group, dtype=torch.bool)
    begins[:, 1:] = group[:, 1:] != group[:, :-1]
    rank = place - place.masked_fill(~begins, 0).cummax(1).values
    return torch.zeros_like(begins).scatter_(1, by_group, rank < per_group)
