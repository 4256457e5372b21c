"""Forward hooks and the eval mode for the time of a ``with`` block, both undone whatever happens in it."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Any

from torch import nn

from mis_lab.core.errors import ConfigError, nearest_first

# What a hook gets (module, arguments, output); what it returns replaces the output, None leaves it.
Hook = Callable[[nn.Module, tuple[Any, ...], Any], Any]


def module_at(root: nn.Module, path: str) -> nn.Module:
    """The module at `path` below `root`.

    Raises:
        ConfigError: when there is none, naming the nearest.
    """
    modules = dict(root.named_modules(remove_duplicate=False))
    if not path or path not in modules:
        near = ", ".join(nearest_first(path, [name for name in modules if name]))
        raise ConfigError(
            f"model.sites: there is no module {path}",
            looked=f"the {len(modules) - 1} modules of {type(root).__name__}",
            fix=f"Nearest: {near}. 'mis-lab model sites' lists them all.",
        )
    return modules[path]


@contextmanager
def hooked(root: nn.Module, hooks: Mapping[str, Hook]) -> Iterator[None]:
    """Run each hook after the forward pass of the module at its path."""
    modules = {path: module_at(root, path) for path in hooks}
    handles = []
    try:
        for path, hook in hooks.items():
            handles.append(modules[path].register_forward_hook(hook))
        yield
    finally:
        for handle in handles:
            handle.remove()


@contextmanager
def evaluating(root: nn.Module) -> Iterator[None]:
    """Put every module into eval mode, so that no batch statistic moves; afterwards each has its own mode."""
    training = [module for module in root.modules() if module.training]
    root.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
