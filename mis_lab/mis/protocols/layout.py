"""Which places of a side's ranking of the images hold explanations and queries."""

# K explanations a side  N tasks a unit

from __future__ import annotations

import math
from typing import NamedTuple

from mis_lab.core.errors import DataError
from mis_lab.mis.config import MisConfig, Protocol, Query

_ROUNDING = 1e-9  # undoes that of 0.07 * 300 = 21.000000000000004


class Layout(NamedTuple):
    """Places on a side's ranking, 0 the most extreme image.

    Attributes:
        start: of the first image that may be used.
        size: images of the pool: K+1 bins of `bin_size`, or the quantile.
        bin_size: images a bin, 0 without bins.
        window: place of the first query where queries are not of the pool's first or last bin (its K first bins then
            explain), else None.
    """

    start: int
    size: int
    bin_size: int
    window: int | None

    def n_ranked(self) -> int:
        """How many places of the ranking it takes."""
        return self.start + self.size if self.window is None else self.window + self.bin_size


def layouts(config: MisConfig, n_images: int) -> tuple[Layout, Layout]:
    """Of the most and of the least active images, with bins of one size.

    A side gets at most half of the images, so that no image is both strong and weak. Bins are made smaller for that,
    unless the size of the pool is given.

    Raises:
        DataError: when the images are too few for any unit, or for the pool that is asked for.
    """
    if config.protocol is Protocol.quantile:
        pool = _quantile(config, n_images)
        return pool, pool
    start = math.floor(config.quantile * (n_images - 1)) + 1 if config.protocol is Protocol.inner_quantile else 0
    windows = [_window(config, query, n_images) for query in config.queries()]
    wanted = config.pool_size // (config.n_explanations + 1) or config.n_tasks
    possible = min(_largest_bin(config, start, window, n_images) for window in windows)
    bin_size = min(wanted, possible)
    if bin_size < config.min_tasks or (config.pool_size and bin_size < wanted):
        least = wanted if config.pool_size else config.min_tasks
        what = " outside the explanations and the quantiles" if start or any(windows) else ""
        raise _too_few(
            n_images, least * (config.n_explanations + 1), max(0, possible) * (config.n_explanations + 1), what
        )
    size = bin_size * (config.n_explanations + 1)
    first, second = (Layout(start, size, bin_size, window) for window in windows)
    return first, second


def _quantile(config: MisConfig, n_images: int) -> Layout:
    half = n_images // 2
    size = config.pool_size or min(math.ceil(config.quantile * n_images - _ROUNDING), half)
    if config.n_explanations >= size or size > half:
        raise _too_few(n_images, max(config.pool_size, config.n_explanations + 1), min(size, half), "")
    return Layout(0, size, 0, None)


def _window(config: MisConfig, query: Query, n_images: int) -> int | None:
    if query is not Query.percentile:
        return None
    return math.ceil((1 - config.query_percentile / 100) * n_images - _ROUNDING)


def _largest_bin(config: MisConfig, start: int, window: int | None, n_images: int) -> int:
    half = n_images // 2
    if window is None:
        return (half - start) // (config.n_explanations + 1)
    return min(window // config.n_explanations, half - window)


def _too_few(n_images: int, least: int, found: int, what: str) -> DataError:
    return DataError(
        f"{n_images} images are too few: a side of the tasks needs {least} images and gets {found}{what}",
        fix="Score on more images, or lower mis.n_explanations, mis.min_tasks or mis.pool_size.",
    )
