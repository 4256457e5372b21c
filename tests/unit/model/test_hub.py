from __future__ import annotations

from urllib.error import URLError

import pytest
import torch
import torchvision
from omegaconf import OmegaConf

from mis_lab.config import conf_dir
from mis_lab.core.errors import ConfigError, MissingFileError
from mis_lab.model.capture import predictions
from mis_lab.model.load import build_network, load_model

TIMM = "timm.create_model"


def no_network(*args: object, **keywords: object) -> None:
    raise URLError("Name or service not known")


@pytest.fixture
def offline(monkeypatch, tmp_path):
    """No server answers, nothing is cached."""
    monkeypatch.setattr("torch.hub.urlopen", no_network)
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    monkeypatch.setenv("TORCH_HOME", str(tmp_path))
    return tmp_path


def test_torchvision_without_a_network_says_which_file_goes_where(config_of, offline):
    config = config_of("torchvision.models.resnet18", keywords={"weights": "IMAGENET1K_V1"}, name="resnet18")
    with pytest.raises(MissingFileError) as caught:
        build_network(config)
    line = str(caught.value)
    assert "pretrained weights of resnet18 cannot be fetched" in line
    assert f"Put resnet18-f37072fd.pth into {offline}/hub/checkpoints" in line
    assert "model.network.weights=null model.weights=file:/path/to/resnet18-f37072fd.pth" in line
    assert "\n" not in line


def test_what_the_torchvision_error_says_works(config_of, offline):
    """The file put into that folder is taken (its name holds the start of its sha256, checked by torchvision only
    when it downloads)."""
    module = build_network(config_of("torchvision.models.squeezenet1_1"))
    (offline / "hub/checkpoints").mkdir(parents=True)
    torch.save(module.state_dict(), offline / "hub/checkpoints/squeezenet1_1-b8a52dc0.pth")
    keywords = {"weights": "DEFAULT"}
    again = build_network(config_of("torchvision.models.squeezenet1_1", keywords=keywords, init_seed=9))
    assert torch.equal(again.features[0].weight, module.features[0].weight)


@pytest.mark.parametrize(("name", "weights"), [("resnet18", "IMAGENET1K_V1"), ("resnet50", "IMAGENET1K_V2")])
def test_presets_of_resnets_take_torchvisions_weights(config_of, monkeypatch, name, weights):
    target = f"torchvision.models.{name}"
    own, fetched = build_network(config_of(target, init_seed=9)).state_dict(), []

    def fetch(self, *_args: object, **_keywords: object) -> dict[str, torch.Tensor]:
        fetched.append(self)
        return own

    monkeypatch.setattr("torchvision.models._api.WeightsEnum.get_state_dict", fetch)
    preset = OmegaConf.to_container(OmegaConf.load(conf_dir() / "model" / f"{name}.yaml"))
    assert preset["network"] == {"_target_": target, "weights": weights}
    model = load_model(config_of(target, 64, {"weights": weights}))
    assert fetched == [torchvision.models.get_model_weights(name)[weights]]
    assert torch.equal(model.module.layer4[0].conv2.weight, own["layer4.0.conv2.weight"])
    assert predictions(model, torch.zeros(2, 3, 64, 64)).shape == (2, 1000)
    theirs = fetched[0].transforms()
    assert preset["input"] == {"size": theirs.crop_size[0], "resize": theirs.resize_size[0]}


def test_timm_without_a_network_names_the_hub_id(config_of, offline):
    config = config_of(TIMM, keywords={"model_name": "test_vit", "pretrained": True})
    with pytest.raises(MissingFileError) as caught:
        build_network(config)
    line = str(caught.value)
    assert "model.safetensors of timm/test_vit.r160_in1k" in line
    assert "model.network.pretrained=false model.weights=file:/path/to/model.safetensors" in line
    assert "\n" not in line


def test_other_errors_of_a_constructor_keep_their_type(config_of, monkeypatch):
    def broken(config: object) -> None:
        raise OSError("no space left")

    monkeypatch.setattr("mis_lab.model.load.build", broken)
    with pytest.raises(OSError, match=r"no space left"):
        build_network(config_of(TIMM, keywords={"model_name": "test_vit"}))  # nothing pretrained was asked for


@pytest.mark.parametrize(
    ("error", "expected"),
    [
        (ConnectionResetError("reset"), MissingFileError),
        (TimeoutError("slow"), MissingFileError),
        (ZeroDivisionError("a bug"), ZeroDivisionError),
    ],
)
def test_only_failed_downloads_become_missing_files(config_of, monkeypatch, error, expected):
    def broken(config: object) -> None:
        raise error

    monkeypatch.setattr("mis_lab.model.load.build", broken)
    with pytest.raises(expected, match=str(error)):
        build_network(config_of("mis_lab.anything", keywords={"pretrained": True}))


@pytest.mark.parametrize(
    ("keywords", "told"),
    [
        ({"model_name": "resnet188"}, "model_name=resnet188: timm has no such model. Nearest: resnet18"),
        ({"model_name": "resnet18.no_such_tag"}, r"no_such_tag"),
        ({"model_name": "test_byobnet.x", "pretrained": True}, "x"),
    ],
)
def test_names_timm_does_not_know(config_of, keywords, told):
    with pytest.raises(ConfigError, match=told):
        build_network(config_of(TIMM, keywords=keywords))


def test_weights_torchvision_does_not_know(config_of):
    config = config_of("torchvision.models.resnet50", keywords={"weights": "IMAGENET1K_V3"})
    with pytest.raises(ConfigError, match=r"IMAGENET1K_V3.*Use one of IMAGENET1K_V1, IMAGENET1K_V2, DEFAULT"):
        build_network(config)


def test_a_model_torchvision_does_not_have(config_of):
    with pytest.raises(ConfigError, match=r"no resnet19 there.*Nearest: resnet1"):
        build_network(config_of("torchvision.models.resnet19", keywords={"weights": "DEFAULT"}))
