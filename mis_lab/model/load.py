"""From configuration to a network ready to be read: built, its weights in place, frozen, on its device."""

# B images  C channels  H, W input size

from __future__ import annotations

import logging
import pickle
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.core.tensors import hash_tensors
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.config import ModelConfig
from mis_lab.model.hub import (
    asks_for_weights,
    check_names,
    is_download_error,
    missing_weights,
    without_weights,
)
from mis_lab.model.packaged import packaged_state_dict

NAMED_IN_ERRORS = 3  # keys listed when weights do not fit
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class LoadedModel:
    """A network under study.

    Attributes:
        name: short name for tables.
        module: in eval mode, on `device`, no parameter requires a gradient.
        fingerprint: sha256 of the state dict (names, types, shapes, values); the same on every device.
        transform: image → input (C, H, W).
        input_shape: (C, H, W).
        channels_last: feature maps are kept with channels innermost in memory.
        n_classes: width of the output; 0 when the output is not (B, classes).
        device: where it computes.
    """

    name: str
    module: nn.Module
    fingerprint: str
    transform: ImageTransform
    input_shape: tuple[int, int, int]
    channels_last: bool
    n_classes: int
    device: torch.device

    def to_input(self, images_bchw: Tensor) -> Tensor:
        """Images (B, C, H, W) on the network's device, in the memory order it computes fastest in."""
        if self.channels_last:
            return images_bchw.to(self.device, memory_format=torch.channels_last)
        return images_bchw.to(self.device)

    def zero_images(self, n: int) -> Tensor:
        """`n` inputs of zeros (B, C, H, W): what the network's shapes are read off."""
        return self.to_input(torch.zeros(n, *self.input_shape))


def load_model(
    config: ModelConfig, device: torch.device | str = "cpu", state_dict: Mapping[str, Tensor] | None = None
) -> LoadedModel:
    """Build the network, put its weights in place, freeze it and try it once on an image of zeros.

    Args:
        config: which network, which weights, which input.
        device: where it shall compute.
        state_dict: weights trained here, for ``weights: train`` and for nothing else.

    Raises:
        ConfigError: for an unknown network, weights that do not fit it, or an input that it does not take.
        MissingFileError: for weights that are not there or cannot be fetched.
        DataError: for a weight file that cannot be read.
    """
    module = build_network(config)
    _place_weights(module, config, state_dict)
    return wrap_module(module, config.name, config.input, device, config.channels_last)


def wrap_module(
    module: nn.Module,
    name: str,
    input: TransformConfig,
    device: torch.device | str = "cpu",
    channels_last: bool = True,
) -> LoadedModel:
    """A module of your own, ready to be read: frozen, in eval mode, on its device, tried once on images of zeros.

    Args:
        module: maps images (B, C, H, W) to logits (B, K); changed in place.
        name: short name for tables.
        input: how images become its input.
        device: where it shall compute.
        channels_last: keep feature maps with channels innermost where it has convolutions.

    Raises:
        ConfigError: for an input that the module does not take.
    """
    module.eval().requires_grad_(False)
    fingerprint = hash_tensors(module.state_dict())
    channels_last = channels_last and any(isinstance(part, nn.Conv2d) for part in module.modules())
    if channels_last:
        module.to(memory_format=torch.channels_last)
    device = torch.device(device)
    module.to(device)
    input_shape = (input.channels, input.size, input.size)
    loaded = LoadedModel(
        name=name,
        module=module,
        fingerprint=fingerprint,
        transform=ImageTransform(input),
        input_shape=input_shape,
        channels_last=channels_last,
        n_classes=_n_classes(module, torch.zeros(2, *input_shape, device=device), name),
        device=device,
    )
    logger.info("model %s: %s outputs, weights %s", name, loaded.n_classes, fingerprint[:8])
    return loaded


