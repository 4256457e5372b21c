from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.core.errors import ConfigError
from mis_lab.dataset.config import PhotoPatchesConfig, TransformConfig
from mis_lab.dataset.photo_patches import PhotoPatches
from mis_lab.metric.base import embed_dataset
from mis_lab.metric.config import EmbeddingConfig
from mis_lab.metric.embedding import PooledFeatures
from mis_lab.metric.load import load_metric
from mis_lab.model.config import ModelConfig

TINY = ModelConfig(
    name="tiny",
    network={"_target_": "timm.create_model", "model_name": "test_resnet"},
    sites=["layer4"],
    input=TransformConfig(size=48),
)
LITE0 = ModelConfig(
    name="tf_efficientnet_lite0",
    network={"_target_": "timm.create_model", "model_name": "tf_efficientnet_lite0"},
    weights="package:efficientnet_lite0",
    sites=["global_pool"],
    input=TransformConfig(size=96, mean=[0.5] * 3, std=[0.5] * 3),
)


def _config(model: ModelConfig = TINY, **options: object) -> EmbeddingConfig:
    return EmbeddingConfig(name="features", model=model, **options)


def _photos(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (40, 50, 3), dtype=np.uint8)) for _ in range(n)]


def test_embeddings_are_pooled_features_of_length_one():
    metric = PooledFeatures(_config())
    rows_bd = metric.embed(_photos(3))
    images_bchw = torch.stack([metric.model.transform(image) for image in _photos(3)])
    found = []
    handle = metric.model.module.layer4.register_forward_hook(lambda *call: found.append(call[2].double()))
    metric.model.module(images_bchw)
    handle.remove()
    pooled_bd = found[0].mean((2, 3))
    expected = pooled_bd / pooled_bd.norm(dim=1, keepdim=True)
    assert rows_bd.dtype == torch.float32
    assert torch.allclose(rows_bd.double(), expected, atol=1e-5)
    assert rows_bd.norm(dim=1).tolist() == pytest.approx([1.0] * 3, abs=1e-6)


def test_a_packaged_network_tells_scenes_apart():
    dataset = PhotoPatches(PhotoPatchesConfig(), "score")
    scenes = ("chelsea", "coffee", "rocket", "brick")
    chosen = [index for scene in scenes for index in np.flatnonzero(np.array(dataset.groups) == scene)[10:16]]
    embedding = embed_dataset(load_metric(_config(LITE0)), dataset.subset(chosen))
    assert embedding.scale == pytest.approx(1.0, abs=1e-6)
    groups = np.array(dataset.groups)[chosen]
    same = (groups[:, None] == groups) & ~np.eye(len(chosen), dtype=bool)
    gram = embedding.gram.numpy()
    assert gram[same].mean() > gram[groups[:, None] != groups].mean() + 0.1


def test_the_fingerprint_follows_network_site_and_input():
    configs = [
        _config(),
        _config(replace(TINY, init_seed=1)),
        _config(replace(TINY, sites=["layer3"])),
        _config(replace(TINY, input=TransformConfig(size=64))),
    ]
    assert len({PooledFeatures(config).fingerprint for config in configs}) == len(configs)
    other_name = PooledFeatures(_config(replace(TINY, name="renamed"), temperature=1.0, batch_size=1))
    assert other_name.fingerprint == PooledFeatures(_config()).fingerprint


@pytest.mark.usefixtures("untouched_rng")
def test_neither_loading_nor_embedding_draws_random_numbers():
    PooledFeatures(_config()).embed(_photos(2))


@pytest.mark.parametrize(
    ("model", "words"),
    [
        (replace(TINY, sites=["layer5"]), "no module layer5.*layer4"),
        (replace(LITE0, weights="train"), "no trained weights"),
        (replace(TINY, input=TransformConfig(size=48, channels=1, mean=[0.5], std=[0.5])), "input of 1×48×48"),
    ],
)
def test_a_network_that_cannot_serve_is_refused_in_one_line(model, words):
    with pytest.raises(ConfigError, match=words) as raised:
        PooledFeatures(_config(model))
    assert "\n" not in str(raised.value)


def test_images_too_small_for_the_network_are_refused():
    squeezenet = ModelConfig(
        name="squeezenet",
        network={"_target_": "torchvision.models.squeezenet1_1"},
        sites=["features"],
        input=TransformConfig(size=4),
    )
    with pytest.raises(ConfigError, match="does not take an input of 3×4×4"):
        PooledFeatures(_config(squeezenet))


def test_several_sites_are_refused():
    with pytest.raises(ConfigError, match=r"metric\.model\.sites=layer3,layer4: the metric reads one site"):
        _config(replace(TINY, sites=["layer3", "layer4"]))
