"""How directions share a space: superposition, interference, rank.

For any matrix of directions, a row each: an SAE's dictionary or encoder, or the network's own weights
(:func:`weight_directions`). Elhage et al. 2022, "Toy Models of Superposition"; Roy & Vetterli 2007, "The effective
rank". Everything is computed in float64 from blocks of rows, so that F×F numbers are never held.
"""

# F directions  D dimensions  K rows of a block

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from mis_lab.core.errors import ConfigError, DataError

BLOCK_ROWS = 1024
MOST_OVERLAPS = 4096  # rows of a matrix of overlaps for a picture
N_BINS = 50


@dataclass(frozen=True)
class Geometry:
    """How F directions W_i lie in D dimensions; Ŵ_i is W_i at unit length.

    Directions of length 0 have NaN (neighbour −1) and interfere with nothing.

    Attributes:
        norm_f: (F,) ‖W_i‖.
        dimensionality_f: (F,) ‖W_i‖² / Σ_j (Ŵ_i·W_j)², the share of a dimension that is the direction's own: 1 when
            all others are orthogonal, ½ for one of an antipodal pair (Elhage et al., "feature dimensionality").
        interference_f: (F,) Σ_{j≠i} (Ŵ_i·Ŵ_j)².
        coherence_f: (F,) largest |cos| with any other direction; NaN when there is no other.
        nearest_f: (F,) int64, which one that is (the first of equals).
        overlap_rms: root mean square of the entries of W·Wᵀ off the diagonal.
        singular_values: (min(F, D),) of W, largest first.
        cosine_histogram: (bins,) int64, pairs of directions by |cos| in equal bins from 0 to 1.
        n_dimensions: D.
        n_zero: directions of length 0.
    """

    norm_f: Tensor
    dimensionality_f: Tensor
    interference_f: Tensor
    coherence_f: Tensor
    nearest_f: Tensor
    overlap_rms: float
    singular_values: Tensor
    cosine_histogram: Tensor
    n_dimensions: int
    n_zero: int

    @property
    def coherence(self) -> float:
        """Largest |cos| of any two directions; NaN for a single one."""
        known = self.coherence_f[~self.coherence_f.isnan()]
        return float(known.max()) if len(known) else float("nan")

    @property
    def features_per_dimension(self) -> float:
        """‖W‖_F² / D: features that are represented, by their squared length, per dimension."""
        return float(self.norm_f.square().sum()) / self.n_dimensions

    @property
    def dimensions_per_feature(self) -> float:
        """D* = D / ‖W‖_F² of Elhage et al. It knows lengths only, so it means something where a represented feature has
        length 1: in their toy models, and for unit-norm atoms (then it is D / F)."""
        return 1 / self.features_per_dimension

    @property
    def effective_rank(self) -> float:
        """exp of the entropy of σ / Σσ: between 1 and min(F, D) (Roy & Vetterli 2007)."""
        return float(torch.special.entr(self.singular_values / self.singular_values.sum()).sum().exp())

    @property
    def participation_ratio(self) -> float:
        """(Σσ²)² / Σσ⁴: the same idea with squares, dominated by the largest."""
        squares = self.singular_values.square()
        return float(squares.sum().square() / squares.square().sum())


