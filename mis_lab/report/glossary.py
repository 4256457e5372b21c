"""Every number on the page: what it is, in words, with its unit and where it comes from (glossary.toml).

A label of a number is only ever written through an entry here; a test holds the page to that.
"""

from __future__ import annotations

import tomllib
from dataclasses import dataclass
from importlib.resources import files


@dataclass(frozen=True)
class Entry:
    """One number.

    Attributes:
        label: as in tables and text.
        formula: how it is computed, in words.
        unit: what it is measured in.
        source: paper or package that defines it.
        axis: as on an axis; `label` when not given.
        page: ``run`` or ``sweep``, the page that explains it (a sweep's page also uses entries of a run's), or
            ``figure`` for what only charts and pictures beside the pages show.
    """

    label: str
    formula: str
    unit: str
    source: str
    axis: str = ""
    page: str = "run"

    @property
    def axis_label(self) -> str:
        return self.axis or self.label


def _read() -> dict[str, Entry]:
    text = files("mis_lab.report").joinpath("glossary.toml").read_text(encoding="utf-8")
    return {key: Entry(**entry) for key, entry in tomllib.loads(text).items()}


GLOSSARY = _read()


def as_markdown() -> str:
    """The glossary as a page of documentation (docs/glossary.md)."""
    cells = ((entry.label, entry.formula, entry.unit, entry.source) for entry in GLOSSARY.values())
    rows = [f"| {' | '.join(cell.replace('|', chr(92) + '|') for cell in row)} |" for row in cells]
    head = (
        "# Glossary",
        "",
        "Every number on the page of a run or of a sweep, and on charts and pictures beside them. Written by"
        " `python -m mis_lab.report.glossary`.",
        "",
        "| number | what it is | unit | source |",
        "| --- | --- | --- | --- |",
    )
    return "\n".join([*head, *rows]) + "\n"


if __name__ == "__main__":
    import sys

    sys.stdout.write(as_markdown())
