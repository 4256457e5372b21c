"""Results on disk: a dataclass as ``NAME.json`` (numbers, texts) and ``NAME.safetensors`` (its tensors)."""

from __future__ import annotations

from dataclasses import fields
from pathlib import Path
from typing import Any, TypeVar

from torch import Tensor

from mis_lab.core.errors import StoreError
from mis_lab.core.files import read_json, write_json
from mis_lab.core.tensors import read_tensors, write_tensors

Record = TypeVar("Record")


def write_record(folder: Path, name: str, record: Any) -> None:
    """Write the fields of a dataclass of plain values and tensors into `folder`."""
    values = {field.name: getattr(record, field.name) for field in fields(record)}
    tensors = {key: value for key, value in values.items() if isinstance(value, Tensor)}
    if tensors:
        write_tensors(folder / f"{name}.safetensors", tensors)
    write_json(folder / f"{name}.json", {key: value for key, value in values.items() if key not in tensors})


def read_record(kind: type[Record], folder: Path, name: str) -> Record:
    """What :func:`write_record` wrote.

    Raises:
        StoreError: when a file is missing or damaged, or has other fields than `kind`.
    """
    values: dict[str, Any] = read_json(folder / f"{name}.json")
    if (folder / f"{name}.safetensors").exists():
        values |= read_tensors(folder / f"{name}.safetensors")
    expected = {field.name for field in fields(kind)}  # type: ignore[arg-type]
    if set(values) != expected:
        raise StoreError(
            f"{folder / name}.json has other fields than {kind.__name__} ({', '.join(sorted(set(values) ^ expected))})",
            fix="Another mis_lab wrote it: remove the artifact and run again.",
        )
    return kind(**values)
