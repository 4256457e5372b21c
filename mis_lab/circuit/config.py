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
    """

    vjp = 0
    exact = 1
    auto = 2


class Baseline(Enum):
    """What an ablated node becomes: zero, or its mean over the discovery images (per position for tokens)."""

    zero = 0
    mean = 1


class Quadrature(Enum):
    """Rule of the path integral; trapezoid takes one pass more than `n_steps`."""

    midpoint = 0
    left = 1
    right = 2
    trapezoid = 3
    gauss_legendre = 4


class Objective(Enum):
    """The scalar a circuit is about, one number an image. logit: the target class' output."""

    logit = 0


class Target(Enum):
    """The class of each image that the objective reads: the network's own top class, or the image's label."""

    prediction = 0
    label = 1


@dataclass
class CircuitConfig:
    """Discovery and evaluation.

    Attributes:
        method, baseline, quadrature, n_steps: node effects.
        objective, target: what the circuit is about.
        n_discovery, n_evaluation: images of each, spread over the groups (0 = all).
        sizes: number of circuit sizes on the curve, log-spaced from 1 node to all live nodes.
        n_random: random circuits a size.
        min_effect: |m(M) − m(∅)| below this is an error, not a division by nearly nothing.
        n_bootstrap: resamples over images for the curve's intervals.
        n_shown: nodes of the pictured circuit.
        batch_size: images a pass.
    """

    method: EffectMethod = EffectMethod.ig_inputs
    baseline: Baseline = Baseline.mean
    quadrature: Quadrature = Quadrature.midpoint
    n_steps: int = 10
    objective: Objective = Objective.logit
    target: Target = Target.prediction
    n_discovery: int = 128
    n_evaluation: int = 96
    sizes: int = 12
    n_random: int = 3
    min_effect: float = 1e-3
    n_bootstrap: int = 1000
    n_shown: int = 18
    batch_size: int = field(default=32, metadata=NO_EFFECT)

    def __post_init__(self) -> None:
        for name in ("n_steps", "sizes", "n_random", "n_bootstrap", "n_shown", "batch_size"):
            if getattr(self, name) < 1:
                raise ConfigError(f"circuit.{name}={getattr(self, name)}: at least 1 is needed")
        for name in ("n_discovery", "n_evaluation"):
            if getattr(self, name) < 0:
                raise ConfigError(f"circuit.{name}={getattr(self, name)} is negative", fix="Use 0 for all images.")
        if not self.min_effect > 0:
            raise ConfigError(f"circuit.min_effect={self.min_effect} must be positive")
