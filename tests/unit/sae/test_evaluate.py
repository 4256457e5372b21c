"""Reconstruction quality: what FVU is by definition, and that no number depends on the chunks."""

# B images  P positions  D width  F features

from __future__ import annotations

from pathlib import Path

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
