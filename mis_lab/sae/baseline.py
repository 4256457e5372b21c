"""What baselines made in one go have in common: no training steps, codes of both signs, the largest of them kept."""

# F features

from __future__ import annotations

import torch
from torch import Tensor

from mis_lab.sae.base import Sae


class FittedSae(Sae):
    """Base of what :meth:`fit` makes; its training takes no steps."""

    is_fitted = True


def keep_largest(codes: Tensor, k: int) -> Tensor:
    """The `k` codes of largest size in each row (..., F), of either sign, all others 0; all where k is 0."""
    if not 0 < k < codes.shape[-1]:
        return codes
    features = codes.abs().topk(k, dim=-1, sorted=False).indices
    return torch.zeros_like(codes).scatter(-1, features, codes.gather(-1, features))
