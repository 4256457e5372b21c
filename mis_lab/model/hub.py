"""Names and weights of timm and torchvision: which there are, and what to do when they cannot be fetched.

Nothing is fetched here; the libraries do that while the module is made.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import timm
import torch
import torchvision

from mis_lab.core.build import locate
from mis_lab.core.errors import ConfigError, MissingFileError, nearest_first

TIMM, TORCHVISION = "timm.create_model", "torchvision.models."
# Packages whose exceptions mean that a download failed, besides every OSError (URLError is one).
DOWNLOADERS = ("urllib", "http", "requests", "httpx", "httpx2", "httpcore", "httpcore2", "huggingface_hub")


def asks_for_weights(network: Mapping[str, Any]) -> bool:
    """Whether the options of a network ask its library for pretrained weights."""
    return bool(network.get("pretrained") or network.get("weights"))


def without_weights(network: Mapping[str, Any]) -> dict[str, Any]:
    """The options of a network without those that ask for pretrained weights: what an untrained one is made with."""
    return {name: value for name, value in network.items() if name not in ("pretrained", "weights")}


def check_names(network: Mapping[str, Any]) -> None:
    """Say which names come nearest when timm has no such model, or torchvision no such model or weights.

    Raises:
        ConfigError: for an unknown name.
    """
    target, weights = str(network.get("_target_")), network.get("weights")
    if target == TIMM:
        name = str(network.get("model_name"))
        if ":" not in name and not timm.is_model(name):  # "hf-hub:..." and "local-dir:..." are places, no names
            near = ", ".join(nearest_first(name, timm.list_models(), 5))
            raise ConfigError(f"model.network.model_name={name}: timm has no such model", fix=f"Nearest: {near}.")
        return
    known = _torchvision_weights(target)
    if known and isinstance(weights, str) and weights.rpartition(".")[2] not in known:
        raise ConfigError(
            f"model.network.weights={weights}: torchvision has no such weights",
            fix=f"Use one of {', '.join(known)}.",
        )


def _torchvision_weights(target: str) -> Mapping[str, Any]:
    """Name → weights that torchvision knows for the function `target`; empty for anything else."""
    if not target.startswith(TORCHVISION):
        return {}
    try:
        return torchvision.models.get_model_weights(locate(target)).__members__
    except ValueError:  # a class, or a function without pretrained weights
        return {}


def is_download_error(error: BaseException) -> bool:
    """Whether `error` is a file or a server that could not be reached."""
    return isinstance(error, OSError) or type(error).__module__.partition(".")[0] in DOWNLOADERS


def missing_weights(name: str, network: Mapping[str, Any], error: BaseException) -> MissingFileError:
    """The error for pretrained weights that could not be fetched: which file goes where."""
    target, weights = str(network.get("_target_")), network.get("weights")
    fix = "Run once with a network"
    without = "model.network.pretrained=false"
    if target == TIMM:
        config = timm.get_pretrained_cfg(str(network["model_name"]).rpartition(":")[2])
        hub_id = config.hf_hub_id if config else network["model_name"]
        fix += f" so that timm keeps {hub_id} in its cache, or get model.safetensors of {hub_id}"
        without = f"{without} model.weights=file:/path/to/model.safetensors"
    elif isinstance(weights, str) and (known := _torchvision_weights(target)):
        file_name = known[weights.rpartition(".")[2]].url.rpartition("/")[2]
        fix = f"Put {file_name} into {torch.hub.get_dir()}/checkpoints"
        without = f"model.network.weights=null model.weights=file:/path/to/{file_name}"
    else:
        without += " model.weights=file:/path/to/weights"
    reason = (str(error).splitlines() or [type(error).__name__])[0].rstrip(".")
    return MissingFileError(
        f"the pretrained weights of {name} cannot be fetched ({reason})", fix=f"{fix}, or set {without}."
    )
