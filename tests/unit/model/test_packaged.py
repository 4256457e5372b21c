from __future__ import annotations

import pickle
from dataclasses import replace

import numpy as np
import pytest
import skimage.data
import timm
import torch
import torchvision
from PIL import Image
from torch.nn.functional import conv2d

from mis_lab.core.errors import ConfigError, MissingFileError
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.reading import packaged_file
from mis_lab.model import packaged
from mis_lab.model.capture import predictions
from mis_lab.model.class_names import imagenet_names
from mis_lab.model.config import ModelConfig
from mis_lab.model.load import load_model
from mis_lab.model.packaged import PACKAGED, packaged_state_dict

CATS = {"tiger cat", "Egyptian cat", "tabby"}


def test_lite0_has_timms_keys_in_timms_order_and_the_files_tensors():
    """The file and timm list the same layers in the same order: an oracle beside the renaming."""
    state = packaged_state_dict("efficientnet_lite0")
    own = timm.create_model("tf_efficientnet_lite0").state_dict()
    file = PACKAGED["efficientnet_lite0"]
    source = torch.load(packaged_file(file.requirement, file.place), weights_only=True)
    assert list(state) == list(own)
    assert len(source) == len(own) == 296
    for key, tensor in zip(own, source.values(), strict=True):
        assert state[key].shape == own[key].shape
        assert torch.equal(state[key], tensor)


def test_squeezenet_has_torchvisions_keys_and_shapes():
    state = packaged_state_dict("squeezenet1_1_ndf")
    own = torchvision.models.squeezenet1_1().state_dict()
    assert {key: value.shape for key, value in state.items()} == {key: value.shape for key, value in own.items()}
    assert all(value.dtype == torch.float32 and value.is_contiguous() for value in state.values())


def test_squeezenets_first_layer_takes_normalised_rgb_for_caffes_bgr():
    file = PACKAGED["squeezenet1_1_ndf"]
    with open(packaged_file(file.requirement, file.place), "rb") as opened:
        kernel_hwio, bias = packaged._ArrayUnpickler(opened, encoding="latin1").load()["conv1"]
    kernel = torch.from_numpy(kernel_hwio).double().permute(3, 2, 0, 1)
    pixels_chw = torch.from_numpy(np.random.default_rng(0).integers(0, 256, (3, 9, 9))).double()

    caffe = pixels_chw.flip(0) - torch.tensor([104.0, 117.0, 123.0], dtype=torch.float64).view(3, 1, 1)
    expected = conv2d(caffe[None], kernel, torch.from_numpy(bias).double(), stride=2)

    mean = torch.tensor([0.485, 0.456, 0.406], dtype=torch.float64).view(3, 1, 1)
    std = torch.tensor([0.229, 0.224, 0.225], dtype=torch.float64).view(3, 1, 1)
    state = {key: value.double() for key, value in packaged_state_dict("squeezenet1_1_ndf").items()}
    normalised = ((pixels_chw / 255 - mean) / std)[None]
    found = conv2d(normalised, state["features.0.weight"], state["features.0.bias"], stride=2)
    torch.testing.assert_close(found, expected, rtol=1e-4, atol=1e-4)  # the state dict is float32


@pytest.mark.parametrize(
    ("weights", "network", "mean", "std"),
    [
        (
            "efficientnet_lite0",
            {"_target_": "timm.create_model", "model_name": "tf_efficientnet_lite0"},
            [0.5, 0.5, 0.5],
            [0.5, 0.5, 0.5],
        ),
        (
            "squeezenet1_1_ndf",
            {"_target_": "torchvision.models.squeezenet1_1"},
            [0.485, 0.456, 0.406],
            [0.229, 0.224, 0.225],
        ),
    ],
)
def test_both_see_a_cat_in_the_photograph_of_a_cat(weights, network, mean, std):
    transform = TransformConfig(size=224, resize=256, mean=mean, std=std)
    config = ModelConfig(name=weights, network=network, weights=f"package:{weights}", sites=["x"], input=transform)
    model = load_model(config)
    image = model.transform(Image.fromarray(skimage.data.chelsea()))
    top = predictions(model, image[None])[0].softmax(0).topk(3)
    assert {imagenet_names()[index] for index in top.indices.tolist()} == CATS
    assert top.values.sum() > 0.85


def test_an_unknown_name_lists_the_known_ones():
    with pytest.raises(ConfigError, match=r"squeezenet.*Use one of squeezenet1_1_ndf, efficientnet_lite0"):
        packaged_state_dict("squeezenet")


def test_a_missing_package_says_what_to_install(monkeypatch):
    file = PACKAGED["efficientnet_lite0"]._replace(requirement="no-such-thing==2.1", place="no_such_thing/weights.pth")
    monkeypatch.setitem(PACKAGED, "efficientnet_lite0", file)
    with pytest.raises(MissingFileError, match=r"weights\.pth.*Install no-such-thing==2\.1"):
        packaged_state_dict("efficientnet_lite0")


def test_a_file_with_other_bytes_is_not_read(monkeypatch):
    def never(path):
        raise AssertionError("read before it was checked")

    file = PACKAGED["squeezenet1_1_ndf"]._replace(sha256="0" * 64, read=never)
    monkeypatch.setitem(PACKAGED, "squeezenet1_1_ndf", file)
    with pytest.raises(MissingFileError, match=r"sha256 f286bbf493e6, not 000000000000.*Install ndf==0\.1\.4 again"):
        packaged_state_dict("squeezenet1_1_ndf")


class _Malicious:
    def __reduce__(self):
        return eval, ("1 + 1",)


@pytest.mark.parametrize("content", [_Malicious(), replace, np.random.default_rng(0)])
def test_the_unpickler_rebuilds_arrays_and_nothing_else(content, tmp_path):
    path = tmp_path / "weights.pkl"
    path.write_bytes(pickle.dumps({"conv1": content}))
    with open(path, "rb") as file, pytest.raises(pickle.UnpicklingError, match="is not admitted"):
        packaged._ArrayUnpickler(file).load()
