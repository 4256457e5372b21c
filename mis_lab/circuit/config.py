"""Options of circuits (no torch here)."""

from __future__ import annotations

from dataclasses import dataclass, field
from enum import Enum

from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import NO_EFFECT


class EffectMethod(Enum):
    """How effects are estimated.

    atp: gradient at the image itself (attribution patching).
    ig_inputs: gradient averaged along the straight path of the input, from the mean discovery image to the
        image (Hanna et al. 2024).
    ig: gradient averaged along the straight path of each site's own vectors, from the baseline to the image, with
        everything before the site as it is (Marks et al. 2024). Passes for each site.
    conductance: what flows through a node along the path of the input (Dhamdhere et al. 2018), against its value at
        the start of that path; always by the trapezoid rule. Adds up at every site.
    exact: every node ablated on its own. As many passes as there are nodes.
    atp_absolute: as atp, absolute at every position and averaged over positions (Toussaint 2024). No sign, and
        nothing that effects add up to.
    """

    atp = 0
    ig_inputs = 1
    ig = 2
    conductance = 3
    exact = 4
    atp_absolute = 5


class EdgeMethod(Enum):
    """How edges are estimated.

    vjp: the derivative at the image, one backward pass a downstream node.
    exact: the upstream node is ablated and the network run on to the downstream site, one forward pass a node;
        sees features that switch on.
    auto: whichever takes fewer passes.
    none: no edges.
    """

    vjp = 0
    exact = 1
    auto = 2
    none = 3


class Baseline(Enum):
    """What an ablated node becomes.

    zero: zero.
    mean: its mean over the discovery images, per position for tokens.
    mean_per_position: its mean at each position, for maps as well.
    counterfactual: its value on the image's partner (see :class:`Pairing`).
    resample: its value on another image drawn at random.
    """

    zero = 0
    mean = 1
    mean_per_position = 2
    counterfactual = 3
    resample = 4


class Pairing(Enum):
    """The partner of each image: a random one of another class, or the one that `pairs_file` names."""

    other_class = 0
    file = 1


class Quadrature(Enum):
    """Rule of the path integral; trapezoid takes one pass more than `n_steps`."""

    midpoint = 0
    left = 1
    right = 2
    trapezoid = 3
    gauss_legendre = 4


class Objective(Enum):
    """The scalar a circuit is about, one number an image.

    logit: the target class' output.
    logit_diff: that minus the output of `other_class`, or minus the mean of all other classes.
    log_prob: log-probability of the target class, which is the negative cross-entropy.
    kl: minus the Kullback-Leibler divergence of the output's distribution from the undisturbed network's; it
        reads no class. Its gradient at the image itself is zero, so ``atp`` says nothing about it.
    """

    logit = 0
    logit_diff = 1
    log_prob = 2
    kl = 3


class Target(Enum):
    """The class of each image that the objective reads.

    prediction: the network's own top class.
    label: the image's label.
    chosen: `target_class`, the same for all images.
    """

    prediction = 0
    label = 1
    chosen = 2


class ErrorHandling(Enum):
    """What becomes of error nodes when a circuit is run.

    as_node: an error node is kept where its effect ranks it into the circuit, like any node.
    keep: always kept, also in the empty circuit.
    baseline: never kept, ablated to the baseline.
    zero: never kept, removed.
    """

    as_node = 0
    keep = 1
    baseline = 2
    zero = 3


class Topology(Enum):
    """How sites lie: one behind the other, each carrying all that follows, or side by side (branches)."""

    chain = 0
    parallel = 1


