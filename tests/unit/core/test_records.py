"""Dataclasses on disk."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import Tensor

from mis_lab.core.errors import StoreError
from mis_lab.core.records import read_record, write_record


@dataclass(frozen=True)
class Mixed:
    name: str
    share: float
    by_group: dict[str, float]
    count_f: Tensor


@dataclass(frozen=True)
class Plain:
    name: str


def test_what_is_written_is_read_back(tmp_path: Path) -> None:
    record = Mixed("a", float("nan"), {"g": 0.5}, torch.tensor([1, 2], dtype=torch.int64))
    write_record(tmp_path, "one", record)
    found = read_record(Mixed, tmp_path, "one")
    assert (found.name, found.by_group) == ("a", {"g": 0.5})
    assert found.share != found.share
    assert torch.equal(found.count_f, record.count_f)
    assert found.count_f.dtype == torch.int64


def test_without_tensors_there_is_one_file(tmp_path: Path) -> None:
    write_record(tmp_path, "plain", Plain("b"))
    assert [path.name for path in tmp_path.iterdir()] == ["plain.json"]
    assert read_record(Plain, tmp_path, "plain") == Plain("b")


def test_a_record_with_other_fields_is_told(tmp_path: Path) -> None:
    write_record(tmp_path, "one", Plain("b"))
    with pytest.raises(StoreError, match=r"other fields than Mixed \(by_group, count_f, share\)"):
        read_record(Mixed, tmp_path, "one")
