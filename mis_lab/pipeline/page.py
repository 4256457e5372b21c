"""The stage ``report``: hands what a run made to the page."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np
import yaml

from mis_lab import __version__
from mis_lab.circuit.result import CircuitResult
from mis_lab.config import Stage
from mis_lab.core.errors import ConfigError
from mis_lab.core.files import read_json, write_json
from mis_lab.core.keys import plain
from mis_lab.core.records import read_record
from mis_lab.core.store import Artifact, Recipe
from mis_lab.mis.compare import Comparison
from mis_lab.mis.unit_scores import Settings, UnitScores
from mis_lab.mis.units import UnitStatus
from mis_lab.pipeline.comparison import COMPARISONS
from mis_lab.pipeline.evaluation import GEOMETRY, PARTS, SELECTIVITY, SPLICE
from mis_lab.pipeline.lab import SUMMARY, Lab
from mis_lab.pipeline.mis_results import mis_results
from mis_lab.pipeline.units import kinds_of_units
from mis_lab.pipeline.versions import versions
from mis_lab.report.about import ArtifactRef, ModelSummary, RunSummary
from mis_lab.report.circuit_files import write_circuit_figures, write_graphviz
from mis_lab.report.collect import Sources, collect
from mis_lab.report.data import MisSettings
from mis_lab.report.figures import write_figures
from mis_lab.report.page import write_report
from mis_lab.report.sae_collect import SaeResults
from mis_lab.sae import io as sae_io
from mis_lab.sae.evaluate import ReconstructionQuality
from mis_lab.sae.geometry import Geometry, geometry, weight_directions
from mis_lab.sae.selectivity import Selectivity
from mis_lab.sae.splice import SpliceQuality
from mis_lab.tracking.tracker import Tracker

PAGE, FIGURES = "report.html", "figures.json"
REPORT_VERSION = 3
MOST_WEIGHTS = 4_000_000  # of a layer whose directions are looked at: more take minutes


def report(lab: Lab, made: Mapping[str, Artifact]) -> Artifact:
    """One page over `made`, the artifacts of the run's other stages; its charts as SVG files beside it."""
    recipe = Recipe(
        "report",
        REPORT_VERSION,
        {"report": plain(lab.config.report), "run_key": lab.run_key, "name": lab.config.name, "version": __version__},
        {name: artifact.key for name, artifact in made.items()},
        label=f"{lab.config.name} {lab.run_key}",
    )

    def build(folder: Path) -> None:
        found = sources(lab, made)
        data = collect(found, lab.config.report)
        write_report(data, folder / PAGE, lab.config.report)
        figures = write_figures(data, folder / "figures") | write_circuit_figures(data, folder / "figures")
        if found.circuit is not None:
            figures |= write_graphviz(found.circuit, folder / "figures")
        write_json(folder / FIGURES, {name: path.name for name, path in figures.items()})
        write_json(folder / SUMMARY, {"mib": (folder / PAGE).stat().st_size / 2**20})

    return lab.store.get(recipe, build)


def sources(lab: Lab, made: Mapping[str, Artifact]) -> Sources:
    """What the page is made of, read from the artifacts `made`."""
    config = lab.config
    sites = config.model.sites
    scores = {
        (site, kind): UnitScores.read(made[f"mis/{site}/{kind}"].path)
        for site in sites
        for kind in kinds_of_units(lab)
        if f"mis/{site}/{kind}" in made
    }
    return Sources(
        run=_run(lab, made),
        model=ModelSummary(
            name=config.model.name,
            weights=config.model.weights,
            fingerprint=lab.model.fingerprint,
            n_parameters=sum(parameter.numel() for parameter in lab.model.module.parameters()),
            input_px=config.model.input.size,
        ),
        data=lab.data,
        held_out=lab.held_out,
        activations={
            site: made[f"activations/score/{site}"].path for site in sites if f"activations/score/{site}" in made
        },
        image_activation=config.mis.image_activation,
        saes={
            site: _sae(lab, site, made[f"sae/{site}"].path, made[f"evaluate/{site}"].path)
            for site in sites
            if f"evaluate/{site}" in made
        },
        scores=scores,
        mis=_settings(lab, next(iter(scores.values()))) if scores else None,
        comparisons=_comparisons(made["compare"].path) if "compare" in made else {},
        beside=mis_results(made),
        circuit=CircuitResult.read(made["circuit"].path) if "circuit" in made else None,
        seed=config.seed,
    )


