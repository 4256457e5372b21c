"""The sparse step equals autograd through dense products, and keeps nothing of their size."""

# B vectors  D width  F features

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from mis_lab.sae.selection import BatchTopK, Pre, Select, Selection, TopK
from mis_lab.sae.sparse import Coded, dense_autoencode, sparse_autoencode


def leaves(n_vectors: int, width: int, n_features: int, seed: int = 0) -> list[Tensor]:
    """x, centre, W_enc, b_enc, W_dec in float64, all wanting gradients."""
    random = torch.Generator().manual_seed(seed)
    shapes = [(n_vectors, width), (width,), (n_features, width), (n_features,), (n_features, width)]
    return [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]


def plain(tensors: list[Tensor], keep_bf: Tensor) -> tuple[Tensor, Tensor]:
    """Decoded vectors and codes (B, F) by autograd alone; `keep_bf` says which features are selected."""
    x, centre, W_enc, b_enc, W_dec = tensors
    codes_bf = torch.relu((x - centre) @ W_enc.T + b_enc) * keep_bf
    return codes_bf @ W_dec, codes_bf


def relative(one: Tensor, other: Tensor) -> float:
    one, other = one.detach(), other.detach()
    return float((one - other).abs().max() / other.abs().max().clamp_min(1e-300))


def check(tensors: list[Tensor], select: Select, group_f: Tensor | None = None) -> Coded:
    """Compare values and all gradients of both variants with autograd, to 1e-12 relative."""
    x, centre, W_enc, b_enc, _ = tensors
    random = torch.Generator().manual_seed(99)
    with torch.no_grad():
        pre_bf = (x - centre) @ W_enc.T + b_enc
        selection = select(lambda rows: pre_bf[rows], len(x))
    rows = torch.arange(len(x)).repeat_interleave(selection.starts_b.diff())
    keep_bf = torch.zeros(len(x), len(W_enc), dtype=torch.float64)
    keep_bf[rows, selection.features_m] = 1
    weights_bd = torch.randn(x.shape, generator=random, dtype=torch.float64)
    weights_bf = torch.randn(keep_bf.shape, generator=random, dtype=torch.float64)

    decoded, codes_bf = plain(tensors, keep_bf)
    groups = [torch.ones(len(W_enc), dtype=torch.bool)]
    if group_f is not None:
        groups = [group_f == group for group in range(int(group_f.max()) + 1)]
    # A weight of its own for every group: each decodes apart.
    weights_gbd = torch.stack([(group + 1) * weights_bd for group in range(len(groups))])
    decoded_gbd = torch.stack([codes_bf[:, group] @ tensors[4][group] for group in groups])
    expected = torch.autograd.grad((decoded_gbd * weights_gbd).sum() + (codes_bf * weights_bf).sum(), tensors)
    for autoencode in (sparse_autoencode, dense_autoencode):
        coded = autoencode(*tensors, select, group_f)
        assert relative(coded.decoded_gbd, decoded_gbd) < 1e-12
        assert relative(coded.decoded_bd, decoded) < 1e-12
        assert torch.equal(coded.features_m, selection.features_m)
        assert torch.equal(coded.fired(len(W_enc)), (codes_bf > 0).any(0))
        loss = (coded.decoded_gbd * weights_gbd).sum() + (coded.codes_m * weights_bf[rows, coded.features_m]).sum()
        for one, other in zip(torch.autograd.grad(loss, tensors), expected, strict=True):
            assert relative(one, other) < 1e-12
    return coded


@settings(max_examples=25)
@given(
    n_vectors=st.integers(1, 9),
    width=st.integers(1, 6),
    n_features=st.integers(1, 12),
    seed=st.integers(0, 1000),
    data=st.data(),
)
def test_top_k_values_and_gradients_equal_autograd(
    n_vectors: int, width: int, n_features: int, seed: int, data: st.DataObject
) -> None:
    k = data.draw(st.integers(1, n_features))
    check(leaves(n_vectors, width, n_features, seed), TopK(k))


@settings(max_examples=25)
@given(n_vectors=st.integers(1, 9), n_features=st.integers(2, 12), k=st.integers(1, 3), seed=st.integers(0, 1000))
def test_groups_decode_apart(n_vectors: int, n_features: int, k: int, seed: int) -> None:
    random = torch.Generator().manual_seed(seed)
    group_f = torch.randint(0, 3, (n_features,), generator=random).sort().values
    group_f -= group_f[0].clone()
    check(leaves(n_vectors, 4, n_features, seed), BatchTopK(k), group_f)


