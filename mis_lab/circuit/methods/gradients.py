"""Effects from gradients of whole passes: at the image itself, or along the path of the input.

Attribution patching: Nanda 2023. Integrated gradients along the input: Hanna et al. 2024. The absolute form: Toussaint
2024.
"""

# B images  P positions  D site width  F features

from __future__ import annotations

from collections.abc import Mapping

from torch import Tensor

from mis_lab.circuit.attribution import (
    CleanBatch,
    Contributions,
    InputPath,
    Reduction,
    contract,
    input_path_gradients,
    site_gradients,
)
from mis_lab.circuit.baselines import NodeSet
from mis_lab.circuit.objectives import Problem


def atp(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath, reduce: Reduction
) -> dict[str, Contributions]:
    """Attribution patching: the gradient at the image itself."""
    gradients = site_gradients(problem, batch.images_bchw, batch.targets_b)
    return contract(node_sets, batch.vectors, gradients, reduce)


def atp_absolute(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath, reduce: Reduction
) -> dict[str, Contributions]:
    """|(f − f_b)·∂m/∂f|, absolute at every position, averaged over positions.

    There is no sign left, and no sum that these numbers share out. Sites of many positions and of few weigh alike.
    """

    def absolute(site_path: str, features_bpf: Tensor, error_bp: Tensor | None) -> Tensor:
        n_positions = features_bpf.shape[1]
        of_error = None if error_bp is None else error_bp.abs() / n_positions
        return reduce(site_path, features_bpf.abs() / n_positions, of_error)

    return atp(problem, batch, node_sets, path, absolute)


def ig_inputs(
    problem: Problem, batch: CleanBatch, node_sets: Mapping[str, NodeSet], path: InputPath, reduce: Reduction
) -> dict[str, Contributions]:
    """The gradient averaged along the input path: one pass a point for all sites at once."""
    gradients = input_path_gradients(problem, batch.images_bchw, batch.targets_b, path)
    return contract(node_sets, batch.vectors, gradients, reduce)
