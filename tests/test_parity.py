"""docs/parity.md: every capability of the two ancestors has a row, and a closed row names tests that run."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple

import pytest

ROOT = Path(__file__).resolve().parent.parent
TABLE = ROOT / "docs" / "parity.md"
SIZES = {
    "CFG": 9,
    "DAT": 14,
    "MOD": 9,
    "TRN": 4,
    "SAE": 17,
    "RES": 8,
    "MET": 16,
    "EVA": 4,
    "TOP": 11,
    "MIS": 8,
    "CIR": 20,
    "LOG": 3,
    "REF": 13,
}
NOT_RUN = {"skip", "skipif", "xfail"}


class Row(NamedTuple):
    id: str
    capability: str
    where: str
    tests: str

    @property
    def named(self) -> list[str]:
        """The node ids in backticks."""
        return re.findall(r"`([^`]+)`", self.tests)


def rows(text: str) -> list[Row]:
    cells = [re.split(r"(?<!\\)\|", line)[1:-1] for line in text.splitlines() if re.match(r"\| [A-Z]{3}-\d", line)]
    assert all(len(row) == 4 for row in cells), "a row has four cells; write | inside one as \\|"
    return [Row(*(cell.strip() for cell in row)) for row in cells]


def of(node_id: str, collected: dict[str, list[str]]) -> list[str]:
    """The collected tests that a named node id stands for: itself, its parameters, or those of its class."""
    return [name for name in collected if name == node_id or name.startswith((f"{node_id}[", f"{node_id}::"))]


def complaints(named: list[str], collected: dict[str, list[str]]) -> list[str]:
    found = []
    for node_id in named:
        tests = of(node_id, collected)
        if not tests:
            found.append(f"{node_id} does not exist")
        found += [f"{test} is marked {mark}" for test in tests for mark in NOT_RUN & {*collected[test]}]
    return found


@pytest.fixture(scope="module")
def table() -> list[Row]:
    return rows(TABLE.read_text(encoding="utf-8"))


def test_every_capability_has_one_row(table: list[Row]) -> None:
    wanted = [f"{group}-{number:02d}" for group, size in SIZES.items() for number in range(1, size + 1)]
    assert [row.id for row in table] == wanted
    assert Counter(row.id.startswith("REF") for row in table) == {False: 123, True: 13}
    assert all(row.capability for row in table)


def test_a_row_is_open_or_says_where_and_which_tests(table: list[Row]) -> None:
    for row in table:
        if row.tests == "open":
            continue
        assert row.named, f"{row.id}: 'open', or node ids in backticks"
        assert not re.sub(r"`[^`]+`|<br>|[,\s]", "", row.tests), f"{row.id}: node ids in backticks and nothing else"
        paths = re.findall(r"`([\w./-]+)`", row.where)
        assert paths, f"{row.id}: say where it lives, in backticks"
        for path in paths:
            assert (ROOT / path).exists(), f"{row.id}: no {path}"


def test_every_named_test_exists_and_is_neither_skipped_nor_expected_to_fail(
    table: list[Row], collected: dict[str, list[str]], tmp_path: Path
) -> None:
    named = sorted({node_id for row in table for node_id in row.named})
    assert named
    elsewhere = {node_id.partition("::")[0] for node_id in named if not of(node_id, collected)}
    assert [path for path in elsewhere if not (ROOT / path).exists()] == []
    if elsewhere:  # this session runs a part of the tests only
        collected = collected | collect(sorted(elsewhere), tmp_path / "collected.json")
    assert complaints(named, collected) == []


def collect(paths: list[str], answer: Path) -> dict[str, list[str]]:
    surroundings = {name: value for name, value in os.environ.items() if not name.startswith("PYTEST_")}
    command = [sys.executable, "-m", "pytest", "--collect-only", "-q", "-p", "no:cacheprovider", "-p", "no:xdist"]
    done = subprocess.run(
        [*command, *paths],
        cwd=ROOT,
        env=surroundings | {"MIS_LAB_COLLECTED": str(answer)},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return json.loads(answer.read_text())


def test_what_is_wrong_with_a_row_is_noticed() -> None:
    collected = {
        "tests/a.py::test_x[1]": ["parametrize"],
        "tests/a.py::test_x[2]": ["parametrize"],
        "tests/a.py::test_skipped": ["skip"],
        "tests/a.py::test_hopeless": ["xfail"],
        "tests/a.py::TestY::test_z": [],
        "tests/a.py::test_needing": ["needs"],
    }
    good = ["tests/a.py::test_x", "tests/a.py::test_x[2]", "tests/a.py::TestY", "tests/a.py::test_needing"]
    assert complaints(good, collected) == []
    for node_id, words in {
        "tests/a.py::test_": "does not exist",
        "tests/b.py::test_x": "does not exist",
        "tests/a.py::test_skipped": "is marked skip",
        "tests/a.py::test_hopeless": "is marked xfail",
    }.items():
        assert [words in line for line in complaints([node_id], collected)] == [True]
    assert rows(r"| SAE-08 | λ·mean \|f\| | `x.py` | open |") == [Row("SAE-08", r"λ·mean \|f\|", "`x.py`", "open")]
