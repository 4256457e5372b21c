"""The stage ``circuit``: find circuits on some images, measure how faithful they are on others."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import BASELINES, mean_image
from mis_lab.circuit.circuit import ERROR, Circuit, rank
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.dictionaries import Neurons, NodeDictionary, SaeFeatures
from mis_lab.circuit.effects import SiteEffects, node_effects
from mis_lab.circuit.faithfulness import evaluate
from mis_lab.circuit.objectives import OBJECTIVES, Problem
from mis_lab.circuit.quadrature import RULES
from mis_lab.circuit.result import CircuitResult, KindResult, SiteSummary
from mis_lab.circuit.targets import TARGETS
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import plain
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import batches
from mis_lab.dataset.splits import spread
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site
from mis_lab.sae.base import Sae

Log = Callable[[Mapping[str, float], int], None]
logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class ChosenImages:
    """Some images of a data set, read again each time they are gone through."""

    model: LoadedModel
    dataset: ImageDataset
    indices: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Tensor]:
        for batch in batches(self.dataset, self.model.transform, self.batch_size, indices=self.indices):
            yield self.model.to_input(batch.images_bchw)


def discover_and_evaluate(
    model: LoadedModel,
    sites: Sequence[Site],
    saes: Mapping[str, Sae],
    dataset: ImageDataset,
    discovery: Sequence[int],
    evaluation: Sequence[int],
    config: CircuitConfig,
    seed: int,
    log: Log | None = None,
) -> CircuitResult:
    """Circuits of SAE features, and of neurons beside them, with their faithfulness.

    Args:
        sites: in the order of the network.
        saes: site path → SAE, for every site; empty for neurons alone.
        discovery, evaluation: indices of images that may be used; `config` says how many of them, spread over
            the groups.
        seed: of random circuits and intervals.
        log: called with named numbers and a circuit size.

    Raises:
        ConfigError: when a site has no SAE or none that fits, or does not lead to the objective.
        DataError: when the two sets of images overlap or one is empty, or the target is a label that is missing.
        MisLabError: when the objective hardly moves (see :func:`~mis_lab.circuit.faithfulness.evaluate`).
    """
    found_on, tested_on = _choose(dataset, discovery, evaluation, config)
    problem = Problem(model, tuple(sites), OBJECTIVES[config.objective])
    images, test_images = (ChosenImages(model, dataset, chosen, config.batch_size) for chosen in (found_on, tested_on))
    targets, test_targets = (
        TARGETS[config.target](model, dataset, chosen.indices, chosen) for chosen in (images, test_images)
    )
    dictionaries = _dictionaries(model, sites, saes)
    node_sets = BASELINES[config.baseline](problem, dictionaries, images)
    path = InputPath(mean_image(images), RULES[config.quadrature](config.n_steps))
    effects = node_effects(problem, node_sets, images, targets, config.method, path)

    results = {}
    for kind, nodes in node_sets.items():
        summaries = tuple(SiteSummary.of(site_path, of_site) for site_path, of_site in effects[kind].items())
        _report(kind, summaries, log)
        circuit = rank(kind, effects[kind])
        curve = evaluate(problem, nodes, circuit, test_images, test_targets, config, seed)
        if log:
            for size, faithfulness, random in zip(
                curve.sizes.tolist(),
                np.asarray(curve.faithfulness.estimate).tolist(),
                curve.random.mean(0).tolist(),
                strict=True,
            ):
                log({f"{kind}/faithfulness": faithfulness, f"{kind}/random_faithfulness": random}, size)
        shown = _effects_of(circuit.top(config.n_shown), effects[kind])
        results[kind] = KindResult(circuit, summaries, curve, shown)
    return CircuitResult(
        features=results.get("feature"),
        neurons=results["neuron"],
        discovery_ids=tuple(dataset.ids[index] for index in found_on),
        evaluation_ids=tuple(dataset.ids[index] for index in tested_on),
        discovery_targets=targets,
        evaluation_targets=test_targets,
        mean_image=path.start,
        settings=plain(config),
    )


def _choose(
    dataset: ImageDataset, discovery: Sequence[int], evaluation: Sequence[int], config: CircuitConfig
) -> tuple[list[int], list[int]]:
    """The images of each set that are used.

    Raises:
        DataError: when a set is empty or both hold an image.
    """
    for name, indices in (("discovery", discovery), ("evaluation", evaluation)):
        if not len(indices):
            raise DataError(
                f"no {name} images for circuits",
                looked=f"{dataset.name}/{dataset.split}",
                fix="Images of two groups or more are needed; dataset.split.hold_out shares them out.",
            )
    both = set(discovery) & set(evaluation)
    if both:
        raise DataError(
            f"{len(both)} images are for discovery and for evaluation, {dataset.ids[min(both)]} for one",
            fix="A circuit is evaluated on images that it was not found on.",
        )
    chosen = []
    for indices, n_images in ((discovery, config.n_discovery), (evaluation, config.n_evaluation)):
        groups = [dataset.groups[index] for index in indices]
        chosen.append([indices[place] for place in spread(groups, n_images or len(groups))])
    return chosen[0], chosen[1]


def _dictionaries(
    model: LoadedModel, sites: Sequence[Site], saes: Mapping[str, Sae]
) -> dict[str, dict[str, NodeDictionary]]:
    like = next(model.module.parameters())
    found: dict[str, dict[str, NodeDictionary]] = {}
    if saes:
        without = [site.path for site in sites if site.path not in saes]
        if without:
            raise ConfigError(f"no SAE for site {', '.join(without)}", looked=", ".join(saes))
        found["feature"] = {site.path: SaeFeatures.at(site, saes[site.path].to(like.device)) for site in sites}
    found["neuron"] = {site.path: Neurons.at(site, like) for site in sites}
    return found


def _report(kind: str, summaries: Sequence[SiteSummary], log: Log | None) -> None:
    for site in summaries:
        logger.info(
            "%s effects at %s: attribution gap %.1f %% (sum %.4g, ablating all %.4g), error share %.1f %%",
            kind,
            site.path,
            100 * site.attribution_gap,
            site.effect_sum,
            site.change,
            100 * site.error_share,
        )
        if log:
            where = f"{kind}/{site.path}"
            log({f"{where}/attribution_gap": site.attribution_gap, f"{where}/error_share": site.error_share}, 0)


def _effects_of(circuit: Circuit, effects: Mapping[str, SiteEffects]) -> Tensor:
    """(V, n) contribution of each node of `circuit` on each discovery image."""
    rows = [effects[node.site].per_image[:, -1 if node.feature == ERROR else node.feature] for node in circuit.nodes]
    return torch.stack(rows)
