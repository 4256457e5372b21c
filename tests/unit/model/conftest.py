from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor

from mis_lab.core.seeding import generator
from mis_lab.dataset.config import TransformConfig
from mis_lab.model.config import ModelConfig
from mis_lab.model.load import LoadedModel, load_model


@pytest.fixture(scope="session")
def config_of() -> Callable[..., ModelConfig]:
    """Configuration of a network: target and keywords, side of the input, other options of the model."""

    def make(target: str, size: int = 32, keywords: Mapping[str, Any] | None = None, **options: Any) -> ModelConfig:
        channels = options.pop("channels", 3)
        transform = TransformConfig(size=size, channels=channels, mean=[0.5] * channels, std=[0.5] * channels)
        options = {"name": "network", "sites": ["anywhere"], "input": transform} | options
        return ModelConfig(network={"_target_": target, **(keywords or {})}, **options)

    return make


@pytest.fixture(scope="session")
def loaded(config_of) -> Callable[..., LoadedModel]:
    """The network, random weights unless said otherwise, made once a session: tests leave it as it was."""
    made: dict[str, LoadedModel] = {}

    def make(target: str, size: int = 32, keywords: Mapping[str, Any] | None = None, **options: Any) -> LoadedModel:
        key = json.dumps([target, size, keywords, options], sort_keys=True)
        if key not in made:
            made[key] = load_model(config_of(target, size, keywords, **options))
        return made[key]

    return make


@pytest.fixture(scope="session")
def images_for() -> Callable[..., Tensor]:
    """`n` seeded random inputs of a model."""

    def make(model: LoadedModel, n: int = 2, seed: int = 0) -> Tensor:
        return torch.randn(n, *model.input_shape, generator=generator(seed, "test", "images"))

    return make
