"""Searched codes against scikit-learn's and SciPy's, and what they say about an SAE's encoder."""

# N vectors  D dimensions  F atoms

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.optimize import nnls
from sklearn.linear_model import Lasso, orthogonal_mp
from torch import Tensor
from torch.nn.functional import normalize

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import generator
from mis_lab.sae.amortisation import amortisation_gap
from mis_lab.sae.base import Sae, SaeOutput
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.sparse_coding import fista, largest_eigenvalue, matching_pursuit, refit

N, D, F = 12, 8, 20
OFFSET = torch.linspace(-1, 2, D).double()


def draw(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed)).double()


@pytest.fixture(scope="module")
def atoms() -> Tensor:
    """Of unequal lengths, which must not decide what is chosen."""
    return draw(F, D, seed=1) * torch.linspace(0.2, 3, F)[:, None]


@pytest.fixture(scope="module")
def x() -> Tensor:
    return draw(N, D) + OFFSET


@pytest.mark.parametrize("k", [1, 3, D])
def test_orthogonal_matching_pursuit_is_scikit_learns(x: Tensor, atoms: Tensor, k: int) -> None:
    codes = matching_pursuit(x, atoms, OFFSET, k, orthogonal=True)
    unit = atoms / atoms.norm(dim=1, keepdim=True)
    expected = orthogonal_mp(unit.T.numpy(), (x - OFFSET).T.numpy(), n_nonzero_coefs=k).T / atoms.norm(dim=1).numpy()
    np.testing.assert_allclose(codes, expected, atol=1e-10)
    assert ((codes != 0).sum(1) == k).all()


@pytest.mark.parametrize("nonnegative", [False, True])
def test_matching_pursuit_by_its_definition(x: Tensor, atoms: Tensor, nonnegative: bool) -> None:
    codes = matching_pursuit(x, atoms, OFFSET, 15, nonnegative=nonnegative)
    unit = (atoms / atoms.norm(dim=1, keepdim=True)).numpy()
    for row in range(N):
        residual, expected = (x[row] - OFFSET).numpy(), np.zeros(F)
        for _ in range(15):
            along = unit @ residual
            best = np.argmax(along if nonnegative else np.abs(along))
            expected[best] += along[best]
            residual = residual - along[best] * unit[best]
        np.testing.assert_allclose(codes[row], expected / atoms.norm(dim=1).numpy(), atol=1e-10)
    assert not nonnegative or (codes >= 0).all()


@given(seed=st.integers(0, 999), k=st.integers(0, 10))
def test_more_steps_never_hurt(seed: int, k: int) -> None:
    x, atoms, offset = draw(6, 5, seed=seed), draw(9, 5, seed=seed + 1), draw(5, seed=seed + 2)
    for orthogonal in (False, True):
        errors = [
            (x - offset - matching_pursuit(x, atoms, offset, steps, orthogonal) @ atoms).norm(dim=1)
            for steps in (k, k + 1)
        ]
        assert (errors[1] <= errors[0] + 1e-12).all()


def test_vectors_may_have_steps_of_their_own_and_do_not_see_each_other(x: Tensor, atoms: Tensor) -> None:
    k = torch.arange(N) % 5
    for options in ({"orthogonal": True}, {"orthogonal": False}, {"nonnegative": True}):
        together = matching_pursuit(x, atoms, OFFSET, k, **options)
        for row in range(N):
            alone = matching_pursuit(x[row : row + 1], atoms, OFFSET, int(k[row]), **options)
            torch.testing.assert_close(together[row], alone[0], rtol=1e-9, atol=1e-12)
    assert (together[0] == 0).all()


