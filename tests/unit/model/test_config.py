from __future__ import annotations

import subprocess
import sys

import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import content_key
from mis_lab.model.config import ClassifierTrainingConfig, ModelConfig


def model(**options: object) -> ModelConfig:
    return ModelConfig(**{"name": "net", "sites": ["layer1"]} | options)


@pytest.mark.parametrize(
    ("options", "told"),
    [
        ({"sites": []}, "model.sites is empty for net.*mis-lab model sites"),
        ({"sites": ["a", "b", "a"]}, "names a module twice"),
        ({"weights": "pretrained"}, "model.weights=pretrained.*package:NAME"),
        ({"weights": "file:"}, "model.weights=file:"),
        ({"weights": "none:x"}, "model.weights=none:x"),
        ({"class_names": "coco"}, "model.class_names=coco.*imagenet, dataset or none"),
    ],
)
def test_what_cannot_work_is_told(options, told):
    with pytest.raises(ConfigError, match=told):
        model(**options)


@pytest.mark.parametrize(
    "options",
    [{"epochs": 0}, {"batch_size": 0}, {"lr": 0.0}, {"momentum": 1.0}, {"weight_decay": -1e-4}, {"lr_step": -1}],
)
def test_training_options_out_of_range(options):
    with pytest.raises(ConfigError, match=rf"model\.training needs.*{next(iter(options))}"):
        ClassifierTrainingConfig(**options)


def test_memory_order_changes_no_result_and_no_key_but_weights_do():
    assert content_key(model()) == content_key(model(channels_last=False))
    assert content_key(model()) != content_key(model(weights="file:a.safetensors"))


def test_configuration_needs_no_torch():
    code = "import sys, mis_lab.model.config; sys.exit('torch' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
