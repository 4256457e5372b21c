"""Sites: named places in a network, and the way between a module's output and vectors (B, P, D).

Every position of a feature map and every token is one vector; a plain vector is one position.
"""

# B images  C = D width  H, W size of a map  T tokens  P positions

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.model.config import Layout, Tokens
from mis_lab.model.hooks import module_at
from mis_lab.model.load import LoadedModel
from mis_lab.model.modules import Observed, n_prefix_tokens, observe, obstacle, read_layouts

DIMENSIONS = {"bchw": 4, "bhwc": 4, "btd": 3, "bd": 2}


@dataclass(frozen=True)
class Site:
    """A place whose output is read or replaced.

    Attributes:
        path: of the module.
        layout: ``bchw``, ``bhwc``, ``btd`` or ``bd``.
        width: D, numbers a vector.
        n_positions: P, vectors an image.
        grid: (H, W) of the positions; (1, P) for tokens that are no square of patches, (1, 1) for a vector.
        n_prefix: tokens before the patches in the module's output, whether they are read or not.
        tokens: ``all``, ``patches`` or ``prefix`` of a sequence; ``all`` elsewhere.
    """

    path: str
    layout: str
    width: int
    n_positions: int
    grid: tuple[int, int]
    n_prefix: int = 0
    tokens: str = "all"

    def to_vectors(self, output: Tensor) -> Tensor:
        """The vectors (B, P, D) in the module's output; a view of it wherever strides allow.

        Raises:
            DataError: when the output has another size than the site (an image of another size, say).
        """
        if self.layout == "bchw":
            x_bpd = output.flatten(2).transpose(1, 2)
        elif self.layout == "bhwc":
            x_bpd = output.flatten(1, 2)
        elif self.layout == "bd":
            x_bpd = output.unsqueeze(1)
        elif self.tokens == "all":
            x_bpd = output
        else:
            x_bpd = output[:, self.n_prefix :] if self.tokens == "patches" else output[:, : self.n_prefix]
        if x_bpd.shape[1:] != (self.n_positions, self.width):
            raise DataError(
                f"site {self.path} put out {tuple(output.shape)}, which is not {self.n_positions} vectors of "
                f"{self.width} an image",
                fix="Use images of the size in model.input.",
            )
        return x_bpd

    def from_vectors(self, x_bpd: Tensor, output: Tensor) -> Tensor:
        """A tensor shaped and laid out in memory like `output` that holds these vectors.

        Tokens that are not read come from `output`. The result may be a view of `x_bpd`.

        Raises:
            ValueError: when the vectors do not have the shape of the site's.
        """
        if x_bpd.shape != (output.shape[0], self.n_positions, self.width):
            raise ValueError(
                f"site {self.path} needs vectors {(output.shape[0], self.n_positions, self.width)}, "
                f"not {tuple(x_bpd.shape)}"
            )
        if self.layout == "bchw":
            order = torch.contiguous_format if output.is_contiguous() else torch.channels_last
            return x_bpd.transpose(1, 2).unflatten(2, self.grid).contiguous(memory_format=order)
        if self.layout == "bhwc":
            return x_bpd.unflatten(1, self.grid)
        if self.layout == "bd":
            return x_bpd.squeeze(1)
        if self.tokens == "all":
            return x_bpd
        if self.tokens == "patches":
            return torch.cat([output[:, : self.n_prefix], x_bpd], 1)
        return torch.cat([x_bpd, output[:, self.n_prefix :]], 1)


def resolve_sites(
    model: LoadedModel,
    paths: Sequence[str],
    layout: Layout = Layout.auto,
    tokens: Tokens = Tokens.patches,
) -> tuple[Site, ...]:
    """The sites at `paths`, in that order; one forward pass of zeros tells their sizes.

    Args:
        model: the network.
        paths: of modules, each once.
        layout: of all of them; ``auto`` reads it off each output's shape.
        tokens: which tokens of sequences are vectors; without effect elsewhere.

    Raises:
        ConfigError: when a module does not exist (nearest first), is not reached, is called several times,
            puts out anything but one row of a tensor an image, or does not have this layout or these tokens.
    """
    for path in paths:
        module_at(model.module, path)
    seen = observe(model)
    names = read_layouts(seen) if layout is Layout.auto else dict.fromkeys(paths, layout.name)
    n_prefix = n_prefix_tokens(model.module)
    return tuple(_site(path, seen, names[path], tokens, n_prefix) for path in paths)


def _site(path: str, seen: Mapping[str, Observed], layout: str, tokens: Tokens, n_prefix: int) -> Site:
    reason = obstacle(seen[path])
    if reason:
        usable = [other for other in seen if not obstacle(seen[other])]
        children = [other for other in usable if other.startswith(f"{path}.")]
        parents = [other for other in reversed(usable) if path.startswith(f"{other}.")]
        near = ", ".join((children or parents)[:5])
        instead = f"Take one of its {'children' if children else 'parents'}: {near}." if near else None
        raise ConfigError(f"{path} ({seen[path].type}) cannot be a site: {reason}", fix=instead)
    shape = seen[path].output.shape
    if not layout or DIMENSIONS[layout] != len(shape):
        possible = " or ".join(key for key, n_dimensions in DIMENSIONS.items() if n_dimensions == len(shape))
        trouble = f"is not {layout}" if layout else "does not tell its layout"
        raise ConfigError(f"the output {shape[1:]} of {path} {trouble}", fix=f"Set model.layout to {possible}.")
    if layout == "btd":
        return _token_site(path, shape, tokens, n_prefix)
    if layout == "bd":
        return Site(path, layout, width=shape[1], n_positions=1, grid=(1, 1))
    width, grid = (shape[1], shape[2:]) if layout == "bchw" else (shape[3], shape[1:3])
    return Site(path, layout, width=width, n_positions=grid[0] * grid[1], grid=(grid[0], grid[1]))


def _token_site(path: str, shape: tuple[int, ...], tokens: Tokens, n_prefix: int) -> Site:
    n_tokens, width = shape[1:]
    if not _is_square(n_tokens - n_prefix) and _is_square(n_tokens):
        n_prefix = 0  # a place before the prefix tokens join the patches
    n_of = {Tokens.all: n_tokens, Tokens.patches: n_tokens - n_prefix, Tokens.prefix: n_prefix}
    if n_of[tokens] < 1:
        raise ConfigError(
            f"site {path} has no {tokens.name} tokens",
            looked=f"{n_tokens} tokens, {n_prefix} of them prefix",
            fix="Set model.tokens=all.",
        )
    n_positions = n_of[tokens]
    square = _is_square(n_positions) and (tokens is Tokens.patches or n_prefix == 0)
    grid = (math.isqrt(n_positions),) * 2 if square else (1, n_positions)
    return Site(path, "btd", width, n_positions, (grid[0], grid[1]), n_prefix, tokens.name)


def _is_square(n: int) -> bool:
    return n >= 0 and math.isqrt(n) ** 2 == n
