from __future__ import annotations

import os
import stat
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core import tensors as tensors_module
from mis_lab.core.errors import StoreError
from mis_lab.core.tensors import hash_tensors, read_tensors, write_tensors

TYPES = [torch.float32, torch.float16, torch.bfloat16, torch.float64, torch.int64, torch.int32, torch.uint8, torch.bool]


@pytest.mark.parametrize("dtype", TYPES, ids=str)
def test_tensors_come_back_bit_for_bit(tmp_path: Path, dtype: torch.dtype) -> None:
    values = (torch.randn(3, 4, generator=torch.Generator()) * 3).to(dtype)
    tensors = {"a": values, "scalar": values[0, 0], "empty": values[:0]}
    write_tensors(tmp_path / "x.safetensors", tensors, {"what": "test"})
    back = read_tensors(tmp_path / "x.safetensors")
    assert back.keys() == tensors.keys()
    for name, tensor in tensors.items():
        assert back[name].dtype == dtype
        assert back[name].shape == tensor.shape
        assert torch.equal(back[name], tensor)


def test_any_layout_and_shared_memory_can_be_written(tmp_path: Path) -> None:
    base = torch.arange(24.0).reshape(1, 4, 2, 3)
    tensors = {
        "transposed": base[0, 0].T,
        "channels_last": base.to(memory_format=torch.channels_last),
        "view": base[0, 1:],
        "twice": base,
        "parameter": torch.nn.Parameter(base.clone()),
    }
    write_tensors(tmp_path / "x.safetensors", tensors)
    back = read_tensors(tmp_path / "x.safetensors")
    assert all(torch.equal(back[name], tensor) for name, tensor in tensors.items())
    assert hash_tensors(back) == hash_tensors(tensors)


def test_others_may_read_what_the_umask_lets_them(tmp_path: Path) -> None:
    before = os.umask(0o027)
    try:
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})
        write_tensors(tmp_path / "x.safetensors", {"a": torch.ones(2)})
    finally:
        os.umask(before)
    assert stat.S_IMODE((tmp_path / "x.safetensors").stat().st_mode) == 0o640


def test_missing_and_damaged_files_are_told(tmp_path: Path) -> None:
    path = tmp_path / "x.safetensors"
    with pytest.raises(StoreError, match=r"no tensor file .*x\.safetensors"):
        read_tensors(path)
    write_tensors(path, {"a": torch.zeros(1000)})
    path.write_bytes(path.read_bytes()[:500])
    with pytest.raises(StoreError, match=r"is damaged.*store verify"):
        read_tensors(path)


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise tensors_module.SafetensorError("I/O error: No space left on device (os error 28)")

    monkeypatch.setattr(tensors_module, "save_file", full)
    with pytest.raises(StoreError, match="disk is full"):
        write_tensors(tmp_path / "x.safetensors", {"a": torch.zeros(2)})


@given(st.permutations(["a", "b", "c"]))
def test_the_hash_does_not_depend_on_the_order_of_names(order: list[str]) -> None:
    tensors = {name: torch.full((2,), float(ord(name))) for name in order}
    assert hash_tensors(tensors) == hash_tensors({name: tensors[name] for name in sorted(tensors)})


def test_the_hash_sees_names_types_shapes_and_every_bit() -> None:
    zeros = torch.zeros(2, 3)
    variants = [
        {"a": zeros},
        {"b": zeros},
        {"a": zeros.to(torch.int32)},
        {"a": zeros.reshape(3, 2)},
        {"a": zeros, "b": zeros[:0]},
        {"a": torch.nextafter(zeros, torch.ones(2, 3))},
        {"a": -zeros},
        {},
    ]
    assert len({hash_tensors(variant) for variant in variants}) == len(variants)
