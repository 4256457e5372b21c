"""What is left of a network when a site's activations are replaced by their reconstruction.

Everything is a mean over images, and loss recovered a ratio of such means, never a mean of ratios.
"""

# B images of a batch  P positions  D site width  K classes

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor

from mis_lab.activations.shards import StoredActivations
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.progress import progress
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import Batch, batches
from mis_lab.model.capture import predictions
from mis_lab.model.intervene import intervene
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site
from mis_lab.sae.ablation import (
    Ablated,
    Outputs,
    ablate,
    kl,
    log_probabilities,
    losses,
    outputs,
    require_classes,
    targets,
)
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.from_site import FromSite

N_TRIED = 8  # images that a start at a site is tried with
SMALLEST_DROP = 1e-3  # nats an ablation must cost before a share of its cost means anything
Replace = Callable[[Tensor], Tensor]
# Places of a batch of images, and their logits (B, K) with the SAE of each site.
Passes = tuple[list[int], dict[Site, Tensor]]


@dataclass(frozen=True, eq=False)
class Splice:
    """An autoencoder that reads another site than it writes (a transcoder).

    Attributes:
        sae: what gives the vectors of the site that is written.
        source: the site whose vectors it reads.
    """

    sae: Autoencoder
    source: Site


Spliced = Autoencoder | Splice


@contextmanager
def spliced(model: LoadedModel, saes: Mapping[Site, Spliced]) -> Iterator[None]:
    """While open, forward passes of `model` go through the SAEs: each site's vectors become their reconstruction.

    A transcoder reads its source as it then is, with whatever another SAE has made of it.

    Args:
        saes: by the site that is written.

    Raises:
        ConfigError: when an SAE's width is not its site's, or two sites have not as many positions; from the forward
            pass, when the network computes a source after what is written from it.
    """
    splices = {site: one if isinstance(one, Splice) else Splice(one, site) for site, one in saes.items()}
    for site, splice in splices.items():
        _check_sizes(site, splice)
    with intervene(model, _replacements(splices)):
        yield


def _check_sizes(site: Site, splice: Splice) -> None:
    sae, source = splice.sae, splice.source
    for of, width, at in (("has width", sae.width, source), ("writes width", sae.width_out, site)):
        if at.width != width:
            raise ConfigError(f"the SAE of {at.path} {of} {width}, the site {at.width}", fix="Train one there.")
    if source.n_positions != site.n_positions:
        raise ConfigError(
            f"{source.path} has {source.n_positions} positions, {site.path} {site.n_positions}: nothing to splice in",
            fix="Pair sites whose maps are of equal size.",
        )


def _replacements(splices: Mapping[Site, Splice]) -> dict[Site, Replace]:
    """What happens at every site that is read or written."""
    read = {splice.source for site, splice in splices.items() if splice.source != site}
    held: dict[Site, Tensor] = {}

    def at(site: Site) -> Replace:
        def replace(x_bpd: Tensor) -> Tensor:
            if site in splices:
                sae, source = splices[site].sae, splices[site].source
                if source != site and source not in held:
                    raise ConfigError(
                        f"{source.path}, which the transcoder of {site.path} reads, is computed after it",
                        fix="Exchange the two in sae.source.",
                    )
                x_bpd = sae(x_bpd if source == site else held[source]).reconstruction
            if site in read:
                held[site] = x_bpd
            return x_bpd

        return replace

    return {site: at(site) for site in {**dict.fromkeys(read), **splices}}


def replacement(sae: Autoencoder) -> Replace:
    """What a site's vectors (B, P, D) become when the SAE is spliced in."""
    return lambda x_bpd: sae(x_bpd).reconstruction


@dataclass(frozen=True)
class SpliceQuality:
    """Cost of splicing one SAE in; all losses are mean cross-entropies over images, in nats.

    Attributes:
        target: what the cross-entropy is against: ``label``, or ``prediction`` (the untouched network's top class).
        n_images: size of the evaluation set.
        loss_original, loss_spliced, loss_zero, loss_mean: of the untouched network, with the reconstruction, with the
            site set to zero, and to its mean vector.
        kl: mean KL(original ‖ spliced) of the class distributions.
        kl_reversed: mean KL(spliced ‖ original).
        kl_zero, kl_mean: mean KL(original ‖ ablated).
        agreement: share of images whose top class stays.
        recovered_zero, recovered_mean: (L_ablated − L_spliced) / (L_ablated − L_original); None when the ablation
            costs less than 1e-3 nats.
        reason: why one of them is None, else empty.
    """

    target: str
    n_images: int
    loss_original: float
    loss_spliced: float
    loss_zero: float
    loss_mean: float
    kl: float
    kl_reversed: float
    kl_zero: float
    kl_mean: float
    agreement: float
    recovered_zero: float | None
    recovered_mean: float | None
    reason: str


class Reference(NamedTuple):
    """What splicing is compared with, measured once for all SAEs (`ablation.py`).

    Attributes:
        original: of all images of the data set.
        ablated: by the site's path.
    """

    original: Outputs
    ablated: Mapping[str, Ablated]


