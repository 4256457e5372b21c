"""Multilayer perceptrons whose every layer is a module of its own: the networks of Toussaint (2024)."""

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor, nn

from mis_lab.core.errors import ConfigError


class Mlp(nn.Module):
    """Linear layers ``fc1, fc2, ...`` with a ReLU ``act1, act2, ...`` after each but the last, or without.

    The input is flattened. No softmax: the output is logits.

    Args:
        widths: of the input, of each hidden layer, and of the output.
        relu: false leaves the ReLUs out, so that the whole is an affine map.
    """

    def __init__(self, widths: Sequence[int], relu: bool = True) -> None:
        super().__init__()
        if len(widths) < 2 or min(widths) < 1:
            raise ConfigError(
                f"model.network.widths={list(widths)}",
                fix="Give at least input and output width, all positive.",
            )
        for layer, (n_in, n_out) in enumerate(pairwise(widths), start=1):
            self.add_module(f"fc{layer}", nn.Linear(n_in, n_out))
            if relu and layer < len(widths) - 1:
                self.add_module(f"act{layer}", nn.ReLU())

    def forward(self, images_bchw: Tensor) -> Tensor:
        x = images_bchw.flatten(1)
        for module in self.children():
            x = module(x)
        return x
