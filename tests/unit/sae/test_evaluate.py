"""Reconstruction quality: what FVU is by definition, and that no number depends on the chunks."""

# B images  P positions  D width  F features

from __future__ import annotations

import copy
import json
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.errors import DataError, StoreError
from mis_lab.core.seeding import generator
from mis_lab.sae.base import Sae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.evaluate import ReconstructionQuality, evaluate_reconstruction
from mis_lab.sae.reconstructions import VectorsInMemory

N_IMAGES, N_POSITIONS, WIDTH = 30, 4, 8
GROUPS = [f"scene{image % 3}" for image in range(N_IMAGES)]


@pytest.fixture(scope="module")
def x_bpd() -> Tensor:
    """Activations with means of 5 to 12 and spreads that differ by dimension and group."""
    random = torch.Generator().manual_seed(0)
    x_bpd = torch.randn(N_IMAGES, N_POSITIONS, WIDTH, generator=random) * torch.linspace(0.5, 2, WIDTH)
    scene = torch.arange(N_IMAGES)[:, None, None] % 3
    return x_bpd * (1 + scene) + scene + torch.linspace(5, 12, WIDTH)


@pytest.fixture(scope="module")
def sae(x_bpd: Tensor) -> Sae:
    sae = build(TopKConfig(n_features=24, k=3), width=WIDTH)
    sae.initialise(x_bpd.flatten(0, 1), generator(0))
    return sae


def test_the_mean_alone_has_fvu_one(x_bpd: Tensor, stored: type, affine: type) -> None:
    """A single mean for all dimensions would score this 0.2, and a mean of 0 about 0.1."""
    quality = evaluate_reconstruction(affine(WIDTH, 0.0, x_bpd.double().mean((0, 1))).double(), stored(x_bpd))
    assert quality.fvu == pytest.approx(1, rel=1e-9)
    assert quality.explained_variance == pytest.approx(0, abs=1e-9)


def test_a_perfect_reconstruction_has_fvu_zero(x_bpd: Tensor, stored: type, affine: type) -> None:
    quality = evaluate_reconstruction(affine(WIDTH), stored(x_bpd))
    assert quality.fvu == 0
    assert quality.reconstruction_bias == pytest.approx(1, rel=1e-12)


def test_a_constant_error_counts(x_bpd: Tensor, stored: type, affine: type) -> None:
    """1 − Var(e)/Var(x) would be blind to it."""
    quality = evaluate_reconstruction(affine(WIDTH, 1.0, 5.0), stored(x_bpd))
    variance = float(x_bpd.double().flatten(0, 1).var(0, correction=0).sum())
    assert quality.fvu == pytest.approx(25 * WIDTH / variance, rel=1e-9)


def test_shrinkage_shows_as_bias(x_bpd: Tensor, stored: type, affine: type) -> None:
    mean = x_bpd.double().mean((0, 1))
    shrunk = affine(WIDTH, 0.7, 0.3 * mean).double()
    quality = evaluate_reconstruction(shrunk, stored(x_bpd))
    assert quality.reconstruction_bias == pytest.approx(0.7, rel=1e-7)
    assert quality.fvu == pytest.approx(0.09, rel=1e-7)


