"""Defects seen in other SAE libraries, each as a test that ours is free of it. Those of evaluation are in
`test_evaluate.py`, those of single architectures beside them; here are the ones that cut across.
"""

# N vectors  D width  F features

from __future__ import annotations

import importlib
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

import mis_lab.sae
from mis_lab.core.build import build
from mis_lab.core.seeding import generator
from mis_lab.sae import io
from mis_lab.sae.aux_k import aux_k_loss
from mis_lab.sae.base import Sae
from mis_lab.sae.config import BatchTopKConfig, GatedConfig, JumpReluConfig, SaeConfig, TopKConfig
from mis_lab.sae.resample import Resampler
from mis_lab.sae.trainer_config import Normalisation, ResamplingConfig, ResamplingKind, TrainerConfig
from mis_lab.sae.training import Training

CONFIGS: dict[str, SaeConfig] = {
    "topk": TopKConfig(n_features=24, k=3),
    "batch_topk": BatchTopKConfig(n_features=24, k=3),
    "jump_relu": JumpReluConfig(n_features=24),
    "gated": GatedConfig(n_features=24),
}


@pytest.fixture(params=CONFIGS)
def sae(request: pytest.FixtureRequest, x_nd: Tensor) -> Sae:
    sae = build(CONFIGS[request.param], width=8)
    sae.initialise(x_nd, generator(0))
    return sae


def test_weights_loaded_after_eval_are_the_ones_used(sae: Sae, x_nd: Tensor) -> None:
    """A dictionary fused by eval() goes stale when a state dict is loaded afterwards."""
    other = build(sae.config, width=8)
    other.initialise(x_nd, generator(7))
    sae.eval()
    sae(x_nd)
    sae.load_state_dict(other.state_dict())
    assert torch.equal(sae.dictionary, other.dictionary)
    assert torch.equal(sae(x_nd).reconstruction, other.eval()(x_nd).reconstruction)


def test_every_module_imports_with_the_newest_matplotlib() -> None:
    """One import of a function that matplotlib removed makes a whole package unusable."""
    for module in pkgutil.walk_packages(mis_lab.__path__, "mis_lab."):
        if not module.name.endswith("__main__"):
            importlib.import_module(module.name)


@pytest.mark.parametrize("normalisation", Normalisation)
def test_the_normalisation_is_saved_with_the_sae(
    sae: Sae, x_nd: Tensor, tmp_path: Path, normalisation: Normalisation
) -> None:
    """A factor written into a throw-away copy of the options is lost, and raw activations then give other codes."""
    sae.initialise(x_nd, generator(0), normalisation)
    io.save(sae, tmp_path)
    loaded = io.load(tmp_path)
    assert torch.equal(loaded.scale, sae.scale)
    assert torch.equal(loaded.encode(x_nd), sae.encode(x_nd))


@pytest.mark.parametrize("kind", [ResamplingKind.loss, ResamplingKind.random])
def test_resampling_changes_the_weights_themselves(sae: Sae, vectors: Callable, kind: ResamplingKind) -> None:
    """Rows written into a copy (indexing twice) change nothing."""
    training = Training(sae, TrainerConfig(n_vectors=6400, batch_size=64))
    training.step, training.n_seen = 7, 7 * 64
    training.silent_f[[1, 4]] = 7 * 64
    before = {name: parameter.detach().clone() for name, parameter in sae.named_parameters()}
    Resampler(ResamplingConfig(kind=kind, every=3), vectors(), 0).after(training)
    for name in ("W_enc", "W_dec"):
        now, then = getattr(sae, name).detach(), before[name]
        assert (now[[1, 4]] != then[[1, 4]]).any(1).all(), name
        untouched = [feature for feature in range(24) if feature not in (1, 4)]
        assert torch.equal(now[untouched], then[untouched]), name


def test_sparse_training_works_on_the_cpu(x_nd: Tensor, step: Callable) -> None:
    """Sparse tensors as codes fail in the backward pass on a CPU."""
    sae = build(CONFIGS["topk"], width=8)
    sae.initialise(x_nd, generator(0))
    sae.step_losses(x_nd, step(sae)).total.backward()
    assert all(torch.isfinite(parameter.grad).all() for parameter in sae.parameters())


def aux_of(x_nd: Tensor, error_nd: Tensor, dead: list[int], centre_d: Tensor, aux_k: int = 2) -> tuple[Tensor, Sae]:
    sae = build(TopKConfig(n_features=24, k=3), width=8).double()
    sae.initialise(torch.randn(64, 8, generator=generator(2)), generator(0))
    dead_f = torch.zeros(24, dtype=torch.bool)
    dead_f[dead] = True
    return aux_k_loss(x_nd, error_nd, dead_f, centre_d, sae.W_enc, sae.b_enc, sae.W_dec, aux_k), sae


def test_aux_k_decodes_without_the_bias(x_nd: Tensor) -> None:
    """The error has lost b_dec already: a guess of it that adds b_dec again counts it twice."""
    x, dead = x_nd.double(), [3, 9, 20]
    error = torch.randn(x.shape, generator=generator(1), dtype=torch.float64)
    centre = torch.full((8,), 5.0, dtype=torch.float64)
    found, sae = aux_of(x, error, dead, centre)
    pre = (x - centre) @ sae.W_enc[dead].T + sae.b_enc[dead]
    values, features = pre.topk(2, dim=1)
    codes = torch.zeros_like(pre).scatter(1, features, values.relu())
    expected = (error - codes @ sae.W_dec[dead]).square().sum() / (error - error.mean(0)).square().sum()
    torch.testing.assert_close(found, expected)


def test_aux_k_of_an_all_zero_batch_is_a_number(x_nd: Tensor) -> None:
    zero = torch.zeros_like(x_nd).double()
    found, _ = aux_of(x_nd.double(), zero, [1, 2], torch.zeros(8).double())
    assert float(found.detach()) == 0


@pytest.mark.parametrize("n_vectors", [1, 2])
def test_a_batch_smaller_than_the_auxiliary_k_is_no_trouble(x_nd: Tensor, n_vectors: int) -> None:
    x = x_nd[:n_vectors].double()
    found, _ = aux_of(x, torch.randn(x.shape, generator=generator(1)).double(), list(range(20)), x.mean(0), aux_k=32)
    assert torch.isfinite(found)


def test_the_error_that_aux_k_reconstructs_carries_no_gradient(x_nd: Tensor, step: Callable) -> None:
    """Else living features learn to leave an error that dead ones can explain."""
    sae = build(TopKConfig(n_features=24, k=3, aux_weight=1.0), width=8)
    sae.initialise(x_nd, generator(0))
    living = list(range(12))
    with_aux = torch.autograd.grad(sae.step_losses(x_nd, step(sae, dead=range(12, 24))).total, sae.W_dec)[0]
    without = torch.autograd.grad(sae.step_losses(x_nd, step(sae)).total, sae.W_dec)[0]
    torch.testing.assert_close(with_aux[living], without[living])
    assert (with_aux[12:] - without[12:]).abs().max() > 1e-4
