"""The `lpips` package's uncalibrated baseline (Zhang et al. 2018, arXiv 1801.03924) on a packaged SqueezeNet 1.1.

It is not LPIPS: no calibrated heads, and a trunk of another training run.
"""

from __future__ import annotations

import torch

from mis_lab.metric.config import LpipsBaselineSqueezeConfig
from mis_lab.metric.lpips_maps import LpipsMaps
from mis_lab.model.packaged import packaged_state_dict

WEIGHTS = "squeezenet1_1_ndf"


class LpipsBaselineSqueeze(LpipsMaps):
    """Distance = Σ over seven layers of the mean over positions of ‖a/‖a‖ − b/‖b‖‖².

    Embedding: each layer's map, of length 1 at every position, times 1/√(H·W); all layers side by side (d = 118,976
    at 64 pixels).
    """

    def __init__(self, config: LpipsBaselineSqueezeConfig, device: torch.device | str = "cpu") -> None:
        told = {"metric": "lpips_baseline_squeeze"}
        super().__init__(config, "squeeze", packaged_state_dict(WEIGHTS), calibrated=False, told=told, device=device)
