"""Scores all units of a source: pools while activations stream by, then tasks and scores chunk by chunk.

Either step can be shared out among jobs, with the same result to the bit: the images that pools are gathered from
(:func:`pool_part`), and the units that are scored (:meth:`~mis_lab.mis.unit_scores.UnitScores.concatenate`).
"""

from __future__ import annotations

import dataclasses
import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.activations.pools import PoolGatherer, Pools, gather_part
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import content_key
from mis_lab.core.progress import progress
from mis_lab.core.seeding import derive_seed, generator
from mis_lab.dataset.splits import group_codes
from mis_lab.metric.base import Embedding
from mis_lab.mis.config import MisConfig, Negatives, Protocol, Query
from mis_lab.mis.protocols.layout import layouts
from mis_lab.mis.protocols.within_class import ImageClasses, image_classes
from mis_lab.mis.score import margins, measure_temperature, score
from mis_lab.mis.tasks import draw_tasks, pool_needs
from mis_lab.mis.unit_scores import NegativesScores, Settings, UnitScores
from mis_lab.mis.units import UnitStatus

if TYPE_CHECKING:
    from mis_lab.activations.shards import StoredActivations
    from mis_lab.activations.units import UnitSource

# U units  N tasks a unit

PERMUTED = "permuted"
BY_QUANTILE = (Protocol.quantile, Protocol.inner_quantile)
logger = logging.getLogger(__name__)


def pool_part(
    stored: StoredActivations,
    source: UnitSource,
    config: MisConfig,
    seed: int,
    *,
    units: Sequence[int] | None = None,
    control: str = "",
    images: range | None = None,
    device: torch.device | str = "cpu",
) -> PoolGatherer:
    """The pools that :func:`score_units` needs, as far as `images` tell: one job's part, to be merged with others'.

    Args:
        images: one of :func:`~mis_lab.activations.units.image_slices`, or ``range(0)`` for what others are merged into;
            all by default, and always for a control. The other arguments are those of :func:`score_units`.

    Raises:
        DataError: when an image has no id or another's, an activation is not finite, or there are too few images.
        ConfigError: for an unknown control.
    """
    if control not in ("", PERMUTED):
        raise ConfigError(f"unknown control {control}", looked=PERMUTED)
    require_ids(stored.ids)
    needs = pool_needs(config, stored.n_images)
    return gather_part(
        stored,
        source,
        needs.size,
        seed,
        config.image_activation,
        per_group=needs.per_group,
        units=units,
        permute_seed=derive_seed(seed, PERMUTED) if control == PERMUTED else None,
        device=device,
        images=images,
    )


def score_units(
    stored: StoredActivations,
    source: UnitSource,
    embedding: Embedding,
    config: MisConfig,
    seed: int,
    *,
    temperature: float = 0.0,
    units: Sequence[int] | None = None,
    unit_names: Sequence[str] | None = None,
    classes: Sequence[int] | Tensor | None = None,
    control: str = "",
    pools: Pools | None = None,
    device: torch.device | str = "cpu",
) -> UnitScores:
    """Machine Interpretability Score of the units of `source`.

    Args:
        stored: activations of one site; pools are taken from all their images.
        source: neurons, features, random directions.
        embedding: of the same images in the same order.
        seed: of ties, random pools, tasks and bootstrap; each unit has its own stream, so that scoring fewer units or
            in other chunks changes none.
        temperature: τ of the soft score, the metric's own; 0 measures it.
        units: numbers of the units wanted; all by default. `unit_names`: their names, "feature 17" by default.
        classes: of the images, in the order of `stored`, for negatives ``within_class``: labels, or the network's
            own predictions; not looked at otherwise.
        control: ``permuted`` gives each unit's activations to other images first.
        pools: of these units in this order, from :func:`pool_part` with the same arguments; gathered by default.
        device: where activations are ranked and margins computed; changes no image of a task.

    Raises:
        DataError: when the embedding is of other images, an image has no id, no class or another's id, an activation is
            not finite, there are too few images, or pools are not of these units and all images.
        ConfigError: for an unknown control, or negatives ``within_class`` without classes.
    """
    _require_same_images(stored.ids, embedding)
    by_class = Negatives.within_class in config.negatives
    of_images = image_classes(classes, stored.ids) if by_class else None
    numbers = list(range(source.n_units)) if units is None else list(units)
    names = [f"{source.kind.replace('_', ' ')} {number}" for number in numbers]
    if unit_names is not None and len(names := list(unit_names)) != len(numbers):
        raise ValueError(f"{len(names)} names for {len(numbers)} units")

    if pools is None:
        part = pool_part(stored, source, config, seed, units=units, control=control, device=device)
        pools = part.result(random=Negatives.random in config.negatives)
    else:
        _require_fitting(pools, len(numbers), stored.n_images, config)
    embedding = _on_device(embedding, device)
    temperature = temperature or measure_temperature(embedding, config.n_explanations)
    setting = _Setting(
        config=config,
        embedding=embedding,
        temperature=temperature,
        tie=config.ties * embedding.scale,
        seed=derive_seed(seed, "mis", stored.site.path, source.kind, control),
        groups=group_codes(stored.groups),
        classes=of_images,
    )
    keys, queries = torch.tensor(numbers, dtype=torch.int64), config.queries()
    scores = UnitScores(
        site=stored.site.path,
        kind=source.kind,
        control=control,
        units=keys,
        unit_names=names,
        settings=Settings(
            protocol=config.protocol.name,
            query=queries[0].name,
            query_negative=queries[1].name,
            query_percentile=config.query_percentile if Query.percentile in queries else 0.0,
            quantile=config.quantile if config.protocol in BY_QUANTILE else 0.0,
            n_explanations=config.n_explanations,
            n_tasks=config.n_tasks,
            min_tasks=config.min_tasks,
            pool_size=layouts(config, stored.n_images)[0].size,
            one_per_group=config.one_per_group,
            image_activation=config.image_activation.name,
            ties=config.ties,
            metric=embedding.metric,
            metric_fingerprint=embedding.fingerprint,
            temperature=temperature,
            tie=setting.tie,
            n_images=stored.n_images,
            images=content_key(stored.ids),
            classes="" if of_images is None else content_key(of_images.class_n.tolist()),
        ),
        seed=seed,
        n_active=pools.n_active,
        minimum=pools.minimum,
        maximum=pools.maximum,
        image_ids=list(stored.ids),
        image_groups=list(stored.groups),
        by_negatives={negatives.name: _score_all(pools, negatives, keys, setting) for negatives in config.negatives},
    )
    _log(scores)
    return scores


