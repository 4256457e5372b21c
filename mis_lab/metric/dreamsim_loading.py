"""Loads the package's network from a folder without leaving traces in the process.

The package moves torch hub's folder, prints, draws random weights, reads files onto the device they were saved from and
imports hub code under names like ``utils``; and it always asks whether something has to be downloaded.
"""

from __future__ import annotations

import contextlib
import functools
import io
import pickle
import sys
import warnings
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.error import URLError
from zipfile import BadZipFile

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.metric.dreamsim_files import DINO_CODE, DINOV2_CODE, DreamSimType

_HUB_MODULES = ("hubconf", "utils", "vision_transformer")  # of facebookresearch/dino, at the top level


def load_network(
    kind: DreamSimType, folder: Path, device: torch.device, download: bool
) -> tuple[Any, Callable[..., Tensor]]:
    """The package's network with its adapter, and its transform of a PIL image to (1, 3, 224, 224).

    Raises:
        MissingFileError: when a download fails, or would be needed and was not asked for.
        ConfigError: when something that its code imports is not installed.
        DataError: when a file is damaged or of another network.
    """
    if download:
        folder.mkdir(parents=True, exist_ok=True)  # the package makes the last folder only
    try:
        with contained(folder, download):
            from dreamsim import dreamsim

            network, transform = dreamsim(
                pretrained=True,
                device=str(device),
                cache_dir=str(folder),
                dreamsim_type=kind.name.removesuffix("_patch"),
                use_patch_model=kind.is_patch,
            )
    except URLError as error:
        raise MissingFileError(
            f"DreamSim {kind.name} could not be fetched ({error.reason})",
            looked=kind.archive,
            fix=f"Put its files into {folder.absolute()} by hand.",
        ) from error
    except ImportError as error:
        raise ConfigError(
            f"DreamSim {kind.name} cannot be imported ({error})", fix=f"Install {error.name or 'what it names'}."
        ) from error
    except (RuntimeError, KeyError, ValueError, EOFError, pickle.UnpicklingError, BadZipFile) as error:
        raise DataError(
            f"the files of DreamSim {kind.name} cannot be loaded ({(str(error).splitlines() or [''])[0]})",
            looked=folder.absolute(),
            fix=f"Fetch {kind.archive} again.",
        ) from error
    return network, transform


@contextlib.contextmanager
def contained(folder: Path, download: bool) -> Iterator[None]:
    """Lets the package's loader work in `folder` and puts everything back afterwards.

    Inside, torch hub takes repositories from `folder` when they are there, files are read onto the CPU and as tensors
    only, and without `download` nothing is fetched.
    """
    hub_load, read = torch.hub.load, torch.load
    replaced = {(torch.hub, "load"): functools.partial(_from_folder, hub_load, folder), (torch, "load"): _on_cpu(read)}
    if not download:
        replaced[torch.hub, "download_url_to_file"] = _refuse
    before = {(module, name): getattr(module, name) for module, name in [*replaced, (torch.hub, "_hub_dir")]}
    hidden = {name: sys.modules.pop(name) for name in _HUB_MODULES if name in sys.modules}
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]), contextlib.redirect_stdout(io.StringIO()):
        warnings.simplefilter("ignore")
        try:
            for (module, name), value in replaced.items():
                setattr(module, name, value)
            yield
        finally:
            for (module, name), value in before.items():
                setattr(module, name, value)
            for name, module in list(sys.modules.items()):
                if folder.resolve() in Path(getattr(module, "__file__", None) or "/").resolve().parents:
                    del sys.modules[name]
            sys.modules.update(hidden)


def _from_folder(load: Callable[..., Any], folder: Path, repository: str, model: str, **options: Any) -> Any:
    local = folder / (DINOV2_CODE if "dinov2" in repository else DINO_CODE)
    if not (local / "hubconf.py").is_file():
        return load(repository, model, **options)
    return load(str(local), model, source="local", **options)


def _on_cpu(read: Callable[..., Any]) -> Callable[..., Any]:
    def load(*arguments: Any, **options: Any) -> Any:
        return read(*arguments, **{"map_location": "cpu", **options, "weights_only": True})

    return load


def _refuse(url: str, dst: str, *_arguments: Any, **_options: Any) -> None:
    raise MissingFileError(f"{Path(dst).name} is missing", looked=Path(dst).parent, fix=f"Fetch {url}.")
