"""The contract of the baselines that are made in one go: a new one is one more entry of BASELINES."""

# N vectors  D width  F features

from __future__ import annotations

import importlib
import inspect
import pkgutil
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import generator
from mis_lab.sae import architectures, io
from mis_lab.sae.base import Sae
from mis_lab.sae.baseline import keep_largest
from mis_lab.sae.baseline_config import NeuronsConfig, NmfConfig, PcaConfig, RandomConfig, SignedConfig
from mis_lab.sae.config import SaeConfig
from mis_lab.sae.evaluate import evaluate_reconstruction
from mis_lab.sae.train import train
from mis_lab.sae.trainer_config import TrainerConfig

WIDTH = 8
BASELINES: dict[str, tuple[SaeConfig, int]] = {
    "neurons": (NeuronsConfig(), WIDTH),
    "neurons_k": (NeuronsConfig(k=3), WIDTH),
    "pca": (PcaConfig(), WIDTH),
    "pca_few": (PcaConfig(n_features=5, k=3), 5),
    "random": (RandomConfig(expansion=3, k=4), 24),
    "nmf": (NmfConfig(expansion=1.5, max_epochs=20), 12),
}


@pytest.fixture(params=BASELINES)
def config(request: pytest.FixtureRequest) -> SaeConfig:
    return BASELINES[request.param][0]


@pytest.fixture
def raw_nd(x_nd: Tensor) -> Tensor:
    """(256, 8) vectors without a negative number."""
    return x_nd.relu()


@pytest.fixture
def sae(config: SaeConfig, raw_nd: Tensor, vectors: Callable) -> Sae:
    sae, loader = build(config, width=WIDTH), vectors()
    loader.x_nd = raw_nd
    sae.initialise(raw_nd, generator(0, "atoms"))
    sae.fit(loader, generator(0, "fit"))
    return sae


def test_every_baseline_is_tested() -> None:
    found = set()
    for module in pkgutil.iter_modules(architectures.__path__):
        for member in vars(importlib.import_module(f"{architectures.__name__}.{module.name}")).values():
            is_sae = isinstance(member, type) and issubclass(member, Sae) and not inspect.isabstract(member)
            if is_sae and member.is_fitted:
                found.add(member)
    assert found == {type(build(config, width=WIDTH)) for config, _ in BASELINES.values()}


@pytest.mark.parametrize("name", BASELINES)
def test_number_of_features(name: str) -> None:
    config, n_features = BASELINES[name]
    assert build(config, width=WIDTH).n_features == n_features


@pytest.mark.parametrize("leading", [(), (5,), (2, 3)])
def test_any_leading_dimensions(sae: Sae, raw_nd: Tensor, leading: tuple[int, ...]) -> None:
    x = raw_nd[: max(1, torch.Size(leading).numel())].reshape(*leading, WIDTH)
    codes = sae.encode(x)
    assert codes.shape == (*leading, sae.n_features)
    assert sae.decode(codes).shape == x.shape
    torch.testing.assert_close(codes.reshape(-1, sae.n_features), sae.encode(x.reshape(-1, WIDTH)))


def test_decode_is_affine_to_the_bit(sae: Sae, raw_nd: Tensor) -> None:
    output = sae(raw_nd)
    assert torch.equal(output.codes, sae.encode(raw_nd))
    assert torch.equal(output.reconstruction, output.codes @ sae.dictionary + sae.offset)
    assert sae.dictionary.shape == (sae.n_features, WIDTH)


def test_encoder_weights_are_the_encoder_in_raw_units(sae: Sae, raw_nd: Tensor) -> None:
    sae, raw_nd = sae.double(), raw_nd.double()
    if isinstance(sae.config, NmfConfig):
        for refused in (lambda: sae.encoder_weights, lambda: sae.activation(raw_nd)):
            with pytest.raises(ConfigError, match="the encoder of NMF is a search"):
                refused()
        return
    weight_fd, bias_f = sae.encoder_weights
    torch.testing.assert_close(sae.activation(raw_nd @ weight_fd.T + bias_f), sae.encode(raw_nd))


def test_folding_the_scale_changes_no_number(sae: Sae, raw_nd: Tensor) -> None:
    sae, raw_nd = sae.double(), raw_nd.double()
    before, dictionary = sae(raw_nd), sae.dictionary.detach().clone()
    sae.fold_scale()
    assert float(sae.scale) == 1
    torch.testing.assert_close(sae(raw_nd), before, rtol=1e-4, atol=1e-6)  # of a search: its tolerance
    torch.testing.assert_close(sae.dictionary.detach(), dictionary)


def test_k_bounds_the_codes(sae: Sae, raw_nd: Tensor) -> None:
    active_n = (sae.encode(raw_nd) != 0).sum(1)
    k = getattr(sae.config, "k", 0)
    if k:
        assert int(active_n.max()) == k
    if isinstance(sae.config, SignedConfig):
        assert (sae.encode(raw_nd) < 0).any() or isinstance(sae.config, NeuronsConfig)


def test_a_step_is_refused(sae: Sae, raw_nd: Tensor, step: Callable) -> None:
    with pytest.raises(ConfigError, match="is not trained by steps"):
        sae.step_losses(raw_nd, step(sae))


@pytest.mark.usefixtures("untouched_rng")
def test_training_takes_no_step_and_saves_what_it_made(
    config: SaeConfig, raw_nd: Tensor, vectors: Callable, stored: type, tmp_path: Path
) -> None:
    loader = vectors()
    loader.x_nd = raw_nd
    trainer = TrainerConfig(n_vectors=256, batch_size=64)
    made = [build(config, width=WIDTH) for _ in range(2)]
    for number, sae in enumerate(made):
        summary = train(sae, loader, trainer, 0, tmp_path / str(number), lambda *_: None, held_out_nd=raw_nd[:64])
        assert summary.n_steps == 0
    loaded = io.load(tmp_path / "0")
    for one, again, same in zip(loaded(raw_nd), made[0](raw_nd), made[1](raw_nd), strict=True):
        assert torch.equal(one, again)
        assert torch.equal(one, same)
    quality = evaluate_reconstruction(loaded, stored(raw_nd.unflatten(0, (64, 4))))
    assert 0 <= quality.fvu < (1.5 if isinstance(config, RandomConfig) else 0.9)


@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
def test_bad_samples_are_refused(config: SaeConfig, raw_nd: Tensor, bad: float) -> None:
    sae = build(config, width=WIDTH)
    with pytest.raises(DataError, match="all 9 activation vectors of the sample are equal"):
        sae.initialise(torch.ones(9, WIDTH), generator(0))
    raw_nd = raw_nd.clone()
    raw_nd[7, 2] = bad
    with pytest.raises(DataError, match="NaN or infinity"):
        sae.initialise(raw_nd, generator(0))


def test_the_largest_codes_are_kept_whatever_their_sign() -> None:
    codes = torch.tensor([[1.0, -3.0, 2.0, 0.5], [0.0, 0.1, -0.2, 0.3]])
    assert keep_largest(codes, 2).tolist() == [[0, -3, 2, 0], [0, 0, *codes[1, 2:].tolist()]]
    for k in (0, 4, 9):
        assert torch.equal(keep_largest(codes, k), codes)
