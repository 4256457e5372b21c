from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from mis_lab.core.logging import QUIET, quiet_libraries, to_stderr


@pytest.fixture(autouse=True)
def _levels_as_they_were() -> Iterator[None]:
    root = logging.getLogger()
    before = {name: logging.getLogger(name).level for name in QUIET}
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    for name, was in before.items():
        logging.getLogger(name).setLevel(was)


def test_libraries_speak_only_in_warnings() -> None:
    quiet_libraries()
    for name in QUIET:
        assert not logging.getLogger(name).isEnabledFor(logging.INFO)
        assert logging.getLogger(name).isEnabledFor(logging.WARNING)


def test_lines_go_to_standard_error(capsys: pytest.CaptureFixture[str]) -> None:
    logging.getLogger().handlers[:] = []
    to_stderr()
    logging.getLogger("mis_lab.sae").info("a line")
    logging.getLogger("PIL").info("chatter")
    out, err = capsys.readouterr()
    assert out == ""
    assert err.endswith("] a line\n")
    assert err.count("\n") == 1
