# N vectors  D width

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from mis_lab.core.statistics import Moments
from mis_lab.core.tensors import read_tensors, write_tensors

vectors = arrays(np.float64, st.tuples(st.integers(1, 40), st.just(3)), elements=st.floats(-1e6, 1e6))


def moments_of(x_nd: np.ndarray, cuts: list[int]) -> Moments:
    moments = Moments()
    for part in np.split(x_nd, sorted(min(cut, len(x_nd)) for cut in cuts)):
        moments.update(torch.from_numpy(part))
    return moments


def check(moments: Moments, x_nd: np.ndarray) -> None:
    spread = np.abs(x_nd).max() + 1e-300
    np.testing.assert_allclose(moments.mean.numpy(), x_nd.mean(0), rtol=1e-9, atol=1e-12 * spread)
    np.testing.assert_allclose(moments.variance.numpy(), x_nd.var(0), rtol=1e-9, atol=1e-12 * spread**2)
    assert moments.count == len(x_nd)
    assert (moments.minimum.numpy() == x_nd.min(0)).all()
    assert (moments.maximum.numpy() == x_nd.max(0)).all()


@given(vectors, st.lists(st.integers(0, 40), max_size=5))
def test_any_chunking_gives_what_numpy_gives_on_the_whole(x_nd: np.ndarray, cuts: list[int]) -> None:
    check(moments_of(x_nd, cuts), x_nd)


def test_a_mean_large_against_the_spread_does_not_cancel() -> None:
    x_nd = 1e6 + np.random.default_rng(0).standard_normal((5000, 4))
    chunked = moments_of(x_nd, list(range(0, 5000, 7)))
    np.testing.assert_allclose(chunked.variance.numpy(), x_nd.var(0), rtol=1e-9)


def test_float32_vectors_are_summed_in_float64() -> None:
    x_nd = torch.full((3_000_000, 1), 0.1, dtype=torch.float32)
    moments = Moments()
    moments.update(x_nd)
    assert moments.mean.dtype == torch.float64
    assert moments.mean.item() == pytest.approx(float(np.float32(0.1)), rel=1e-12)


def test_merging_is_the_same_in_any_order() -> None:
    x_nd = np.random.default_rng(1).standard_normal((30, 2)) * [1, 1e4]
    parts = [moments_of(part, []) for part in np.split(x_nd, [5, 6, 20])]
    for order in ([0, 1, 2, 3], [3, 1, 0, 2]):
        whole = Moments()
        for index in order:
            whole.merge(parts[index])
        check(whole, x_nd)
    assert parts[0].count == 5, "merging leaves the other as it was"


def test_no_vectors_change_nothing() -> None:
    moments = Moments()
    moments.update(torch.zeros(0, 3))
    assert moments.count == 0
    moments.update(torch.ones(2, 3))
    moments.update(torch.zeros(0, 3))
    moments.merge(Moments())
    check(moments, np.ones((2, 3)))


def test_state_comes_back_from_disk(tmp_path: Path) -> None:
    moments = moments_of(np.random.default_rng(2).standard_normal((9, 3)), [4])
    write_tensors(tmp_path / "m.safetensors", moments.state())
    back = Moments.from_state(read_tensors(tmp_path / "m.safetensors"))
    assert back.count == moments.count
    for name in ("mean", "squared_deviation", "minimum", "maximum", "variance"):
        assert torch.equal(getattr(back, name), getattr(moments, name))
    back.update(torch.zeros(1, 3))
    assert moments.count == 9
