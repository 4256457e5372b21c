"""Means, densities and dead units against loops over codes."""

from __future__ import annotations

import math

import pytest
import torch

from mis_lab.circuit import dictionaries
from mis_lab.circuit.activity import CapturedVectors, activity, activity_beside
from mis_lab.core.errors import DataError

FIELDS = ("mean", "mean_if_active", "active_images", "density")


@pytest.mark.parametrize("network", ["relu", "tokens"])
@pytest.mark.parametrize("sae", ["relu", "topk"])
def test_numbers_are_those_of_the_codes(make_toy, network: str, sae: str, kind: str) -> None:
    toy = make_toy(network, sae=sae)
    found = activity(toy.dictionaries(kind), CapturedVectors(toy.problem, toy.images))
    for path, x_bpd in toy.clean()[1].items():
        codes = toy.dictionaries(kind)[path].encode(x_bpd)
        for feature in range(codes.shape[-1]):
            one_bp = codes[..., feature]
            fired = one_bp[one_bp != 0]
            assert float(found[path].mean[feature]) == pytest.approx(float(one_bp.mean()), rel=1e-9, abs=1e-12)
            assert float(found[path].density[feature]) == pytest.approx(len(fired) / one_bp.numel())
            n_images = sum(bool((row != 0).any()) for row in one_bp)
            assert float(found[path].active_images[feature]) == pytest.approx(n_images / 7)
            assert bool(found[path].dead[feature]) == (len(fired) == 0)
            if len(fired):
                assert float(found[path].mean_if_active[feature]) == pytest.approx(float(fired.mean()), rel=1e-9)
            else:
                assert math.isnan(found[path].mean_if_active[feature])
        assert found[path].n_images == 7
        if kind == "feature":
            assert found[path].dead[:2].all()  # made so
            assert found[path].dead_share == pytest.approx(int((codes == 0).all(1).all(0).sum()) / codes.shape[-1])


def test_batches_and_chunks_do_not_matter(make_toy, monkeypatch: pytest.MonkeyPatch) -> None:
    toy = make_toy(dtype=torch.float32)
    whole = activity(toy.dictionaries("feature"), CapturedVectors(toy.problem, [toy.all_images]))
    monkeypatch.setattr(dictionaries, "MAX_CODES", 1)
    again = activity(toy.dictionaries("feature"), CapturedVectors(toy.problem, toy.images))
    for path, of_site in whole.items():
        for name in FIELDS:
            ours, theirs = getattr(of_site, name), getattr(again[path], name)
            assert ours.dtype == torch.float64
            torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-7, equal_nan=True)


def test_a_circuits_images_stand_beside_all(make_toy) -> None:
    toy = make_toy(sae="topk")
    of_kind = toy.dictionaries("feature")
    some = [torch.zeros(1, 3, 6, 6, dtype=torch.float64)]  # few features fire on an image without any contrast
    everything = [*toy.images, *some]
    shares = []
    beside = activity_beside(
        {"": of_kind}, CapturedVectors(toy.problem, some), CapturedVectors(toy.problem, everything)
    )
    for path, both in beside[""].items():
        here, everywhere = (
            activity(of_kind, CapturedVectors(toy.problem, images))[path] for images in (some, everything)
        )
        for name in FIELDS:
            assert getattr(both.circuit, name).equal(getattr(here, name)) or name == "mean_if_active"
            assert getattr(both.everything, name).equal(getattr(everywhere, name)) or name == "mean_if_active"
        torch.testing.assert_close(both.more_here, here.active_images - everywhere.active_images)
        alive = [feature for feature in range(11) if not everywhere.dead[feature]]
        silent = [feature for feature in alive if here.dead[feature]]
        assert both.silent_here == pytest.approx(len(silent) / len(alive))
        shares.append(both.silent_here)
    assert 0 < max(shares) < 1


def test_no_images_is_told(make_toy) -> None:
    toy = make_toy()
    with pytest.raises(DataError, match="no images to see nodes active on"):
        activity(toy.dictionaries("neuron"), [])