def test_everything_equals_its_definition(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    quality = evaluate_reconstruction(sae, stored(x_bpd, GROUPS))
    exact = build(sae.config, width=WIDTH).double()
    exact.load_state_dict(sae.state_dict())
    with torch.no_grad():
        x = x_bpd.double()
        codes = exact.encode(x)
        error = ((x - exact.decode(codes)) ** 2).sum(-1)
    spread = ((x - x.mean((0, 1))) ** 2).sum(-1)
    assert quality.fvu == pytest.approx(float(error.sum() / spread.sum()), rel=1e-12)
    for scene in range(3):
        expected = float(error[scene::3].sum() / spread[scene::3].sum())
        assert quality.fvu_by_group[f"scene{scene}"] == pytest.approx(expected, rel=1e-12)
    active = codes != 0
    assert quality.l0 == pytest.approx(float(active.sum(-1).double().mean()), rel=1e-12)
    assert quality.dead_share == float((~active.any(0).any(0)).double().mean())
    torch.testing.assert_close(quality.density_f, active.double().mean((0, 1)), rtol=1e-12, atol=0)
    torch.testing.assert_close(quality.image_density_f, active.any(1).double().mean(0), rtol=1e-12, atol=0)
    torch.testing.assert_close(quality.mean_activation_f, codes.mean((0, 1)), rtol=1e-12, atol=0)
    assert (quality.n_images, quality.n_vectors) == (N_IMAGES, N_IMAGES * N_POSITIONS)
    assert set(quality.numbers()) >= {"fvu", "explained_variance", "l0", "mse", "nrmse", "distance_mean", "n_vectors"}
    assert not {name for name in quality.numbers() if name.endswith("_f") or name == "fvu_by_group"}


def test_errors_and_norms_equal_their_definitions(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    quality = evaluate_reconstruction(sae, stored(x_bpd))
    with torch.no_grad():
        exact = copy.deepcopy(sae).double()
        codes = exact.encode(x_bpd.double()).flatten(0, 1).numpy()
        decoded = exact(x_bpd.double()).reconstruction.flatten(0, 1).numpy()
    x = x_bpd.double().flatten(0, 1).numpy()
    rmse_d = np.sqrt(((x - decoded) ** 2).mean(0))
    distance = np.linalg.norm(x - decoded, axis=1)
    assert quality.mse == pytest.approx(((x - decoded) ** 2).mean(), rel=1e-12)
    assert quality.rmse == pytest.approx(rmse_d.mean(), rel=1e-12)
    assert quality.nrmse == pytest.approx((rmse_d / np.ptp(x, axis=0)).mean(), rel=1e-12)
    assert (quality.distance_mean, quality.distance_std) == pytest.approx((distance.mean(), distance.std()), rel=1e-12)
    norms = np.linalg.norm(decoded, axis=1).mean(), np.linalg.norm(x, axis=1).mean()
    assert quality.norm_ratio == pytest.approx(norms[0] / norms[1], rel=1e-12)
    assert quality.l1 == pytest.approx(np.abs(codes).sum(1).mean(), rel=1e-12)
    bias = (decoded**2).sum() / (x * decoded).sum()
    assert quality.reconstruction_bias_zero == pytest.approx(bias, rel=1e-12)


def test_a_dimension_that_does_not_vary_is_left_out_of_nrmse(x_bpd: Tensor, stored: type, affine: type) -> None:
    """The thesis divides by 0 there."""
    constant = torch.cat([x_bpd, torch.full((N_IMAGES, N_POSITIONS, 1), 3.0)], 2)
    with_it = evaluate_reconstruction(affine(WIDTH + 1, 1.0, 0.5), stored(constant))
    without = evaluate_reconstruction(affine(WIDTH, 1.0, 0.5), stored(x_bpd))
    assert (with_it.n_constant, without.n_constant) == (1, 0)
    assert with_it.nrmse == pytest.approx(without.nrmse, rel=1e-12)
    assert with_it.rmse == pytest.approx(0.5, rel=1e-6)


def test_signed_codes_are_active_and_count_by_their_size(x_bpd: Tensor, stored: type, affine: type) -> None:
    centred = x_bpd - x_bpd.mean((0, 1))
    quality = evaluate_reconstruction(affine(WIDTH), stored(centred))
    assert quality.l0 == WIDTH
    assert quality.l1 == pytest.approx(float(centred.double().abs().sum(2).mean()), rel=1e-12)


def test_what_is_encoded_is_not_always_what_is_reconstructed(x_bpd: Tensor, stored: type, affine: type) -> None:
    """Two sites side by side: the second is read and the first is to be written, about the first one's mean."""

    class Across(affine):
        def source(self, x: Tensor) -> Tensor:
            return x[..., WIDTH:]

        def target(self, x: Tensor) -> Tensor:
            return x[..., :WIDTH]

    both = torch.cat([x_bpd, 100 * x_bpd.flip(0)], 2)
    for indices in (None, range(3, 29, 2)):
        chosen = list(range(N_IMAGES) if indices is None else indices)
        quality = evaluate_reconstruction(Across(WIDTH, 0.01), stored(both), indices)
        x, read = x_bpd.double()[chosen], 0.01 * both[chosen][..., WIDTH:].double()
        expected = ((x - read) ** 2).sum() / ((x - x.mean((0, 1))) ** 2).sum()
        assert quality.fvu == pytest.approx(float(expected), rel=1e-6)
        assert quality.mse == pytest.approx(float(((x - read) ** 2).mean()), rel=1e-6)


def test_regression_r2_about_one_scalar_mean_praises_the_mean(x_bpd: Tensor, stored: type, affine: type) -> None:
    """A library's R² takes one mean for all dimensions: with dimensions far apart the mean alone scores .99."""
    far = x_bpd + torch.linspace(0, 300, WIDTH)
    mean = far.double().mean((0, 1))
    x = far.double()
    scalar = 1 - ((x - mean) ** 2).sum() / ((x - x.mean()) ** 2).sum()
    assert scalar > 0.99
    quality = evaluate_reconstruction(affine(WIDTH, 0.0, mean).double(), stored(far))
    assert quality.fvu == pytest.approx(1, rel=1e-9)


def test_regression_explained_variance_blind_to_a_shift(stored: type, affine: type) -> None:
    """1 − Var(x − x̂)/Var(x) calls x̂ = x + 5 perfect; for data of unit variance it is 25 times worse than the mean."""
    x = torch.randn(500, 4, WIDTH, generator=torch.Generator().manual_seed(1)).double()
    x = ((x - x.mean((0, 1))) / x.std((0, 1), correction=0)).float()
    error = (x - (x + 5)).double()
    blind = 1 - error.flatten(0, 1).var(0, correction=0).sum() / x.double().flatten(0, 1).var(0, correction=0).sum()
    assert blind == pytest.approx(1, abs=1e-6)
    assert evaluate_reconstruction(affine(WIDTH, 1.0, 5.0), stored(x)).fvu == pytest.approx(25, rel=1e-5)


def test_regression_variance_as_a_difference_of_squares_cancels(stored: type, affine: type) -> None:
    """E[x²] − E[x]² in float32 has no correct digit when the mean is far above the spread."""
    x = torch.randn(64, 4, WIDTH, generator=torch.Generator().manual_seed(2)) + 30_000
    flat = x.flatten(0, 1)
    cancelled = float((flat.square().mean(0) - flat.mean(0).square()).sum())
    variance = float(flat.double().var(0, correction=0).sum())
    assert abs(cancelled / variance - 1) > 0.5
    quality = evaluate_reconstruction(affine(WIDTH, 1.0, 0.1), stored(x))
    error = (0.1 * torch.ones(WIDTH)).double().square().sum()
    assert quality.fvu == pytest.approx(float(error) / variance, rel=1e-5)


def test_regression_a_mean_of_batch_ratios_is_not_the_ratio(x_bpd: Tensor, stored: type, affine: type) -> None:
    """Batches that vary little have a large share missed: their ratio counts as much as any other's."""
    x = x_bpd.double()
    sorted_by_spread = torch.cat([x[scene::3] for scene in range(3)])
    ratios = []
    for batch in sorted_by_spread.split(10):
        spread = ((batch - batch.mean((0, 1))) ** 2).sum()
        ratios.append(float(torch.full_like(batch, 0.5).square().sum() / spread))
    exact = float(0.25 * WIDTH / x.flatten(0, 1).var(0, correction=0).sum())
    assert sum(ratios) / 3 > 2 * exact
    for chunk_vectors in (40, 2048):
        quality = evaluate_reconstruction(affine(WIDTH, 1.0, 0.5), stored(sorted_by_spread), None, chunk_vectors)
        assert quality.fvu == pytest.approx(exact, rel=1e-6)


def test_vectors_in_memory_are_images_of_one_position(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    flat = x_bpd.flatten(0, 1)
    one = evaluate_reconstruction(sae, VectorsInMemory(flat))
    other = evaluate_reconstruction(sae, stored(flat[:, None]))
    assert one.numbers() == pytest.approx(other.numbers(), rel=1e-12)
    assert one.fvu_by_group.keys() == {""}


@settings(max_examples=15)
@given(chunk_vectors=st.integers(1, 200), whole=st.booleans())
def test_no_number_depends_on_the_chunks(
    x_bpd: Tensor, stored: type, sae: Sae, chunk_vectors: int, whole: bool
) -> None:
    indices = None if whole else range(3, 29, 2)
    one = evaluate_reconstruction(sae, stored(x_bpd, GROUPS), indices)
    other = evaluate_reconstruction(sae, stored(x_bpd, GROUPS), indices, chunk_vectors)
    assert one.numbers() == pytest.approx(other.numbers(), rel=1e-9)
    assert one.fvu_by_group == pytest.approx(other.fvu_by_group, rel=1e-9)
    for name in ("density_f", "image_density_f", "mean_activation_f"):
        torch.testing.assert_close(getattr(one, name), getattr(other, name), rtol=1e-9, atol=0)


def test_some_images_are_a_set_of_their_own(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    chosen = [29, 2, 3, 11, 2]
    one = evaluate_reconstruction(sae, stored(x_bpd, GROUPS), chosen)
    distinct = sorted(set(chosen))
    other = evaluate_reconstruction(sae, stored(x_bpd[distinct], [GROUPS[image] for image in distinct]))
    assert one.numbers() == pytest.approx(other.numbers(), rel=1e-12)
    assert one.fvu_by_group == pytest.approx(other.fvu_by_group, rel=1e-12)
    assert one.n_images == 4


def test_the_whole_is_the_groups_weighted_by_spread(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    quality = evaluate_reconstruction(sae, stored(x_bpd, GROUPS))
    x = x_bpd.double()
    spread = ((x - x.mean((0, 1))) ** 2).sum((1, 2))
    shares = {f"scene{scene}": float(spread[scene::3].sum() / spread.sum()) for scene in range(3)}
    whole = sum(share * quality.fvu_by_group[group] for group, share in shares.items())
    assert quality.fvu == pytest.approx(whole, rel=1e-12)


def test_the_sae_is_left_as_it_was(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    before = {name: tensor.clone() for name, tensor in sae.state_dict().items()}
    sae.train()
    evaluate_reconstruction(sae, stored(x_bpd))
    assert sae.training
    assert sae.W_dec.requires_grad
    assert all(torch.equal(before[name], tensor) for name, tensor in sae.state_dict().items())


def test_written_and_read(x_bpd: Tensor, stored: type, sae: Sae, tmp_path: Path) -> None:
    quality = evaluate_reconstruction(sae, stored(x_bpd, GROUPS))
    quality.write(tmp_path)
    again = ReconstructionQuality.read(tmp_path)
    assert again.numbers() == quality.numbers()
    assert again.fvu_by_group == quality.fvu_by_group
    assert torch.equal(again.density_f, quality.density_f)
    (tmp_path / "reconstruction.safetensors").write_bytes(b"cut")
    with pytest.raises(StoreError, match="damaged"):
        ReconstructionQuality.read(tmp_path)


def test_numbers_of_another_version(x_bpd: Tensor, stored: type, sae: Sae, tmp_path: Path) -> None:
    evaluate_reconstruction(sae, stored(x_bpd)).write(tmp_path)
    path = tmp_path / "reconstruction.json"
    numbers = json.loads(path.read_text())
    del numbers["nrmse"]
    path.write_text(json.dumps(numbers | {"r2": 0.99}))
    with pytest.raises(StoreError, match=r"other fields than ReconstructionQuality \(nrmse, r2\).*run again"):
        ReconstructionQuality.read(tmp_path)


def test_no_images(x_bpd: Tensor, stored: type, sae: Sae) -> None:
    with pytest.raises(DataError, match=r"no images to evaluate an SAE on.*hold_out"):
        evaluate_reconstruction(sae, stored(x_bpd), [])


@pytest.mark.parametrize("indices", [None, [1, 2]])
def test_activations_that_do_not_vary(stored: type, sae: Sae, indices: list[int] | None) -> None:
    with pytest.raises(DataError, match="are equal: FVU has no meaning"):
        evaluate_reconstruction(sae, stored(torch.full((5, 4, WIDTH), 0.1)), indices)


def test_a_reconstruction_that_is_not_finite(x_bpd: Tensor, stored: type, affine: type) -> None:
    with pytest.raises(DataError, match="not finite"):
        evaluate_reconstruction(affine(WIDTH, float("nan")), stored(x_bpd))
