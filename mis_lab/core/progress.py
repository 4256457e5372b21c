"""Progress of long work: a bar on a terminal, a log line every few seconds elsewhere (files, clusters, CI)."""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")
SECONDS_BETWEEN_LINES = 15.0
logger = logging.getLogger(__name__)


def progress(items: Iterable[T], what: str, total: int | None = None, done: int = 0, unit: str = "it") -> Iterator[T]:
    """Yield `items`, showing how far we are.

    Args:
        items: what to iterate over.
        what: a few words for the bar or line ("activations photo_patches/train").
        total: number of items, `done` included; taken from ``len(items)`` when it has one.
        done: items finished before a resume.
        unit: what one item is.
    """
    if total is None and hasattr(items, "__len__"):
        total = len(items) + done  # type: ignore[arg-type]
    if sys.stderr.isatty():
        yield from tqdm(items, desc=what, total=total, initial=done, unit=unit, dynamic_ncols=True, leave=False)
        return
    started = last = time.monotonic()
    for count, item in enumerate(items, start=done + 1):
        yield item
        now = time.monotonic()
        if now - last >= SECONDS_BETWEEN_LINES:
            last = now
            of = f"/{total}" if total else ""
            rate = (count - done) / (now - started)
            left = f", {(total - count) / rate:.0f} s left" if total and rate else ""
            logger.info("%s: %d%s %s (%.1f/s%s)", what, count, of, unit, rate, left)