def build_network(config: ModelConfig) -> nn.Module:
    """The module that ``config.network`` describes, with the weights its constructor gives it.

    Constructors draw initial weights from torch's global CPU generator; it is seeded with `init_seed` for the
    time of the call and put back, so that nothing outside notices.

    Raises:
        ConfigError: for an unknown network or option.
        MissingFileError: when pretrained weights were asked for and cannot be fetched.
    """
    network = without_weights(config.network) if config.weights == "random" else config.network
    check_names(network)
    with torch.random.fork_rng(devices=[]):
        torch.random.default_generator.manual_seed(config.init_seed)
        try:
            module = build(network)
        except Exception as error:
            if isinstance(error, RuntimeError) and "pretrained" in str(error):  # timm: no such weights or tag
                raise ConfigError(f"model {config.name}: {error}", fix="Check model.network.") from error
            if asks_for_weights(network) and is_download_error(error):
                raise missing_weights(config.name, network, error) from error
            raise
    if not isinstance(module, nn.Module):
        raise ConfigError(f"model.network gave {type(module).__name__}, not a torch.nn.Module")
    return module


def _place_weights(module: nn.Module, config: ModelConfig, trained: Mapping[str, Tensor] | None) -> None:
    kind, _, which = config.weights.partition(":")
    if (trained is not None) != (kind == "train"):
        raise ConfigError(
            f"model.weights={config.weights} and {'no ' if trained is None else ''}trained weights given",
            fix="Train the network first (model.weights=train), or load other weights.",
        )
    if kind in ("none", "random"):
        if kind == "random" or not asks_for_weights(config.network):
            logger.info("model %s keeps random weights (init_seed %d)", config.name, config.init_seed)
        return
    if trained is not None:
        state = trained
    elif kind == "package":
        state = packaged_state_dict(which)
    else:
        state = read_state_dict(Path(which).expanduser())
    _check_fit(module.state_dict(), state, f"model.weights={config.weights} does not fit {config.name}")
    module.load_state_dict(state)


def read_state_dict(path: Path) -> dict[str, Tensor]:
    """The state dict in a safetensors file, or in a file of torch.save that holds tensors only.

    A checkpoint ``{"state_dict": ...}`` is opened.

    Raises:
        MissingFileError: when there is no such file.
        DataError: when it is damaged, or holds anything but named tensors.
    """
    if not path.is_file():
        raise MissingFileError(
            "the weight file is not there", looked=path.absolute(), fix="Set model.weights=file:PATH."
        )
    try:
        if path.suffix == ".safetensors":
            return load_file(path)
        found: Any = torch.load(path, map_location="cpu", weights_only=True)
    except (SafetensorError, pickle.UnpicklingError, RuntimeError, EOFError, ValueError, KeyError) as error:
        raise DataError(
            f"{path} cannot be read as weights ({(str(error).splitlines() or [''])[0]})",
            fix="Save the state dict with safetensors, or with torch.save and tensors only.",
        ) from error
    state = found.get("state_dict", found) if isinstance(found, Mapping) else found
    if not isinstance(state, Mapping) or not all(isinstance(value, Tensor) for value in state.values()):
        raise DataError(f"{path} holds no state dict", fix="Save model.state_dict(), not the model.")
    return dict(state)


def _check_fit(own: Mapping[str, Tensor], given: Mapping[str, Tensor], what: str) -> None:
    troubles = {
        "missing": [key for key in own if key not in given],
        "unexpected": [key for key in given if key not in own],
        "of another shape": [
            f"{key} {tuple(given[key].shape)} for {tuple(own[key].shape)}"
            for key in own
            if key in given and own[key].shape != given[key].shape
        ],
    }
    told = [f"{len(keys)} {trouble}: {', '.join(keys[:NAMED_IN_ERRORS])}" for trouble, keys in troubles.items() if keys]
    if told:
        raise ConfigError(f"{what} ({'; '.join(told)})", fix="Use the weights of this very network.")


def _n_classes(module: nn.Module, images_bchw: Tensor, name: str) -> int:
    try:
        with torch.no_grad():
            output = module(images_bchw)
    except (RuntimeError, ValueError, AssertionError) as error:
        raise ConfigError(
            f"model {name} does not take an input of {'×'.join(map(str, images_bchw.shape[1:]))} "
            f"({(str(error).splitlines() or [''])[0]})",
            fix="Set model.input.size and model.input.channels to what the network was made for.",
        ) from error
    return output.shape[1] if isinstance(output, Tensor) and output.ndim == 2 else 0
