"""Random draws for many units at once from integer hashes: a draw depends on seed, unit and position alone.

So ids are equal to the bit whatever the chunk, the order of units or the device, and no generator object is
made per unit. The hash is SplitMix64 (Steele, Lea and Flood 2014), which passes BigCrush as a counter-based
stream.
"""

from __future__ import annotations

import torch
from torch import Tensor

# U units  N tasks  M positions in a pool

_GAMMA = 0x9E3779B97F4A7C15 - (1 << 64)
_MULTIPLIERS = (0xBF58476D1CE4E5B9 - (1 << 64), 0x94D049BB133111EB - (1 << 64))
_LARGEST = (1 << 63) - 1


def mix(x: Tensor) -> Tensor:
    """SplitMix64's finaliser: a bijection of the int64 numbers that looks random."""
    for shift, multiplier in zip((30, 27), _MULTIPLIERS, strict=True):
        x = (x ^ _shifted(x, shift)) * multiplier
    return x ^ _shifted(x, 31)


def _shifted(x: Tensor, bits: int) -> Tensor:
    """Logical shift to the right (torch's ``>>`` copies the sign)."""
    return (x >> bits) & ((1 << (64 - bits)) - 1)


def hashes(seed: int, unit_keys_u: Tensor, counters: Tensor) -> Tensor:
    """Numbers in [0, 2^63), one for each unit and counter.

    Args:
        unit_keys_u: (U,) int64, what the unit is called whatever its place in a chunk.
        counters: (n,) or (U, n) int64, distinct within a unit.

    Returns:
        (U, n) int64.
    """
    stream_u = mix(mix(unit_keys_u.to(torch.int64) + _GAMMA) ^ seed)
    return mix(stream_u[:, None] + (counters + 1) * _GAMMA) & _LARGEST


def permutations(seed: int, unit_keys_u: Tensor, n_bins: int, sizes_u: Tensor, largest: int) -> Tensor:
    """Independent permutations of 0..size-1, `n_bins` for each unit.

    Returns:
        (U, n_bins, largest) int64; the first `size` entries of a row are the permutation, what follows is
        filler.
    """
    counters = torch.arange(n_bins * largest)
    keys = hashes(seed, unit_keys_u, counters).view(-1, n_bins, largest)
    unused = torch.arange(largest) >= sizes_u[:, None]
    return keys.masked_fill(unused[:, None], _LARGEST).argsort(dim=-1, stable=True)


def subsets(seed: int, unit_keys_u: Tensor, n_tasks: int, size: int, populations_u: Tensor) -> Tensor:
    """Uniform subsets of 0..population-1 without repetition, `n_tasks` for each unit (Floyd's algorithm).

    Args:
        populations_u: (U,) how many there are to choose from; rows with fewer than `size` hold no meaning.

    Returns:
        (U, n_tasks, size) int64, in no particular order (nor in a random one).
    """
    numbers = hashes(seed, unit_keys_u, torch.arange(n_tasks * size)).view(-1, n_tasks, size)
    last_u = populations_u.clamp_min(size)[:, None] - size
    chosen = torch.empty_like(numbers)
    for step in range(size):
        newest = (last_u + step).expand(-1, n_tasks)
        number = numbers[..., step] % (newest + 1)
        taken = (chosen[..., :step] == number[..., None]).any(-1)
        chosen[..., step] = torch.where(taken, newest, number)
    return chosen