def sample_units(n_units: int, n: int, seed: int) -> list[int]:
    """At most `n` of `n_units` units in ascending order, for a control that need not cover all."""
    return sorted(torch.randperm(n_units, generator=generator(seed, "control units"))[:n].tolist())


class _Setting(NamedTuple):
    """What is the same for all units."""

    config: MisConfig
    embedding: Embedding
    temperature: float
    tie: float
    seed: int
    groups: Tensor
    classes: ImageClasses | None


def _score_all(pools: Pools, negatives: Negatives, keys: Tensor, setting: _Setting) -> NegativesScores:
    config, starts = setting.config, range(0, len(keys), setting.config.chunk)
    parts = []
    for start in progress(starts, f"scores with {negatives.name} negatives", unit="chunk"):
        chunk = slice(start, start + config.chunk)
        parts.append(_score_chunk(pools.of_units(chunk), negatives, keys[chunk], setting))
    return NegativesScores.concatenate(parts)


def _score_chunk(pools: Pools, negatives: Negatives, keys: Tensor, setting: _Setting) -> NegativesScores:
    config = setting.config
    tasks, status = draw_tasks(
        pools, config, negatives, setting.seed, keys, setting.groups, pools.n_images, setting.classes
    )
    delta_un = margins(tasks, setting.embedding)
    scores = score(delta_un, tasks.n_tasks, setting.temperature, setting.tie, config.n_bootstrap, setting.seed)
    return NegativesScores(status, tasks, delta_un, scores)


def require_ids(ids: Sequence[str]) -> None:
    """Every image must have an id of its own.

    Raises:
        DataError: naming the first image that has none, or another's.
    """
    places: dict[str, int] = {}
    for place, image_id in enumerate(ids):
        if not image_id:
            raise DataError(f"image {place} has no id", fix="Give every image a name of its own.")
        if (before := places.setdefault(image_id, place)) != place:
            raise DataError(
                f"images {before} and {place} have the same id {image_id}", fix="Give every image a name of its own."
            )


def _require_same_images(ids: Sequence[str], embedding: Embedding) -> None:
    if len(ids) != len(embedding.ids):
        raise DataError(
            f"the metric {embedding.metric} embedded {len(embedding.ids)} images, the activations are of {len(ids)}",
            fix="Embed the images of the activations, in their order.",
        )
    for place, (ours, theirs) in enumerate(zip(ids, embedding.ids, strict=True)):
        if ours != theirs:
            raise DataError(
                f"image {place} is {ours} in the activations and {theirs} in the embedding of {embedding.metric}",
                fix="Embed the images of the activations, in their order.",
            )


def _require_fitting(pools: Pools, n_units: int, n_images: int, config: MisConfig) -> None:
    needs = pool_needs(config, n_images)
    if Negatives.random in config.negatives and pools.random.shape != pools.top.shape:
        raise DataError("the pools have no random images", fix="Ask for them: result(random=True).")
    found, wanted = (len(pools.top), pools.n_images), (n_units, n_images)
    if found != wanted or pools.top.shape[1] < needs.size:
        raise DataError(
            f"the pools are {pools.top.shape[1]} of {pools.n_images} images for {len(pools.top)} units; "
            f"{needs.size} of {n_images} for {n_units} are needed",
            fix="Merge the parts of all images, gathered with the same configuration.",
        )


def _on_device(embedding: Embedding, device: torch.device | str) -> Embedding:
    if embedding.rows is not None:
        return dataclasses.replace(embedding, rows=embedding.rows.to(device))
    assert embedding.gram is not None
    return dataclasses.replace(embedding, gram=embedding.gram.to(device))


def _log(scores: UnitScores) -> None:
    for negatives, result in scores.by_negatives.items():
        scored = result.status == UnitStatus.ok.value
        soft = np.asarray(result.scores.soft.estimate)[scored.numpy()]
        mean = f", mean soft score {soft.mean():.3f}" if len(soft) else ""
        shares = ", ".join(f"{result.share(status):.1%} {status.name}" for status in UnitStatus if result.share(status))
        logger.info("%s of %s, %s negatives: %s%s", scores.label, scores.site, negatives, shares, mean)
