"""The record that is always kept: ``metrics.jsonl``, one JSON object a line, flushed at once; tables as CSV.

Lines by their ``kind``: ``metrics`` (stage, step, metrics), ``summary`` (values), ``figure`` and ``table`` (name,
path), ``finish`` (exit_code); all have ``time`` in seconds since 1970. A number that is not finite is ``null``.
"""

from __future__ import annotations

import csv
import json
import math
import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any

from mis_lab.core.files import full_disk_is_told
from mis_lab.tracking.tracker import check_table

METRICS_FILE = "metrics.jsonl"
TABLES_DIR = "tables"


class FilesTracker:
    """Appends to the run's folder; a second try of the same run goes on in the same file.

    Args:
        run_dir: the run's folder; made when missing.
    """

    def __init__(self, run_dir: Path) -> None:
        self.run_dir = Path(run_dir)
        self.path = self.run_dir / METRICS_FILE
        with full_disk_is_told(self.path):
            self.run_dir.mkdir(parents=True, exist_ok=True)
            self._file: IO[str] | None = open(self.path, "a", encoding="utf-8")  # noqa: SIM115  finish() closes it
            if _last_line_is_cut(self.path):  # a killed process: its half line must not spoil ours
                self._file.write("\n")

    def log(self, stage: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        self._append("metrics", stage=stage, step=step, metrics=metrics)

    def summary(self, values: Mapping[str, Any]) -> None:
        self._append("summary", values=values)

    def figure(self, name: str, path: Path) -> None:
        self._append("figure", name=name, path=self._relative(path))

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        check_table(name, columns, rows)
        path = self.run_dir / TABLES_DIR / f"{name.replace('/', '_')}.csv"
        with full_disk_is_told(path):
            path.parent.mkdir(exist_ok=True)
            partial = path.with_suffix(".partial")
            with open(partial, "w", encoding="utf-8", newline="") as file:
                csv.writer(file).writerows([columns, *rows])
            os.replace(partial, path)
        self._append("table", name=name, path=self._relative(path))

    def finish(self, exit_code: int = 0) -> None:
        if self._file is not None:
            self._append("finish", exit_code=exit_code)
            self._file.close()
            self._file = None

    def _append(self, kind: str, **content: Any) -> None:
        if self._file is None:
            raise ValueError(f"{self.path} is closed: log before finish()")
        line = json.dumps(
            {"time": round(time.time(), 3), "kind": kind, **_strict(content)}, ensure_ascii=False, allow_nan=False
        )
        with full_disk_is_told(self.path):
            self._file.write(line + "\n")
            self._file.flush()

    def _relative(self, path: Path) -> str:
        path = Path(path).resolve()
        here = self.run_dir.resolve()
        return str(path.relative_to(here) if path.is_relative_to(here) else path)


def _strict(value: Any) -> Any:
    """`value` as strict JSON: NumPy and torch scalars as numbers, what is not finite as null."""
    if isinstance(value, Mapping):
        return {str(key): _strict(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_strict(item) for item in value]
    if hasattr(value, "item"):
        value = value.item()
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


def _last_line_is_cut(path: Path) -> bool:
    with open(path, "rb") as file:
        if file.seek(0, os.SEEK_END) == 0:
            return False
        file.seek(-1, os.SEEK_END)
        return file.read(1) != b"\n"
