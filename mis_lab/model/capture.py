"""Reading a network: its logits, and the vectors at sites.

A pass that captures stops as soon as it has every site.
"""

# B images  C channels  H, W input size  P positions  D width

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from typing import Self

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.model.hooks import Hook, evaluating, hooked
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site


class _AllReached(BaseException):
    """Ends a forward pass at its deepest site. No Exception, so that no network catches it by accident."""


class Capture:
    """Reads the vectors at `sites`; a context manager that leaves the network as it found it.

    ::

        with Capture(model, sites) as capture:
            for batch in batches(...):
                x_bpd = capture.run(batch.images_bchw)[path]

    Hooks are there only inside the block (other forward passes in it run as ever); modules are in eval mode there
    and get their own mode back.
    At a site that :func:`~mis_lab.model.intervene.intervene` replaces it reads the new vectors if that block
    was entered before this one, else the old ones.
    """

    def __init__(self, model: LoadedModel, sites: Sequence[Site]) -> None:
        if not sites or len({site.path for site in sites}) < len(sites):
            raise ValueError("Capture needs at least one site, and each module once")
        self.model, self.sites = model, tuple(sites)
        self._found: dict[str, Tensor] | None = None  # None while no run is under way: hooks sleep then
        self._open: ExitStack | None = None

    def __enter__(self) -> Self:
        hooks = {site.path: self._hook(site) for site in self.sites}
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model.module))
            stack.enter_context(hooked(self.model.module, hooks))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None

    def run(self, images_bchw: Tensor) -> dict[str, Tensor]:
        """Path → contiguous x_bpd, in the order of the sites, on the network's device.

        The tensors belong to the caller: nothing writes into them later. They are inference tensors:
        ``clone()`` what shall take part in a backward pass.

        Raises:
            ConfigError: when the forward pass ends before every site was reached.
            DataError: when a site's output does not have the site's size.
        """
        if self._open is None:
            raise RuntimeError("Capture.run works inside the block of its Capture only")
        found: dict[str, Tensor] = {}
        self._found = found
        try:
            with torch.inference_mode():
                self.model.module(self.model.to_input(images_bchw))
        except _AllReached:
            return {site.path: found[site.path] for site in self.sites}
        finally:
            self._found = None
        missed = [site.path for site in self.sites if site.path not in found]
        raise ConfigError(f"the forward pass of {self.model.name} did not reach {', '.join(missed)}")

    def _hook(self, site: Site) -> Hook:
        def keep(_module: object, _args: object, output: Tensor) -> None:
            if self._found is None:
                return
            x_bpd = site.to_vectors(output).contiguous()
            deepest = len(self._found) == len(self.sites) - 1
            if not deepest and shares_memory(x_bpd, output):
                # Channels-last maps and tokens are views of the output, and a module that works in place
                # (ReLU(inplace=True)) would write into them. After the deepest site no module runs any more.
                x_bpd = x_bpd.clone()
            self._found[site.path] = x_bpd
            if deepest:
                raise _AllReached

        return keep


def shares_memory(a: Tensor, b: Tensor) -> bool:
    """Whether two tensors use the same storage, so that writing into one may change the other."""
    return a.untyped_storage().data_ptr() == b.untyped_storage().data_ptr()


def predictions(model: LoadedModel, images_bchw: Tensor) -> Tensor:
    """Logits (B, classes) on the network's device, in eval mode and without gradients."""
    with evaluating(model.module), torch.inference_mode():
        return model.module(model.to_input(images_bchw))
