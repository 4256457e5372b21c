"""The transcoder against its formula, against TopK where source and target are one, and against linear regression."""

# N vectors  D source width  O target width  F features

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.seeding import generator
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.architectures.transcoder import TranscoderSae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.further_config import TranscoderConfig
from mis_lab.sae.trainer_config import Normalisation, TrainerConfig
from mis_lab.sae.training import Training

D, O, N_FEATURES, K = 8, 5, 16, 4


@pytest.fixture
def pairs(x_nd: Tensor) -> Tensor:
    """(256, D + O): a target that a rectified map of the source gives, of another scale and mean."""
    maps_do = torch.randn(D, O, generator=generator(1))
    return torch.cat([x_nd, 30 * ((x_nd - x_nd.mean(0)) @ maps_do).relu() - 7], 1)


def made(pairs: Tensor, skip: bool, **options: object) -> TranscoderSae:
    """Initialised, and moved a little: no bias or weight is zero."""
    sae = TranscoderSae(TranscoderConfig(n_features=N_FEATURES, k=K, aux_k=3, skip=skip, **options), D, O).double()
    sae.initialise(pairs.double(), generator(0))
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator(number)))
    return sae


def by_hand(sae: TranscoderSae, pairs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Codes, ŷ and y of the formula, inner units."""
    x = pairs[:, :D].double() * sae.scale - sae.b_pre
    y = pairs[:, D:].double() * sae.target_scale
    pre = x @ sae.W_enc.T + sae.b_enc
    kept = pre >= pre.topk(K, dim=1).values[:, -1:]
    codes = torch.where(kept, pre, 0.0).relu()
    guess = codes @ sae.W_dec + sae.b_dec
    return codes, guess + x @ sae.W_skip.T if sae.config.skip else guess, y


@pytest.mark.parametrize("sparse", [True, False])
@pytest.mark.parametrize("skip", [False, True])
def test_formula_loss_and_gradients(pairs: Tensor, step: Callable, skip: bool, sparse: bool) -> None:
    sae = made(pairs, skip, sparse=sparse)
    codes, guess, y = by_hand(sae, pairs)
    output = sae(pairs[:, :D].double())
    torch.testing.assert_close(output.codes, codes)
    torch.testing.assert_close(output.reconstruction, guess / sae.target_scale)
    torch.testing.assert_close(sae.decode(codes), codes @ sae.dictionary + sae.offset)

    losses = sae.step_losses(pairs.double(), step(sae))
    expected = (y - guess).square().sum(1).mean() / sae.variance
    torch.testing.assert_close(losses.total, expected)
    gradients = torch.autograd.grad(losses.total, list(sae.parameters()))
    for name, one, other in zip(
        dict(sae.named_parameters()), gradients, torch.autograd.grad(expected, list(sae.parameters())), strict=True
    ):
        assert one.any(), name
        torch.testing.assert_close(one, other, rtol=1e-8, atol=1e-12)


def test_dead_features_learn_the_error_of_skip_and_features_together(pairs: Tensor, step: Callable) -> None:
    sae = made(pairs, skip=True)
    _, guess, y = by_hand(sae, pairs)
    error = (y - guess).detach()
    dead = [3, 9, 11]
    pre = (pairs[:, :D].double() * sae.scale - sae.b_pre) @ sae.W_enc[dead].T + sae.b_enc[dead]
    missed = error - pre.relu() @ sae.W_dec[dead]
    losses = sae.step_losses(pairs.double(), step(sae, dead=dead))
    torch.testing.assert_close(
        losses.named["aux"], missed.square().sum().detach() / (error - error.mean(0)).square().sum()
    )


def test_from_a_site_to_itself_it_is_a_topk_sae(x_nd: Tensor, step: Callable) -> None:
    x_nd = x_nd.double()
    topk = TopKSae(TopKConfig(n_features=N_FEATURES, k=K), D).double()
    topk.initialise(x_nd, generator(0))
    same = TranscoderSae(TranscoderConfig(n_features=N_FEATURES, k=K), D, D).double()
    same.initialise(torch.cat([x_nd, x_nd], 1), generator(0))
    same.load_state_dict(
        {**same.state_dict(), **topk.state_dict(), "b_pre": topk.b_dec.data, "target_scale": topk.scale}
    )
    torch.testing.assert_close(same(x_nd), topk(x_nd))
    torch.testing.assert_close(
        same.step_losses(torch.cat([x_nd, x_nd], 1), step(same)).total, topk.step_losses(x_nd, step(topk)).total
    )


@pytest.mark.parametrize("normalisation", [Normalisation.unit_variance, Normalisation.mean_square])
def test_each_part_has_a_scale_and_a_mean_of_its_own(pairs: Tensor, normalisation: Normalisation) -> None:
    sae = TranscoderSae(TranscoderConfig(n_features=N_FEATURES, k=K), D, O)
    sae.initialise(pairs, generator(0), normalisation)
    source, target = sae.parts(pairs)
    centred = [part - part.mean(0) for part in (source, target)]
    if normalisation is Normalisation.unit_variance:
        for part in centred:
            assert float(part.square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    else:
        for part in (source, target):
            assert float(part.square().sum(1).mean()) == pytest.approx(1, rel=1e-5)
    assert float(sae.variance) == pytest.approx(float(centred[1].square().sum(1).mean()), rel=1e-5)
    torch.testing.assert_close(sae.b_pre, source.mean(0))
    torch.testing.assert_close(sae.offset, pairs[:, D:].mean(0), rtol=1e-4, atol=1e-4)
    assert torch.equal(sae.encode(pairs[:, :D]), sae.encode(sae.source(pairs)))


def test_atoms_start_where_each_feature_alone_explains_most(pairs: Tensor) -> None:
    pairs = pairs.double()
    sae = TranscoderSae(TranscoderConfig(n_features=N_FEATURES, k=K), D, O).double()
    sae.initialise(pairs, generator(0))
    torch.testing.assert_close(sae.W_enc.norm(dim=1), torch.ones(N_FEATURES, dtype=torch.float64))
    pre = (pairs[:, :D] - pairs[:, :D].mean(0)) @ sae.W_enc.T
    y = pairs[:, D:] - pairs[:, D:].mean(0)
    for feature in range(N_FEATURES):
        slope = torch.linalg.lstsq(pre[:, feature : feature + 1], y).solution[0]  # y ≈ pre · slope
        torch.testing.assert_close(sae.W_dec[feature], F.normalize(slope, dim=0))


@pytest.mark.parametrize("skip", [False, True])
def test_folding_both_scales_changes_no_number(pairs: Tensor, skip: bool) -> None:
    sae = made(pairs, skip)
    x = pairs[:, :D].double()
    before, dictionary, weights, skips = sae(x), sae.dictionary.detach(), sae.encoder_weights, sae.skip_weights
    sae.fold_scale()
    assert float(sae.scale) == float(sae.target_scale) == 1
    torch.testing.assert_close(sae(x), before)
    torch.testing.assert_close(sae.dictionary.detach(), dictionary)
    torch.testing.assert_close(sae.encoder_weights, weights)
    torch.testing.assert_close(sae.skip_weights, skips)


def test_skip_and_encoder_in_raw_units(pairs: Tensor) -> None:
    x = pairs[:, :D].double()
    for skip in (False, True):
        sae = made(pairs, skip)
        weight_od, bias_o = sae.skip_weights
        codes = sae.encode(x)
        torch.testing.assert_close(sae(x).reconstruction, sae.decode(codes) + x @ weight_od.T + bias_o)
        weight_fd, bias_f = sae.encoder_weights
        torch.testing.assert_close(sae.activation(x @ weight_fd.T + bias_f), codes)


def test_a_skip_takes_over_what_is_affine(x_nd: Tensor) -> None:
    pairs = torch.cat([x_nd, 5 * x_nd @ torch.randn(D, O, generator=generator(2)) + 1], 1)
    final = {}
    for skip in (False, True):
        sae = TranscoderSae(TranscoderConfig(n_features=N_FEATURES, k=1, aux_k=0, skip=skip), D, O)
        sae.initialise(pairs, generator(0))
        training = Training(sae, TrainerConfig(n_vectors=256 * 150, batch_size=256, lr=2e-2, log_steps=1))
        for _ in range(150):
            training.advance(pairs)
        final[skip] = training.history["fvu"][-1]
    assert final[True] < 0.1 < final[False]


def test_mistakes_are_told(pairs: Tensor, step: Callable) -> None:
    sae = made(pairs, skip=False)
    with pytest.raises(ConfigError, match="widths 8 and 5 cannot read vectors of 8"):
        sae.step_losses(pairs[:, :D].double(), step(sae))
    with pytest.raises(ConfigError, match="transcoder cannot be resampled"):
        sae.revive(torch.tensor([0]), pairs[:1, :D], pairs[:1, D:], torch.zeros(1))
    config = TranscoderConfig(source={"layer2": "layer1"})
    assert config.source_of("layer2") == "layer1"
    with pytest.raises(ConfigError, match=r"does not say which site the transcoder of layer3 reads.*layer2"):
        config.source_of("layer3")
