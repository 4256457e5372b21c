"""How good the circuits of one kind are, on images they were not found on: curves, what they beat, what they need."""

# n images  S sizes

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from itertools import permutations

from torch import Tensor

from mis_lab.circuit.circuit import Circuit, rank
from mis_lab.circuit.comparisons import by_change, cmd_difference, evaluate_others, node_changes
from mis_lab.circuit.completeness import ComplementCurve, complements
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.effects import SiteEffects
from mis_lab.circuit.error_nodes import ranked
from mis_lab.circuit.faithfulness import Curve, evaluate
from mis_lab.circuit.images import ImageSet
from mis_lab.circuit.minimality import Minimality, minimality
from mis_lab.circuit.objectives import Problem
from mis_lab.circuit.states import States
from mis_lab.core.intervals import Interval

BY_CHANGE, BEST_RANDOM = "by_change", "best_random"
AGAINST = " against "  # between the names of two classes' circuits
logger = logging.getLogger(__name__)


@dataclass(frozen=True, eq=False)
class Quality:
    """What evaluation says of the circuits of one kind.

    Attributes:
        curve: faithfulness against size.
        complement: completeness against size.
        minimality: of the pictured circuit; None where it holds nothing but errors that are no nodes.
        others: name → curve of other circuits of the same nodes on the same images.
        cmd_differences: name → CMD of the circuit minus that of another, see :func:`differences`.
    """

    curve: Curve
    complement: ComplementCurve
    minimality: Minimality | None
    others: Mapping[str, Curve]
    cmd_differences: Mapping[str, Interval]


def judge(
    problem: Problem,
    states: States,
    circuit: Circuit,
    others: Mapping[str, Circuit],
    classes: Mapping[str, Tensor],
    tested_on: ImageSet,
    config: CircuitConfig,
    seed: int,
) -> Quality:
    """Evaluate `circuit` (all live nodes, in order) and `others` on the same images, one pass a circuit and batch.

    Args:
        others: other circuits of the same nodes, see :func:`rivals`.
        classes: name of a class → which of the images (n,) bool are of it.
        seed: of random circuits.

    Raises:
        DataError: without live nodes, or when the objective is not finite.
        MisLabError: when the objective hardly moves.
    """
    nodes, images, rows_n = states.on(tested_on)[circuit.kind], tested_on.images, tested_on.rows_n
    curve = evaluate(problem, nodes, circuit, images, rows_n, config, seed, groups=images.groups)
    complement = complements(problem, nodes, circuit, images, rows_n, config, groups=images.groups)
    shown, needed = circuit.top(config.n_shown), None
    if len(ranked(shown, config.errors)):
        needed = minimality(problem, nodes, shown, images, rows_n, config)
    found = evaluate_others(problem, nodes, curve, others, images, rows_n, config)
    return Quality(curve, complement, needed, found, differences(curve, found, classes, config))


def rivals(
    problem: Problem,
    states: States,
    circuit: Circuit,
    effects: Mapping[str, SiteEffects],
    classes: Mapping[str, Tensor],
    discovery: ImageSet,
) -> dict[str, Circuit]:
    """What `circuit` is compared with: its nodes ordered by how much they change, and each class' own circuit.

    Args:
        classes: name of a class → which of the discovery images (n,) bool are of it.
    """
    nodes = states.on(discovery)[circuit.kind]
    found = {BY_CHANGE: by_change(circuit, node_changes(problem, nodes, discovery.images))}
    for name, here_n in classes.items():
        if not here_n.any():
            logger.warning("no discovery image is of class %s: it gets no circuit of its own", name)
            continue
        of_class = {path: replace(of_site, per_image=of_site.per_image[here_n]) for path, of_site in effects.items()}
        found[of_class_name(name)] = rank(circuit.kind, of_class)
    return found


def of_class_name(name: str) -> str:
    """What the circuit of a class is called among the others."""
    return f"class {name}"


def differences(
    curve: Curve, others: Mapping[str, Curve], classes: Mapping[str, Tensor], config: CircuitConfig
) -> dict[str, Interval]:
    """CMD of the circuit minus that of each other one, with intervals over the same groups of
    images: negative where it is better.

    ``best_random`` is the random draw of lowest CMD. ``class a against class b`` takes images of class a alone: the CMD
    of a's circuit minus that of b's; it is left out where the objective hardly moves on these.
    """
    best = int(curve.random_cmd.argmin())
    random = replace(curve, values=curve.random_values[best])
    found = {name: cmd_difference(curve, other) for name, other in {**others, BEST_RANDOM: random}.items()}
    of_class = {name: others[of_class_name(name)] for name in classes if of_class_name(name) in others}
    for a, b in permutations(of_class, 2):
        here_n = classes[a].numpy()
        if not here_n.any():
            continue
        own, other = (of_class[name].on(here_n) for name in (a, b))
        if abs(own.values[-1].mean() - own.values[0].mean()) >= config.min_effect:
            found[of_class_name(a) + AGAINST + of_class_name(b)] = cmd_difference(own, other)
    return found
