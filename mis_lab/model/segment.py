"""Running a network from one site to a later one, with the vectors at the first one given.

A network starts at its input, so that a pass has to go through what lies before the source. Where everything
behind the source depends on its vectors alone, any one image will do for that (:meth:`Segment.with_one_image`):
the source's module then hands on as many vectors as were given, whatever went in. Passes end at the target.
"""

# B images  n copies of the batch  P positions  D width

from __future__ import annotations

from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from typing import Self

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.capture import shares_memory
from mis_lab.model.hooks import Hook, evaluating, hooked
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site

# Of the largest number at the target, in units of rounding: how far vectors may differ between batch sizes.
ROUNDING = 100


class _TargetReached(BaseException):
    """Ends a forward pass at the target. No Exception, so that no network catches it by accident."""


@dataclass(frozen=True, eq=False)
class Start:
    """A batch at the beginning of the segment.

    Attributes:
        images_bchw: what goes through the network up to the source.
        output: of the source's module on the batch.
        source_bpd, target_bpd: vectors of both sites.
        held: path of a stopped site → its vectors.
    """

    images_bchw: Tensor
    output: Tensor
    source_bpd: Tensor
    target_bpd: Tensor
    held: dict[str, Tensor]


@dataclass(eq=False)
class _Pass:
    """One forward pass: a clean one without `start`, else one that goes on from `given` instead."""

    start: Start | None = None
    given: Tensor | None = None
    entered: bool = False
    output: Tensor | None = None
    held: dict[str, Tensor] = field(default_factory=dict)
    target_bpd: Tensor | None = None


class Segment:
    """The network from `source` to `target`; a context manager that leaves it as it found it.

    ::

        with Segment(model, source, target) as segment:
            start = segment.begin(images_bchw)
            moved_bpd = segment.run(start, start.source_bpd + change_bpd)

    Args:
        model: the network.
        source, target: sites, in the order of the network.
        stopped: sites between them that keep their vectors of the clean pass, so that only what goes past them
            reaches the target.

    Raises:
        ValueError: when two of the sites are one.
    """

    def __init__(self, model: LoadedModel, source: Site, target: Site, stopped: Sequence[Site] = ()) -> None:
        self.model, self.source, self.target, self.stopped = model, source, target, tuple(stopped)
        paths = [site.path for site in (source, target, *stopped)]
        if len(set(paths)) < len(paths):
            raise ValueError("Segment needs each module once")
        self._pass: _Pass | None = None  # None while no pass is under way: hooks sleep then
        self._open: ExitStack | None = None

    def __enter__(self) -> Self:
        hooks: dict[str, Hook] = {site.path: self._hold(site) for site in self.stopped}
        hooks |= {self.source.path: self._enter_source, self.target.path: self._reach_target}
        with ExitStack() as stack:
            stack.enter_context(evaluating(self.model.module))
            stack.enter_context(hooked(self.model.module, hooks))
            self._open = stack.pop_all()
        return self

    def __exit__(self, *error: object) -> None:
        if self._open is not None:
            self._open.close()
        self._open = None

    def begin(self, images_bchw: Tensor) -> Start:
        """The clean pass of a batch.

        Raises:
            ConfigError: when the pass does not come to the target, or not to the source before it.
        """
        clean = _Pass()
        with torch.no_grad():
            target_bpd = self._go(clean, images_bchw)
            if clean.output is None:
                raise ConfigError(
                    f"site {self.target.path} of {self.model.name} is reached before {self.source.path}",
                    fix="Name sites in the order of the network.",
                )
            return Start(images_bchw, clean.output, self.source.to_vectors(clean.output), target_bpd, clean.held)

    def with_one_image(self, start: Start) -> Start:
        """The same with a single image to go through what lies before the source, where that gives the same.

        It does where no way leads around the source and the stopped sites; elsewhere `start` comes back.
        Found out by trying.
        """
        one = replace(start, images_bchw=start.images_bchw[:1])
        try:
            with torch.no_grad():
                again_bpd = self.run(one, start.source_bpd)
        except (RuntimeError, ValueError, DataError):  # sizes of two ways do not fit together
            return start
        if again_bpd.shape != start.target_bpd.shape:
            return start
        allowed = ROUNDING * torch.finfo(again_bpd.dtype).eps * start.target_bpd.abs().max()
        return one if bool((again_bpd - start.target_bpd).abs().max() <= allowed) else start

    def run(self, start: Start, x_bpd: Tensor) -> Tensor:
        """Vectors of the target (n·B, P, D) with those of the source set to `x_bpd`.

        Gradients are recorded when the caller records them.

        Args:
            start: the batch.
            x_bpd: (n·B, P, D), n versions of it one after the other.
        """
        n_copies = len(x_bpd) // len(start.output)
        images_bchw = start.images_bchw
        if len(images_bchw) == len(start.output):
            images_bchw = _copies(images_bchw, n_copies)
        return self._go(_Pass(start, x_bpd), images_bchw)

    def _go(self, this: _Pass, images_bchw: Tensor) -> Tensor:
        if self._open is None:
            raise RuntimeError("a Segment works inside its block only")
        self._pass = this
        try:
            self.model.module(images_bchw)
        except _TargetReached:
            pass
        finally:
            self._pass = None
        if this.target_bpd is None:
            raise ConfigError(f"the forward pass of {self.model.name} did not reach {self.target.path}")
        return this.target_bpd

    def _enter_source(self, _module: object, _args: object, output: Tensor) -> Tensor | None:
        this = self._pass
        if this is None:
            return None
        this.entered = True
        if this.start is None or this.given is None:
            this.output = output.clone()  # a module that works in place may follow
            return None
        whole = _copies(this.start.output, len(this.given) // len(this.start.output))
        replaced = self.source.from_vectors(this.given, whole)
        return replaced.clone() if shares_memory(replaced, this.given) else replaced

    def _hold(self, site: Site) -> Hook:
        def hook(_module: object, _args: object, output: Tensor) -> Tensor | None:
            this = self._pass
            if this is None or not this.entered:
                return None
            if this.start is None or this.given is None:
                this.held[site.path] = site.to_vectors(output).clone()
                return None
            held_bpd = _copies(this.start.held[site.path], len(this.given) // len(this.start.output))
            replaced = site.from_vectors(held_bpd, output)
            return replaced.clone() if shares_memory(replaced, held_bpd) else replaced

        return hook

    def _reach_target(self, _module: object, _args: object, output: Tensor) -> None:
        if self._pass is not None:
            self._pass.target_bpd = self.target.to_vectors(output)
            raise _TargetReached


def _copies(batch: Tensor, n: int) -> Tensor:
    """The batch `n` times over, laid out in memory as it is."""
    return batch if n == 1 else torch.cat([batch] * n)
