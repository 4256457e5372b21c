from __future__ import annotations

import pytest
import torch

from mis_lab.core.device import resolve_device
from mis_lab.core.errors import ConfigError


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch, request: pytest.FixtureRequest) -> None:
    count = request.param
    monkeypatch.setattr(torch.cuda, "is_available", lambda: count > 0)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: count)
    monkeypatch.setattr(torch.backends.mps, "is_available", lambda: False)


@pytest.mark.parametrize(
    ("gpus", "name", "device"),
    [
        (0, "auto", "cpu"),
        (2, "auto", "cuda"),
        (0, "cpu", "cpu"),
        (2, "cpu", "cpu"),
        (2, "cuda", "cuda"),
        (2, "cuda:1", "cuda:1"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_the_device_asked_for(name: str, device: str) -> None:
    assert resolve_device(name) == torch.device(device)


@pytest.mark.parametrize(
    ("gpus", "name", "words"),
    [
        (0, "cuda", r"device=cuda is not available; looked in 0 CUDA devices\. Use device=auto"),
        (2, "cuda:2", r"device=cuda:2 is not available; looked in 2 CUDA devices"),
        (0, "mps", "device=mps is not available; looked in this machine"),
        (0, "meta", "device=meta is not available"),
        (0, "gpu", "device=gpu is no device.*Use auto, cpu, cuda, cuda:N or mps"),
        (0, "", "is no device"),
        (0, "cuda:one", "device=cuda:one is no device"),
    ],
    indirect=["gpus"],
)
@pytest.mark.usefixtures("gpus")
def test_a_device_that_is_not_there_is_told(name: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        resolve_device(name)
