"""The grid of SAEs that are trained in one pass: ``together=["sae.k=8,16","seed=0,1,2"]``, axes as in a sweep.

Each of them is the artifact that a run with these settings would make: a sweep over the same grid finds them done.
"""

from __future__ import annotations

from itertools import product
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import OmegaConf
from omegaconf.errors import OmegaConfBaseException

from mis_lab.config import RunConfig
from mis_lab.core.errors import ConfigError

# Of the pass itself, or of what it reads.
SHARED = (
    "trainer.batch_size",
    "trainer.order_seed",
    "trainer.n_evaluations",
    "trainer.stacked",
    "sae.source",
    "sae._target_",
)


def siblings(config: RunConfig) -> list[RunConfig]:
    """The configurations of the grid, each with its own SAE or trainer options or seed.

    Raises:
        ConfigError: when an axis cannot be read, its option does not exist, is none of ``sae.*``, ``trainer.*`` and
            ``seed``, or is one that all SAEs of a pass share; when SAEs are stacked.
    """
    if not config.together:
        return []
    if config.trainer.stacked:
        raise ConfigError(
            "together: stacked SAEs see what those before them reconstruct, so no two grids share a pass",
            fix="Use a sweep (-m) without together.",
        )
    try:
        axes = [_axis(override) for override in OverridesParser.create().parse_overrides(config.together)]
        return [_changed(config, dict(point)) for point in product(*axes)]
    except (HydraException, OmegaConfBaseException) as error:
        raise ConfigError(f"together: {' '.join(str(error).split())}") from error


def _axis(override: Override) -> list[tuple[str, Any]]:
    """(option, value) for every value of an axis."""
    name = override.key_or_group
    if not (name == "seed" or name.startswith(("sae.", "trainer."))) or name in SHARED:
        raise ConfigError(
            f"together: {name} cannot differ between SAEs trained in one pass",
            fix=f"Use seed and options of sae and trainer (but not {', '.join(SHARED)}).",
        )
    if override.is_sweep_override():
        return [(name, value) for value in override.sweep_iterator()]
    return [(name, override.value())]


def _changed(config: RunConfig, values: dict[str, Any]) -> RunConfig:
    changed = OmegaConf.structured(config)
    for name, value in values.items():
        OmegaConf.update(changed, name, value)
    sibling = OmegaConf.to_object(changed)
    assert isinstance(sibling, RunConfig)
    return sibling
