from __future__ import annotations

import hashlib
import json
import subprocess
import sys
from dataclasses import dataclass, field
from enum import Enum, StrEnum
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core.keys import NO_EFFECT, content_key, hash_file, plain

values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=5), inner, max_size=4),
    max_leaves=12,
)


class Colour(Enum):
    red = 0
    blue = 1


@dataclass
class Inner:
    k: int = 3
    colour: Colour = Colour.red


@dataclass
class Settings:
    inner: Inner = field(default_factory=Inner)
    sites: tuple[str, ...] = ("a", "b")
    batch_size: int = field(default=8, metadata=NO_EFFECT)


def test_plain_leaves_out_what_has_no_effect() -> None:
    assert plain(Settings()) == {"inner": {"k": 3, "colour": "red"}, "sites": ["a", "b"]}


def test_the_key_ignores_what_has_no_effect_and_nothing_else() -> None:
    key = content_key(Settings())
    assert content_key(Settings(batch_size=99)) == key
    for other in (Settings(Inner(k=4)), Settings(Inner(colour=Colour.blue)), Settings(sites=("b", "a"))):
        assert content_key(other) != key


@given(st.dictionaries(st.text(max_size=5), values, min_size=2, max_size=6))
def test_the_order_of_a_mapping_does_not_matter(mapping: dict[str, Any]) -> None:
    backwards = dict(reversed(mapping.items()))
    assert content_key(mapping) == content_key(backwards)


@given(values, values)
def test_keys_are_equal_exactly_when_the_content_is(a: Any, b: Any) -> None:
    same = json.dumps(a, sort_keys=True) == json.dumps(b, sort_keys=True)
    assert (content_key(a) == content_key(b)) == same


@given(values)
def test_the_key_is_the_start_of_a_sha256(value: Any) -> None:
    text = json.dumps(value, sort_keys=True, separators=(",", ":"))
    assert content_key(value, length=64) == hashlib.sha256(text.encode()).hexdigest()
    assert content_key(value) == content_key(value, length=64)[:16]


def test_floats_written_differently_have_one_key_but_an_integer_is_another() -> None:
    assert content_key({"lr": 1e-3}) == content_key({"lr": 0.001})
    assert content_key({"lr": 1}) != content_key({"lr": 1.0})


def test_names_in_a_tuple_are_plain_and_no_enum_passes_for_one() -> None:
    class Word(StrEnum):
        a = "x"

    assert plain(("b", "c")) == ["b", "c"]
    assert plain(["b", Word.a]) == ["b", "a"]


def test_numbers_that_json_lacks() -> None:
    assert len({content_key(number) for number in (float("inf"), float("-inf"), float("nan"), 0.0)}) == 4


@pytest.mark.parametrize(
    "value", [Path("/data"), {1, 2}, object(), {"a": Path("/x")}], ids=lambda value: type(value).__name__
)
def test_what_has_no_canonical_form_is_refused(value: object) -> None:
    with pytest.raises(TypeError, match="no canonical form"):
        content_key(value)


def test_the_key_is_the_same_in_another_process() -> None:
    code = "from mis_lab.core.keys import content_key; print(content_key({'b': [1.5, None], 'a': 'ü'}))"
    for seed in ("1", "2"):
        done = subprocess.run(
            [sys.executable, "-c", code],
            capture_output=True,
            text=True,
            check=True,
            env={"PYTHONHASHSEED": seed, "PYTHONPATH": ":".join(sys.path)},
        )
        assert done.stdout.strip() == content_key({"a": "ü", "b": [1.5, None]})


def test_hash_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_bytes(b"abc" * 100_000)
    assert hash_file(tmp_path / "file") == hashlib.sha256(b"abc" * 100_000).hexdigest()
