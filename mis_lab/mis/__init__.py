"""Machine Interpretability Score of units: tasks, scores with intervals, comparison of kinds of units."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from mis_lab.mis.psychophysics import run_psychophysics, task_config

__all__ = ["run_psychophysics", "task_config"]


def __getattr__(name: str) -> Any:
    """The interface of the reference code, imported when it is asked for: configuration waits for no torch."""
    if name in __all__:
        from mis_lab.mis import psychophysics

        return getattr(psychophysics, name)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
