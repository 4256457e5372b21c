"""What an SAE's encoder loses: its codes against codes that are searched for, with the same dictionary and the same L0.

An encoder amortises the search for sparse codes into one product; dictionary and encoder can be poor separately. FVU is
that of :mod:`mis_lab.sae.evaluate`.
"""

# N vectors of a chunk  P positions  D width of what is reconstructed  F features

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.reconstructions import (
    Reconstructed,
    Stored,
    chosen_images,
    in_float64,
    reconstructed,
    target_moments,
)
from mis_lab.sae.sparse_coding import fista, matching_pursuit, refit

CHUNK_VECTORS = 512
N_TUNING = 256  # vectors on which the penalty is tuned
N_HALVINGS = 12
SMALLEST_PENALTY = 1e-5  # as a share of the one that silences everything


@dataclass(frozen=True)
class CodeQuality:
    """FVU of some codes, and how many are not zero on a vector."""

    fvu: float
    l0: float


@dataclass(frozen=True)
class AmortisationGap:
    """One dictionary, several encoders.

    Attributes:
        encoder: the SAE's own codes.
        refit: the same features, with the best (non-negative) codes: what the encoder loses in sizes (shrinkage).
        pursuit: matching pursuit with as many steps as the encoder has active features on that vector, then the best
            codes of the features it chose; of one sign where codes are.
        orthogonal: orthogonal matching pursuit with as many features; codes of both signs, so it may use what the SAE
            may not.
        lasso: features chosen by an L1 penalty at the encoder's mean L0, with the best codes; None when not asked. It
            may spend many features on one vector and few on another, which an encoder of fixed k cannot.
        l1: that penalty, else NaN.
        n_vectors: size of the set.
    """

    encoder: CodeQuality
    refit: CodeQuality
    pursuit: CodeQuality
    orthogonal: CodeQuality
    lasso: CodeQuality | None
    l1: float
    n_vectors: int

    @property
    def gap(self) -> float:
        """FVU that the encoder loses against the best codes found under its own rules: as many features on every single
        vector, and signs as its own. A lower bound, as the search is greedy."""
        return self.encoder.fvu - min(self.refit.fvu, self.pursuit.fvu)


def amortisation_gap(
    sae: Autoencoder,
    stored: Stored,
    indices: Sequence[int] | None = None,
    *,
    nonnegative: bool = True,
    lasso_steps: int = 200,
    chunk_vectors: int = CHUNK_VECTORS,
) -> AmortisationGap:
    """Compare the SAE's encoder with searches over the images at `indices` (all by default).

    A search costs about L0 encodings a vector, and the fit of the chosen codes a small problem each: some thousand
    vectors are enough.

    Args:
        sae: with a linear dictionary.
        nonnegative: codes are never negative; false for signed codes.
        lasso_steps: steps of FISTA; 0 leaves the L1 search out.
        chunk_vectors: vectors at a time; results do not depend on it (1e-9 relative).

    Raises:
        ConfigError: when the SAE has no linear dictionary.
        DataError: as :func:`mis_lab.sae.evaluate.evaluate_reconstruction`; when codes are negative that should not be.
    """
    atoms_fd, offset_d = _dictionary(sae)
    chosen = chosen_images(stored, indices)
    mean_d = target_moments(sae, stored, chosen, chunk_vectors).mean.to(atoms_fd)
    l1 = _penalty(sae, stored, chosen, atoms_fd, offset_d, nonnegative, lasso_steps) if lasso_steps else float("nan")

    def best(x_nd: Tensor, codes_nf: Tensor) -> Tensor:
        return refit(x_nd, atoms_fd, offset_d, codes_nf != 0, nonnegative)

    searches: dict[str, Callable[[Tensor, Tensor, Tensor], Tensor]] = {
        "refit": lambda x_nd, codes_nf, k_n: best(x_nd, codes_nf),
        "pursuit": lambda x_nd, codes_nf, k_n: best(
            x_nd, matching_pursuit(x_nd, atoms_fd, offset_d, k_n, nonnegative=nonnegative)
        ),
        "orthogonal": lambda x_nd, codes_nf, k_n: matching_pursuit(x_nd, atoms_fd, offset_d, k_n, orthogonal=True),
    }
    if lasso_steps:
        searches["lasso"] = lambda x_nd, codes_nf, k_n: best(
            x_nd, fista(x_nd, atoms_fd, offset_d, l1, lasso_steps, nonnegative).codes_nf
        )
    error, n_active, spread = (
        dict.fromkeys(["encoder", *searches], 0.0),
        dict.fromkeys(["encoder", *searches], 0.0),
        0.0,
    )
    for part in reconstructed(sae, stored, chosen, chunk_vectors, "searching for codes"):
        codes_nf = part.codes_bpf.flatten(0, 1)
        if nonnegative and (codes_nf < 0).any():
            raise DataError("the SAE's codes are negative in places", fix="Pass nonnegative=False.")
        spread += float((part.target_bpd - mean_d).square().sum())
        error["encoder"] += float((part.target_bpd - part.decoded_bpd).square().sum())
        x_nd = _coded(part, atoms_fd, offset_d)
        n_active["encoder"] += float((codes_nf != 0).sum())
        k_n = (codes_nf != 0).sum(1)
        for name, search in searches.items():
            found_nf = search(x_nd, codes_nf, k_n)
            error[name] += float((x_nd - (found_nf @ atoms_fd + offset_d)).square().sum())
            n_active[name] += float((found_nf != 0).sum())
    n_vectors = len(chosen) * stored.n_positions
    quality = {name: CodeQuality(error[name] / spread, n_active[name] / n_vectors) for name in error}
    return AmortisationGap(
        quality["encoder"],
        quality["refit"],
        quality["pursuit"],
        quality["orthogonal"],
        quality.get("lasso"),
        l1,
        n_vectors,
    )


