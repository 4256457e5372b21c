"""Content keys: the same content has the same key on every machine, whatever the order of a mapping.

A key is the start of a sha256 over canonical JSON. Fields of a configuration that cannot change a result (batch
size of an extraction, workers) say so in their metadata, ``field(metadata=NO_EFFECT)``, and stay out of the key.
"""

from __future__ import annotations

import dataclasses
import hashlib
import json
import math
from collections.abc import Mapping, Sequence
from enum import Enum
from pathlib import Path
from typing import Any

KEY_LENGTH = 16
NO_EFFECT = {"affects_result": False}


def plain(value: Any) -> Any:
    """`value` as JSON types: dataclasses become mappings without their ``NO_EFFECT`` fields, enums their name.

    Raises:
        TypeError: for anything whose content has no canonical text (a tensor, a path, an open object).
    """
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {
            field.name: plain(getattr(value, field.name))
            for field in dataclasses.fields(value)
            if field.metadata.get("affects_result", True)
        }
    if isinstance(value, Enum):
        return value.name
    if isinstance(value, Mapping):
        return {str(key): plain(item) for key, item in value.items()}
    if isinstance(value, str) or value is None or isinstance(value, bool | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else repr(value)
    if isinstance(value, Sequence):
        if all(type(item) is str for item in value):  # the ids of a data set
            return list(value)
        return [plain(item) for item in value]
    raise TypeError(f"{type(value).__name__} has no canonical form: {value!r}")


def content_key(value: Any, length: int = KEY_LENGTH) -> str:
    """Hexadecimal key of `value`, equal for equal content."""
    text = json.dumps(plain(value), sort_keys=True, separators=(",", ":"), ensure_ascii=True)
    return hashlib.sha256(text.encode()).hexdigest()[:length]


def hash_file(path: Path) -> str:
    """Full sha256 of a file's bytes."""
    with open(path, "rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()
