"""The stage ``circuit``: find circuits on some images, picture the largest nodes, measure all on other images."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from mis_lab.activations.shards import StoredActivations
from mis_lab.circuit.activity import ActivityBeside, CapturedVectors, StoredVectors, activity_beside
from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import mean_image
from mis_lab.circuit.circuit import ERROR, Circuit, rank
from mis_lab.circuit.comparisons import cmd_difference
from mis_lab.circuit.config import CircuitConfig
from mis_lab.circuit.cut import check_cut, check_saes, check_splice
from mis_lab.circuit.dictionaries import Neurons, NodeDictionary, SaeFeatures
from mis_lab.circuit.effects import SiteEffects, node_effects
from mis_lab.circuit.images import ChosenImages, ImageSet, check_apart, choose
from mis_lab.circuit.objectives import Problem
from mis_lab.circuit.pictured import compare_with_exact, linear_against_exact, pictured_edges, pictured_maps
from mis_lab.circuit.quadrature import RULES
from mis_lab.circuit.quality import judge, rivals
from mis_lab.circuit.result import CircuitResult, KindResult, SiteSummary
from mis_lab.circuit.states import States
from mis_lab.circuit.targets import objective_of
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import plain
from mis_lab.dataset.base import ImageDataset
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site
from mis_lab.sae.base import Autoencoder

Log = Callable[[Mapping[str, float], int], None]
N_CHECKED = 8  # images that splice and cut sets are checked on
logger = logging.getLogger(__name__)


def discover_and_evaluate(
    model: LoadedModel,
    sites: Sequence[Site],
    saes: Mapping[str, Autoencoder],
    dataset: ImageDataset,
    discovery: Sequence[int],
    evaluation: Sequence[int],
    config: CircuitConfig,
    seed: int,
    log: Log | None = None,
    names: Sequence[str] = (),
    stored: Mapping[str, StoredActivations] | None = None,
) -> CircuitResult:
    """Circuits of SAE features, and of neurons beside them: effects, edges, and how good they are.

    Args:
        sites: in the order of the network.
        saes: site path → SAE, for every site; empty for neurons alone.
        discovery, evaluation: indices of images that may be used; `config` says how many of them, spread over
            the groups.
        seed: of partners and random circuits.
        log: called with named numbers and a circuit size.
        names: of the network's classes, for options that name one.
        stored: the sites' vectors on all images of `dataset`; without, the network is run to see nodes active.

    Raises:
        ConfigError: when a site has no SAE or none that fits, does not lead to the objective, is no cut set of a chain,
            or cannot be spliced without changing the network; or when a class of `config` is none of the network's.
        DataError: when the two sets of images overlap or one is empty, no image is of the classes asked for, the
            target is a label that is missing, an image has no partner, or an effect is not finite.
        MisLabError: when the objective hardly moves (see :func:`~mis_lab.circuit.faithfulness.evaluate`).
    """
    check_apart(dataset, discovery, evaluation)
    problem = Problem(model, tuple(sites), objective_of(config, model.n_classes, names))
    found_on = choose(model, dataset, discovery, config.n_discovery, config, names)
    tested_on = choose(model, dataset, evaluation, config.n_evaluation, config, names)
    dictionaries = _dictionaries(model, sites, saes)
    passes_by, missed_by_sae = _check(problem, saes, found_on, tested_on, config)

    states = States.of(problem, dictionaries, found_on, tested_on, config, seed)
    path = InputPath(mean_image(found_on.images), RULES[config.quadrature](config.n_steps))
    effects = node_effects(problem, states.on(found_on), found_on.images, found_on.rows_n, config.method, path)
    everything = found_on.images.at(sorted([*discovery, *evaluation]))
    active = activity_beside(
        dictionaries,
        *(
            CapturedVectors(problem, some) if stored is None else StoredVectors(stored, some.indices, config.batch_size)
            for some in (found_on.images, everything)
        ),
    )

    stage = _Stage(problem, states, found_on, tested_on, path, config, seed, log)
    results = {kind: stage.of_kind(kind, of_kind, active[kind]) for kind, of_kind in effects.items()}
    return CircuitResult(
        features=_beside_neurons(results),
        neurons=results["neuron"],
        discovery_ids=tuple(found_on.images.ids),
        evaluation_ids=tuple(tested_on.images.ids),
        discovery_targets=found_on.targets_n,
        evaluation_targets=tested_on.targets_n,
        mean_image=path.start,
        settings=plain(config),
        passes_by=passes_by,
        missed_by_sae=missed_by_sae,
    )


@dataclass(frozen=True, eq=False)
class _Stage:
    """What all kinds of nodes share once effects are known."""

    problem: Problem
    states: States
    found_on: ImageSet
    tested_on: ImageSet
    path: InputPath
    config: CircuitConfig
    seed: int
    log: Log | None

    def of_kind(
        self, kind: str, effects: Mapping[str, SiteEffects], active: Mapping[str, ActivityBeside]
    ) -> KindResult:
        """Everything about the circuits of one kind."""
        problem, states, config = self.problem, self.states, self.config
        summaries = tuple(SiteSummary.of(site_path, of_site) for site_path, of_site in effects.items())
        self._report(kind, summaries)
        circuit = rank(kind, effects)
        if not len(circuit):
            raise DataError(f"no {kind} ever leaves its baseline on the discovery images: there is no circuit")
        shown = circuit.top(config.n_shown)
        shown_effects = _effects_of(shown, effects)
        maps = pictured_maps(problem, states, shown, shown_effects, self.found_on, self.path, config)

        some = self.found_on.spread(config.n_edge_images or len(self.found_on))
        on_some = self.found_on.take(some)
        edges = pictured_edges(problem, states, shown, effects, on_some, self.path, config)
        edge_agreement = {}
        if config.check_edges:
            few = on_some.take(on_some.spread(config.check_edges))
            edge_agreement = linear_against_exact(problem, states, shown, few, self.path, config)
        agreement = None
        if config.n_exact:
            agreement = compare_with_exact(
                problem, states, kind, effects, self.found_on, some, config.n_exact, self.seed
            )

        others = rivals(problem, states, circuit, effects, self.found_on.masks, self.found_on)
        masks = self.tested_on.masks
        quality = judge(problem, states, circuit, others, masks, self.tested_on, config, self.seed)
        result = KindResult(
            circuit,
            summaries,
            quality.curve,
            shown_effects,
            maps,
            edges,
            quality.complement,
            quality.minimality,
            quality.others,
            quality.cmd_differences,
            agreement,
            edge_agreement,
            active,
        )
        self._log_curves(kind, result)
        return result

    def _report(self, kind: str, summaries: Sequence[SiteSummary]) -> None:
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
            if self.log:
                where = f"{kind}/{site.path}"
                numbers = {"attribution_gap": site.attribution_gap, "error_share": site.error_share}
                self.log({f"{where}/{name}": number for name, number in numbers.items()}, 0)

    def _log_curves(self, kind: str, result: KindResult) -> None:
        if not self.log or result.complement is None:
            return
        columns = {
            "faithfulness": np.asarray(result.curve.faithfulness.estimate),
            "random_faithfulness": result.curve.random.mean(0),
            "completeness": np.asarray(result.complement.completeness.estimate),
        }
        for place, size in enumerate(result.curve.sizes.tolist()):
            self.log({f"{kind}/{name}": float(column[place]) for name, column in columns.items()}, size)


def _check(
    problem: Problem, saes: Mapping[str, Autoencoder], found_on: ImageSet, tested_on: ImageSet, config: CircuitConfig
) -> tuple[dict[str, float], dict[str, float]]:
    """Try splice, SAEs and sites on a few images, each with one of the other set as its partner: what passes by each
    site, and what its SAE misses."""
    n_checked = min(N_CHECKED, len(found_on), len(tested_on))
    images, partners = (_first(some.images, n_checked) for some in (found_on, tested_on))
    check_splice(problem, images)
    missed_by_sae = check_saes(problem, saes, images)
    passes_by = check_cut(problem, [images], [partners], found_on.rows_n[:n_checked], config.topology)
    return passes_by, missed_by_sae


def _first(images: ChosenImages, n_images: int) -> Tensor:
    return torch.cat(list(images.at(images.indices[:n_images])))


def _dictionaries(
    model: LoadedModel, sites: Sequence[Site], saes: Mapping[str, Autoencoder]
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


def _effects_of(circuit: Circuit, effects: Mapping[str, SiteEffects]) -> Tensor:
    """(V, n) contribution of each node of `circuit` on each discovery image."""
    rows = [effects[node.site].per_image[:, -1 if node.feature == ERROR else node.feature] for node in circuit.nodes]
    return torch.stack(rows)


def _beside_neurons(results: Mapping[str, KindResult]) -> KindResult | None:
    """Features with their CMD less that of neurons; None where there are none."""
    features = results.get("feature")
    if features is None:
        return None
    beside = {"neuron": cmd_difference(features.curve, results["neuron"].curve)}
    return replace(features, cmd_differences={**features.cmd_differences, **beside})
