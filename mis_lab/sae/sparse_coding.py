"""Encoders of any dictionary, which search for codes where an SAE's own encoder guesses them in one product.

Mallat & Zhang 1993 (matching pursuit); Pati et al. 1993 (orthogonal matching pursuit); Beck & Teboulle 2009 (FISTA),
with the restarts of O'Donoghue & Candès 2015. Vectors do not see each other: how they are batched changes nothing but
rounding.
"""

# N vectors  L those still worked on  D dimensions  F atoms  K atoms chosen

from __future__ import annotations

from typing import NamedTuple

import torch
from scipy.optimize import nnls
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError

# A residual or correlation this far below the vector's norm is rounding.
NEGLIGIBLE = 1e-10
STEPS_BETWEEN_CHECKS = 10


class LassoCodes(NamedTuple):
    """Codes (N, F) float64 and how far from the best each vector's objective is at most (N,), as a share of
    ½‖x − offset‖²: what is above the tolerance has not converged."""

    codes_nf: Tensor
    gap_n: Tensor


@torch.no_grad()
def matching_pursuit(
    x_nd: Tensor,
    dictionary_fd: Tensor,
    offset_d: Tensor,
    k: int | Tensor,
    orthogonal: bool = False,
    nonnegative: bool = False,
) -> Tensor:
    """(N, F) float64 codes, greedy: k times the atom along which the residual is longest.

    Args:
        x_nd: vectors, in the units of the dictionary.
        dictionary_fd: atoms of any length; one of length 0 is never chosen.
        offset_d: reconstruction of all-zero codes.
        k: steps, for all vectors or (N,) for each. A step may choose an atom again, so that fewer than k codes can
            differ from 0; an orthogonal one does not.
        orthogonal: after each step fit all chosen codes anew by least squares.
        nonnegative: choose atoms that the residual points along, not against: codes stay ≥ 0.

    Raises:
        ConfigError: when shapes do not fit, k is negative, or both options are asked for.
        DataError: when a number is not finite.
    """
    target_nd, atoms_fd = _checked(x_nd, dictionary_fd, offset_d)
    if orthogonal and nonnegative:
        raise ConfigError("orthogonal matching pursuit fits codes of both signs", fix="Choose one of the two.")
    k_n = torch.as_tensor(k, device=target_nd.device).expand(len(target_nd))
    if (k_n < 0).any():
        raise ConfigError(f"{int(k_n.min())} steps of matching pursuit are fewer than none")
    norm_f = atoms_fd.norm(dim=1)
    unit_fd = torch.where(norm_f[:, None] > 0, atoms_fd / norm_f[:, None], 0.0)
    smallest_n = NEGLIGIBLE * target_nd.norm(dim=1)
    n_most = int(k_n.max()) if len(k_n) else 0

    codes_nf = target_nd.new_zeros(len(target_nd), len(atoms_fd))
    chosen_nk = torch.zeros(len(target_nd), n_most, dtype=torch.int64, device=target_nd.device)
    residual_nd = target_nd.clone()
    live = torch.arange(len(target_nd), device=target_nd.device)
    for step in range(n_most):
        live = live[k_n[live] > step]
        along_lf = residual_nd[live] @ unit_fd.T
        size_lf = along_lf if nonnegative else along_lf.abs()
        if orthogonal:
            size_lf = size_lf.scatter(1, chosen_nk[live, :step], -1.0)
        size_l, atom_l = size_lf.max(1)
        goes_on_l = size_l > smallest_n[live]
        live, atom_l, along_lf = live[goes_on_l], atom_l[goes_on_l], along_lf[goes_on_l]
        if not len(live):
            break
        if orthogonal:
            chosen_nk[live, step] = atom_l
            chosen_lk = chosen_nk[live, : step + 1]
            atoms_ldk = unit_fd[chosen_lk].mT
            fit_lk1 = torch.linalg.lstsq(atoms_ldk, target_nd[live, :, None], driver="gels").solution
            residual_nd[live] = target_nd[live] - (atoms_ldk @ fit_lk1)[..., 0]
            codes_nf[live[:, None], chosen_lk] = fit_lk1[..., 0]
        else:
            along_l = along_lf.gather(1, atom_l[:, None])[:, 0]
            residual_nd[live] -= along_l[:, None] * unit_fd[atom_l]
            codes_nf[live, atom_l] += along_l
    return torch.where(norm_f > 0, codes_nf / norm_f, 0.0)


def largest_eigenvalue(dictionary_fd: Tensor) -> float:
    """Of the dictionary's Gram matrix: the squared largest singular value."""
    d_fd = dictionary_fd.detach().double()
    gram = d_fd.T @ d_fd if d_fd.shape[1] < d_fd.shape[0] else d_fd @ d_fd.T
    return float(torch.linalg.eigvalsh(gram)[-1])


