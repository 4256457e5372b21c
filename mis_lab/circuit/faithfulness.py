"""How much of the objective a circuit keeps, against its size, on images it was not found on.

faithfulness(C) = (m(C) − m(∅)) / (m(M) − m(∅)) with m the mean over images, M the network and ∅ every node of
every site ablated (Marks et al. 2024): a ratio of means, not a mean of ratios. CPR = ∫ faithfulness and
CMD = ∫ |1 − faithfulness| over the share of live nodes kept, by the trapezoid rule on the curve's own sizes
(Mueller et al. 2025 fix ten shares from 0.001 to 1: :func:`fraction_sizes`). On the logarithmic axis the range
from the smallest circuit to the whole counts as 1, so that perfect faithfulness has CPR 1 there too.
"""

# n images  G groups of them  S sizes  R random draws  O orders: its own, then the draws  C circuits

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import cached_property

import numpy as np
from torch import Tensor

from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.error_nodes import ranked
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.circuit.patching import Nodes
from mis_lab.circuit.running import Ends, check_moved, objective_of_circuits
from mis_lab.core.errors import DataError
from mis_lab.core.intervals import Interval, jackknife_interval, leave_out_sums
from mis_lab.core.seeding import generator
from mis_lab.dataset.splits import group_codes

# The shares of the circuit track of the Mechanistic Interpretability Benchmark (Mueller et al. 2025).
MIB_FRACTIONS = (0.001, 0.002, 0.005, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1.0)

# Heights (..., S) and their places (S,) → area (...).
Area = Callable[[np.ndarray, np.ndarray], np.ndarray]


@dataclass(frozen=True, eq=False)
class Curve:
    """Faithfulness of the circuits of one kind against their size.

    The largest circuit is the network itself: it keeps also the nodes that are silent on the discovery images,
    and its faithfulness is 1 by construction, as that of size 0 is 0. What the silent nodes carry is
    1 − `live_only`.

    Attributes:
        kind: ``feature`` or ``neuron``.
        sizes: (S,) numbers of nodes kept, 0 and all live nodes included, ascending.
        values: (S, n) float64, the objective on each evaluation image.
        random_values: (R, S, n), the same for random circuits of these sizes.
        live_values: (n,), with all live nodes kept and no other.
        groups_n: (n,) int64, the group of each image; intervals are over groups.
    """

    kind: str
    sizes: np.ndarray
    values: np.ndarray
    random_values: np.ndarray
    live_values: np.ndarray
    groups_n: np.ndarray

    @property
    def fractions(self) -> np.ndarray:
        """(S,) share of the live nodes kept."""
        return self.sizes / self.sizes[-1]

    @cached_property
    def faithfulness(self) -> Interval:
        """(S,) with its interval over groups of images (:func:`~mis_lab.core.intervals.jackknife_interval`)."""
        return jackknife_interval(self.leaving_out, self.groups_n)

    @cached_property
    def leaving_out(self) -> np.ndarray:
        """(1 + G, S) faithfulness on all images, then without each group."""
        return self._ratio(leave_out_sums(self.values, self.groups_n))

    @property
    def random(self) -> np.ndarray:
        """(R, S) faithfulness of each random draw."""
        return np.stack([self._ratio(draw.mean(1)) for draw in self.random_values])

    @property
    def live_only(self) -> float:
        """Faithfulness with all live nodes kept and no other."""
        empty, full = self.values[0].mean(), self.values[-1].mean()
        return float((self.live_values.mean() - empty) / (full - empty))

    @property
    def cpr(self) -> Interval:
        """Area under faithfulness over the share of nodes kept: high is good."""
        return self._area(lambda faithfulness: faithfulness)

    @property
    def cmd(self) -> Interval:
        """Area between faithfulness and 1; low is good."""
        return self._area(lambda faithfulness: np.abs(1 - faithfulness))

    @property
    def cpr_log(self) -> Interval:
        """:attr:`cpr` over the logarithm of the share, from the smallest circuit that has nodes."""
        return self._area(lambda faithfulness: faithfulness, log_area)

    @property
    def cmd_log(self) -> Interval:
        """:attr:`cmd` over the logarithm of the share, from the smallest circuit that has nodes."""
        return self._area(lambda faithfulness: np.abs(1 - faithfulness), log_area)

    def on(self, here_n: np.ndarray) -> Curve:
        """The curve on some of its images, (n,) bool."""
        return replace(
            self,
            values=self.values[:, here_n],
            random_values=self.random_values[:, :, here_n],
            live_values=self.live_values[here_n],
            groups_n=self.groups_n[here_n],
        )

    @property
    def random_cpr(self) -> np.ndarray:
        """(R,) :attr:`cpr` of each random draw."""
        return np.trapezoid(self.random, self.fractions, axis=-1)

    @property
    def random_cmd(self) -> np.ndarray:
        """(R,) :attr:`cmd` of each random draw."""
        return np.trapezoid(np.abs(1 - self.random), self.fractions, axis=-1)

    @staticmethod
    def _ratio(means: np.ndarray) -> np.ndarray:
        """Faithfulness from means or sums of objectives (..., S): the number of images cancels."""
        return share_of_way(means, means[..., :1], means[..., -1:])

    def _area(self, height: Callable[[np.ndarray], np.ndarray], area: Area = np.trapezoid) -> Interval:
        return jackknife_interval(area(height(self.leaving_out), self.fractions), self.groups_n)


