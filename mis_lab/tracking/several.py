"""All trackers of a run behind one, opened and closed together."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from mis_lab.core.errors import EXIT_FAILED, EXIT_INTERRUPTED
from mis_lab.tracking.config import LoggerConfig, WandbMode
from mis_lab.tracking.files import FilesTracker
from mis_lab.tracking.tracker import Tracker


class SeveralTrackers:
    """Hands every call on to each of `trackers`, in order."""

    def __init__(self, trackers: Sequence[Tracker]) -> None:
        self.trackers = list(trackers)

    def log(self, stage: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        for tracker in self.trackers:
            tracker.log(stage, metrics, step)

    def summary(self, values: Mapping[str, Any]) -> None:
        for tracker in self.trackers:
            tracker.summary(values)

    def figure(self, name: str, path: Path) -> None:
        for tracker in self.trackers:
            tracker.figure(name, path)

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        for tracker in self.trackers:
            tracker.table(name, columns, rows)

    def finish(self, exit_code: int = 0) -> None:
        for tracker in self.trackers:
            tracker.finish(exit_code)


@contextmanager
def open_tracker(
    config: LoggerConfig,
    run_dir: Path,
    run_key: str,
    name: str,
    config_dict: Mapping[str, Any],
    tags: Sequence[str] = (),
    label: str = "",
) -> Iterator[Tracker]:
    """The files of a run and, unless it is off, its W&B run; both closed at the end, marked failed on an exception.

    Args:
        config: the group `logger`.
        run_dir: the run's folder.
        run_key: the run's key: id in W&B.
        name: the run's name: group in W&B.
        config_dict: the resolved configuration as plain containers.
        tags: for W&B, beside those of `config`.
        label: a few words for W&B's display name (``tf_efficientnet_lite0/topk``).
    """
    several = SeveralTrackers([FilesTracker(run_dir)])
    try:
        if config.wandb is not WandbMode.off:
            from mis_lab.tracking.wandb import WandbTracker

            several.trackers.append(WandbTracker(config, run_dir, run_key, name, config_dict, tags, label))
        yield several
    except BaseException as error:
        several.finish(_exit_code(error))
        raise
    several.finish(0)


def _exit_code(error: BaseException) -> int:
    if isinstance(error, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    return getattr(error, "exit_code", EXIT_FAILED)
