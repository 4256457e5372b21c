"""Do the intervals of circuits cover the truth when images of a photograph are alike?

    python benchmarks/circuit/calibration.py [--simulations 2000] [--seed 0] [--out FILE]

Objectives of made-up images: a photograph decides how far the network is above the empty circuit on its images, and
how much of that a circuit of each size keeps; images of it differ from each other besides. What circuits keep on
average is known. Measured is how often 95 % intervals of faithfulness (at one size), of CMD and of the difference of
two circuits' CMD (that do not differ on average) hold the true number: with intervals over photographs, as a run gives
them, and, for comparison, over images as if each were a photograph of its own.

Gates print PASS or FAIL, and a failure exits with 1.
"""

# n images  G groups of them  S sizes

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import NamedTuple

import numpy as np

from mis_lab.circuit.comparisons import cmd_difference
from mis_lab.circuit.faithfulness import Curve
from mis_lab.core.intervals import Interval
from mis_lab.core.seeding import numpy_generator

sys.path.insert(0, str(Path(__file__).parent.parent / "sae"))
from measure import Gate, gate_table, gates_as_json, table, tell, write_json

SIZES = np.array([0, 1, 5, 10, 20, 50, 100])
FAITHFULNESS = np.array([0, 0.02, 0.1, 0.3, 0.55, 0.8, 1.0])  # of the circuit of each size, on average
AT = 3  # place of the size whose faithfulness is watched
MOVED, WITHIN = 10.0, 3.0  # the objective's way from the empty circuit on average; its spread within a photograph
LEAST, FROM_GROUPS = 0.90, 5  # coverage that must hold, from so many groups on
NAMES = ("faithfulness", "CMD", "difference of CMD")


class Case(NamedTuple):
    """Made-up images.

    Attributes:
        n_groups, n_images: how many photographs, and images of all of them.
        spread: how unlike photographs are, in the logarithm of how far the network moves the objective.
        equal: whether each has as many images.
    """

    n_groups: int
    n_images: int
    spread: float
    equal: bool

    def __str__(self) -> str:
        sizes = "" if self.equal else ", unequal"
        return f"{self.n_images} images of {self.n_groups} photographs{sizes}, spread {self.spread}"


CASES = tuple(
    Case(n_groups, n_images, spread, equal)
    for n_groups, n_images in ((3, 48), (5, 48), (9, 64), (18, 128), (48, 48))
    for spread in (0.3, 0.8)
    for equal in (True, False)
    if equal or n_groups < n_images
)


def draw(case: Case, random: np.random.Generator) -> tuple[Curve, Curve]:
    """Two circuits' curves on the same images; on average both keep :data:`FAITHFULNESS`."""
    counts = np.full(case.n_groups, case.n_images // case.n_groups)
    if not case.equal:
        counts = 1 + random.multinomial(case.n_images - case.n_groups, random.dirichlet(np.full(case.n_groups, 2.0)))
    groups_n = np.repeat(np.arange(case.n_groups), counts)
    n_images = len(groups_n)
    way_g = MOVED * random.lognormal(-(case.spread**2) / 2, case.spread, case.n_groups)
    way_n = way_g[groups_n] + WITHIN * random.normal(size=n_images)
    room_s = 4 * FAITHFULNESS * (1 - FAITHFULNESS)  # nothing is uncertain about the empty circuit and the network

    def curve() -> Curve:
        kept_gs = FAITHFULNESS + 0.15 * room_s * random.normal(size=(case.n_groups, 1))
        values_ns = kept_gs[groups_n] * way_n[:, None] + 2 * room_s * random.normal(size=(n_images, len(SIZES)))
        return Curve("feature", SIZES, values_ns.T, values_ns.T[None], values_ns.T[-1], groups_n)

    return curve(), curve()


def intervals(a: Curve, b: Curve) -> tuple[Interval, ...]:
    """Of each of :data:`NAMES`."""
    of_size = Interval(*(np.asarray(part)[AT] for part in a.faithfulness))
    return of_size, a.cmd, cmd_difference(a, b)


def truth() -> tuple[float, ...]:
    """Of each of :data:`NAMES`."""
    return float(FAITHFULNESS[AT]), float(np.trapezoid(np.abs(1 - FAITHFULNESS), SIZES / SIZES[-1])), 0.0


class Coverage(NamedTuple):
    """Of each of :data:`NAMES`: coverage and median width over photographs, and coverage over images."""

    over_groups: np.ndarray
    width: np.ndarray
    over_images: np.ndarray


def coverage(case: Case, n_simulations: int, seed: int) -> Coverage:
    random = numpy_generator(seed, "circuit", "calibration", *map(str, case))
    hits, widths = np.zeros((2, n_simulations, len(NAMES))), np.zeros((n_simulations, len(NAMES)))
    for number in range(n_simulations):
        curves = draw(case, random)
        alone = tuple(replace(curve, groups_n=np.arange(len(curve.groups_n))) for curve in curves)
        for place, of_set in enumerate((curves, alone)):
            found = intervals(*of_set)
            hits[place, number] = [one.low <= true <= one.high for one, true in zip(found, truth(), strict=True)]
            if not place:
                widths[number] = [one.high - one.low for one in found]
    return Coverage(hits[0].mean(0), np.nanmedian(widths, axis=0), hits[1].mean(0))


def main(arguments: Sequence[str] | None = None) -> list[Gate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--simulations", type=int, default=2000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--out", type=Path, help="write the gates into this file")
    a = parser.parse_args(arguments)
    rows, gates = [], []
    for case in CASES:
        found = coverage(case, a.simulations, a.seed)
        cells = [f"{covered:.3f} ({width:.2f}); {alone:.3f}" for covered, width, alone in zip(*found, strict=True)]
        rows.append([str(case), *cells])
        if case.n_groups >= FROM_GROUPS:
            gates.append(Gate(f"coverage, {case}", float(found.over_groups.min()), ">=", LEAST))
    tell("\nCoverage of 95 % intervals over photographs (and their median width); over images\n")
    tell(table(["images", *NAMES], rows) + "\n")
    tell(gate_table(gates))
    write_json(a.out, {"gates": gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    sys.exit(any(gate.verdict == "FAIL" for gate in main()))