@torch.no_grad()
def fista(
    x_nd: Tensor,
    dictionary_fd: Tensor,
    offset_d: Tensor,
    l1: float,
    n_steps: int = 1000,
    nonnegative: bool = True,
    tolerance: float = 1e-6,
) -> LassoCodes:
    """Codes z that minimise ½‖x − offset − z·dictionary‖² + l1·Σ|z|, by accelerated proximal gradient steps.

    Steps are of length 1/largest eigenvalue of the Gram matrix. A vector is done when its duality gap is at most
    `tolerance` times ½‖x − offset‖², or after `n_steps`.

    Raises:
        ConfigError: when shapes do not fit, or l1 or n_steps is not positive.
        DataError: when a number is not finite, or all atoms are 0.
    """
    target_nd, atoms_fd = _checked(x_nd, dictionary_fd, offset_d)
    if l1 <= 0 or n_steps < 1:
        raise ConfigError(f"FISTA needs a positive penalty and number of steps, got l1={l1} and n_steps={n_steps}")
    largest = largest_eigenvalue(atoms_fd)
    if largest <= 0:
        raise DataError("a dictionary whose atoms are all 0 has no codes")
    codes_nf = target_nd.new_zeros(len(target_nd), len(atoms_fd))
    gap_n = target_nd.new_zeros(len(target_nd))

    live, x_ld = torch.arange(len(target_nd), device=target_nd.device), target_nd
    z_lf, y_lf, t_l1 = codes_nf.clone(), codes_nf.clone(), target_nd.new_ones(len(target_nd), 1)
    for step in range(1, n_steps + 1):
        moved_lf = y_lf + (x_ld - y_lf @ atoms_fd) @ atoms_fd.T / largest
        if nonnegative:
            new_lf = (moved_lf - l1 / largest).relu()
        else:
            new_lf = moved_lf.sign() * (moved_lf.abs() - l1 / largest).relu()
        change_lf = new_lf - z_lf
        # The momentum starts anew where it points uphill.
        t_l1 = torch.where(((y_lf - new_lf) * change_lf).sum(1, keepdim=True) > 0, 1.0, t_l1)
        next_l1 = (1 + (1 + 4 * t_l1.square()).sqrt()) / 2
        z_lf, y_lf, t_l1 = new_lf, new_lf + (t_l1 - 1) / next_l1 * change_lf, next_l1
        if step % STEPS_BETWEEN_CHECKS and step < n_steps:
            continue
        gap_l = _duality_gap(x_ld, z_lf, atoms_fd, l1, nonnegative)
        goes_on_l = gap_l > tolerance if step < n_steps else torch.zeros_like(gap_l, dtype=torch.bool)
        codes_nf[live[~goes_on_l]], gap_n[live[~goes_on_l]] = z_lf[~goes_on_l], gap_l[~goes_on_l]
        live, x_ld, z_lf, y_lf, t_l1 = (part[goes_on_l] for part in (live, x_ld, z_lf, y_lf, t_l1))
        if not len(live):
            break
    return LassoCodes(codes_nf, gap_n)


def _duality_gap(x_ld: Tensor, z_lf: Tensor, atoms_fd: Tensor, l1: float, nonnegative: bool) -> Tensor:
    """(L,) primal minus dual objective as a share of ½‖x‖²; the dual point is the residual, shrunk to be feasible."""
    residual_ld = x_ld - z_lf @ atoms_fd
    along_lf = residual_ld @ atoms_fd.T
    steepest_l = (along_lf if nonnegative else along_lf.abs()).amax(1)
    shrunk_ld = residual_ld * (l1 / steepest_l.clamp_min(l1))[:, None]
    primal_l = residual_ld.square().sum(1) / 2 + l1 * z_lf.abs().sum(1)
    half_l = x_ld.square().sum(1) / 2
    dual_l = half_l - (x_ld - shrunk_ld).square().sum(1) / 2
    return torch.where(half_l > 0, (primal_l - dual_l).clamp_min(0) / half_l, 0.0)


@torch.no_grad()
def refit(
    x_nd: Tensor, dictionary_fd: Tensor, offset_d: Tensor, support_nf: Tensor, nonnegative: bool = True
) -> Tensor:
    """(N, F) float64: the best codes with the given atoms alone, by (non-negative) least squares, vector by vector.

    Args:
        support_nf: (N, F) bool, the atoms each vector may use.

    Raises:
        ConfigError: when shapes do not fit.
        DataError: when a number is not finite.
    """
    target_nd, atoms_fd = _checked(x_nd, dictionary_fd, offset_d)
    if support_nf.shape != (len(target_nd), len(atoms_fd)):
        raise ConfigError(f"{len(target_nd)} vectors and {len(atoms_fd)} atoms, but {tuple(support_nf.shape)} supports")
    codes_nf = torch.zeros(support_nf.shape, dtype=torch.float64)
    targets, atoms = target_nd.cpu(), atoms_fd.cpu()
    for row, support_f in enumerate(support_nf.cpu()):
        which = support_f.nonzero()[:, 0]
        if not len(which):
            continue
        if nonnegative:
            codes_nf[row, which] = torch.from_numpy(nnls(atoms[which].T.numpy(), targets[row].numpy())[0])
        else:  # of atoms that say the same, the smallest codes
            solution = torch.linalg.lstsq(atoms[which].T, targets[row, :, None], driver="gelsd").solution
            codes_nf[row, which] = solution[:, 0]
    return codes_nf.to(target_nd.device)


def _checked(x_nd: Tensor, dictionary_fd: Tensor, offset_d: Tensor) -> tuple[Tensor, Tensor]:
    """Vectors without their offset, and atoms, float64."""
    if x_nd.ndim != 2 or dictionary_fd.ndim != 2 or {x_nd.shape[1], *offset_d.shape} != {dictionary_fd.shape[1]}:
        shapes = ", ".join(str(tuple(part.shape)) for part in (x_nd, dictionary_fd, offset_d))
        raise ConfigError(f"vectors, dictionary and offset of shapes {shapes} do not fit together")
    target_nd, atoms_fd = x_nd.detach().double() - offset_d.detach().double(), dictionary_fd.detach().double()
    if not (target_nd.isfinite().all() and atoms_fd.isfinite().all()):
        raise DataError("vectors or atoms to code contain NaN or infinity")
    return target_nd, atoms_fd