def share_of_way(means: np.ndarray, empty: np.ndarray, full: np.ndarray) -> np.ndarray:
    """(means − empty) / (full − empty), which may be infinite or NaN for some of the images."""
    with np.errstate(divide="ignore", invalid="ignore"):  # some images may have full = empty
        return (means - empty) / (full - empty)


def log_area(heights: np.ndarray, fractions: np.ndarray) -> np.ndarray:
    """Mean of `heights` (..., S) over the logarithm of `fractions` (S,), 0 left out; trapezoid rule."""
    above = fractions > 0
    heights, axis = heights[..., above], np.log(fractions[above])
    if len(axis) == 1:
        return heights[..., 0]
    return np.trapezoid(heights, axis, axis=-1) / (axis[-1] - axis[0])


def circuit_sizes(n_live: int, n_sizes: int) -> np.ndarray:
    """0, then at most `n_sizes` numbers from 1 to `n_live`, evenly spaced in their logarithm, each once."""
    from_all_down = np.geomspace(n_live, 1, n_sizes)  # a single size is all
    return np.concatenate([[0], np.unique(from_all_down.round().astype(np.int64))])


def fraction_sizes(n_live: int, fractions: Sequence[float] = MIB_FRACTIONS) -> np.ndarray:
    """0, then these shares of `n_live` as whole numbers, at least 1, each once."""
    counts = np.maximum(np.round(np.asarray(fractions) * n_live), 1).astype(np.int64)
    return np.unique(np.concatenate([[0], counts, [n_live]]))


def ranked_with_sizes(
    circuit: Circuit, config: CircuitConfig, fractions: Sequence[float] | None
) -> tuple[Circuit, np.ndarray]:
    """The circuit's nodes that `config.errors` lets take part, in order, and the sizes (S,) to evaluate it at.

    Raises:
        DataError: without live nodes.
    """
    circuit = ranked(circuit, config.errors)
    if not len(circuit):
        raise DataError(f"no {circuit.kind} ever leaves its baseline on the discovery images: there is no circuit")
    sizes = fraction_sizes(len(circuit), fractions) if fractions else circuit_sizes(len(circuit), config.sizes)
    return circuit, sizes


def evaluate(
    problem: Problem,
    nodes: Nodes,
    circuit: Circuit,
    images: Images,
    targets_n: Tensor,
    config: CircuitConfig,
    seed: int,
    fractions: Sequence[float] | None = None,
    groups: Sequence[str] | None = None,
) -> Curve:
    """The curve of `circuit` (all live nodes, in order), with random orders of its nodes beside it.

    Args:
        nodes: what the circuit's nodes are and become.
        images: batches (B, C, H, W) of the evaluation images, gone through once.
        targets_n: what the objective reads of each image.
        config: its `sizes`, `errors`, `n_random` and `min_effect`. Unless errors are ``as_node`` sizes count the
            other nodes alone; the network at the end has its errors in any case.
        seed: of the random circuits.
        fractions: shares of the live nodes to keep instead of ``config.sizes`` sizes; none and all come with them.
        groups: the group of each image, for intervals; by default each is one of its own.

    Raises:
        DataError: without images or without live nodes.
        MisLabError: when the whole circuit hardly moves the objective.
    """
    circuit, sizes = ranked_with_sizes(circuit, config, fractions)
    orders = [circuit]
    for draw in range(config.n_random):
        orders.append(circuit.shuffled(generator(seed, "circuit", "random", circuit.kind, draw)))
    kept = [order.top(int(size)).kept() for order in orders for size in sizes[1:-1]]
    ends = Ends.of(nodes, config)
    values_cn = objective_of_circuits(
        problem, ends.nodes, [*ends.masks, *map(ends.handled, [circuit.kept(), *kept])], images, targets_n
    )
    empty_n, full_n, live_n = values_cn[:3]
    inner_osn = values_cn[3:].reshape(len(orders), len(sizes) - 2, len(full_n))
    first, last = (np.broadcast_to(end_n, (len(orders), 1, len(full_n))) for end_n in (empty_n, full_n))
    values = np.concatenate([first, inner_osn, last], axis=1)
    check_moved(circuit.kind, empty_n, full_n, config)
    return Curve(circuit.kind, sizes, values[0], values[1:], live_n, group_numbers(groups, len(full_n)))


def group_numbers(groups: Sequence[str] | None, n_images: int) -> np.ndarray:
    """(n,) int64: the group of each image as a number; each its own where there are no groups.

    Raises:
        ValueError: when there are not as many groups as images.
    """
    found = np.arange(n_images) if groups is None else group_codes(groups).numpy()
    if len(found) != n_images:
        raise ValueError(f"{n_images} images have {len(found)} groups")
    return found
