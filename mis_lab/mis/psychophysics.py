"""The interface of the authors' code (Zimmermann, Klindt and Brendel 2024): images and activations in, scores out.

    from mis_lab.mis import run_psychophysics, task_config

Calls written for it work unchanged and give its numbers, by the machinery of this package: no tensor of explanations
is made, and nothing is shared between calls. docs/mis_reference.md has the differences. For status, intervals and
comparisons use :func:`mis_lab.mis.run.score_units`.
"""

# n images  U units  N tasks a unit  K explanations a side  S pool size  d width of the embedding

from __future__ import annotations

import dataclasses
import math
import warnings
from collections.abc import Mapping, Sequence

import torch
from PIL import Image
from torch import Tensor

from mis_lab.activations.pools import PoolGatherer, Pools
from mis_lab.core.device import resolve_device
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.seeding import derive_seed
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric.base import Embedding, Metric, embed_dataset
from mis_lab.metric.config import DreamSimConfig, LpipsConfig, MetricConfig
from mis_lab.metric.load import load_metric
from mis_lab.mis.config import Query
from mis_lab.mis.draws import subsets
from mis_lab.mis.run import require_ids
from mis_lab.mis.score import margins, outcomes
from mis_lab.mis.tasks import Tasks, assemble
from mis_lab.mis.units import CONSTANT_BELOW, is_sparse

TIE = 1e-6  # margins this small, relative to the embedding's scale, are ties
SIMILARITIES = {"dreamsim": "cosine", "lpips": "squared_euclidean"}
_UNITS_AT_ONCE = 256


class _Images(ImageDataset):
    """Images in memory."""

    def __init__(self, images: Sequence[Image.Image], ids: Sequence[str]) -> None:
        super().__init__("image_set", "score", ids)
        self._images = images

    def image(self, index: int) -> Image.Image:
        image = self._images[index]
        return image if image.mode in ("RGB", "L") else image.convert("RGB")


class task_config:
    """Images, what units do on them, and their embeddings by metric.

    Args:
        device: ``cpu``, ``cuda``, ``cuda:1``: where images are embedded, ranked and scored.
        image_set: n images.
        activations: (n, U); compared as float32. Copied.
        processed: metric → (n, d) embeddings of the images that need not be computed again. Neither the mapping nor
            its tensors are changed.
        seed: without effect; ties follow the seed of :func:`run_psychophysics`.
        ids: names of the images, by which ties are broken; their places by default.

    Raises:
        ConfigError: when there is no such device.
        DataError: when lengths differ, an image has no id of its own, or an activation is not finite.
    """

    def __init__(
        self,
        device: str | torch.device,
        image_set: Sequence[Image.Image],
        activations: Tensor,
        processed: Mapping[str, Tensor] | None = None,
        seed: int = 117,
        ids: Sequence[str] | None = None,
    ) -> None:
        self.device = resolve_device(str(device))
        self.seed = seed
        self.x_data = list(image_set)
        self.ids = [f"{place:09d}" for place in range(len(self.x_data))] if ids is None else list(ids)
        if len(self.ids) != len(self.x_data):
            raise DataError(f"{len(self.ids)} ids for {len(self.x_data)} images", fix="Give every image one.")
        require_ids(self.ids)
        self._processed = {name.lower(): tensor for name, tensor in (processed or {}).items()}
        self._embeddings: dict[str, Embedding] = {}  # by the fingerprint of their metric
        self._loaded: dict[str, Metric] = {}
        for name, tensor in self._processed.items():
            self._require_rows(name, tensor)
        self.replace_y(activations)

    def __len__(self) -> int:
        return len(self.x_data)

    def __getitem__(self, index: int) -> tuple[Image.Image, Tensor]:
        """An image and its activations (U,)."""
        return self.x_data[index], self._a_nu[index]

    @property
    def y_data(self) -> Tensor:
        """(U, n) activations."""
        return self._a_nu.T

    def get_target(self) -> Tensor:
        """(U, n) activations."""
        return self.y_data

    def get_data(self, metric_type: str | None = None) -> list[Image.Image] | Tensor:
        """The images or, for a metric, their embeddings."""
        return self.x_data if metric_type is None else self.get_processed(metric_type)

    def get_processed(self, metric_type: str, metric: Metric | None = None) -> Tensor:
        """(n, d) float32 embeddings of the images, in their order."""
        if metric_type.lower() in self._processed:
            return self._processed[metric_type.lower()]
        metric = metric or self._metric(metric_type)
        images, step = _Images(self.x_data, self.ids), metric.batch_size
        batches = (range(start, min(start + step, len(images))) for start in range(0, len(images), step))
        with torch.no_grad():
            return torch.cat([metric.embed_images(images, batch).float() for batch in batches])

    def replace_y(self, activations: Tensor) -> None:
        """Give the images the activations (n, U) of other units; embeddings stay.

        Raises:
            DataError: when they are not of n images, or not finite.
        """
        a_nu = torch.as_tensor(activations)
        if a_nu.ndim != 2 or len(a_nu) != len(self.x_data):
            raise DataError(
                f"activations of shape {tuple(a_nu.shape)} for {len(self.x_data)} images",
                fix="Give them as n_images x n_units.",
            )
        a_nu = a_nu.detach().to(self.device, torch.float32, copy=True)
        if len(broken := (~a_nu.isfinite()).nonzero()):
            image, unit = broken[0].tolist()
            kind = "NaN" if a_nu[image, unit].isnan() else "infinite"
            raise DataError(
                f"activation of unit {unit} on image {self.ids[image]} is {kind}",
                fix="Such a unit cannot be ranked: look at that image, or leave the unit out.",
            )
        self._a_nu = a_nu

    def embedding(self, metric_type: str, metric: Metric | None = None) -> Embedding:
        """The images in the space of a metric, computed once: from `processed`, by `metric`, or by the metric of that
        name.

        Raises:
            ConfigError: for an unknown name.
            MissingFileError: for weights that are not there.
            DataError: when embeddings are not finite.
        """
        name = metric_type.lower()
        if metric is None and name not in self._processed:
            metric = self._metric(name)
        if metric is not None and not isinstance(metric, Metric):
            raise ConfigError(
                f"metric is of type {type(metric).__name__}",
                fix="Pass an object of mis_lab.metric, or the name alone: metric_type='dreamsim'.",
            )
        key = name if metric is None else metric.fingerprint
        if key not in self._embeddings:
            if name in self._processed:
                similarity = SIMILARITIES.get(name, "cosine") if metric is None else metric.similarity
                self._embeddings[key] = self._given(name, similarity)
            else:
                assert metric is not None  # loaded above
                self._embeddings[key] = embed_dataset(metric, _Images(self.x_data, self.ids))
        found, device = self._embeddings[key], self.device
        if found.rows is not None:
            return dataclasses.replace(found, rows=found.rows.to(device))
        assert found.gram is not None
        return dataclasses.replace(found, gram=found.gram.to(device))

    def _metric(self, name: str) -> Metric:
        if name.lower() not in self._loaded:
            self._loaded[name.lower()] = metric_named(name, self.device)
        return self._loaded[name.lower()]

    def _given(self, name: str, similarity: str) -> Embedding:
        rows_nd = self._processed[name].detach().to("cpu", torch.float32)
        if similarity == "cosine":
            rows_nd = torch.nn.functional.normalize(rows_nd, dim=1)
        scale = float(rows_nd.double().square().sum(1).mean())
        return Embedding(name, list(self.ids), similarity, scale, f"processed {name}", rows=rows_nd)

    def _require_rows(self, name: str, tensor: Tensor) -> None:
        if tensor.ndim != 2 or len(tensor) != len(self.x_data):
            raise DataError(
                f"processed[{name!r}] has shape {tuple(tensor.shape)} for {len(self.x_data)} images",
                fix="Give embeddings, n_images x width; a metric that needs the images themselves gets them.",
            )
        if len(broken := (~tensor.isfinite().all(1)).nonzero()):
            raise DataError(f"processed[{name!r}] of image {self.ids[int(broken[0])]} is not finite")


