"""docs/glossary.md is the page's glossary, word for word: `python -m mis_lab.report.glossary > docs/glossary.md`."""

from __future__ import annotations

from pathlib import Path

from mis_lab.report.glossary import as_markdown


def test_docs_glossary_is_current() -> None:
    written = (Path(__file__).parents[1] / "docs" / "glossary.md").read_text(encoding="utf-8")
    assert written == as_markdown()
