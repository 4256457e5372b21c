from __future__ import annotations

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.seeding import generator
from mis_lab.metric.sketch import CountSketch, sketch_error


def rows_of(n: int, d: int, seed: int = 0) -> torch.Tensor:
    return torch.randn(n, d, generator=generator(seed, "rows")) + 0.5


@given(st.integers(1, 60), st.integers(1, 80), st.integers(0, 1000))
def test_it_is_linear_and_every_column_falls_into_one_bucket_with_a_sign(d, m, seed):
    matrix_dm = CountSketch(d, m, seed)(torch.eye(d))
    assert matrix_dm.shape == (d, m)
    assert torch.equal(matrix_dm.abs().sum(1), torch.ones(d))
    assert set(matrix_dm.unique().tolist()) <= {-1.0, 0.0, 1.0}
    assert matrix_dm.abs().sum(0).max() <= -(-d // m), "buckets are of equal size"
    rows_nd = rows_of(3, d)
    assert torch.allclose(CountSketch(d, m, seed)(rows_nd), rows_nd @ matrix_dm, atol=1e-5)


@pytest.mark.parametrize("m", [50, 64, 200])
def test_it_is_an_isometry_when_there_is_a_bucket_for_every_column(m):
    rows_nd = rows_of(6, 50)
    sketched_nm = CountSketch(50, m, 0)(rows_nd)
    assert torch.allclose(sketched_nm @ sketched_nm.T, rows_nd @ rows_nd.T, atol=1e-4)


def test_inner_products_are_unbiased_with_the_variance_that_is_stated():
    rows_nd = rows_of(2, 40).double()
    a, b = rows_nd
    found = torch.stack([(CountSketch(40, 10, seed)(rows_nd).prod(0)).sum() for seed in range(4000)])
    together = torch.outer(a, b) + torch.outer(b, a)
    share = (40 / 10 - 1) / 39  # two columns share a bucket
    variance = share * together.triu(1).square().sum()
    assert found.mean() == pytest.approx(float(a @ b), abs=4 * float((variance / 4000).sqrt()))
    assert found.var() == pytest.approx(float(variance), rel=0.15)


@pytest.mark.usefixtures("untouched_rng")
def test_it_is_a_function_of_the_seed():
    rows_nd = rows_of(2, 30)
    assert torch.equal(CountSketch(30, 7, 3)(rows_nd), CountSketch(30, 7, 3)(rows_nd))
    assert not torch.equal(CountSketch(30, 7, 3)(rows_nd), CountSketch(30, 7, 4)(rows_nd))


def test_the_error_is_zero_without_a_sketch_and_falls_with_its_width():
    rows_nd = rows_of(40, 3000)
    gram_nn = rows_nd @ rows_nd.T
    none = sketch_error(gram_nn, gram_nn)
    assert none["sketch_distance_error"] == none["sketch_margin_error"] == 0
    assert none["sketch_margin_correlation"] == pytest.approx(1)
    assert (none["sketch_sign_agreement"], none["sketch_n_images"]) == (1, 40)
    errors = []
    for m in (100, 400, 1600):
        sketched_nm = CountSketch(3000, m, 0)(rows_nd)
        errors.append(sketch_error(gram_nn, sketched_nm @ sketched_nm.T))
    for name in ("sketch_distance_error", "sketch_margin_error"):
        values = [error[name] for error in errors]
        assert values == sorted(values, reverse=True)
        assert values[0] / values[1] == pytest.approx(2, rel=0.35)
    agreement = [error["sketch_sign_agreement"] for error in errors]
    assert 0.5 < agreement[0] < agreement[1] < agreement[2] < 1
    # sqrt(2 / m) is what a projection of Gaussian rows does to a squared distance
    assert errors[0]["sketch_distance_error"] == pytest.approx((2 / 100) ** 0.5, rel=0.2)


def test_the_margins_of_the_error_are_those_of_tasks():
    """A shift of all rows changes no margin; noise on single pairs changes margins by a known amount."""
    rows_nd = rows_of(30, 12).double()
    gram_nn, moved_nd = rows_nd @ rows_nd.T, rows_nd + 3
    moved = sketch_error(gram_nn, moved_nd @ moved_nd.T)
    assert moved["sketch_margin_error"] == pytest.approx(0, abs=1e-9)
    assert moved["sketch_distance_error"] == pytest.approx(0, abs=1e-9)
    noise = torch.randn(30, 30, generator=generator(1, "noise"), dtype=torch.float64)
    noise = (noise + noise.T) / 2**0.5
    found = sketch_error(torch.zeros_like(gram_nn) + gram_nn, gram_nn + 0.01 * noise)
    spread = sketch_error(gram_nn, torch.zeros_like(gram_nn))["sketch_margin_error"]  # rms over std: about 1
    assert spread == pytest.approx(1, rel=0.05)
    alone = sketch_error(0.01 * noise, torch.zeros_like(noise) + 0.02 * noise)  # twice the noise: off by its own size
    assert alone["sketch_margin_error"] == pytest.approx(1, rel=0.05)
    assert 0 < found["sketch_margin_error"] < 0.05


def test_too_few_images_have_no_error_to_tell():
    gram_nn = torch.eye(3)
    assert sketch_error(gram_nn, gram_nn) == {}
    assert sketch_error(torch.eye(4), torch.eye(4) * 1.5)["sketch_n_images"] == 4