@torch.no_grad()
def geometry(directions_fd: Tensor, block_rows: int = BLOCK_ROWS, n_bins: int = N_BINS) -> Geometry:
    """How the rows of a matrix share its D dimensions.

    Args:
        directions_fd: F directions, on any device; a length means how strongly a direction is represented.
        block_rows: rows compared with all others at a time (memory of block_rows × F; no result depends on it).
        n_bins: of the histogram of cosines.

    Raises:
        DataError: when a number is not finite, or all directions are of length 0.
    """
    w_fd = _checked(directions_fd)
    norm_f = w_fd.norm(dim=1)
    unit_fd = torch.where(norm_f[:, None] > 0, w_fd / norm_f[:, None], 0.0)
    n, n_living = len(w_fd), int((norm_f > 0).sum())
    if n_living == 0:
        raise DataError(f"all {n} directions have length 0")
    squared_overlap_f, interference_f, coherence_f = (torch.zeros_like(norm_f) for _ in range(3))
    nearest_f = torch.zeros(n, dtype=torch.int64, device=w_fd.device)
    histogram = torch.zeros(n_bins, dtype=torch.float64, device=w_fd.device)
    columns_f = torch.arange(n, device=w_fd.device)
    for start in range(0, n, block_rows):
        rows_k = columns_f[start : start + block_rows]
        cosines_kf = (unit_fd[rows_k] @ unit_fd.T).abs().clamp_max_(1.0)
        cosines_kf[torch.arange(len(rows_k)), rows_k] = 0.0
        interference_f[rows_k] = cosines_kf.square().sum(1)
        squared_overlap_f[rows_k] = (cosines_kf * norm_f).square().sum(1)
        living_pairs_kf = (columns_f > rows_k[:, None]) & (norm_f > 0) & (norm_f[rows_k, None] > 0)
        histogram += torch.histc(cosines_kf[living_pairs_kf], n_bins, 0, 1)
        cosines_kf[:, norm_f == 0] = -1.0
        cosines_kf[torch.arange(len(rows_k)), rows_k] = -1.0
        coherence_f[rows_k], nearest_f[rows_k] = cosines_kf.max(1)
    nothing_f = norm_f == 0
    alone_f = nothing_f | (n_living < 2)
    nan = float("nan")
    n_pairs = n_living * (n_living - 1)
    return Geometry(
        norm_f=norm_f.cpu(),
        dimensionality_f=(norm_f.square() / (norm_f.square() + squared_overlap_f)).cpu(),  # 0/0 is NaN
        interference_f=interference_f.masked_fill(nothing_f, nan).cpu(),
        coherence_f=coherence_f.masked_fill(alone_f, nan).cpu(),
        nearest_f=nearest_f.masked_fill(alone_f, -1).cpu(),
        overlap_rms=float(((norm_f.square() * squared_overlap_f).sum() / n_pairs).sqrt()) if n_pairs else nan,
        singular_values=torch.linalg.svdvals(w_fd).cpu(),
        cosine_histogram=histogram.round().long().cpu(),
        n_dimensions=w_fd.shape[1],
        n_zero=n - n_living,
    )


@torch.no_grad()
def overlaps(directions_fd: Tensor, which: Sequence[int] | None = None) -> Tensor:
    """(K, K) float64: W·Wᵀ of the rows `which` (all by default), for a picture.

    Raises:
        ConfigError: when that is more than 4096 rows.
    """
    w_kd = _checked(directions_fd if which is None else directions_fd[list(which)])
    if len(w_kd) > MOST_OVERLAPS:
        raise ConfigError(
            f"overlaps of {len(w_kd)} directions are too many for a picture", fix=f"Choose up to {MOST_OVERLAPS}."
        )
    return (w_kd @ w_kd.T).cpu()


def weight_directions(module: nn.Module, writes: bool = False) -> Tensor:
    """Directions of a network's own layer: what each output unit reads, (out, in·kernel), or with `writes` what each
    input unit writes, (in, out·kernel).

    Raises:
        ConfigError: when the layer is not linear or a convolution, or its groups make an input unit no direction.
    """
    if isinstance(module, nn.Linear | nn.Conv1d | nn.Conv2d | nn.Conv3d):
        weight = module.weight.detach()
        groups = 1 if isinstance(module, nn.Linear) else module.groups
    else:
        raise ConfigError(
            f"{type(module).__name__} has no directions to look at", fix="Choose a linear layer or a convolution."
        )
    if not writes:
        return weight.flatten(1)
    if groups > 1:
        raise ConfigError(f"the input units of a convolution of {groups} groups write to a group each, not to all")
    return weight.transpose(0, 1).flatten(1)


def _checked(directions_fd: Tensor) -> Tensor:
    if directions_fd.ndim != 2 or 0 in directions_fd.shape:
        raise DataError(f"directions must be rows of a matrix, got shape {tuple(directions_fd.shape)}")
    if not directions_fd.isfinite().all():
        raise DataError("directions contain NaN or infinity")
    device = "cpu" if directions_fd.device.type == "mps" else directions_fd.device
    return directions_fd.detach().to(device, torch.float64)