def test_a_vector_of_few_atoms_is_found_and_no_further_atom_taken(atoms: Tensor) -> None:
    orthonormal = torch.linalg.qr(draw(D, D, seed=3)).Q * torch.linspace(1, 2, D)[:, None]
    truth = torch.zeros(2, D).double()
    truth[0, [1, 4]] = torch.tensor([2.0, -0.5]).double()
    for orthogonal in (True, False):
        codes = matching_pursuit(truth @ orthonormal + OFFSET, orthonormal, OFFSET, 5, orthogonal)
        torch.testing.assert_close(codes, truth, rtol=1e-9, atol=1e-12)
        assert (codes != 0).sum(1).tolist() == [2, 0]


def test_equal_and_empty_atoms_do_no_harm() -> None:
    atoms = torch.tensor([[1.0, 0, 0], [1, 0, 0], [0, 0, 0], [0, 2, 0]])
    codes = matching_pursuit(torch.tensor([[3.0, 4, 5]]), atoms, torch.zeros(3), 4, orthogonal=True)
    assert codes.tolist() == [[pytest.approx(3), 0, 0, pytest.approx(2)]]
    assert matching_pursuit(torch.zeros(0, 3), atoms, torch.zeros(3), 2).shape == (0, 4)


@pytest.mark.parametrize("nonnegative", [True, False])
@pytest.mark.parametrize("l1", [0.05, 0.5, 3.0])
def test_fista_is_scikit_learns_lasso(x: Tensor, atoms: Tensor, l1: float, nonnegative: bool) -> None:
    codes, gap = fista(x, atoms, OFFSET, l1, 20_000, nonnegative, tolerance=1e-13)
    assert (gap <= 1e-12).all()
    lasso = Lasso(alpha=l1 / D, fit_intercept=False, positive=nonnegative, tol=1e-14, max_iter=100_000)
    for row in range(N):
        expected = lasso.fit(atoms.T.numpy(), (x[row] - OFFSET).numpy()).coef_
        np.testing.assert_allclose(codes[row], expected, atol=2e-5)
    assert not nonnegative or (codes >= 0).all()


def test_the_gap_bounds_what_is_left_to_gain(x: Tensor, atoms: Tensor) -> None:
    def objective(codes: Tensor) -> Tensor:
        return (x - OFFSET - codes @ atoms).square().sum(1) / 2 + 0.3 * codes.abs().sum(1)

    best = objective(fista(x, atoms, OFFSET, 0.3, 20_000, tolerance=1e-13).codes_nf)
    half = (x - OFFSET).square().sum(1) / 2
    for n_steps in (1, 5, 20, 100):
        codes, gap = fista(x, atoms, OFFSET, 0.3, n_steps, tolerance=1e-9)
        missing = (objective(codes) - best) / half
        assert (missing <= gap + 1e-12).all()
        assert (missing >= -1e-12).all()
    loose = fista(x, atoms, OFFSET, 0.3, 20_000, tolerance=1e-2)
    assert (loose.gap_n <= 1e-2).all()
    assert loose.gap_n.max() > 1e-6


def test_fista_at_its_ends(x: Tensor, atoms: Tensor) -> None:
    silent = float(((x - OFFSET) @ atoms.T).max())
    assert (fista(x, atoms, OFFSET, silent * 1.001).codes_nf == 0).all()
    assert (fista(x, atoms, OFFSET, silent * 0.95).codes_nf != 0).sum() >= 1
    nothing = fista(OFFSET[None], atoms, OFFSET, 0.1)
    assert (nothing.codes_nf == 0).all()
    assert nothing.gap_n.tolist() == [0]
    together, apart = fista(x, atoms, OFFSET, 0.2), [fista(row[None], atoms, OFFSET, 0.2) for row in x]
    torch.testing.assert_close(together.codes_nf, torch.cat([one.codes_nf for one in apart]), rtol=1e-9, atol=1e-12)


def test_largest_eigenvalue(atoms: Tensor) -> None:
    expected = np.linalg.svd(atoms.numpy(), compute_uv=False)[0] ** 2
    assert largest_eigenvalue(atoms) == pytest.approx(expected, rel=1e-12)
    assert largest_eigenvalue(atoms.T) == pytest.approx(expected, rel=1e-12)


