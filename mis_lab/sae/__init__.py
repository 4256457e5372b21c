"""Sparse autoencoders: one contract, one file an architecture, training, evaluation, splicing, sharing."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mis_lab.sae.share.load import load_sae

__all__ = ["load_sae"]


def __getattr__(name: str) -> Any:
    """``load_sae``, imported when it is asked for: whoever only configures a run waits for no torch."""
    if name == "load_sae":
        from mis_lab.sae.share.load import load_sae

        return load_sae
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
