"""Ablating whole sites: one answer for all images where nothing passes by, else each image its own."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.loading import batches
from mis_lab.model.load import LoadedModel, wrap_module
from mis_lab.model.sites import resolve_sites
from mis_lab.sae.ablation import ablate, outputs

N_IMAGES, SIZE = 11, 4


class Noise(ImageDataset):
    def __init__(self) -> None:
        super().__init__("noise", "score", [f"n{n}" for n in range(N_IMAGES)])
        self.pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIZE, SIZE), dtype=np.uint8)

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index])


class Net(nn.Module):
    """Two layers, and on request a way around the first."""

    def __init__(self, way_around: bool) -> None:
        super().__init__()
        self.first, self.second = nn.Linear(SIZE * SIZE, 6), nn.Linear(6, 3)
        self.around = nn.Linear(SIZE * SIZE, 3) if way_around else None
        self.counted: list[int] = []

    def forward(self, images_bchw: Tensor) -> Tensor:
        self.counted.append(len(images_bchw))
        x_bd = images_bchw.flatten(1)
        out = self.second(self.first(x_bd))
        return out if self.around is None else out + self.around(x_bd)


def network(way_around: bool) -> LoadedModel:
    with torch.random.fork_rng():
        torch.manual_seed(0)
        net = Net(way_around)
    return wrap_module(net, "net", TransformConfig(size=SIZE, channels=1, mean=[0.5], std=[0.1]))


@pytest.mark.parametrize("way_around", [False, True])
def test_losses_are_those_of_each_image_by_itself(way_around: bool) -> None:
    model = network(way_around)
    (site,) = resolve_sites(model, ["first"])
    original = outputs(model, Noise(), batch_size=4)
    mean_d = torch.linspace(-1, 1, 6)
    model.module.counted.clear()
    found = ablate(model, {site: mean_d}, Noise(), original, batch_size=4)["first"]
    # Three batches, each once an ablation; without a way around the first tells all.
    assert model.module.counted == ([4, 4] + ([4, 4, 3, 3] if way_around else []))
    images_bchw = next(iter(batches(Noise(), model.transform, N_IMAGES))).images_bchw
    for name, value_d in (("zero", torch.zeros(6)), ("mean", mean_d)):
        logits_nk = model.module.second(value_d).expand(N_IMAGES, 3)
        if way_around:
            logits_nk = logits_nk + model.module.around(images_bchw.flatten(1))
        log_nk, log_original_nk = logits_nk.double().log_softmax(1), original.logits_nk.double().log_softmax(1)
        loss_n = -log_nk.gather(1, original.class_n[:, None])[:, 0]
        kl_n = (log_original_nk.exp() * (log_original_nk - log_nk)).sum(1)
        torch.testing.assert_close(getattr(found, f"loss_{name}_n"), loss_n, rtol=1e-5, atol=1e-6)
        torch.testing.assert_close(getattr(found, f"kl_{name}_n"), kl_n, rtol=1e-5, atol=1e-6)


def test_images_that_the_network_cannot_tell_apart_prove_nothing() -> None:
    class Same(Noise):
        def image(self, index: int) -> Image.Image:
            return super().image(0 if index < 4 else index)

    model = network(way_around=True)
    (site,) = resolve_sites(model, ["first"])
    original = outputs(model, Same(), batch_size=4)
    found = ablate(model, {site: torch.zeros(6)}, Same(), original, batch_size=4)["first"]
    assert found.loss_zero_n[:4].unique().numel() == 1
    assert found.loss_zero_n[4:].unique().numel() == N_IMAGES - 4
