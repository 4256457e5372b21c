"""What became of a unit: scored, or why it has no number (it then has NaN and a status, never 0.5)."""

from __future__ import annotations

from enum import Enum

import torch
from torch import Tensor

from mis_lab.core.errors import DataError

# U units

CONSTANT_BELOW = 1e-8


class UnitStatus(Enum):
    """Status of a unit; the number is what is stored.

    ok: it has a score.
    dead: never negative and active on no image.
    constant: its activations differ by less than 1e-8 over all images (Zimmermann et al. 2024).
    too_rare: active on too few images for `min_tasks` tasks.
    too_few_groups: enough images, but in too few groups for tasks without two images of one group, or too few of
        their classes for negatives within_class.
    """

    ok = 0
    dead = 1
    constant = 2
    too_rare = 3
    too_few_groups = 4


def is_sparse(minimum_u: Tensor) -> Tensor:
    """(U,) bool: the unit is never negative, so that zero means silent and no image is extreme at zero."""
    return minimum_u >= 0


def silent_status(n_active_u: Tensor, minimum_u: Tensor, maximum_u: Tensor) -> Tensor:
    """Status (U,) int64 as far as activations alone tell: dead, constant, or ok for all others.

    Args:
        n_active_u: number of images with an activation above zero.
        minimum_u, maximum_u: over the images.

    Raises:
        DataError: when a unit has an activation that is NaN or infinite.
    """
    broken = ~(torch.isfinite(minimum_u) & torch.isfinite(maximum_u))
    if broken.any():
        which = ", ".join(str(unit) for unit in broken.nonzero().flatten().tolist()[:5])
        raise DataError(
            f"{int(broken.sum())} units have activations that are NaN or infinite (unit {which})",
            fix="Look at the images that cause it, or at the SAE's training; such a unit cannot be ranked.",
        )
    status = torch.full(minimum_u.shape, UnitStatus.ok.value, dtype=torch.int64)
    status[maximum_u.double() - minimum_u.double() < CONSTANT_BELOW] = UnitStatus.constant.value
    status[is_sparse(minimum_u) & (n_active_u == 0)] = UnitStatus.dead.value
    return status
