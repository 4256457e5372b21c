"""Replacing the vectors at sites during ordinary forward passes, and watching them with gradients.

What is handed out or put in never shares memory with what the network goes on with: a module that works in
place (``ReLU(inplace=True)`` after the site) would otherwise write into vectors that somebody still holds.
"""

# B images  R rows  P positions  D width

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from mis_lab.model.capture import shares_memory
from mis_lab.model.hooks import Hook, evaluating, hooked
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site

# x_bpd → x_bpd; the same object back means: leave it.
Replacement = Callable[[Tensor], Tensor]


@contextmanager
def intervene(model: LoadedModel, replacements: Mapping[Site, Replacement]) -> Iterator[None]:
    """Within the block, every forward pass has each site's vectors replaced by what its function returns.

    Gradients flow through the functions. A function that returns the very tensor it got leaves the output as
    it was, to the bit, and gradients too. Later sites see what the functions at earlier ones brought about.

    Raises:
        ValueError: from the forward pass, when a function returns vectors of another shape.
    """
    hooks = {site.path: _replace(site, function) for site, function in replacements.items()}
    if len(hooks) < len(replacements):
        raise ValueError("intervene needs each module once")
    with evaluating(model.module), hooked(model.module, hooks):
        yield


def _replace(site: Site, function: Replacement) -> Hook:
    def hook(_module: object, _args: object, output: Tensor) -> Tensor:
        x_bpd = site.to_vectors(output)
        new_bpd = function(x_bpd)
        if new_bpd is x_bpd:
            return output.clone()  # same bits, other memory: the function may have kept x_bpd
        replaced = site.from_vectors(new_bpd, output)
        return replaced.clone() if shares_memory(replaced, new_bpd) else replaced

    return hook


@contextmanager
def fan_out(model: LoadedModel, site: Site, rows_r: Tensor, function: Replacement) -> Iterator[None]:
    """Within the block, every forward pass goes on behind `site` with rows instead of images.

    Row r is a copy of image `rows_r[r]` whose vectors are what `function` makes of them: it gets and returns
    (R, P, D). The output has one entry a row. Networks that also read something else than the site's output after it
    (a branch, a skip connection around it) do not go together with that.
    """
    replace = _replace(site, function)

    def hook(module: nn.Module, args: tuple[Any, ...], output: Tensor) -> Tensor:
        return replace(module, args, output.index_select(0, rows_r))

    with evaluating(model.module), hooked(model.module, {site.path: hook}):
        yield


@contextmanager
def watch(model: LoadedModel, sites: Sequence[Site]) -> Iterator[dict[str, Tensor]]:
    """Within the block, each forward pass fills the mapping: path → x_bpd, in the graph and keeping ``grad``.

    What follows the site is computed from these vectors, so that a backward pass gives the derivative with
    respect to them. Values are those of an ordinary pass, to the bit.

    Raises:
        RuntimeError: from a forward pass without gradients (``no_grad``, ``inference_mode``).
    """
    watched: dict[str, Tensor] = {}

    def of(site: Site) -> Replacement:
        def keep(x_bpd: Tensor) -> Tensor:
            if not torch.is_grad_enabled():
                raise RuntimeError(f"watching {site.path} needs a forward pass with gradients")
            # Frozen weights and an input without a gradient: the first site is where the graph begins.
            kept = x_bpd.clone() if x_bpd.requires_grad else x_bpd.clone().requires_grad_()
            kept.retain_grad()
            watched[site.path] = kept
            return kept

        return keep

    with intervene(model, {site: of(site) for site in sites}):
        yield watched
