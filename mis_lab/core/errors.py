"""The one error type for what a user can mend.

A :class:`MisLabError` says what is wrong, where we looked and what to do; the command line prints it as one line
and exits with its code. Every other exception is a bug and keeps its traceback.
"""

from __future__ import annotations

from collections.abc import Iterable
from difflib import get_close_matches
from functools import partial
from typing import Any

EXIT_OK, EXIT_FAILED, EXIT_USER_ERROR, EXIT_INTERRUPTED = 0, 1, 2, 130


class MisLabError(Exception):
    """A mistake in input, configuration or surroundings, told in one line.

    Args:
        what: what is wrong, naming the option, file, unit or image.
        looked: where we looked (a path, a list of names); left out when there is nothing to say.
        fix: what to do about it.
    """

    exit_code = EXIT_USER_ERROR

    def __init__(self, what: str, *, looked: object = None, fix: str | None = None) -> None:
        self.what, self.looked, self.fix = what, None if looked is None else str(looked), fix
        parts = [what.rstrip(".")]
        if looked is not None:
            parts.append(f"looked in {looked}")
        line = "; ".join(parts) + "."
        super().__init__(" ".join(f"{line} {fix}".split()) if fix else " ".join(line.split()))

    def __reduce__(self) -> tuple[Any, ...]:
        """A job's process hands its error over to the sweep's, which tells the same line."""
        return partial(type(self), looked=self.looked, fix=self.fix), (self.what,)


class ConfigError(MisLabError):
    """A configuration value that cannot work."""


class DataError(MisLabError):
    """Images or activations that cannot be used."""


class MissingFileError(MisLabError):
    """A file that must be fetched or placed by hand."""


class StoreError(MisLabError):
    """An artifact that is missing, damaged or in use."""


def nearest_first(wanted: str, existing: Iterable[str], limit: int = 12) -> list[str]:
    """The existing names, the most similar to `wanted` first, at most `limit` of them."""
    names = list(existing)
    close = get_close_matches(wanted, names, n=limit, cutoff=0.3)
    return (close + [name for name in names if name not in close])[:limit]