def test_widths_of_reading_and_writing_may_differ() -> None:
    x, centre, W_enc, b_enc, _ = leaves(7, 4, 9, seed=2)
    W_dec = torch.randn(9, 6, generator=torch.Generator().manual_seed(1), dtype=torch.float64, requires_grad=True)
    one, other = (each(x, centre, W_enc, b_enc, W_dec, TopK(3)) for each in (sparse_autoencode, dense_autoencode))
    assert one.decoded_bd.shape == (7, 6)
    torch.testing.assert_close(one.decoded_bd, other.decoded_bd)
    weights_bd = torch.randn(7, 6, dtype=torch.float64, generator=torch.Generator().manual_seed(2))
    grads = [torch.autograd.grad((each.decoded_bd * weights_bd).sum(), (W_enc, b_enc, W_dec)) for each in (one, other)]
    torch.testing.assert_close(*grads)


def test_low_precision_chooses_and_full_precision_computes() -> None:
    tensors = [tensor.detach().float().requires_grad_() for tensor in leaves(64, 16, 40, seed=3)]
    coded = sparse_autoencode(*tensors, TopK(5), precision=torch.bfloat16)
    x, centre, W_enc, b_enc, _ = tensors
    pre_bf = (x - centre) @ W_enc.T + b_enc
    rows = torch.arange(64).repeat_interleave(5)
    torch.testing.assert_close(coded.codes_m, pre_bf[rows, coded.features_m].relu())
    exact = TopK(5)(lambda rows: pre_bf.detach()[rows], 64)
    same = (coded.features_m.view(64, 5).sort().values == exact.features_m.view(64, 5).sort().values).double().mean()
    assert same > 0.9
    keep_bf = torch.zeros(64, 40)
    keep_bf[rows, coded.features_m] = 1
    decoded, _ = plain(tensors, keep_bf)
    expected = torch.autograd.grad(decoded.square().sum(), tensors)
    for one, other in zip(torch.autograd.grad(coded.decoded_bd.square().sum(), tensors), expected, strict=True):
        assert relative(one, other) < 1e-5


def positive_above(pre: Pre, n_vectors: int, threshold: float) -> Selection:
    """All pre-activations above a threshold: rows of unequal length, some empty."""
    pre_bf = pre(slice(0, n_vectors))
    rows, features = (pre_bf > threshold).nonzero(as_tuple=True)
    starts = torch.nn.functional.pad(torch.bincount(rows, minlength=len(pre_bf)).cumsum(0), (1, 0))
    return Selection(pre_bf[rows, features], features, starts)


@pytest.mark.parametrize("threshold", [-1.0, 1.0, 3.0])
def test_rows_of_unequal_length(threshold: float) -> None:
    tensors = leaves(12, 4, 9, seed=5)
    pre_bf = (tensors[0] - tensors[1]) @ tensors[2].T + tensors[3]
    sizes = positive_above(lambda rows: pre_bf[rows], 12, threshold).starts_b.diff()
    assert sizes.min() < sizes.max()
    check(tensors, lambda pre, n: positive_above(pre, n, threshold))


def test_negative_selected_values_are_no_codes_and_get_no_gradient() -> None:
    tensors = leaves(3, 4, 6)
    with torch.no_grad():
        tensors[3].fill_(-100)
    coded = sparse_autoencode(*tensors, TopK(2))
    assert not coded.codes_m.any()
    assert not coded.fired(6).any()
    for gradient in torch.autograd.grad(coded.decoded_bd.sum(), tensors):
        assert not gradient.any()


def test_float32_runs_agree_with_float64() -> None:
    tensors = leaves(64, 16, 40, seed=1)
    singles = [tensor.detach().float().requires_grad_() for tensor in tensors]
    for dtype_tensors in (tensors, singles):
        sparse_autoencode(*dtype_tensors, TopK(5)).decoded_bd.square().sum().backward()
    for one, other in zip(singles, tensors, strict=True):
        assert relative(one.grad.double(), other.grad) < 1e-5


def test_the_graph_keeps_nothing_of_the_size_of_the_codes() -> None:
    n_vectors, n_features = 128, 512
    tensors = [tensor.detach().float().requires_grad_() for tensor in leaves(n_vectors, 8, n_features)]
    kept: list[int] = []
    with torch.autograd.graph.saved_tensors_hooks(lambda tensor: kept.append(tensor.numel()) or tensor, lambda t: t):
        sparse_autoencode(*tensors, TopK(4)).decoded_bd.sum()
    assert kept
    assert max(kept) < n_vectors * n_features / 8
