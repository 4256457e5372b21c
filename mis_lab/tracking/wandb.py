"""Weights & Biases as a mirror of the files: offline by default, one W&B run for each run of ours, always finished.

Without ``finish`` the jobs of a sweep end up in one W&B run, and a failed job in the next one's; here every run
has its own id (the run key), and starting one finishes whatever was left open.
"""

from __future__ import annotations

import logging
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

from mis_lab.core.files import full_disk_is_told
from mis_lab.tracking.config import LoggerConfig, WandbMode
from mis_lab.tracking.tracker import check_table

logger = logging.getLogger(__name__)

SECONDS_TO_REACH_SERVER = 20.0
IMAGE_SUFFIXES = (".png", ".jpg", ".jpeg", ".webp")
PAGE_SUFFIXES = (".html", ".svg")


class WandbTracker:
    """One W&B run.

    Args:
        config: the group `logger`; mode offline or online.
        run_dir: W&B writes below ``run_dir/wandb``.
        run_key: becomes the W&B id, so that a second try of the same run resumes it.
        name: becomes the W&B group (all jobs of a sweep share it).
        config_dict: the resolved configuration, shown beside the run.
        tags: added to those of `config`.
        label: a few words that tell this run from its neighbours; the key follows in the display name.
    """

    def __init__(
        self,
        config: LoggerConfig,
        run_dir: Path,
        run_key: str,
        name: str,
        config_dict: Mapping[str, Any],
        tags: Sequence[str] = (),
        label: str = "",
    ) -> None:
        import wandb

        self._wandb = wandb
        self._media = config.media
        self._axes: set[str] = set()
        mode: Literal["online", "offline"] = (
            "online" if config.wandb is WandbMode.online and _server_answers(wandb) else "offline"
        )
        keywords: dict[str, Any] = {
            "project": config.project,
            "entity": config.entity,
            "dir": str(run_dir),
            "id": run_key,
            "name": f"{label or name}-{run_key}",
            "group": name,
            "tags": list(dict.fromkeys([*config.tags, *tags])),
            "config": dict(config_dict),
            "resume": "allow",
            "reinit": "finish_previous",
            "settings": wandb.Settings(
                console="off",
                save_code=False,
                disable_git=True,
                silent=True,
                symlink=False,
                init_timeout=SECONDS_TO_REACH_SERVER,
                x_disable_stats=True,
                x_disable_machine_info=True,
                x_save_requirements=False,
            ),
        }
        with full_disk_is_told(Path(run_dir)):
            Path(run_dir).mkdir(parents=True, exist_ok=True)
        try:
            self._run = wandb.init(mode=mode, **keywords)
        except wandb.errors.Error as error:
            if mode == "offline":
                raise
            _warn_offline(str(error))
            self._run = wandb.init(mode="offline", **keywords)

    def log(self, stage: str, metrics: Mapping[str, float], step: int | None = None) -> None:
        # Steps of ours never become W&B's own step: there a smaller one than the last is dropped without a word.
        named = {f"{stage}/{name}": value for name, value in metrics.items()}
        if step is not None:
            self._define_axis(stage)
            named[f"{stage}/step"] = step
        self._run.log(named)

    def _define_axis(self, stage: str) -> None:
        if stage in self._axes:
            return
        self._axes.add(stage)
        escaped = stage.replace(".", "\\.")  # W&B reads a plain dot as nesting
        self._run.define_metric(f"{escaped}/step", hidden=True)
        self._run.define_metric(f"{escaped}/*", step_metric=f"{escaped}/step")

    def summary(self, values: Mapping[str, Any]) -> None:
        self._run.summary.update(dict(values))

    def figure(self, name: str, path: Path) -> None:
        suffix = Path(path).suffix.lower()
        if suffix not in IMAGE_SUFFIXES + PAGE_SUFFIXES:
            raise ValueError(
                f"figure {name}: {suffix or 'no suffix'} is none of {', '.join(IMAGE_SUFFIXES + PAGE_SUFFIXES)}"
            )
        if not self._media:
            return
        if suffix in IMAGE_SUFFIXES:
            self._run.log({name: self._wandb.Image(str(path))})
        else:
            self._run.log({name: self._wandb.Html(Path(path).read_text(encoding="utf-8"), inject=False)})

    def table(self, name: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
        check_table(name, columns, rows)
        if self._media:
            self._run.log({name: self._wandb.Table(columns=list(columns), data=[list(row) for row in rows])})

    def finish(self, exit_code: int = 0) -> None:
        self._run.finish(exit_code=exit_code)


def _server_answers(wandb: Any) -> bool:
    """Whether W&B has credentials and takes them; a warning says why not. Never asks on the terminal."""
    wandb.finish()  # a run left open would make login() do nothing
    try:
        if wandb.login(prompt=False, verify=True):
            return True
        _warn_offline("no API key; 'wandb login' stores one")
    except wandb.errors.Error as error:
        _warn_offline(str(error))
    return False


def _warn_offline(why: str) -> None:
    logger.warning(
        "W&B is not reachable (%s): writing offline; 'wandb sync' sends the folder later", " ".join(why.split())
    )
