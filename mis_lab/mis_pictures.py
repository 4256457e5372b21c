"""``mis-lab mis sheet`` and ``mis-lab mis montage``: pictures of single units of a finished run, as PNG files."""

from __future__ import annotations

import argparse
import math
import sys
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from mis_lab.core.errors import ConfigError, StoreError
from mis_lab.terminal import say

if TYPE_CHECKING:
    from mis_lab.mis.unit_scores import UnitScores
    from mis_lab.pipeline.scored import ScoredRun
    from mis_lab.report.montage import MontageRow

N_BEST, N_IMAGES = 20, 9

Unit = tuple[str, int]  # site, number


def add_sheet(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``sheet`` to the actions of ``mis-lab mis``."""
    parser = actions.add_parser("sheet", help="picture of a unit's tasks, as a judge sees them")
    _add_run(parser, site_required=True)
    parser.add_argument("--unit", type=int, required=True, help="its number at the site")
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--task", type=int, action="append", default=[], help="from 1 (repeatable)")
    which.add_argument("--all-tasks", action="store_true", help="an overview of all tasks, the clearest first")
    parser.set_defaults(act=_sheet)


def add_montage(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Add ``montage`` to the actions of ``mis-lab mis``."""
    parser = actions.add_parser("montage", help="picture of many units' most and least activating images")
    _add_run(parser, site_required=False)
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--units", metavar="N,N,...", default="", help="their numbers at the site")
    which.add_argument("--best", type=int, default=N_BEST, metavar="N", help=f"the best scored (default {N_BEST})")
    which.add_argument("--circuit", type=int, default=0, metavar="N", help="the largest nodes of the run's circuit")
    parser.add_argument("--images", type=int, default=N_IMAGES, help=f"of a strip (default {N_IMAGES})")
    parser.add_argument("--heat", action="store_true", help="lay activation maps over the images")
    parser.set_defaults(act=_montage)


def _add_run(parser: argparse.ArgumentParser, site_required: bool) -> None:
    parser.add_argument("run_dir", type=Path)
    parser.add_argument("--site", default="", required=site_required)
    parser.add_argument("--kind", default="feature", help="neuron, feature or a control (default: feature)")
    parser.add_argument("--negatives", default="", help="of the tasks (default: the run's first)")
    parser.add_argument("--out", type=Path, required=True, metavar="PNG")
    parser.add_argument("--store", type=Path, default=None, help="the run's store, if it moved")


def _sheet(arguments: argparse.Namespace) -> None:
    from mis_lab.mis.unit_tasks import unit_tasks
    from mis_lab.pipeline.scored import ScoredRun
    from mis_lab.report.canvas import require_png, save_png
    from mis_lab.report.sheet import overview, sheet

    require_png(arguments.out)
    run = ScoredRun(arguments.run_dir, arguments.store)
    scores = run.scores(arguments.site, arguments.kind)
    unit = unit_tasks(scores, arguments.unit, arguments.negatives or next(iter(scores.by_negatives)))
    images = run.images_of(scores)
    if arguments.all_tasks:
        picture = overview(unit, images)
    else:
        shown = [unit.task(number) for number in arguments.task] or [unit.median, unit.hardest]
        wanted = sorted({image for task in shown for image in task.images})
        activations = _activations(run, arguments, wanted)
        picture = sheet(unit, images, [task.number for task in shown], activations)
    say(str(save_png(picture, arguments.out)))


def _activations(run: ScoredRun, arguments: argparse.Namespace, images: Sequence[int]) -> Mapping[int, float] | None:
    """Image → the unit's image activation; None, and a line that says so, where there are none to be had."""
    try:
        maps = run.maps(arguments.site, arguments.kind)
    except StoreError as error:  # the store was cleared up: the sheet does without
        sys.stderr.write(f"mis-lab: without activations: {error}\n")
        return None
    return None if maps is None else dict(zip(images, maps.of(arguments.unit, images).values.tolist(), strict=True))


def _montage(arguments: argparse.Namespace) -> None:
    from mis_lab.pipeline.scored import ScoredRun
    from mis_lab.report.canvas import require_png, save_png
    from mis_lab.report.montage import montage

    require_png(arguments.out)
    for option in ("best", "images"):
        if getattr(arguments, option) < 1:
            raise ConfigError(f"--{option} {getattr(arguments, option)}: at least 1 is needed")
    run = ScoredRun(arguments.run_dir, arguments.store)
    if arguments.circuit:
        kind, units = _circuit_units(run, arguments.circuit)
        title = f"The {len(units)} largest nodes of the circuit"
    elif not arguments.site:
        raise ConfigError("which units are to be shown", fix="Give --site SITE, or --circuit N.")
    else:
        kind, units = arguments.kind, _chosen_units(run, arguments)
        title = f"{arguments.site} · {kind.removesuffix('s').replace('_', ' ')}s"
    rows, left_out = _rows(run, kind, units, arguments)
    say(str(save_png(montage(rows, title, left_out), arguments.out)))


def _circuit_units(run: ScoredRun, n: int) -> tuple[str, list[Unit]]:
    """Kind and units of the first n nodes of the run's circuit, error nodes left out."""
    from mis_lab.circuit.circuit import ERROR

    found = run.circuit
    circuit = (found.features or found.neurons).circuit
    return circuit.kind, [(node.site, node.feature) for node in circuit.nodes if node.feature != ERROR][:n]


def _chosen_units(run: ScoredRun, arguments: argparse.Namespace) -> list[Unit]:
    scores = run.scores(arguments.site, arguments.kind)
    known = scores.units.tolist()
    if not arguments.units:
        soft = _soft(scores, arguments.negatives)
        scored = [row for row, value in enumerate(soft) if not math.isnan(value)]
        best = sorted(scored, key=lambda row: -soft[row])[: arguments.best]
        return [(arguments.site, known[row]) for row in best]
    try:
        numbers = list(dict.fromkeys(int(word) for word in arguments.units.split(",")))
    except ValueError as error:
        raise ConfigError(f"--units {arguments.units}", fix="Write numbers: --units 1,5,9.") from error
    if unknown := sorted(set(numbers) - set(known)):
        raise ConfigError(
            f"{scores.label} of {arguments.site} have no unit {unknown[0]}",
            fix=f"They are {len(known)} units, {min(known)} to {max(known)}.",
        )
    return [(arguments.site, number) for number in numbers]


def _rows(
    run: ScoredRun, kind: str, units: Sequence[Unit], arguments: argparse.Namespace
) -> tuple[list[MontageRow], dict[str, int]]:
    """Rows in the order of `units`, which may be of several sites; how many are silent, by status."""
    from mis_lab.activations.pools import gather
    from mis_lab.report.montage import montage_rows
    from mis_lab.report.wording import fixed

    rows: dict[Unit, MontageRow] = {}
    left_out: Counter[str] = Counter()
    for site in dict.fromkeys(at for at, _ in units):
        scores, maps = run.scores(site, kind), run.maps(site, kind)
        if maps is None:
            raise ConfigError(f"{scores.label} have no images: theirs were permuted", fix="Choose another --kind.")
        numbers = [number for at, number in units if at == site]
        pools = gather(maps.stored, maps.source, arguments.images, scores.seed, maps.image_activation, units=numbers)
        soft, row_of = _soft(scores, arguments.negatives), {n: row for row, n in enumerate(scores.units.tolist())}
        found, silent = montage_rows(
            pools,
            run.images_of(scores),
            numbers,
            [scores.unit_names[row_of[number]] for number in numbers],
            arguments.images,
            [f"{f'{site} · ' * bool(arguments.circuit)}soft MIS {fixed(soft[row_of[number]])}" for number in numbers],
            maps if arguments.heat else None,
        )
        left_out.update(silent)
        rows |= {(site, number): row for number, row in found.items()}
    return [rows[unit] for unit in units if unit in rows], dict(left_out)


def _soft(scores: UnitScores, negatives: str) -> list[float]:
    soft = scores.of(negatives or next(iter(scores.by_negatives))).scores.soft.estimate
    return soft.tolist() if hasattr(soft, "tolist") else [soft]
