"""Small files written whole or not at all, and full disks told in one line."""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mis_lab.core.errors import StoreError


def write_text(path: Path, text: str) -> None:
    """Write `text` to `path` so that a reader sees the old file or the new one, never a part."""
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}")
    with full_disk_is_told(path):
        try:
            partial.write_text(text, encoding="utf-8")
            os.replace(partial, path)
        finally:
            partial.unlink(missing_ok=True)


def write_json(path: Path, value: Any) -> None:
    """Write `value` as indented JSON, whole or not at all."""
    write_text(path, json.dumps(value, indent=2, ensure_ascii=False, allow_nan=True) + "\n")


def read_json(path: Path) -> Any:
    """The value in a JSON file.

    Raises:
        StoreError: when the file is not JSON (cut short by a crash of another program, say).
    """
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # no JSON, or not even UTF-8
        raise StoreError(f"{path} is not readable JSON ({error})", fix="Remove it and run again.") from error


@contextmanager
def full_disk_is_told(path: Path) -> Iterator[None]:
    """Turn "no space left on device" into a line that says where and how much is free."""
    try:
        yield
    except Exception as error:
        if not _says_full(error):
            raise
        existing = next(parent for parent in (path, *path.parents) if parent.exists())
        free = shutil.disk_usage(existing).free / 2**20
        raise StoreError(
            f"the disk is full while writing {path} ({free:.0f} MiB free)",
            fix="Free some space ('mis-lab store gc' removes what no run uses) or move the store with MIS_LAB_STORE.",
        ) from error


def _says_full(error: Exception) -> bool:
    """Whether a write failed for want of space: safetensors has an error of its own, NumPy leaves the number out."""
    if isinstance(error, OSError) and error.errno in (errno.ENOSPC, errno.EDQUOT):
        return True
    text = str(error)
    return "No space left on device" in text or (isinstance(error, OSError) and "requested and" in text)
