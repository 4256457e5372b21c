"""What one forward pass shows of every module: its calls, its output, and whether it can be a site."""

# B images  T tokens  D width  H, W size of a map

from __future__ import annotations

from collections.abc import Mapping
from typing import NamedTuple

import torch
from torch import Tensor, nn

from mis_lab.model.hooks import Hook, evaluating, hooked
from mis_lab.model.load import LoadedModel

# With one image, the first dimension of an output could be anything.
N_IMAGES = 3


class Output(NamedTuple):
    """What a module returned.

    Attributes:
        type: name of its class.
        shape: batch included; empty when it is no tensor.
        is_tensor: whether it is one tensor.
        is_floating: whether that holds floating-point numbers.
    """

    type: str
    shape: tuple[int, ...]
    is_tensor: bool
    is_floating: bool


NO_OUTPUT = Output("", (), False, False)


class Observed(NamedTuple):
    """A module in one forward pass.

    Attributes:
        type: name of its class.
        n_calls: times it was called.
        output: of its first call; NO_OUTPUT when there was none.
    """

    type: str
    n_calls: int
    output: Output


def observe(model: LoadedModel) -> dict[str, Observed]:
    """Path → what a forward pass over a few images of zeros shows, in the order of the definition."""
    modules = {path: module for path, module in model.module.named_modules(remove_duplicate=False) if path}
    outputs: dict[str, list[Output]] = {path: [] for path in modules}

    def look(path: str) -> Hook:
        return lambda _module, _args, output: outputs[path].append(_describe(output))

    hooks = {path: look(path) for path in modules}
    with evaluating(model.module), hooked(model.module, hooks), torch.no_grad():
        model.module(model.zero_images(N_IMAGES))
    return {
        path: Observed(type(module).__name__, len(outputs[path]), (outputs[path] or [NO_OUTPUT])[0])
        for path, module in modules.items()
    }


def _describe(output: object) -> Output:
    if not isinstance(output, Tensor):
        return NO_OUTPUT._replace(type=type(output).__name__)
    return Output(type(output).__name__, tuple(output.shape), True, output.is_floating_point())


def obstacle(observed: Observed) -> str:
    """Why this module cannot be a site, whatever the layout; "" when it can."""
    output = observed.output
    if observed.n_calls == 0:
        return "the forward pass does not reach it"
    if observed.n_calls > 1:
        return f"one forward pass calls it {observed.n_calls} times, so that activations would mix"
    if not output.is_tensor:
        return f"its output is not a tensor but a {output.type}"
    if not output.is_floating:
        return "its output holds no floating-point numbers"
    if not output.shape or output.shape[0] != N_IMAGES:
        return f"its output {output.shape} for {N_IMAGES} images does not have one row an image"
    if len(output.shape) not in (2, 3, 4):
        return f"its output has {len(output.shape)} dimensions"
    return ""


def read_layout(shape: tuple[int, ...]) -> str:
    """The layout of an output of this shape, batch included; "" when the shape does not tell.

    Inputs are square, and so are feature maps: of four dimensions the two equal ones are the map.
    """
    if len(shape) == 2:
        return "bd"
    if len(shape) == 3:
        return "btd"
    if shape[1] == shape[2] == shape[3]:
        return ""
    if shape[2] == shape[3]:
        return "bchw"
    return "bhwc" if shape[1] == shape[2] else ""


def read_layouts(seen: Mapping[str, Observed]) -> dict[str, str]:
    """Path → layout, or "" where the shape does not tell (or the module cannot be a site).

    As many channels as rows and columns are channels first, unless the network has maps with channels last.
    """
    found = {path: "" if obstacle(observed) else read_layout(observed.output.shape) for path, observed in seen.items()}
    if "bhwc" not in found.values():
        found |= {path: "bchw" for path, observed in seen.items() if not obstacle(observed) and _is_cube(observed)}
    return found


def _is_cube(observed: Observed) -> bool:
    shape = observed.output.shape
    return len(shape) == 4 and shape[1] == shape[2] == shape[3]


def n_prefix_tokens(root: nn.Module) -> int:
    """Tokens before the patches (class token, registers): timm states them, others show a class token."""
    for module in root.modules():
        stated = getattr(module, "num_prefix_tokens", None)
        if isinstance(stated, int):
            return stated
    class_tokens = (getattr(module, name, None) for module in root.modules() for name in ("class_token", "cls_token"))
    return int(any(isinstance(token, Tensor) for token in class_tokens))


class ModuleRow(NamedTuple):
    """A line of the table of modules.

    Attributes:
        path: what to write into ``model.sites``.
        type: name of the module's class.
        shape: of the output for one image, or the name of its type when that is no tensor.
        layout: how it would be read as a site; "" when it cannot be one.
        obstacle: why not.
    """

    path: str
    type: str
    shape: str
    layout: str
    obstacle: str


def list_modules(model: LoadedModel) -> list[ModuleRow]:
    """Every module of the network, in the order of its definition, and whether it can be a site."""
    rows, seen = [], observe(model)
    for path, layout in read_layouts(seen).items():
        observed = seen[path]
        output, reason = observed.output, obstacle(observed)
        if not reason and not layout:
            reason = "its shape does not tell the layout: set model.layout"
        shown = "×".join(map(str, output.shape[1:])) if output.shape else output.type
        rows.append(ModuleRow(path, observed.type, shown, layout, reason))
    return rows
