"""Random numbers from explicit generators only: one seed, one independent stream per named use.

The global generators of torch, NumPy and Python are never drawn from nor seeded.
"""

from __future__ import annotations

import hashlib
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import numpy as np
    import torch


def derive_seed(seed: int, *scope: str | int) -> int:
    """A 63-bit seed for the stream named by `scope`: streams of different names are independent."""
    text = "/".join(str(part) for part in (seed, *scope))
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "big") >> 1


def generator(seed: int, *scope: str | int) -> torch.Generator:
    """A torch generator on the CPU (so that every device gets the same numbers) for the stream `scope`."""
    import torch

    return torch.Generator().manual_seed(derive_seed(seed, *scope))


def numpy_generator(seed: int, *scope: str | int) -> np.random.Generator:
    """A NumPy generator for the stream `scope`."""
    import numpy as np

    return np.random.default_rng(derive_seed(seed, *scope))
