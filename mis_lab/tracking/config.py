"""Options of tracking (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum


class WandbMode(Enum):
    off = 0
    offline = 1
    online = 2


@dataclass
class LoggerConfig:
    """Weights & Biases beside the files, which are always written.

    Attributes:
        wandb: off, offline (a folder to `wandb sync` later) or online.
        project, entity, tags: as in W&B.
        media: also log the report's figures and a table of units.
    """

    wandb: WandbMode = WandbMode.offline
    project: str = "mis_lab"
    entity: str | None = None
    tags: list[str] = field(default_factory=list)
    media: bool = True
