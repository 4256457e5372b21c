"""The affine map with a pre-bias equals autograd's, and pays no product for the pre-bias."""

from __future__ import annotations

import torch

from mis_lab.sae.encoder import centred_linear


def test_values_and_gradients_equal_autograd() -> None:
    random = torch.Generator().manual_seed(0)
    shapes = [(7, 5), (5,), (11, 5), (11,)]
    leaves = [torch.randn(shape, generator=random, dtype=torch.float64, requires_grad=True) for shape in shapes]
    x, centre, weight, bias = leaves
    weights_of_sum = torch.randn(7, 11, generator=random, dtype=torch.float64)
    ours = centred_linear(x, centre, weight, bias)
    plain = torch.nn.functional.linear(x - centre, weight, bias)
    assert torch.equal(ours, plain)
    got = torch.autograd.grad((ours * weights_of_sum).sum(), leaves)
    expected = torch.autograd.grad((plain * weights_of_sum).sum(), leaves)
    for one, other in zip(got, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


def test_vectors_without_gradient_get_none() -> None:
    x, centre = torch.randn(3, 2), torch.randn(2, requires_grad=True)
    weight, bias = torch.randn(4, 2, requires_grad=True), torch.randn(4, requires_grad=True)
    centred_linear(x, centre, weight, bias).sum().backward()
    assert x.grad is None
    torch.testing.assert_close(centre.grad, -3 * weight.sum(0))