@pytest.mark.parametrize("nonnegative", [True, False])
def test_refit_is_least_squares_on_the_support(x: Tensor, atoms: Tensor, nonnegative: bool) -> None:
    support = torch.rand(N, F, generator=torch.Generator().manual_seed(4)) < 0.2
    support[0] = False  # SciPy's own crashes on no atoms
    codes = refit(x, atoms, OFFSET, support, nonnegative)
    assert (codes[~support] == 0).all()
    for row in support.any(1).nonzero()[:, 0].tolist():
        chosen, target = atoms[support[row]].T.numpy(), (x[row] - OFFSET).numpy()
        expected = nnls(chosen, target)[0] if nonnegative else np.linalg.lstsq(chosen, target, rcond=None)[0]
        np.testing.assert_allclose(codes[row, support[row]], expected, atol=1e-9)


def test_refit_with_equal_atoms() -> None:
    atoms = torch.tensor([[1.0, 0], [1, 0]])
    codes = refit(torch.tensor([[4.0, 1]]), atoms, torch.zeros(2), torch.ones(1, 2, dtype=torch.bool), False)
    assert codes.tolist() == [pytest.approx([2, 2])]


@pytest.mark.parametrize(
    ("call", "error", "words"),
    [
        (lambda x, a: matching_pursuit(x[:, :3], a, OFFSET, 2), ConfigError, "do not fit together"),
        (lambda x, a: matching_pursuit(x, a, OFFSET[:2], 2), ConfigError, "do not fit together"),
        (lambda x, a: matching_pursuit(x, a, OFFSET, -1), ConfigError, "fewer than none"),
        (lambda x, a: matching_pursuit(x, a, OFFSET, 1, True, True), ConfigError, "Choose one of the two"),
        (lambda x, a: matching_pursuit(x * float("nan"), a, OFFSET, 1), DataError, "NaN or infinity"),
        (lambda x, a: fista(x, a, OFFSET, 0.0), ConfigError, "positive penalty"),
        (lambda x, a: fista(x, a, OFFSET, 1.0, 0), ConfigError, "positive penalty"),
        (lambda x, a: fista(x, 0 * a, OFFSET, 1.0), DataError, "atoms are all 0"),
        (lambda x, a: refit(x, a, OFFSET, torch.ones(2, 2).bool()), ConfigError, "supports"),
    ],
)
def test_bad_input(x: Tensor, atoms: Tensor, call, error: type, words: str) -> None:
    with pytest.raises(error, match=words):
        call(x, atoms)


# The amortisation gap.


@pytest.fixture(scope="module")
def sparse(stored: type) -> tuple[Sae, object, Tensor]:
    """An SAE with the true dictionary and k, activations of two positions, and their true codes."""
    truth = normalize(draw(16, D, seed=5), dim=1)
    random = torch.Generator().manual_seed(6)
    order = torch.rand(80, 2, 16, generator=random).argsort(2)
    codes = (order < 2) * (0.5 + torch.rand(80, 2, 16, generator=random)).double()
    sae = build(TopKConfig(n_features=16, k=2), width=D)
    activations = stored((codes @ truth + OFFSET).float())
    sae.initialise(activations.x_bpd.flatten(0, 1), generator(0))
    with torch.no_grad():
        sae.W_dec.copy_(truth)
        sae.W_enc.copy_(truth)
        sae.b_dec.copy_(OFFSET * sae.scale)
    return sae, activations, codes


def test_a_search_beats_the_encoder_of_a_true_dictionary(sparse: tuple) -> None:
    sae, activations, _ = sparse
    found = amortisation_gap(sae, activations)
    assert found.encoder.fvu == pytest.approx(evaluate_reconstruction(sae, activations).fvu, rel=1e-9)
    assert found.encoder.l0 == 2
    assert found.refit.fvu < found.encoder.fvu
    assert found.pursuit.fvu < found.refit.fvu
    assert found.lasso is not None
    assert found.lasso.l0 == pytest.approx(2, abs=0.5)
    assert max(found.refit.l0, found.pursuit.l0, found.orthogonal.l0) <= 2 + 1e-12
    assert found.gap == found.encoder.fvu - found.pursuit.fvu
    assert found.n_vectors == 160


