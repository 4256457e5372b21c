"""Log lines for people: one handler on standard error, quiet libraries."""

from __future__ import annotations

import logging

QUIET = ("PIL", "matplotlib", "filelock", "urllib3", "timm", "fontTools", "wandb", "asyncio")


def quiet_libraries() -> None:
    """Keep the chatter of libraries below a warning out of the run's log."""
    for name in QUIET:
        logging.getLogger(name).setLevel(logging.WARNING)


def to_stderr(level: int = logging.INFO) -> None:
    """Log to standard error: for subcommands and library use; Hydra sets up the handlers of a run itself."""
    logging.basicConfig(level=level, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    quiet_libraries()
