"""Tables as a terminal shows them."""

from __future__ import annotations

import csv
from pathlib import Path

import pytest

from mis_lab.terminal import TextTable, with_limits, write_table, write_tables


def test_columns_are_as_wide_as_they_must_be(capsys: pytest.CaptureFixture[str]) -> None:
    write_table(("name", "n"), [("a", 1), ("much longer", 2.5)])
    assert capsys.readouterr().out.splitlines() == ["name         n", "a            1", "much longer  2.500"]
    write_table(("n",), [(12345.678,)], ".4g")
    assert capsys.readouterr().out.splitlines() == ["n", "1.235e+04"]


def test_tables_without_rows_are_left_out_and_files_hold_the_others(
    capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    tables = [TextTable("empty", ("a",), []), TextTable("full", ("a", "b"), [(1, 0.25)])]
    write_tables(tables, ["mind this"], tmp_path / "new" / "out.csv")
    assert capsys.readouterr().out.splitlines() == [
        "", "full", "a  b", "1  0.250", "note: mind this", f"also in {tmp_path / 'new' / 'out.csv'}",
    ]  # fmt: skip
    with open(tmp_path / "new" / "out.csv", newline="", encoding="utf-8") as file:
        assert list(csv.reader(file)) == [["full"], ["a", "b"], ["1", "0.25"], []]


def test_limits_stand_behind_their_estimate() -> None:
    assert with_limits((0.5, 0.25, 0.75)) == "0.500 (0.250 to 0.750)"
    assert with_limits([-0.5, -1, 1], signed=True, decimals=1) == "-0.5 (-1.0 to +1.0)"