@dataclass
class CircuitConfig:
    """Discovery and evaluation.

    Attributes:
        method, baseline, quadrature, n_steps: node effects.
        pairing, pairs_file: partners of ``baseline=counterfactual``; a CSV or JSON of pairs of image ids.
        objective, target: what the circuit is about.
        target_class: number or name of the class of ``target=chosen``.
        other_class: number or name of the class that ``objective=logit_diff`` subtracts (empty = mean of all others).
        classes: numbers or names; only images of them are used, by their labels with ``target=label`` and by the
            network's prediction otherwise (empty = all). Of several, each class' own circuit is compared as well.
        topology: whether sites are to be cut sets, one behind the other; ``parallel`` allows branches.
        errors: what becomes of error nodes when a circuit is run.
        n_discovery, n_evaluation: images of each, spread over the groups (0 = all).
        sizes: number of circuit sizes on the curve, log-spaced from 1 node to all live nodes.
        n_random: random circuits a size.
        min_effect: |m(M) − m(∅)| below this is an error, not a division by nearly nothing.
        n_shown: nodes of the pictured circuit.
        edges: how edges between the pictured nodes are estimated.
        n_edge_images: discovery images that edges and exact effects are measured on (0 = all).
        edges_per_node: edges drawn into each node, the strongest ones; all are stored.
        check_edges: images on which linear edges are compared with exact ones (0 = off).
        n_exact: largest nodes, and as many random ones, whose effects are compared with exact ones (0 = off).
        n_map_images: strongest images of each pictured node on which its effect is mapped (0 = off).
        batch_size: images a pass.
    """

    method: EffectMethod = EffectMethod.ig_inputs
    baseline: Baseline = Baseline.mean
    pairing: Pairing = Pairing.other_class
    pairs_file: str = ""
    quadrature: Quadrature = Quadrature.midpoint
    n_steps: int = 10
    objective: Objective = Objective.logit
    target: Target = Target.prediction
    target_class: str = ""
    other_class: str = ""
    classes: list[str] = field(default_factory=list)
    topology: Topology = Topology.chain
    errors: ErrorHandling = ErrorHandling.as_node
    n_discovery: int = 128
    n_evaluation: int = 64
    sizes: int = 12
    n_random: int = 3
    min_effect: float = 1e-3
    n_shown: int = 18
    edges: EdgeMethod = EdgeMethod.auto
    n_edge_images: int = 32
    edges_per_node: int = 5
    check_edges: int = 0
    n_exact: int = 0
    n_map_images: int = 1
    batch_size: int = field(default=32, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        for name in ("n_steps", "sizes", "n_random", "n_shown", "edges_per_node", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"circuit.{name}={getattr(self, name)}: at least 1 is needed")
        for names, meaning in (
            (("n_discovery", "n_evaluation", "n_edge_images"), "for all images"),
            (("check_edges", "n_exact", "n_map_images"), "to leave it out"),
        ):
            for name in names:
                if getattr(self, name) < 0:
                    raise ConfigError(f"circuit.{name}={getattr(self, name)} is negative", fix=f"Use 0 {meaning}.")
        if not self.min_effect > 0:
            raise ConfigError(f"circuit.min_effect={self.min_effect} must be positive")
        for name, needs_it, owner in (
            ("target_class", self.target is Target.chosen, "target=chosen"),
            ("pairs_file", self._pairs_by_file, "baseline=counterfactual with circuit.pairing=file"),
        ):
            if bool(getattr(self, name)) is not needs_it:
                raise ConfigError(f"circuit.{name} is what circuit.{owner} needs, and nothing else")
        if self.other_class and self.objective is not Objective.logit_diff:
            raise ConfigError(f"circuit.other_class is for circuit.objective=logit_diff, not {self.objective.name}")
        if self.objective is Objective.kl and self.method in (EffectMethod.atp, EffectMethod.atp_absolute):
            raise ConfigError(
                f"circuit.method={self.method.name} takes the gradient at the image, where that of "
                "circuit.objective=kl is zero",
                fix="Use circuit.method=ig_inputs.",
            )
        if self.check_edges and self.edges in (EdgeMethod.exact, EdgeMethod.none):
            raise ConfigError(f"circuit.check_edges compares linear edges, but circuit.edges={self.edges.name}")

    @property
    def _pairs_by_file(self) -> bool:
        return self.baseline is Baseline.counterfactual and self.pairing is Pairing.file
