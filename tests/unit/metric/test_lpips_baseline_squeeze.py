from __future__ import annotations

import warnings
from dataclasses import replace
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image, ImageFilter
from torchvision.models import squeezenet1_1

from mis_lab.core.errors import ConfigError
from mis_lab.core.files import read_json
from mis_lab.core.store import Store
from mis_lab.dataset.config import PhotoPatchesConfig, SplitConfig
from mis_lab.dataset.load import load_dataset
from mis_lab.metric.config import LpipsBaselineSqueezeConfig
from mis_lab.metric.load import load_metric
from mis_lab.metric.lpips_baseline_squeeze import LpipsBaselineSqueeze
from mis_lab.model.packaged import packaged_state_dict
from mis_lab.pipeline import stages

CONFIG = LpipsBaselineSqueezeConfig()


@pytest.fixture(scope="module")
def metric() -> LpipsBaselineSqueeze:
    return LpipsBaselineSqueeze(CONFIG)


@pytest.fixture(scope="module")
def tiles() -> list[Image.Image]:
    dataset = load_dataset(PhotoPatchesConfig(split=SplitConfig(limit=36)), "score")
    return [dataset.image(index) for index in range(len(dataset))]


@pytest.fixture(scope="module")
def package() -> torch.nn.Module:
    """The package's own network, its slices filled from torchvision's network with the packaged weights."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        network = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
    theirs = squeezenet1_1(weights=None)
    theirs.load_state_dict(packaged_state_dict("squeezenet1_1_ndf"))
    for number in range(1, 8):
        slice_ = getattr(network.net, f"slice{number}")
        for name in list(slice_._modules):
            slice_._modules[name] = theirs.features[int(name)]
    return network.eval()


def _package_input(images: list[Image.Image]) -> torch.Tensor:
    pixels = np.stack([np.asarray(image.convert("RGB")) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2).float() / 127.5 - 1


def _distance(metric: LpipsBaselineSqueeze, a: list[Image.Image], b: list[Image.Image]) -> torch.Tensor:
    return (metric.embed(a).double() - metric.embed(b).double()).square().sum(1)


def test_distances_are_those_of_the_package(metric, package, tiles):
    a, b = tiles[:18], tiles[18:]
    with torch.no_grad():
        theirs = package(_package_input(a), _package_input(b)).flatten().double()
    ours = _distance(metric, a, b)
    assert ours.min() > 0.1
    assert torch.allclose(ours, theirs, rtol=1e-5, atol=0)


def test_small_distances_are_those_of_the_package(metric, package, tiles):
    a, b = tiles[:8], [image.filter(ImageFilter.GaussianBlur(0.5)) for image in tiles[:8]]
    with torch.no_grad():
        theirs = package(_package_input(a), _package_input(b)).flatten().double()
    assert torch.allclose(_distance(metric, a, b), theirs, rtol=1e-5, atol=1e-6)


def test_the_embedding_has_seven_layers_of_length_one(metric, tiles):
    rows_bd = metric.embed(tiles[:4])
    assert rows_bd.shape == (4, 118_976)
    assert rows_bd.dtype == torch.float32
    assert rows_bd.square().sum(1).tolist() == pytest.approx([7.0] * 4, rel=1e-5)


def test_equal_images_are_at_no_distance_whatever_the_batch(metric, tiles):
    together, alone = metric.embed(tiles[:5]), metric.embed(tiles[4:5])
    assert (together[4] - alone[0]).square().sum() < 1e-9


def test_images_of_any_size_and_mode_are_taken(metric, tiles):
    grey, large = tiles[0].convert("L"), tiles[1].resize((200, 130))
    assert metric.embed([grey, large, Image.new("RGB", (1, 1))]).isfinite().all()


def test_it_sees_what_people_see_better_than_pixels_do(metric, tiles):
    """A shift of three pixels is closer than a blur; chance and an untrained trunk put it farther away."""
    sharp = [image for image in tiles if np.asarray(image.convert("L")).std() > 15]
    inner = [image.crop((4, 4, 60, 60)) for image in sharp]
    shifted = [image.crop((7, 4, 63, 60)) for image in sharp]
    blurred = [image.filter(ImageFilter.GaussianBlur(2)).crop((4, 4, 60, 60)) for image in sharp]
    closer = _distance(metric, inner, shifted) < _distance(metric, inner, blurred)
    assert len(sharp) >= 15
    assert closer.double().mean() > 0.6


@pytest.mark.usefixtures("untouched_rng")
def test_loading_draws_no_random_number_and_prints_nothing(capfd):
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        LpipsBaselineSqueeze(CONFIG)
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_follows_what_changes_the_embedding_and_nothing_else(metric):
    same = LpipsBaselineSqueeze(replace(CONFIG, name="other", temperature=1.0, batch_size=2))
    assert same.fingerprint == metric.fingerprint
    assert LpipsBaselineSqueeze(replace(CONFIG, size=32)).fingerprint != metric.fingerprint


def test_the_smallest_size_works_and_smaller_ones_are_refused(tiles):
    assert load_metric(LpipsBaselineSqueezeConfig(size=32)).embed(tiles[:2]).isfinite().all()
    with pytest.raises(ConfigError, match=r"metric\.size=31: images are too small"):
        LpipsBaselineSqueezeConfig(size=31)


def test_the_error_of_a_sketch_is_stored_with_the_embedding(tmp_path):
    config = LpipsBaselineSqueezeConfig(size=32, sketch=2048)
    data = {"score": load_dataset(PhotoPatchesConfig(split=SplitConfig(limit=30)), "score")}
    lab = SimpleNamespace(
        config=SimpleNamespace(metric=config), metric=load_metric(config), data=data, store=Store(tmp_path)
    )
    summary = read_json(stages.embedding(lab).path / "summary.json")
    assert summary["sketch_n_images"] == summary["n_images"] == 30
    assert 0 < summary["sketch_margin_error"] < 0.5
    assert 0.8 < summary["sketch_sign_agreement"] < 1