def _run(lab: Lab, made: Mapping[str, Artifact]) -> RunSummary:
    stages = [stage.name for stage in Stage if any(name.startswith(stage.name) for name in made)]
    return RunSummary(
        name=lab.config.name,
        key=lab.run_key,
        command=lab.command,
        seed=lab.config.seed,
        device=str(lab.device),
        versions=versions(),
        config_yaml=yaml.safe_dump(plain(lab.config), sort_keys=False),
        artifacts=[
            ArtifactRef(artifact.recipe.stage, artifact.recipe.label, artifact.key) for artifact in made.values()
        ],
        stages=stages,
    )


def _sae(lab: Lab, site: str, trained: Path, evaluated: Path) -> SaeResults:
    parts = [part for part in PARTS if (evaluated / part).exists()]
    qualities = {part: ReconstructionQuality.read(evaluated / part) for part in parts}
    return SaeResults(
        sae=sae_io.load(trained),
        folder=trained,
        n_vectors=int(read_json(trained / SUMMARY)["n_vectors"]),
        seen=qualities["seen"],
        held_out=qualities.get("held_out"),
        splice=SpliceQuality(**read_json(evaluated / parts[-1] / SPLICE)),
        selectivity={
            kind: read_record(Selectivity, evaluated, f"{SELECTIVITY}_{kind}")
            for kind in ("feature", "neuron")
            if (evaluated / f"{SELECTIVITY}_{kind}.json").exists()
        },
        geometry=read_record(Geometry, evaluated, GEOMETRY) if (evaluated / f"{GEOMETRY}.json").exists() else None,
        weights=_weights(lab, site),
    )


def _weights(lab: Lab, site: str) -> Geometry | None:
    """Geometry of the directions that the site's own layer reads; None where it is no layer with weights, or a huge
    one."""
    module = dict(lab.model.module.named_modules()).get(site)
    if module is None:
        return None
    try:
        directions_fd = weight_directions(module)
    except ConfigError:
        return None
    return geometry(directions_fd) if directions_fd.numel() <= MOST_WEIGHTS else None


def _query(settings: Settings) -> str:
    """Which image of a task is asked about, in words; both sides where they differ."""
    if settings.query_percentile:
        return f"{settings.query} {settings.query_percentile:g}"
    if settings.query_negative in ("same", settings.query):
        return settings.query
    return f"{settings.query} (of the least active: {settings.query_negative})"


def _settings(lab: Lab, scores: UnitScores) -> MisSettings:
    settings = scores.settings
    return MisSettings(
        metric=settings.metric,
        metric_is_calibrated=settings.metric.startswith(("dreamsim", "lpips_alex", "lpips_vgg", "lpips_squeeze")),
        temperature=settings.temperature,
        temperature_is_measured=lab.metric.temperature == 0,
        protocol=settings.protocol,
        query=_query(settings),
        n_explanations=settings.n_explanations,
        n_tasks=settings.n_tasks,
        negatives=list(scores.by_negatives),
        image_activation=settings.image_activation,
        one_per_group=settings.one_per_group,
        n_images=settings.n_images,
        n_groups=len(np.unique(scores.image_groups)),
        headline=("soft", next(iter(scores.by_negatives))),
    )


def _comparisons(folder: Path) -> dict[tuple[str, str], list[Comparison]]:
    found: dict[tuple[str, str], list[Comparison]] = {}
    for told in read_json(folder / COMPARISONS):
        kind_a, kind_b = told.pop("kinds")
        found.setdefault((kind_a, kind_b), []).append(Comparison.from_json(told))
    return found


def log_media(report: Artifact, made: Mapping[str, Artifact], tracker: Tracker) -> None:
    """Hand the page's charts and a table of all neurons and features with their scores to `tracker`."""
    for name, file in read_json(report.path / FIGURES).items():
        tracker.figure(f"figures/{name}", report.path / "figures" / file)
    scored = [
        UnitScores.read(artifact.path)
        for name, artifact in made.items()
        if name.startswith("mis/") and name.endswith(("/neuron", "/feature"))
    ]
    if not scored:
        return
    negatives = list(scored[0].by_negatives)
    measures = [(name, measure) for name in negatives for measure in ("soft", "hard")]
    columns = ["site", "kind", "unit", "status", "n_active", *(f"{measure}, {name}" for name, measure in measures)]
    rows: list[list[object]] = []
    for scores in scored:
        values = [np.asarray(getattr(scores.of(name).scores, measure).estimate) for name, measure in measures]
        status = scores.of(negatives[0]).status.tolist()
        for row, (unit, n_active) in enumerate(zip(scores.units.tolist(), scores.n_active.tolist(), strict=True)):
            numbers = [float(value[row]) if np.isfinite(value[row]) else None for value in values]
            rows.append([scores.site, scores.kind, unit, UnitStatus(status[row]).name, n_active, *numbers])
    tracker.table("mis/units", columns, rows)
