"""Baseline states against plain means."""

from __future__ import annotations

import pytest
import torch

from mis_lab.circuit import baselines, dictionaries
from mis_lab.circuit.baselines import mean, mean_image, mean_per_position, zero
from mis_lab.circuit.dictionaries import n_nodes
from mis_lab.core.errors import DataError


@pytest.mark.parametrize(("network", "dims"), [("relu", (0, 1)), ("tokens", (0,))])
@pytest.mark.parametrize("sae", ["relu", "topk"])
def test_mean_is_per_position_for_tokens_alone(make_toy, network: str, dims: tuple[int, ...], sae: str) -> None:
    toy = make_toy(network, sae=sae)
    for path, x_bpd in toy.clean()[1].items():
        nodes, output = toy.node_sets["feature"][path], toy.saes[path](x_bpd)
        torch.testing.assert_close(nodes.features, output.codes.mean(dims))
        torch.testing.assert_close(nodes.error, (x_bpd - output.reconstruction).mean(dims))
        torch.testing.assert_close(nodes.state, x_bpd.mean(dims))
        torch.testing.assert_close(toy.node_sets["neuron"][path].state, x_bpd.mean(dims))


@pytest.mark.parametrize("network", ["relu", "tokens"])
def test_mean_per_position_keeps_positions_of_maps_apart_too(make_toy, network: str) -> None:
    toy = make_toy(network, baseline=mean_per_position)
    for path, x_bpd in toy.clean()[1].items():
        nodes, output = toy.node_sets["feature"][path], toy.saes[path](x_bpd)
        torch.testing.assert_close(nodes.features, output.codes.mean(0))
        torch.testing.assert_close(nodes.error, (x_bpd - output.reconstruction).mean(0))
        torch.testing.assert_close(nodes.state, x_bpd.mean(0))
        torch.testing.assert_close(toy.node_sets["neuron"][path].state, x_bpd.mean(0))


def test_zero_ends_at_the_dictionarys_offset(make_toy) -> None:
    toy = make_toy(baseline=zero)
    for path, nodes in toy.node_sets["feature"].items():
        assert torch.equal(nodes.state, toy.saes[path].offset)
        assert toy.saes[path].offset.any()
        assert not nodes.features.any()
        assert not nodes.error.any()
        assert not toy.node_sets["neuron"][path].state.any()


def test_the_state_is_what_features_and_error_make(make_toy, baseline, kind: str) -> None:
    toy = make_toy("tokens", baseline=baseline)
    for nodes in toy.node_sets[kind].values():
        made = nodes.dictionary.combine(nodes.features) + nodes.dictionary.offset + nodes.error
        torch.testing.assert_close(nodes.state, made, rtol=1e-12, atol=1e-12)


def test_means_do_not_depend_on_batches(make_toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy()
    of_kind = {
        kind: {path: nodes.dictionary for path, nodes in of_sites.items()} for kind, of_sites in toy.node_sets.items()
    }
    monkeypatch.setattr(dictionaries, "MAX_CODES", 1)  # an image at a time
    again = mean(toy.problem, of_kind, list(toy.all_images.split(1)))
    for kind, of_sites in toy.node_sets.items():
        for path, nodes in of_sites.items():
            torch.testing.assert_close(again[kind][path].features, nodes.features, rtol=1e-9, atol=1e-12)
            torch.testing.assert_close(again[kind][path].error, nodes.error, rtol=1e-9, atol=1e-12)


def test_a_constant_feature_equals_its_mean_to_the_bit_in_float32() -> None:
    running = baselines._Mean(per_position=False)
    value = torch.tensor(0.1)
    for _ in range(50):
        running.update(value.expand(3, 7, 2))
    assert torch.equal(running.result().float(), value.expand(2))


def test_mean_image_is_the_mean_over_images(make_toy) -> None:
    toy = make_toy()
    assert mean_image(toy.images).dtype == torch.float64
    torch.testing.assert_close(mean_image(toy.images), toy.all_images.mean(0))


def test_no_images_is_a_users_error() -> None:
    with pytest.raises(DataError, match="no images"):
        mean_image([])


def test_every_node_is_counted_once(make_toy) -> None:
    toy = make_toy()
    assert n_nodes(toy.node_sets["feature"]["1"].dictionary) == 12
    assert n_nodes(toy.node_sets["neuron"]["1"].dictionary) == 5
