"""What the commands tell on stdout: lines and tables, tables also as CSV."""

from __future__ import annotations

import csv
import sys
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any, NamedTuple


class TextTable(NamedTuple):
    """A table with a title."""

    title: str
    header: Sequence[str]
    rows: Sequence[Sequence[Any]]


def say(text: str) -> None:
    """A line for whoever typed the command."""
    sys.stdout.write(text + "\n")


def write_table(header: Iterable[str], rows: Iterable[Iterable[Any]], number: str = ".3f") -> None:
    """Columns as wide as they must be; `number` is the format of floats."""
    lines = [[f"{cell:{number}}" if isinstance(cell, float) else str(cell) for cell in row] for row in (header, *rows)]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    for line in lines:
        say("  ".join(cell.ljust(width) for cell, width in zip(line, widths, strict=True)).rstrip())


def write_tables(tables: Iterable[TextTable], notes: Iterable[str] = (), csv_path: Path | None = None) -> None:
    """Tables that have rows, then notes; the tables into a file, too, where one is given."""
    tables = [table for table in tables if table.rows]
    for table in tables:
        say(f"\n{table.title}")
        write_table(table.header, table.rows)
    for note in notes:
        say(f"note: {note}")
    if csv_path:
        csv_path.parent.mkdir(parents=True, exist_ok=True)
        with open(csv_path, "w", newline="", encoding="utf-8") as file:
            for table in tables:
                csv.writer(file).writerows([[table.title], table.header, *table.rows, []])
        say(f"also in {csv_path}")


def with_limits(interval: Iterable[Any], signed: bool = False, decimals: int = 3) -> str:
    """``0.494 (0.428 to 0.560)``, from an estimate and its limits."""
    estimate, low, high = map(float, interval)
    form = f"{'+' * signed}.{decimals}f"
    return f"{estimate:{form}} ({low:{form}} to {high:{form}})"
