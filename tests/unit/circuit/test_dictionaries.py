"""One contract for every kind of dictionary."""

from __future__ import annotations

import pytest
import torch

from mis_lab.circuit.dictionaries import MAX_CODES, Neurons, SaeFeatures, n_images_at_once, n_nodes
from mis_lab.core.errors import ConfigError
from mis_lab.model.sites import Site
from mis_lab.sae.architectures.conv import ConvSae
from mis_lab.sae.architectures.transcoder import TranscoderSae
from mis_lab.sae.further_config import ConvConfig, TranscoderConfig


@pytest.fixture(params=["relu", "topk", "neuron"])
def dictionary_and_vectors(request, make_toy):
    toy = make_toy(sae="topk" if request.param == "topk" else "relu")
    kind = "neuron" if request.param == "neuron" else "feature"
    return toy.node_sets[kind]["3"].dictionary, toy.clean()[1]["3"]


def test_combine_and_project_are_adjoint(dictionary_and_vectors) -> None:
    dictionary, x_bpd = dictionary_and_vectors
    codes, g_bpd = torch.rand(*x_bpd.shape[:2], dictionary.n_features).double(), torch.randn_like(x_bpd)
    torch.testing.assert_close((dictionary.combine(codes) * g_bpd).sum(), (codes * dictionary.project(g_bpd)).sum())


def test_combine_of_some_features_is_combine_with_the_others_at_zero(dictionary_and_vectors) -> None:
    dictionary, x_bpd = dictionary_and_vectors
    codes, which = dictionary.encode(x_bpd), torch.tensor([4, 1])
    alone = torch.zeros_like(codes)
    alone[..., which] = codes[..., which]
    torch.testing.assert_close(dictionary.combine(codes[..., which], which), dictionary.combine(alone))


def test_without_an_error_node_codes_give_the_vectors_back(dictionary_and_vectors) -> None:
    dictionary, x_bpd = dictionary_and_vectors
    error = x_bpd - dictionary.combine(dictionary.encode(x_bpd)) - dictionary.offset
    assert bool(error.any()) == dictionary.has_error
    assert n_nodes(dictionary) == dictionary.n_features + dictionary.has_error


def test_sae_features_are_the_saes_own_codes_and_reconstruction(make_toy) -> None:
    toy = make_toy()
    dictionary, sae, x_bpd = toy.node_sets["feature"]["3"].dictionary, toy.saes["3"], toy.clean()[1]["3"]
    output = sae(x_bpd)
    assert torch.equal(dictionary.encode(x_bpd), output.codes)
    torch.testing.assert_close(dictionary.combine(output.codes) + dictionary.offset, output.reconstruction)


def test_an_sae_of_another_width_is_refused(make_toy) -> None:
    with pytest.raises(ConfigError, match=r"site wide has width 7, the site 9"):
        SaeFeatures.at(Site("wide", "bchw", 9, 9, (3, 3)), make_toy().saes["3"])


def test_an_autoencoder_without_a_dictionary_of_the_site_is_refused() -> None:
    transcoder = TranscoderSae(TranscoderConfig(n_features=4, k=2), 5, 5)
    whole_maps = ConvSae(ConvConfig(n_features=4), 5, (6, 6))
    for sae in (transcoder, whole_maps):
        with pytest.raises(ConfigError, match=rf"{type(sae).__name__} is no dictionary of.* site 1"):
            SaeFeatures.at(Site("1", "bchw", 5, 36, (6, 6)), sae)


def test_codes_stay_within_the_budget() -> None:
    neurons = Neurons(1024, torch.zeros(1024))
    at_once = n_images_at_once(neurons, 196)
    assert at_once * 196 * 1024 <= MAX_CODES < (at_once + 1) * 196 * 1024
    assert n_images_at_once(neurons, MAX_CODES) == 1
