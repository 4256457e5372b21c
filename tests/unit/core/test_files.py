from __future__ import annotations

import errno
import json
import os
from pathlib import Path

import numpy as np
import pytest
from safetensors import SafetensorError

from mis_lab.core.errors import StoreError
from mis_lab.core.files import full_disk_is_told, read_json, write_json, write_text


def test_text_and_json_come_back(tmp_path: Path) -> None:
    write_text(tmp_path / "new" / "a.txt", "ü\n")
    assert (tmp_path / "new" / "a.txt").read_text(encoding="utf-8") == "ü\n"
    value = {"b": [1, 2.5, None], "a": "ü", "inf": float("inf")}
    write_json(tmp_path / "a.json", value)
    assert read_json(tmp_path / "a.json") == value
    assert [path.name for path in sorted(tmp_path.rglob("*"))] == ["a.json", "new", "a.txt"]


def test_a_write_that_fails_leaves_the_old_file_and_nothing_else(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = tmp_path / "a.json"
    write_json(path, 1)

    def crash(*_: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(os, "replace", crash)
    with pytest.raises(KeyboardInterrupt):
        write_json(path, 2)
    assert [*tmp_path.iterdir()] == [path]
    assert read_json(path) == 1


@pytest.mark.parametrize("content", [b"{", b"", b'{"a": 1', b"\xff\xfe\x00"], ids=repr)
def test_damaged_json_is_told(tmp_path: Path, content: bytes) -> None:
    (tmp_path / "a.json").write_bytes(content)
    with pytest.raises(StoreError, match=r"a\.json is not readable JSON.*Remove it"):
        read_json(tmp_path / "a.json")


@pytest.mark.parametrize(
    "error",
    [
        OSError(errno.ENOSPC, "No space left on device"),
        OSError(errno.EDQUOT, "Disk quota exceeded"),
        OSError("1000000 requested and 32752 written"),  # what NumPy raises
        SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)"),
        RuntimeError("write: No space left on device"),
    ],
    ids=str,
)
def test_a_full_disk_is_told(tmp_path: Path, error: Exception) -> None:
    target = tmp_path / "not" / "yet" / "there"
    line = r"disk is full while writing .*there \(\d+ MiB free\).*MIS_LAB_STORE"
    with pytest.raises(StoreError, match=line) as told, full_disk_is_told(target):
        raise error
    assert told.value.__cause__ is error


@pytest.mark.parametrize("error", [OSError(errno.EACCES, "Permission denied"), ValueError("x"), KeyboardInterrupt()])
def test_other_errors_stay_what_they_are(tmp_path: Path, error: BaseException) -> None:
    with pytest.raises(type(error)) as raised, full_disk_is_told(tmp_path):
        raise error
    assert raised.value is error


def test_a_device_that_is_really_full(tmp_path: Path) -> None:
    """/dev/full refuses every byte; NumPy and plain files meet it in their own ways."""
    full = Path("/dev/full")
    assert full.is_char_device(), "this test needs Linux"
    with pytest.raises(StoreError, match="disk is full"), full_disk_is_told(full):
        full.write_text("x")
    with pytest.raises(StoreError, match="disk is full"), full_disk_is_told(full), full.open("wb") as file:
        np.zeros(100_000).tofile(file)


def test_a_full_disk_leaves_no_part_of_a_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(self: Path, text: str, **_: object) -> None:
        self.write_bytes(text.encode()[:3])
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(Path, "write_text", full)
    with pytest.raises(StoreError, match="disk is full"):
        write_json(tmp_path / "a.json", {"a": 1})
    assert not [*tmp_path.iterdir()]


def test_json_is_for_people_too(tmp_path: Path) -> None:
    write_json(tmp_path / "a.json", {"b": 1})
    text = (tmp_path / "a.json").read_text()
    assert text.endswith("}\n")
    assert json.loads(text) == {"b": 1}
    assert text.count("\n") == 3
