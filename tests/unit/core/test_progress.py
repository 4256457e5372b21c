from __future__ import annotations

import io
import itertools
import logging
import sys
from collections.abc import Iterator

import pytest

from mis_lab.core import progress as progress_module
from mis_lab.core.progress import progress


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Every look at the clock takes one second."""
    ticks = itertools.count()
    monkeypatch.setattr(progress_module.time, "monotonic", lambda: float(next(ticks)))
    return


def test_items_pass_through_in_order() -> None:
    assert [*progress(range(5), "x")] == [0, 1, 2, 3, 4]
    assert [*progress(iter("abc"), "x")] == ["a", "b", "c"]
    assert [*progress([], "x")] == []


@pytest.mark.usefixtures("clock")
def test_without_a_terminal_a_line_every_few_seconds(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 10.0)
    with caplog.at_level(logging.INFO):
        for _ in progress(range(35), "training sae", unit="steps"):
            pass
    assert caplog.messages == [
        "training sae: 10/35 steps (1.0/s, 25 s left)",
        "training sae: 20/35 steps (1.0/s, 15 s left)",
        "training sae: 30/35 steps (1.0/s, 5 s left)",
    ]


@pytest.mark.usefixtures("clock")
def test_after_a_resume_the_rate_counts_only_what_is_new(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 10.0)
    with caplog.at_level(logging.INFO):
        assert len([*progress(range(90, 110), "x", done=90)]) == 20
    assert caplog.messages == ["x: 100/110 it (1.0/s, 10 s left)", "x: 110/110 it (1.0/s, 0 s left)"]


@pytest.mark.usefixtures("clock")
def test_of_unknown_length_there_is_no_end_in_sight(
    caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_module, "SECONDS_BETWEEN_LINES", 2.0)
    with caplog.at_level(logging.INFO):
        list(progress(iter(range(3)), "x"))
    assert caplog.messages == ["x: 2 it (1.0/s)"]


def test_what_is_quick_says_nothing(caplog: pytest.LogCaptureFixture, capsys: pytest.CaptureFixture[str]) -> None:
    with caplog.at_level(logging.INFO):
        list(progress(range(100), "x"))
    assert not caplog.messages
    assert capsys.readouterr() == ("", "")


def test_on_a_terminal_there_is_a_bar(monkeypatch: pytest.MonkeyPatch) -> None:
    terminal = io.StringIO()
    monkeypatch.setattr(terminal, "isatty", lambda: True, raising=False)
    monkeypatch.setattr(sys, "stderr", terminal)
    assert [*progress(range(90, 100), "training sae", done=90)] == list(range(90, 100))
    assert "training sae" in terminal.getvalue()
    assert "/100" in terminal.getvalue()


def test_a_loop_left_early_closes_its_source() -> None:
    closed = []

    def source() -> Iterator[int]:
        try:
            yield from range(5)
        finally:
            closed.append(True)

    bar = progress(source(), "x")
    next(bar)
    bar.close()  # type: ignore[attr-defined]
    del bar
    assert closed == [True]
