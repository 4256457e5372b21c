"""SAEs on disk: ``sae.safetensors`` (weights, buffers) and ``sae.json`` (what class, with which options)."""

from __future__ import annotations

from collections.abc import Mapping
from enum import Enum
from pathlib import Path
from typing import Any, get_type_hints

from mis_lab.core.build import locate
from mis_lab.core.errors import MisLabError, StoreError
from mis_lab.core.files import read_json, write_json
from mis_lab.core.keys import plain
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.sae.base import Autoencoder

VERSION = 1
WEIGHTS, DESCRIPTION = "sae.safetensors", "sae.json"


def save(sae: Autoencoder, folder: Path) -> None:
    """Write `sae` into `folder`; the description comes last, so that a folder with one is whole."""
    write_tensors(folder / WEIGHTS, sae.state_dict())
    write_json(
        folder / DESCRIPTION,
        {
            "version": VERSION,
            "target": f"{type(sae).__module__}.{type(sae).__qualname__}",
            "config": plain(sae.config),
            "width": sae.width,
            "n_features": sae.n_features,
            "arguments": sae.arguments,
        },
    )


def load(folder: Path) -> Autoencoder:
    """The SAE in `folder`, on the CPU, in evaluation mode, its parameters frozen.

    Only classes that :func:`mis_lab.core.build.build` may build are imported: the file cannot name anything else.

    Raises:
        StoreError: when a file is missing, damaged, of another version, or names an architecture that it does not fit.
    """
    path = folder / DESCRIPTION
    if not path.exists():
        raise StoreError(f"no SAE in {folder}", looked=path, fix="Train one with stages=[activations,sae].")
    try:
        described = read_json(path)
        if described["version"] != VERSION:
            raise StoreError(f"version {described['version']}, this mis_lab reads {VERSION}")
        architecture = locate(described["target"])
        if not (isinstance(architecture, type) and issubclass(architecture, Autoencoder)):
            raise StoreError(f"{described['target']} is no SAE architecture")
        arguments = {"width": described["width"], **described.get("arguments", {})}
        sae = _rebuild(architecture, described["config"], arguments)
        sae.load_state_dict(read_tensors(folder / WEIGHTS), strict=True, assign=True)
    except (MisLabError, AttributeError, KeyError, TypeError, ValueError, RuntimeError) as error:
        # load_state_dict lists every mismatch on a line of its own; the first two say enough.
        told = " ".join(" ".join(str(error).splitlines()[:2]).split())
        raise StoreError(f"{folder} holds no usable SAE ({type(error).__name__}: {told})") from error
    return sae.eval().requires_grad_(False)


def _rebuild(architecture: type[Autoencoder], options: Mapping[str, Any], arguments: Mapping[str, Any]) -> Autoencoder:
    """Call the constructor as build() did: with its configuration dataclass, or with plain keywords."""
    if architecture.config_type is None:
        return architecture(**{**options, **arguments})
    types = get_type_hints(architecture.config_type)
    if unknown := sorted(set(options) - set(types)):
        raise StoreError(f"{architecture.__name__} has no option {', '.join(unknown)}")
    values = {
        name: types[name][value] if isinstance(types[name], type) and issubclass(types[name], Enum) else value
        for name, value in options.items()
    }
    return architecture(config=architecture.config_type(**values), **arguments)