def test_every_search_by_its_definition(sparse: tuple) -> None:
    sae, activations, _ = sparse
    chosen = [3, 5, 8, 40, 41]
    found = amortisation_gap(sae, activations, chosen, lasso_steps=0)
    assert found.lasso is None
    assert math.isnan(found.l1)
    with torch.no_grad():
        x = activations.x_bpd[chosen].flatten(0, 1).double()
        atoms, offset = sae.dictionary.double(), sae.offset.double()
        codes = sae.double().encode(x)
        sae.float()
    spread = (x - x.mean(0)).square().sum()
    pursuit = matching_pursuit(x, atoms, offset, (codes != 0).sum(1), nonnegative=True)
    expected = {
        "refit": refit(x, atoms, offset, codes != 0),
        "pursuit": refit(x, atoms, offset, pursuit != 0),
        "orthogonal": matching_pursuit(x, atoms, offset, 2, orthogonal=True),
    }
    for name, of in expected.items():
        fvu = float((x - of @ atoms - offset).square().sum() / spread)
        assert getattr(found, name).fvu == pytest.approx(fvu, rel=1e-5)
        assert getattr(found, name).l0 == pytest.approx(float((of != 0).sum(1).double().mean()))


@pytest.mark.parametrize("chunk_vectors", [1, 50])
def test_no_number_depends_on_the_chunks(sparse: tuple, chunk_vectors: int) -> None:
    sae, activations, _ = sparse
    one, other = amortisation_gap(sae, activations), amortisation_gap(sae, activations, chunk_vectors=chunk_vectors)
    for name in ("encoder", "refit", "pursuit", "orthogonal", "lasso"):
        assert getattr(one, name).fvu == pytest.approx(getattr(other, name).fvu, rel=1e-9)
        assert getattr(one, name).l0 == pytest.approx(getattr(other, name).l0, rel=1e-9)
    assert one.l1 == other.l1


def test_an_encoder_without_a_loss_has_no_gap(stored: type, affine: type) -> None:
    """Signed codes: the neurons themselves."""
    activations = stored(draw(20, 2, 4).float())
    found = amortisation_gap(affine(4), activations, nonnegative=False)
    assert found.encoder.fvu == 0
    assert abs(found.gap) < 1e-9
    with pytest.raises(DataError, match=r"negative in places.*nonnegative=False"):
        amortisation_gap(affine(4), activations)


def test_what_goes_past_the_dictionary_is_not_searched_for(stored: type, affine: type) -> None:
    """A skip that gives the half of x; the features are to give the other half."""

    class Skip(affine):
        def forward(self, x: Tensor) -> SaeOutput:
            codes = self.encode(x)
            return SaeOutput(self.decode(codes) + x / 2, codes)

    found = amortisation_gap(Skip(4, 0.5), stored(draw(20, 2, 4).float()), nonnegative=False, lasso_steps=0)
    assert found.encoder.fvu == pytest.approx(0, abs=1e-20)
    worse = amortisation_gap(Skip(4, 0.4), stored(draw(20, 2, 4).float()), nonnegative=False, lasso_steps=0)
    assert worse.encoder.fvu > 0.005
    assert worse.refit.fvu == pytest.approx(0, abs=1e-20)
    assert evaluate_reconstruction(Skip(4, 0.5), stored(draw(20, 2, 4).float())).fvu == 0


def test_an_sae_without_a_dictionary(sparse: tuple) -> None:
    class Maps(type(sparse[0])):
        reads_maps = True

    with pytest.raises(ConfigError, match="Maps has no linear dictionary"):
        amortisation_gap(Maps(sparse[0].config, D), sparse[1])
