"""Entries of the glossary are complete and told apart."""

from __future__ import annotations

import collections

from mis_lab.report.glossary import GLOSSARY


def test_every_entry_is_complete():
    for key, entry in GLOSSARY.items():
        assert entry.label.strip(), key
        assert entry.formula.strip(), key
        assert entry.unit.strip(), key
        assert entry.source.strip(), key
        assert entry.axis_label


def test_no_two_entries_share_label_and_meaning():
    meanings = collections.Counter((entry.label, entry.formula) for entry in GLOSSARY.values())
    assert max(meanings.values()) == 1
