"""From configuration to metric, checked before any image is embedded."""

from __future__ import annotations

import torch

from mis_lab.core.build import build
from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import content_key
from mis_lab.metric.base import MARGIN_FACTORS, Metric
from mis_lab.metric.config import MetricConfig


def load_metric(config: MetricConfig, device: torch.device | str = "cpu") -> Metric:
    """The metric that `config` describes, on `device`.

    Raises:
        ConfigError: when the class is no metric, or does not state its similarity and fingerprint.
        MissingFileError: for weights that are not there.
    """
    metric = build(config, device=device)
    if not isinstance(metric, Metric):
        raise ConfigError(
            f"{config._target_} gave {type(metric).__name__}, not a metric",
            fix="Derive the class from mis_lab.metric.base.Metric.",
        )
    metric.take_options(config)  # a class of one's own gets its kwargs only
    if getattr(metric, "similarity", None) not in MARGIN_FACTORS:
        raise ConfigError(
            f"metric {metric.name} does not state its similarity", fix=f"Set it to {' or '.join(MARGIN_FACTORS)}."
        )
    if not isinstance(getattr(metric, "fingerprint", None), str):
        raise ConfigError(
            f"metric {metric.name} has no fingerprint",
            fix="Set a string that changes whenever its embeddings do.",
        )
    if config.z_score:
        metric.fingerprint = content_key({"metric": metric.fingerprint, "z_score": True})
    return metric
