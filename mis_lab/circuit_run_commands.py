"""``mis-lab circuit compare``: circuits of several finished runs side by side.

Runs may differ in anything. How close circuits come to their network is told for each; the difference of two, with its
interval, where both were evaluated on the same images; and which nodes they share, where these are the same units (the
same SAEs, or neurons of the same network and sites).
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from mis_lab.core.errors import ConfigError
from mis_lab.terminal import TextTable, write_tables

if TYPE_CHECKING:
    from mis_lab.circuit.result import CircuitResult, KindResult
    from mis_lab.pipeline.scored import ScoredRun

SIZES = (10, 30, 100, 300, 1000)


@dataclass(frozen=True)
class LabelledCircuits:
    """The circuits of a finished run, with the words that tell it from the others.

    Attributes:
        units: kind of nodes → site → key of what makes them; equal keys, equal nodes.
        data: fingerprint of the data set that its images are from.
    """

    label: str
    result: CircuitResult
    units: dict[str, dict[str, str]]
    data: str

    @classmethod
    def of(cls, run: ScoredRun, label: str) -> LabelledCircuits:
        result = run.circuit
        return cls(label, result, {kind: run.circuit_units(kind) for kind in result.kinds}, run.circuit_data)

    @property
    def signed(self) -> bool:
        """Whether its effects have signs."""
        from mis_lab.circuit.config import EffectMethod
        from mis_lab.circuit.effects import METHODS

        return METHODS[EffectMethod[self.result.settings["method"]]].signed

    def is_on_images_of(self, other: LabelledCircuits) -> bool:
        """Whether both were evaluated on the same images, in the same groups."""
        mine, its = self.result, other.result
        alike = [a.curve.groups_n.tolist() == b.curve.groups_n.tolist() for _, a, b in _both(self, other)]
        return mine.evaluation_ids == its.evaluation_ids and self.data == other.data and all(alike)


def add_compare(actions: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """The arguments of ``mis-lab circuit compare``."""
    parser = actions.add_parser("compare", help="circuits of several runs: methods, classes, seeds")
    parser.add_argument("run", type=Path, metavar="RUN_DIR", help="the run that the others are compared with")
    parser.add_argument("others", type=Path, nargs="+", metavar="RUN_DIR", help="one or several other runs")
    parser.add_argument("--nodes", default="", metavar="N[,N...]", help="sizes at which shared nodes are counted")
    parser.add_argument("--store", type=Path, default=None, help="the runs' store, if it moved")
    parser.add_argument("--out", type=Path, default=None, metavar="CSV", help="write the tables there, too")
    parser.set_defaults(act=compare_runs)


def compare_runs(arguments: argparse.Namespace) -> None:
    """Tables of faithfulness, differences, shared nodes and effects, with what could not be compared and why."""
    sizes = _sizes(arguments.nodes)
    from mis_lab.pipeline.scored import ScoredRun, run_labels

    runs = [ScoredRun(folder, arguments.store) for folder in (arguments.run, *arguments.others)]
    first, *others = [LabelledCircuits.of(run, label) for run, label in zip(runs, run_labels(runs), strict=True)]
    notes: list[str] = []
    tables = [
        _faithfulness([first, *others]),
        _differences(first, others, notes),
        *_shared(first, others, sizes, notes),
    ]
    write_tables(tables, notes, arguments.out)


def _sizes(told: str) -> tuple[int, ...]:
    try:
        found = tuple(sorted({int(word) for word in told.split(",")})) if told else SIZES
    except ValueError as error:
        raise ConfigError(f"--nodes {told}", fix="Write whole numbers: --nodes 10,100.") from error
    if min(found) < 1:
        raise ConfigError(f"--nodes {told}: at least 1 is needed")
    return found


def _faithfulness(runs: Sequence[LabelledCircuits]) -> TextTable:
    rows = []
    for run in runs:
        for kind, found in run.result.kinds.items():
            curve = found.curve
            areas = [*map(float, curve.cmd), *map(float, curve.cpr)]
            rows.append([kind, run.label, len(found.circuit), *areas, float(curve.random_cmd.mean())])
    title = "circuits of each run (CMD: low is good; 95 % limits over groups of images)"
    header = ("kind", "run", "live nodes", "CMD", "low", "high", "CPR", "low", "high", "CMD of random ones")
    return TextTable(title, header, rows)


def _differences(first: LabelledCircuits, others: Sequence[LabelledCircuits], notes: list[str]) -> TextTable:
    """Paired differences of CMD; what was evaluated on other images goes into `notes`."""
    from mis_lab.circuit.comparisons import cmd_difference

    rows = []
    for other in others:
        if not first.is_on_images_of(other):
            notes.append(f"{other.label}: evaluated on other images, so no difference has an interval")
            continue
        for kind, mine, its in _both(first, other):
            difference = cmd_difference(mine.curve, its.curve)
            rows.append([kind, other.label, *map(float, difference)])
    title = f"CMD of {first.label} less that of the others (below 0: {first.label} is closer to the network)"
    return TextTable(title, ("kind", "run", "difference", "low", "high"), rows)


def _shared(
    first: LabelledCircuits, others: Sequence[LabelledCircuits], sizes: Sequence[int], notes: list[str]
) -> tuple[TextTable, TextTable]:
    """Nodes in common at each size, and how alike effects are; circuits of other units go into `notes`."""
    from mis_lab.circuit.agreement import effects_alike
    from mis_lab.circuit.circuit import overlap

    counts: list[list[Any]] = []
    alike: list[list[Any]] = []
    for other in others:
        for kind, mine, its in _both(first, other):
            if first.units[kind] != other.units[kind]:
                notes.append(f"{other.label}: its {kind}s are other units or at other sites, so none are shared")
                continue
            found = effects_alike(mine.circuit, its.circuit, first.signed and other.signed)
            by_chance = found.n_nodes / (len(mine.circuit) * len(its.circuit))
            for size in sizes:
                if size > min(len(mine.circuit), len(its.circuit)):
                    break
                shared = overlap(mine.circuit.top(size), its.circuit.top(size))
                counts.append([kind, other.label, size, shared.n_shared, shared.jaccard, size**2 * by_chance])
            alike.append([kind, other.label, found.n_nodes, found.pearson, found.spearman, found.same_sign])
    return (
        TextTable(
            f"nodes that circuits of one size share with {first.label}",
            ("kind", "run", "nodes", "shared", "Jaccard", "shared by chance"),
            counts,
        ),
        TextTable(
            "effects of the nodes that are live in both",
            ("kind", "run", "nodes", "Pearson's r", "Spearman's rho", "same sign"),
            alike,
        ),
    )


def _both(a: LabelledCircuits, b: LabelledCircuits) -> Iterator[tuple[str, KindResult, KindResult]]:
    """Kinds of nodes that both have."""
    for kind, found in a.result.kinds.items():
        if kind in b.result.kinds:
            yield kind, found, b.result.kinds[kind]
