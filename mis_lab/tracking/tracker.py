"""What a place for numbers must do: files and Weights & Biases do it, a test's list does it too."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol


class Tracker(Protocol):
    """Takes the numbers of one run."""

    def log(self, stage: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        """Take numbers of a stage.

        Args:
            stage: whose they are (``sae/blocks.2``); every stage has an axis of its own.
            metrics: name → number, names without the stage.
            step: where on the stage's axis; None for numbers that come once.
        """

    def summary(self, values: Mapping[str, Any]) -> None:
        """Take the run's final numbers, under their full names."""

    def figure(self, name: str, path: Path) -> None:
        """Take a picture (PNG, JPEG, WebP, SVG or HTML) that lies at `path`."""

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        """Take a table; every row has one value a column."""

    def finish(self, exit_code: int = 0) -> None:
        """Close; anything but 0 marks the run as failed. Later calls do nothing."""


def check_table(name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Raise ValueError when a row of a table is not as long as its columns."""
    for number, row in enumerate(rows):
        if len(row) != len(columns):
            raise ValueError(f"table {name}: row {number} has {len(row)} values for {len(columns)} columns")
