"""The one place that turns a ``_target_`` of a configuration into an object.

Only names below :data:`ALLOWED` are imported; a project adds its own through :func:`allow` (called by
``conf/local`` and by installed entry points of the group ``mis_lab.targets``, never by a stored configuration).
"""

from __future__ import annotations

import dataclasses
import functools
import importlib
from collections.abc import Mapping
from importlib.metadata import entry_points
from types import ModuleType
from typing import Any

from mis_lab.core.errors import ConfigError, nearest_first

ALLOWED = [
    "mis_lab.",
    "torch.nn.",
    "torch.optim.",
    "timm.create_model",
    "torchvision.models.",
    "torchvision.transforms.",
]
TARGET = "_target_"


def allow(prefix: str) -> None:
    """Let :func:`build` import names that start with `prefix` (``"my_package."``)."""
    if prefix not in ALLOWED:
        ALLOWED.append(prefix)


@functools.cache
def _installed_prefixes() -> tuple[str, ...]:
    return tuple(point.value for point in entry_points(group="mis_lab.targets"))


def locate(target: str) -> Any:
    """The class or function a dotted `target` names.

    Raises:
        ConfigError: when the target is not allowed or does not exist.
    """
    prefixes = (*ALLOWED, *_installed_prefixes())
    if not target.startswith(prefixes):
        raise ConfigError(
            f"{TARGET}={target} is not allowed",
            looked=", ".join(prefixes),
            fix="List the package under 'plugins' in conf/local, or install it with an entry point mis_lab.targets.",
        )
    parts = target.split(".")
    for split in range(len(parts) - 1, 0, -1):
        module_name = ".".join(parts[:split])
        try:
            found: Any = importlib.import_module(module_name)
        except ModuleNotFoundError as error:
            if error.name and (module_name + ".").startswith(error.name + "."):
                continue  # the tail may be a class, not a module
            raise
        for part in parts[split:]:
            if not hasattr(found, part) or isinstance(getattr(found, part), ModuleType):
                near = nearest_first(part, [name for name in vars(found) if not name.startswith("_")], 5)
                raise ConfigError(
                    f"{TARGET}={target}: no {part} there", looked=module_name, fix=f"Nearest: {', '.join(near)}."
                )
            found = getattr(found, part)
        home = getattr(found, "__module__", None) or parts[0]
        if home.partition(".")[0] != parts[0]:  # what an allowed module happens to import is not allowed by that
            raise ConfigError(f"{TARGET}={target} is not allowed", fix=f"It belongs to {home}.")
        return found
    raise ConfigError(f"{TARGET}={target}: no such module", looked="the installed packages")


def build(config: Any, **extra: Any) -> Any:
    """Make what `config` describes: call its ``_target_`` with its other entries and `extra`.

    Args:
        config: a mapping with ``_target_``, or a dataclass whose class states ``_target_``. A dataclass is handed
            over whole, as the keyword `config`, so that its type and checks stay with it; a mapping is spread into
            keywords, nested targets built first. An entry ``kwargs`` (schema `external`) is spread as well.
        **extra: keywords known only at run time (width, split, device); they win over the configuration.

    Raises:
        ConfigError: when there is no target, it is not allowed, or it does not take these options.
    """
    keywords: dict[str, Any]
    if dataclasses.is_dataclass(config):
        target, keywords = getattr(config, TARGET, None), {"config": config}
        if (own := getattr(config, "kwargs", None)) is not None:
            keywords = {name: _build_nested(value) for name, value in own.items()}
    elif isinstance(config, Mapping):
        keywords = {name: _build_nested(value) for name, value in config.items() if name != TARGET}
        target = config.get(TARGET)
        keywords |= keywords.pop("kwargs", None) or {}
    else:
        raise ConfigError(f"cannot build from {type(config).__name__}")
    if not target:
        raise ConfigError(f"a configuration without {TARGET}: {config}")
    function = locate(target)
    try:
        return function(**{**keywords, **extra})
    except TypeError as error:
        if "unexpected keyword" in str(error) or "required" in str(error):
            raise ConfigError(f"{target}: {error}", fix="Check the option names of this entry.") from error
        raise


def _build_nested(value: Any) -> Any:
    if isinstance(value, Mapping):
        return build(value) if TARGET in value else {key: _build_nested(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_build_nested(item) for item in value]
    return value
