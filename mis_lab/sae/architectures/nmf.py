"""Non-negative matrix factorisation: atoms and codes without a sign, x ≈ z·H with z ≥ 0 and H ≥ 0.

Lee and Seung 1999; atoms by mini-batches (Lefèvre, Bach and Févotte 2011, scikit-learn's MiniBatchNMF), codes by
non-negative least squares. docs/sae/nmf.md.
"""

# N vectors  L those still worked on  D site width  F features

from __future__ import annotations

import warnings
from typing import ClassVar, NoReturn

import torch
import torch.nn.functional as F
from sklearn.decomposition import MiniBatchNMF
from sklearn.exceptions import ConvergenceWarning
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.statistics import Moments
from mis_lab.sae.base import Vectors, sample_moments
from mis_lab.sae.baseline import FittedSae
from mis_lab.sae.baseline_config import NmfConfig
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.trainer_config import Normalisation

TOLERANCE = 1e-5  # of the slope left, as a share of the largest product of vector and atoms
STEPS_BETWEEN_CHECKS = 10


class NmfSae(FittedSae):
    """Contract and arguments: :class:`mis_lab.sae.base.Sae`, but its encoder is a search, without weights; offset 0."""

    config_type: ClassVar[type[SaeConfig]] = NmfConfig
    config: NmfConfig

    def __init__(self, config: NmfConfig, width: int) -> None:
        super().__init__(config, width)
        del self.W_enc, self.b_enc

    def activation(self, pre: Tensor) -> NoReturn:
        self._refuse()

    @property
    def encoder_weights(self) -> NoReturn:
        self._refuse()

    def _refuse(self) -> NoReturn:
        raise ConfigError("the encoder of NMF is a search: it has no weights and no pre-activations")

    def encode(self, x: Tensor) -> Tensor:
        """Codes (..., F) of raw activations (..., D): of all that are ≥ 0 those of least error."""
        rows_nd = self.normalise(x).reshape(-1, self.width)
        return nonnegative_codes(rows_nd, self.atoms, self.config.n_steps).reshape(*x.shape[:-1], self.n_features)

    @torch.no_grad()
    def fold_scale(self) -> None:
        self.W_dec.div_(self.scale)
        self.variance.div_(self.scale.square())
        self.scale.fill_(1.0)

    @torch.no_grad()
    def initialise(
        self, sample_nd: Tensor, generator: torch.Generator, normalisation: Normalisation = Normalisation.unit_variance
    ) -> None:
        """Units, and random non-negative atoms until :meth:`fit` is called.

        Raises:
            DataError: when the sample has negative numbers, is not finite, or all its vectors are equal.
        """
        self.start_units(moments_without_sign(sample_nd), normalisation)
        self.b_dec.zero_()
        atoms_fd = torch.rand(self.n_features, self.width, generator=generator)
        self.W_dec.copy_(F.normalize(atoms_fd, dim=1))

    @torch.no_grad()
    def fit(self, vectors: Vectors, generator: torch.Generator) -> None:
        """Set the atoms by a sample of the vectors.

        Raises:
            DataError: when it has negative numbers.
        """
        sample_nd = vectors.sample(min(self.config.n_vectors, vectors.n_vectors))
        moments_without_sign(sample_nd)
        sample_nd = self.normalise(sample_nd).double().cpu()
        model = MiniBatchNMF(
            self.n_features,
            max_iter=self.config.max_epochs,
            random_state=int(torch.randint(2**31, (), generator=generator)),
        )
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ConvergenceWarning)  # the budget is the user's
            model.fit(sample_nd.numpy())
        self.W_dec.copy_(F.normalize(torch.from_numpy(model.components_), dim=1))


def moments_without_sign(sample_nd: Tensor) -> Moments:
    """:func:`mis_lab.sae.base.sample_moments` of vectors that must not be negative anywhere."""
    moments = sample_moments(sample_nd)
    if float(moments.minimum.min()) < 0:
        raise DataError(
            f"NMF needs activations without negative numbers, these go down to {float(moments.minimum.min()):.3g}",
            fix="Use a site after a ReLU, or sae=topk.",
        )
    return moments


@torch.no_grad()
def nonnegative_codes(x_nd: Tensor, atoms_fd: Tensor, n_steps: int) -> Tensor:
    """(N, F) codes z ≥ 0 that minimise ‖x − z·atoms‖², by accelerated projected gradients (Beck and Teboulle 2009) with
    restarts (O'Donoghue and Candès 2015), in float64; each vector until its slope is negligible, `n_steps` at most."""
    atoms_ff = (atoms_fd.double() @ atoms_fd.double().T).contiguous()
    product_lf = x_nd.double() @ atoms_fd.double().T
    codes_nf = torch.zeros_like(product_lf)
    largest = float(torch.linalg.eigvalsh(atoms_ff)[-1])
    if largest <= 0:
        return codes_nf.to(x_nd)
    negligible_l = TOLERANCE * product_lf.abs().amax(1)
    live = torch.arange(len(x_nd), device=x_nd.device)
    z_lf, y_lf = codes_nf.clone(), codes_nf.clone()
    t_l1 = z_lf.new_ones(len(z_lf), 1)
    for step in range(1, n_steps + 1):
        new_lf = (y_lf - (y_lf @ atoms_ff - product_lf) / largest).relu()
        change_lf = new_lf - z_lf
        # The momentum starts anew where it points uphill.
        t_l1 = torch.where(((y_lf - new_lf) * change_lf).sum(1, keepdim=True) > 0, 1.0, t_l1)
        next_l1 = (1 + (1 + 4 * t_l1.square()).sqrt()) / 2
        z_lf, y_lf, t_l1 = new_lf, new_lf + (t_l1 - 1) / next_l1 * change_lf, next_l1
        if step % STEPS_BETWEEN_CHECKS and step < n_steps:
            continue
        codes_nf[live] = z_lf
        slope_lf = z_lf @ atoms_ff - product_lf
        left_l = torch.where(z_lf > 0, slope_lf.abs(), (-slope_lf).relu()).amax(1)
        goes_on_l = left_l > negligible_l
        if not goes_on_l.any():
            break
        live, product_lf, negligible_l = live[goes_on_l], product_lf[goes_on_l], negligible_l[goes_on_l]
        z_lf, y_lf, t_l1 = z_lf[goes_on_l], y_lf[goes_on_l], t_l1[goes_on_l]
    return codes_nf.to(x_nd)
