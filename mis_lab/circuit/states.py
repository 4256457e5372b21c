"""What ablated nodes become on any set of images: one state for all, or that of each image's partner."""

# n images

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import Tensor

from mis_lab.circuit.baselines import BASELINES, Dictionaries, NodeSet
from mis_lab.circuit.config import Baseline, CircuitConfig, Pairing
from mis_lab.circuit.images import ImageSet, own_classes
from mis_lab.circuit.objectives import Problem
from mis_lab.circuit.partners import partners_from_file, partners_of_other_class, random_partners
from mis_lab.circuit.patching import Nodes, PatchedNodes


@dataclass(frozen=True, eq=False)
class States:
    """Nodes of all kinds with their baselines.

    Attributes:
        problem: network and sites.
        dictionaries: kind → site path → which nodes.
        fixed: kind → nodes whose baseline is that of all images; None where it is the partner's state.
        partner_of: index of an image in the data set → that of its partner; empty where `fixed`.
    """

    problem: Problem
    dictionaries: Dictionaries
    fixed: Mapping[str, NodeSet] | None
    partner_of: Mapping[int, int]

    @classmethod
    def of(
        cls,
        problem: Problem,
        dictionaries: Dictionaries,
        discovery: ImageSet,
        evaluation: ImageSet,
        config: CircuitConfig,
        seed: int,
    ) -> States:
        """The baseline that `config` asks for; means are those over the discovery images.

        Args:
            seed: of partners that are drawn.

        Raises:
            DataError: when an image has no partner.
        """
        if config.baseline in BASELINES:
            fixed = BASELINES[config.baseline](problem, dictionaries, discovery.images)
            return cls(problem, dictionaries, fixed, {})
        partner_of: dict[int, int] = {}
        for some in (discovery, evaluation):
            partner_of |= zip(some.images.indices, _partners(some, config, seed), strict=True)
        return cls(problem, dictionaries, None, partner_of)

    def on(self, some: ImageSet) -> dict[str, Nodes]:
        """Kind → nodes, for passes over just these images."""
        if self.fixed is not None:
            return dict(self.fixed)
        partners = some.images.at([self.partner_of[index] for index in some.images.indices])
        return {kind: PatchedNodes(self.problem, of_kind, partners) for kind, of_kind in self.dictionaries.items()}


def _partners(some: ImageSet, config: CircuitConfig, seed: int) -> list[int]:
    """Index of each image's partner, one of those allowed for the same purpose unless a file names it."""
    images, dataset = some.images, some.images.dataset
    if config.baseline is Baseline.counterfactual and config.pairing is Pairing.file:
        return partners_from_file(Path(config.pairs_file), images.ids, dataset.ids).tolist()
    candidates = images.at(some.allowed)
    places_n: Tensor
    if config.baseline is Baseline.resample:
        places_n = random_partners(images.ids, candidates.ids, seed)
    else:
        classes_m = own_classes(candidates, config)
        known: Sequence[int] = (classes_m >= 0).nonzero().squeeze(1).tolist()
        place_of = {index: place for place, index in enumerate(candidates.indices)}
        mine = classes_m[[place_of[index] for index in images.indices]]
        candidates = candidates.at([candidates.indices[place] for place in known])
        places_n = partners_of_other_class(images.ids, mine, candidates.ids, classes_m[known], seed)
    return [candidates.indices[place] for place in places_n.tolist()]
