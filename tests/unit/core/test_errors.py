from __future__ import annotations

import pickle
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from mis_lab.core import errors
from mis_lab.core.errors import ConfigError, DataError, MisLabError, MissingFileError, StoreError, nearest_first

lines = st.text(min_size=1, max_size=60)


def test_the_line_says_what_where_and_what_to_do() -> None:
    error = DataError("no images", looked=Path("/data/birds"), fix="Set dataset.root=...")
    assert str(error) == "no images; looked in /data/birds. Set dataset.root=..."
    assert str(ConfigError("k is too large.")) == "k is too large."


@given(what=lines, looked=st.none() | lines, fix=st.none() | lines)
def test_it_is_one_line_whatever_it_is_told(what: str, looked: str | None, fix: str | None) -> None:
    assert "\n" not in str(MisLabError(what, looked=looked, fix=fix))


@pytest.mark.parametrize("kind", [MisLabError, ConfigError, DataError, MissingFileError, StoreError])
@pytest.mark.parametrize("keywords", [{}, {"looked": Path("/x")}, {"fix": "Do it"}, {"looked": "y", "fix": "Do."}])
def test_another_process_tells_the_same_line(kind: type[MisLabError], keywords: dict[str, object]) -> None:
    error = kind("something is wrong", **keywords)  # type: ignore[arg-type]
    received = pickle.loads(pickle.dumps(error))
    assert type(received) is kind
    assert str(received) == str(error)
    assert (received.what, received.looked, received.fix) == (error.what, error.looked, error.fix)


def test_exit_codes() -> None:
    codes = errors.EXIT_OK, errors.EXIT_FAILED, errors.EXIT_USER_ERROR, errors.EXIT_INTERRUPTED
    assert codes == (0, 1, 2, 130)
    assert ConfigError("x").exit_code == 2


def test_nearest_names_come_first_and_all_are_listed_once() -> None:
    names = ["layer1", "layer2", "conv1", "fc", "blocks.6"]
    assert nearest_first("block.6", names)[0] == "blocks.6"
    assert sorted(nearest_first("layer", names)) == sorted(names)
    assert len(nearest_first("layer", names, limit=2)) == 2
    assert nearest_first("x", []) == []
