"""How much of the objective a circuit keeps, against its size, on images it was not found on.

faithfulness(C) = (m(C) − m(∅)) / (m(M) − m(∅)) with m the mean over images, M the network and ∅ every node of
every site ablated (Marks et al. 2024): a ratio of means, not a mean of ratios. CPR = ∫ faithfulness and
CMD = ∫ |1 − faithfulness| over the share of live nodes kept, by the trapezoid rule on the curve's own sizes
(Mueller et al. 2025 fix ten shares from 0.001 to 1).
"""

# n images  B images of a batch  S sizes  R random draws  O orders: its own, then the draws  C circuits

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.baselines import NodeSet
from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.objectives import Images, Problem, with_targets
from mis_lab.circuit.splice import Kept, ablations, nothing_kept
from mis_lab.core.errors import DataError, MisLabError
from mis_lab.core.intervals import Interval, percentile_interval
from mis_lab.core.progress import progress
from mis_lab.core.seeding import generator, numpy_generator


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
        n_bootstrap, seed: of the intervals.
    """

    kind: str
    sizes: np.ndarray
    values: np.ndarray
    random_values: np.ndarray
    live_values: np.ndarray
    n_bootstrap: int
    seed: int

    @property
    def fractions(self) -> np.ndarray:
        """(S,) share of the live nodes kept."""
        return self.sizes / self.sizes[-1]

    @cached_property
    def faithfulness(self) -> Interval:
        """(S,) with its interval from a bootstrap over images."""
        return percentile_interval(self._ratio(self.values.mean(1)), self._resampled)

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
    def random_cpr(self) -> np.ndarray:
        """(R,) :attr:`cpr` of each random draw."""
        return np.trapezoid(self.random, self.fractions, axis=-1)

    @property
    def random_cmd(self) -> np.ndarray:
        """(R,) :attr:`cmd` of each random draw."""
        return np.trapezoid(np.abs(1 - self.random), self.fractions, axis=-1)

    @staticmethod
    def _ratio(means: np.ndarray) -> np.ndarray:
        """Faithfulness from mean objectives (..., S)."""
        empty, full = means[..., :1], means[..., -1:]
        with np.errstate(divide="ignore", invalid="ignore"):  # a resample may hit full = empty
            return (means - empty) / (full - empty)

    @cached_property
    def _resampled(self) -> np.ndarray:
        """(n_bootstrap, S) faithfulness of resampled images."""
        n_images = self.values.shape[1]
        random = numpy_generator(self.seed, "circuit", "bootstrap", self.kind)
        counts = random.multinomial(n_images, np.full(n_images, 1 / n_images), size=self.n_bootstrap)
        found = self._ratio(counts @ self.values.T)  # sums will do: the number of images cancels
        return np.where(np.isfinite(found), found, np.nan)

    def _area(self, height: Callable[[np.ndarray], np.ndarray]) -> Interval:
        estimate = np.trapezoid(height(self._ratio(self.values.mean(1))), self.fractions)
        return percentile_interval(float(estimate), np.trapezoid(height(self._resampled), self.fractions, axis=-1))


def circuit_sizes(n_live: int, n_sizes: int) -> np.ndarray:
    """0, then at most `n_sizes` numbers from 1 to `n_live`, evenly spaced in their logarithm, each once."""
    from_all_down = np.geomspace(n_live, 1, n_sizes)  # a single size is all
    return np.concatenate([[0], np.unique(from_all_down.round().astype(np.int64))])


def evaluate(
    problem: Problem,
    nodes: NodeSet,
    circuit: Circuit,
    images: Images,
    targets_n: Tensor,
    config: CircuitConfig,
    seed: int,
) -> Curve:
    """The curve of `circuit` (all live nodes, in order), with random orders of its nodes beside it.

    Args:
        nodes: what the circuit's nodes are and become.
        images: batches (B, C, H, W) of the evaluation images, gone through once.
        targets_n: the class of each image that the objective reads.
        config: its `sizes`, `n_random`, `n_bootstrap` and `min_effect`.
        seed: of the random circuits and the bootstrap.

    Raises:
        DataError: without images or without live nodes.
        MisLabError: when the whole circuit hardly moves the objective.
    """
    if not len(circuit):
        raise DataError(f"no {circuit.kind} ever leaves its baseline on the discovery images: there is no circuit")
    sizes = circuit_sizes(len(circuit), config.sizes)
    orders = [circuit]
    for draw in range(config.n_random):
        orders.append(circuit.shuffled(generator(seed, "circuit", "random", circuit.kind, draw)))
    kept: list[Kept] = [order.top(int(size)).kept() for order in orders for size in sizes[1:-1]]
    empty, everything = nothing_kept(nodes), {path: ~mask for path, mask in nothing_kept(nodes).items()}
    values_cn = objective_of_circuits(problem, nodes, [empty, everything, circuit.kept(), *kept], images, targets_n)

    empty_n, full_n, live_n = values_cn[:3]
    inner_osn = values_cn[3:].reshape(len(orders), len(sizes) - 2, len(full_n))
    first, last = (np.broadcast_to(end_n, (len(orders), 1, len(full_n))) for end_n in (empty_n, full_n))
    values = np.concatenate([first, inner_osn, last], axis=1)
    moved = float(full_n.mean() - empty_n.mean())
    if not abs(moved) >= config.min_effect:
        raise MisLabError(
            f"ablating every {circuit.kind} moves the objective by {moved:.3g} only, "
            f"less than circuit.min_effect={config.min_effect:g}: faithfulness would divide by almost 0",
            fix="Choose other sites or another baseline, or lower circuit.min_effect.",
        )
    return Curve(circuit.kind, sizes, values[0], values[1:], live_n, config.n_bootstrap, seed)


def objective_of_circuits(
    problem: Problem, nodes: NodeSet, circuits: Sequence[Kept], images: Images, targets_n: Tensor
) -> np.ndarray:
    """Objective (C, n) float64 of each image with the nodes of each circuit alone: C forward passes a batch.

    Raises:
        DataError: without images, or when the objective is not finite.
    """
    replacements = [ablations(nodes, kept) for kept in circuits]
    found: list[list[Tensor]] = [[] for _ in circuits]
    what = f"faithfulness of {next(iter(nodes.values())).dictionary.kind} circuits"
    passes = ((*batch, number) for batch in with_targets(images, targets_n) for number in range(len(circuits)))
    with torch.inference_mode():
        for images_bchw, targets_b, number in progress(passes, what, total=len(images) * len(circuits), unit="pass"):
            found[number].append(problem.values(images_bchw, targets_b, replacements[number]).cpu())
    if not len(targets_n):
        raise DataError("no images to evaluate circuits on", fix="Give at least one evaluation image.")
    values = torch.stack([torch.cat(parts).double() for parts in found]).numpy()
    if not np.isfinite(values).all():
        raise DataError("the objective of a circuit is not finite", fix="Look for infinite activations at the sites.")
    return values