def _dictionary(sae: Autoencoder) -> tuple[Tensor, Tensor]:
    """Atoms and offset, float64."""
    exact = in_float64(sae)
    atoms_fd, offset_d = getattr(exact, "dictionary", None), getattr(exact, "offset", None)
    if not (isinstance(atoms_fd, Tensor) and isinstance(offset_d, Tensor)) or sae.reads_maps:
        raise ConfigError(f"{type(sae).__name__} has no linear dictionary to encode with")
    return atoms_fd.detach(), offset_d.detach()


def _coded(part: Reconstructed, atoms_fd: Tensor, offset_d: Tensor) -> Tensor:
    """(N, D): what the codes are to give, the target less what goes past the dictionary (a transcoder's skip)."""
    past_bpd = part.decoded_bpd - (part.codes_bpf @ atoms_fd + offset_d)
    return (part.target_bpd - past_bpd).flatten(0, 1)


def _penalty(
    sae: Autoencoder,
    stored: Stored,
    chosen: Sequence[int],
    atoms_fd: Tensor,
    offset_d: Tensor,
    nonnegative: bool,
    n_steps: int,
) -> float:
    """The L1 penalty at which FISTA has the encoder's mean L0, by bisection on some vectors spread over the set."""
    n_images = min(len(chosen), max(1, N_TUNING // stored.n_positions))
    images = [chosen[place * len(chosen) // n_images] for place in range(n_images)]
    parts = list(reconstructed(sae, stored, images, what="tuning the penalty"))
    x_nd = torch.cat([_coded(part, atoms_fd, offset_d) for part in parts])
    wanted = sum(float((part.codes_bpf != 0).sum()) for part in parts) / len(x_nd)
    along_nf = (x_nd - offset_d) @ atoms_fd.T
    high = float((along_nf if nonnegative else along_nf.abs()).max())  # all codes are 0
    if high <= 0:
        return 1.0
    low = high * SMALLEST_PENALTY
    for _ in range(N_HALVINGS):
        middle = math.sqrt(low * high)
        codes_nf = fista(x_nd, atoms_fd, offset_d, middle, n_steps, nonnegative).codes_nf
        if float((codes_nf != 0).sum()) / len(x_nd) > wanted:
            low = middle
        else:
            high = middle
    return math.sqrt(low * high)
