"""One run: plan it, skip it when it is done, else run its stages in order and write what came out.

The plan is the stages themselves over a store that builds nothing: it names every artifact's key before any work. A
run is done when its ``result.json`` (written last) names these keys: so a killed sweep resumes under every launcher.
"""

from __future__ import annotations

import logging
import math
import os
import sys
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mis_lab.config import RunConfig, Stage
from mis_lab.core import build
from mis_lab.core.device import resolve_device
from mis_lab.core.files import full_disk_is_told, read_json, write_json
from mis_lab.core.store import Artifact, PlannedStore, Store, held_lock
from mis_lab.pipeline.lab import SUMMARY, Lab, open_lab
from mis_lab.pipeline.page import PAGE, log_media, report
from mis_lab.pipeline.stages import of_stages
from mis_lab.pipeline.versions import versions
from mis_lab.tracking.several import open_tracker

RESULT = "result.json"
logger = logging.getLogger(__name__)


def run(
    config: RunConfig, run_dir: str | Path, run_key: str, overrides: Sequence[str], resolved: Mapping[str, Any]
) -> float | None:
    """Do one run.

    Args:
        config: validated.
        run_dir: the run's folder; locked while the run goes on.
        run_key: hash of the configuration.
        overrides: the words after ``mis-lab``, to be kept with the result.
        resolved: the configuration as plain containers.

    Returns:
        The headline number for sweepers that optimise: the mean difference of soft scores, features minus neurons,
        over sites and negatives; None where none was computed.
    """
    started, run_dir = time.monotonic(), Path(run_dir)
    for prefix in config.plugins:
        build.allow(prefix)
        if os.getcwd() not in sys.path:
            sys.path.insert(0, os.getcwd())
    if config.threads:
        torch.set_num_threads(config.threads)
    torch.backends.cudnn.allow_tf32 = False  # float32 means float32, on every device
    device = resolve_device(config.device)
    store = Store(Path(config.paths.store))
    with held_lock(run_dir / ".run", f"the run folder {run_dir}", wait=False):
        lab = open_lab(config, run_key, " ".join(["mis-lab", *overrides]), store, device)
        plan = PlannedStore(store.root)
        planned = keys(run_stages(replace(lab, store=plan)))
        # SAEs trained together with this run's are no part of its result, but of its work.
        aside = [recipe for key, recipe in plan.asked.items() if config.together and key not in planned.values()]
        result = finished(run_dir)
        if result is not None and result["artifacts"] == planned and all(map(store.find, aside)):
            logger.info("skip %s: done (%s)", run_dir, run_dir / RESULT)
            return result["headline"]
        with open_tracker(
            config.logger, run_dir, run_key, config.name, resolved, label=f"{config.model.name}/{config.sae.name}"
        ) as tracker:
            lab = replace(lab, log=tracker.log)
            made = run_stages(lab)
            metrics = headline_numbers(made)
            for name, numbers in metrics.items():
                tracker.log(name, numbers)
            flat = {f"{name}/{number}": value for name, numbers in metrics.items() for number, value in numbers.items()}
            tracker.summary(flat)
            if "report" in made:
                _take_page(made["report"], run_dir)
                log_media(made["report"], made, tracker)
            result = {
                "name": config.name,
                "run_key": run_key,
                "seed": config.seed,
                "headline": _headline(flat),
                "artifacts": keys(made),
                "metrics": flat,
                "overrides": list(overrides),
                "config": resolved,
                "versions": versions(),
                "device": str(device),
                "seconds": round(time.monotonic() - started, 2),
            }
        write_json(run_dir / RESULT, result)
    if "report" in made:
        logger.info("report: %s", run_dir / PAGE)
    return result["headline"]


def run_stages(lab: Lab) -> dict[str, Artifact]:
    """Every artifact of the stages asked for, by a name that says what it is."""
    made = of_stages(lab)
    return made | {"report": report(lab, made)} if Stage.report in lab.config.stages else made


def keys(made: Mapping[str, Artifact]) -> dict[str, str]:
    return {name: artifact.key for name, artifact in made.items()}


def finished(run_dir: Path) -> dict[str, Any] | None:
    """The result of a finished run, None where there is none."""
    return read_json(run_dir / RESULT) if (run_dir / RESULT).exists() else None


def headline_numbers(made: Mapping[str, Artifact]) -> dict[str, dict[str, float]]:
    """Artifact name → its headline numbers (``summary.json``); a mean over no unit (NaN) is no number and left out."""
    found = {name: read_json(artifact.path / SUMMARY) for name, artifact in made.items()}
    return {
        name: {key: value for key, value in numbers.items() if value is not None and math.isfinite(value)}
        for name, numbers in found.items()
        if numbers
    }


def _headline(flat: Mapping[str, float]) -> float | None:
    differences = [
        value for name, value in flat.items() if name.startswith("compare/soft/") and name.endswith("/mean_difference")
    ]
    return sum(differences) / len(differences) if differences else None


def _take_page(made: Artifact, run_dir: Path) -> None:
    with full_disk_is_told(run_dir):
        (run_dir / PAGE).write_bytes((made.path / PAGE).read_bytes())