def metric_named(name: str, device: str | torch.device) -> Metric:
    """The metric that the authors' code calls ``dreamsim`` or ``lpips``.

    Raises:
        ConfigError: for another name.
        MissingFileError: for weights that are not there.
    """
    configs: dict[str, MetricConfig] = {"dreamsim": DreamSimConfig(), "lpips": LpipsConfig(size=0)}
    if name.lower() not in configs:
        raise ConfigError(
            f"metric_type {name} is unknown",
            looked=", ".join(configs),
            fix="For any other metric pass its object: metric=load_metric(...).",
        )
    return load_metric(configs[name.lower()], device)


def run_psychophysics(
    seed: int,
    task_data: task_config,
    metric_type: str,
    K: int,
    N: int,
    quantile: float,
    alpha: float | None = None,
    metric: Metric | None = None,
    *,
    ties: str = "half",
    active_only: bool = False,
) -> Tensor:
    """Machine Interpretability Score of every unit, as the authors' code defines it.

    A task draws K+1 of the ``quantile`` most active images and K+1 of the least active ones, the least extreme of
    each being the query.

    Args:
        seed: of the draws. No other generator is seeded or drawn from.
        metric_type: ``dreamsim`` or ``lpips``; with `metric`, or an entry of ``processed``, any name.
        alpha: None for the share of right answers, else the mean of sigmoid(alpha Δ).
        metric: an object of mis_lab.metric instead of the named one.
        ties: ``half`` or ``wrong`` (the authors' rule): what Δ = 0 counts without `alpha`.
        active_only: a unit that is never negative is explained by images alone that activate it.

    Returns:
        (U,) float32 on the CPU; NaN, with a warning, for units that are constant or, with `active_only`, active on
        fewer than K+1 images.

    Raises:
        ConfigError: when a number is out of range, or the metric unknown.
        DataError: when the images are too few.
    """
    _check(K, N, quantile, alpha, ties)
    n_images = len(task_data)
    size = min(math.ceil(quantile * n_images - 1e-9), n_images // 2)
    if size < K + 1:
        raise DataError(
            f"quantile {quantile} of {n_images} images is {size}, fewer than the K+1 = {K + 1} of a task",
            fix="Use more images, a larger quantile or a smaller K.",
        )
    found, notes = [], _Notes([], [], [])
    with torch.device("cpu"):  # whatever default the caller has set, as the authors' code needs for a GPU
        embedding = task_data.embedding(metric_type, metric)
        for start in range(0, len(task_data.y_data), _UNITS_AT_ONCE):
            units = range(start, min(start + _UNITS_AT_ONCE, len(task_data.y_data)))
            tasks = _draw(task_data, units, K, N, size, seed, active_only, notes)
            found.append(score_tasks(tasks, embedding, alpha, ties))
    notes.warn(size, K)
    return torch.cat(found) if found else torch.empty(0)


def score_tasks(tasks: Tasks, embedding: Embedding, alpha: float | None = None, ties: str = "half") -> Tensor:
    """(U,) float32 scores of given tasks, NaN for a unit without any; see :func:`run_psychophysics`."""
    delta_un = margins(tasks, embedding)
    if alpha is not None:
        return torch.sigmoid(alpha * delta_un).nanmean(1).float()
    tie = TIE * embedding.scale
    right_un = outcomes(delta_un, 1.0, tie)["hard"]
    if ties == "wrong":
        right_un = torch.where(delta_un.abs() <= tie, 0.0, right_un)
    return right_un.nanmean(1).float()


@dataclasses.dataclass(frozen=True)
class _Notes:
    """Units to be told about."""

    constant: list[int]
    rare: list[int]
    diluted: list[int]

    def warn(self, size: int, k: int) -> None:
        told = (
            (self.constant, "are constant and have no score"),
            (self.rare, f"are active on fewer than {k + 1} images and have no score"),
            (
                self.diluted,
                f"are active on fewer images than the pool of {size}: their scores count silent images as explanations"
                " (active_only=True does not)",
            ),
        )
        for units, what in told:
            if units:
                few = ", ".join(str(unit) for unit in units[:5]) + (", ..." if len(units) > 5 else "")
                warnings.warn(f"{len(units)} units {what}: {few}", stacklevel=3)


def _draw(
    task_data: task_config, units: range, k: int, n_tasks: int, size: int, seed: int, active_only: bool, notes: _Notes
) -> Tasks:
    """Tasks of some units; none of those that have no score."""
    pools = _pools(task_data, units, size, seed)
    keys = torch.tensor(list(units), dtype=torch.int64)
    constant_u = pools.maximum.double() - pools.minimum.double() < CONSTANT_BELOW
    diluted_u = is_sparse(pools.minimum) & (pools.n_active < size) & ~constant_u
    populations_u = torch.full((len(units),), size)
    rare_u = torch.zeros_like(constant_u)
    if active_only:
        populations_u = torch.where(diluted_u, pools.n_active, populations_u)
        rare_u = diluted_u & (populations_u < k + 1)
    else:
        notes.diluted.extend(keys[diluted_u].tolist())
    notes.constant.extend(keys[constant_u].tolist())
    notes.rare.extend(keys[rare_u].tolist())
    sides = []
    for name, images_us, chosen_from in (
        ("positive", pools.top, populations_u),
        ("negative", pools.bottom, torch.full_like(populations_u, size)),
    ):
        places = subsets(derive_seed(seed, "psychophysics", name), keys, n_tasks, k + 1, chosen_from).sort(-1).values
        images = images_us.long().gather(1, places.flatten(1).clamp_max(size - 1)).view_as(places)
        sides.append(images.masked_fill((constant_u | rare_u)[:, None, None], -1))
    n_tasks_u = torch.where(constant_u | rare_u, 0, n_tasks)
    return assemble(sides[0], sides[1], n_tasks_u, Query.least_extreme)


def _pools(task_data: task_config, units: range, size: int, seed: int) -> Pools:
    gatherer = PoolGatherer(len(units), size, task_data.ids, seed, units=list(units), device=task_data.device)
    gatherer.update(task_data.y_data[units.start : units.stop].T, range(len(task_data)))
    return gatherer.result()


def _check(k: int, n_tasks: int, quantile: float, alpha: float | None, ties: str) -> None:
    for name, value in (("K", k), ("N", n_tasks)):
        if value < 1:
            raise ConfigError(f"{name}={value}: at least 1 is needed")
    if not 0 < quantile <= 0.5:
        raise ConfigError(
            f"quantile={quantile}: above 0.5 the task is inverted, and the most active images are asked about as the"
            " least active",
            fix="Use 0 < quantile <= 0.5.",
        )
    if alpha is not None and not alpha > 0:
        raise ConfigError(f"alpha={alpha} is not positive", fix="Use alpha=None for the share of right answers.")
    if ties not in ("half", "wrong"):
        raise ConfigError(f"unknown rule for ties {ties}", looked="half, wrong")