def evaluate_splice(
    model: LoadedModel,
    site: Site,
    sae: Spliced,
    dataset: ImageDataset,
    mean_d: Tensor,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
) -> SpliceQuality:
    """:func:`evaluate_splices` for one site, its ablations measured first."""
    original = outputs(model, dataset, batch_size, workers)
    reference = Reference(original, ablate(model, {site: mean_d}, dataset, original, batch_size, workers))
    return evaluate_splices(model, {site: sae}, dataset, reference, indices, batch_size, workers)[site.path]


@torch.inference_mode()
def evaluate_splices(
    model: LoadedModel,
    saes: Mapping[Site, Spliced],
    dataset: ImageDataset,
    reference: Reference,
    indices: Sequence[int] | None = None,
    batch_size: int = 64,
    workers: int = 0,
    behind: Mapping[Site, Spliced] | None = None,
    stored: Mapping[Site, StoredActivations] | None = None,
) -> dict[str, SpliceQuality]:
    """Quality of each SAE spliced in alone, by its site's path; one pass over the images and one forward pass an SAE.

    With the sites' vectors at hand a forward pass starts at the site, where that gives the network's own answers to a
    few images; then no image but two is read.

    The target is the label where every image has one and the data set's classes are as many as the network's, else the
    untouched network's own prediction.

    Args:
        saes: one by the site that is written, on the model's device.
        reference: of the same network and images.
        indices: images to evaluate on (all by default).
        behind: SAEs of earlier sites that are spliced in as well (stacked SAEs); numbers are then of all together,
            against the untouched network.
        stored: vectors of the sites on all images of `dataset`.

    Raises:
        ConfigError: when an SAE's width is not its site's, or the network has no classes.
        DataError: when there are no images.
    """
    require_classes(model)
    chosen = list(range(len(dataset)) if indices is None else indices)
    if not chosen:
        raise DataError("no images to evaluate a spliced SAE on", fix="Check dataset.split.hold_out and limit.")
    target, target_n = targets(model, dataset, reference.original.class_n)
    sums: dict[Site, dict[str, float]] = {site: {} for site in saes}
    passes = _whole_passes(model, saes, behind or {}, batches(dataset, model.transform, batch_size, workers, chosen))
    alone = {site: sae for site, sae in saes.items() if isinstance(sae, Autoencoder)}
    for site, sae in alone.items():
        _check_sizes(site, Splice(sae, site))
    some = [chosen[place] for place in sorted({round(at) for at in np.linspace(0, len(chosen) - 1, N_TRIED)})]
    if stored is not None and not behind and len(alone) == len(saes) and len(some) > 1:
        (two,) = batches(dataset, model.transform, 2, 0, [some[0], some[-1]])
        parts = {site: FromSite(model, stored[site], two.images_bchw) for site in alone}
        if all(part.decides_the_answer(reference.original, some) for part in parts.values()):
            passes = _passes_from_sites(parts, alone, chosen, batch_size)
    for indices, logits in progress(passes, "splicing SAEs in", -(-len(chosen) // batch_size), unit="batch"):
        original_bk = log_probabilities(reference.original.logits_nk[indices])
        target_b = target_n[indices]
        for site, logits_bk in logits.items():
            spliced_bk = log_probabilities(logits_bk)
            numbers = {
                "agreement": (spliced_bk.argmax(1) == original_bk.argmax(1)).double(),
                "loss_original": losses(original_bk, target_b),
                "loss_spliced": losses(spliced_bk, target_b),
                "kl": kl(original_bk, spliced_bk),
                "kl_reversed": kl(spliced_bk, original_bk),
            }
            for name, cost_n in vars(reference.ablated[site.path]).items():
                numbers[name.removesuffix("_n")] = cost_n[indices]
            for name, number_b in numbers.items():
                sums[site][name] = sums[site].get(name, 0.0) + float(number_b.sum())
    return {site.path: _quality(total, target, len(chosen)) for site, total in sums.items()}


def _whole_passes(
    model: LoadedModel, saes: Mapping[Site, Spliced], behind: Mapping[Site, Spliced], images: Iterable[Batch]
) -> Iterator[Passes]:
    for batch in images:
        logits = {}
        for site, sae in saes.items():
            with spliced(model, {**behind, site: sae}):
                logits[site] = predictions(model, batch.images_bchw)
        yield batch.indices, logits


def _passes_from_sites(
    parts: Mapping[Site, FromSite], saes: Mapping[Site, Autoencoder], chosen: Sequence[int], batch_size: int
) -> Iterator[Passes]:
    for start in range(0, len(chosen), batch_size):
        indices = list(chosen[start : start + batch_size])
        yield indices, {site: part.logits(indices, replacement(saes[site])) for site, part in parts.items()}


def _quality(sums: Mapping[str, float], target: str, n_images: int) -> SpliceQuality:
    means: dict[str, Any] = {name: total / n_images for name, total in sums.items()}
    reasons = []
    for ablation in ("zero", "mean"):
        drop = means[f"loss_{ablation}"] - means["loss_original"]
        if drop < SMALLEST_DROP:
            means[f"recovered_{ablation}"] = None
            reasons.append(f"{ablation} ablation costs {drop:.2g} nats, less than {SMALLEST_DROP:g}")
        else:
            means[f"recovered_{ablation}"] = (means[f"loss_{ablation}"] - means["loss_spliced"]) / drop
    return SpliceQuality(target=target, n_images=n_images, reason="; ".join(reasons), **means)
