"""Running a network with the nodes of a circuit alone, and the two ends between which circuits are measured."""

# n images  B images of a batch  C circuits

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.config import CircuitConfig, ErrorHandling
from mis_lab.circuit.error_nodes import kept_with_errors, with_error_states
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes, dictionaries_of, with_targets_and_nodes
from mis_lab.circuit.splice import Kept, ablations, all_but, nothing_kept
from mis_lab.circuit.suffix import Suffix
from mis_lab.core.errors import DataError, MisLabError
from mis_lab.core.progress import progress
from mis_lab.model.intervene import Replacement, fan_out


@dataclass(frozen=True, eq=False)
class Ends:
    """What a circuit is measured between: nothing kept and everything kept, with errors as configured.

    Attributes:
        nodes: what nodes are and become.
        empty, full: masks of the empty circuit and of the network itself, which has its errors in any case.
        errors: what becomes of error nodes.
    """

    nodes: Nodes
    empty: Kept
    full: Kept
    errors: ErrorHandling

    @classmethod
    def of(cls, nodes: Nodes, config: CircuitConfig) -> Ends:
        empty = nothing_kept(nodes)
        states = with_error_states(nodes, config.errors)
        return cls(states, kept_with_errors(empty, nodes, config.errors), all_but(empty), config.errors)

    @property
    def masks(self) -> tuple[Kept, Kept]:
        """Empty, then full."""
        return self.empty, self.full

    def handled(self, kept: Kept) -> Kept:
        """A circuit's masks with its error nodes as configured."""
        return kept_with_errors(kept, self.nodes, self.errors)


@dataclass(frozen=True, eq=False)
class Batch:
    """Images whose sites are replaced again and again: what stands before the first site runs once for all of them.

    Attributes:
        first_bpd: clean vectors of the first site; None where the rest of the network reads something else as well.
    """

    problem: Problem
    images_bchw: Tensor
    targets_b: Tensor
    first_bpd: Tensor | None

    @classmethod
    def of(cls, problem: Problem, images_bchw: Tensor, targets_b: Tensor) -> Batch:
        first = problem.sites[0]
        if not Suffix.of(problem, first, images_bchw, targets_b).is_cut:
            return cls(problem, images_bchw, targets_b, None)
        return cls(problem, images_bchw, targets_b, problem.observe(images_bchw, targets_b).vectors[first.path])

    def values(self, replace: Mapping[str, Replacement]) -> Tensor:
        """Objective (B,) with new vectors at these sites, as of :meth:`Problem.values`."""
        first_bpd, first = self.first_bpd, self.problem.sites[0]
        if first_bpd is None or not replace:
            return self.problem.values(self.images_bchw, self.targets_b, replace)
        at_first = replace.get(first.path, lambda x_bpd: x_bpd)
        later = {path: function for path, function in replace.items() if path != first.path}
        # One image goes up to the site; behind it there are as many rows as images, with their own vectors.
        rows_b = torch.zeros(len(first_bpd), dtype=torch.int64, device=first_bpd.device)
        with fan_out(self.problem.model, first, rows_b, lambda _x: at_first(first_bpd)):
            return self.problem.values(self.images_bchw[:1], self.targets_b, later)


def check_moved(kind: str, empty_n: np.ndarray, full_n: np.ndarray, config: CircuitConfig) -> float:
    """m(M) − m(∅).

    Raises:
        MisLabError: when it is less than ``config.min_effect`` in size.
    """
    moved = float(full_n.mean() - empty_n.mean())
    if not abs(moved) >= config.min_effect:
        raise MisLabError(
            f"ablating every {kind} moves the objective by {moved:.3g} only, "
            f"less than circuit.min_effect={config.min_effect:g}: faithfulness would divide by almost 0",
            fix="Choose other sites or another baseline, or lower circuit.min_effect.",
        )
    return moved


def objective_of_circuits(
    problem: Problem, nodes: Nodes, circuits: Sequence[Kept], images: Images, targets_n: Tensor
) -> np.ndarray:
    """Objective (C, n) float64 of each image with the nodes of each circuit alone: C forward passes a batch.

    Raises:
        DataError: without images, or when the objective is not finite.
    """
    found: list[list[Tensor]] = [[] for _ in circuits]
    kind = next(iter(dictionaries_of(nodes).values())).kind

    def passes() -> Iterator[tuple[Tensor, list[Tensor]]]:
        for images_bchw, targets_b, of_batch in with_targets_and_nodes(images, targets_n, {kind: nodes}):
            batch = Batch.of(problem, images_bchw, targets_b)
            for kept, of_circuit in zip(circuits, found, strict=True):
                yield batch.values(ablations(of_batch[kind], kept)), of_circuit

    total = len(images) * len(circuits)
    with torch.inference_mode():
        for values_b, of_circuit in progress(passes(), f"faithfulness of {kind} circuits", total=total, unit="pass"):
            of_circuit.append(values_b.cpu())
    if not len(targets_n):
        raise DataError("no images to evaluate circuits on", fix="Give at least one evaluation image.")
    values = torch.stack([torch.cat(parts).double() for parts in found]).numpy()
    if not np.isfinite(values).all():
        raise DataError("the objective of a circuit is not finite", fix="Look for infinite activations at the sites.")
    return values
