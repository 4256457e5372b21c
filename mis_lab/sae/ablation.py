"""What a network does untouched, and what it costs to replace a site's vectors by zero or by their mean.

Neither depends on an SAE: measured once for a network and its images, they serve every SAE that is spliced in later.
"""

# n images of the data set  B images of a batch  D site width  K classes

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor

from mis_lab.core.errors import ConfigError
from mis_lab.core.progress import progress
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.loading import Batch, batches
from mis_lab.model.capture import predictions
from mis_lab.model.intervene import intervene
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site

SAME_ANSWER = 1e-5  # of the largest log-probability: float32 rounds the same sums differently from row to row


@dataclass(frozen=True)
class Outputs:
    """What a network makes of every image of a data set.

    Attributes:
        logits_nk: (n, K) float32.
    """

    logits_nk: Tensor

    @property
    def class_n(self) -> Tensor:
        """(n,) int64: the top class."""
        return self.logits_nk.argmax(1)


@dataclass(frozen=True)
class Ablated:
    """Cost of each ablation of one site, image by image, in nats.

    Attributes:
        loss_zero_n, loss_mean_n: (n,) float64, cross-entropy against the target.
        kl_zero_n, kl_mean_n: (n,) float64, KL(original ‖ ablated).
    """

    loss_zero_n: Tensor
    loss_mean_n: Tensor
    kl_zero_n: Tensor
    kl_mean_n: Tensor


def outputs(model: LoadedModel, dataset: ImageDataset, batch_size: int = 64, workers: int = 0) -> Outputs:
    """The logits of every image.

    Raises:
        ConfigError: when the network has no classes.
    """
    require_classes(model)
    found = [
        predictions(model, batch.images_bchw).float().cpu()
        for batch in _in_batches(dataset, model, batch_size, workers, range(len(dataset)), "the network's predictions")
    ]
    return Outputs(torch.cat(found))


def targets(model: LoadedModel, dataset: ImageDataset, class_n: Tensor) -> tuple[str, Tensor]:
    """What cross-entropies are against, and its name: the label where every image has one and the data set's classes
    are as many as the network's, else the network's own prediction `class_n`."""
    if min(dataset.labels) >= 0 and len(dataset.class_names) == model.n_classes:
        return "label", torch.tensor(dataset.labels)
    return "prediction", class_n


@torch.inference_mode()
def ablate(
    model: LoadedModel,
    means: Mapping[Site, Tensor],
    dataset: ImageDataset,
    original: Outputs,
    batch_size: int = 64,
    workers: int = 0,
) -> dict[str, Ablated]:
    """Zero and mean ablation of several sites, each alone, by the site's path; one reading of the images.

    Where a whole batch of images that the untouched network tells apart gets one answer, nothing passes by the site:
    the answer to one image is then that to all.

    Args:
        means: (D,) mean vector of each site over its training data.
        original: of all images.
    """
    target_n = targets(model, dataset, original.class_n)[1]
    costs: dict[str, dict[str, list[Tensor]]] = {site.path: {} for site in means}
    same: dict[tuple[str, str], Tensor] = {}  # (site, ablation) → the one answer (1, K)
    for batch in _in_batches(dataset, model, batch_size, workers, range(len(dataset)), "ablating sites"):
        log_original_bk = original.logits_nk[batch.indices].double().log_softmax(1)
        for site, mean_d in means.items():
            for name, replace in (("zero", torch.zeros_like), ("mean", constant(mean_d))):
                log_bk = same.get((site.path, name))
                if log_bk is None:
                    with intervene(model, {site: replace}):
                        log_bk = log_probabilities(predictions(model, batch.images_bchw))
                    if _alike(log_bk) and not _alike(log_original_bk):
                        same[site.path, name] = log_bk = log_bk[:1]
                log_bk = log_bk.expand_as(log_original_bk)
                found = costs[site.path]
                found.setdefault(f"loss_{name}_n", []).append(losses(log_bk, target_n[batch.indices]))
                found.setdefault(f"kl_{name}_n", []).append(kl(log_original_bk, log_bk))
    return {path: Ablated(**{name: torch.cat(parts) for name, parts in found.items()}) for path, found in costs.items()}


def _alike(log_bk: Tensor) -> bool:
    """Whether all rows are one, up to rounding."""
    return bool((log_bk - log_bk[:1]).abs().max() <= SAME_ANSWER * log_bk.abs().max())


def require_classes(model: LoadedModel) -> None:
    """Raise a ConfigError where the network does not put out (images, classes)."""
    if not model.n_classes:
        raise ConfigError(f"model {model.name} does not put out (images, classes): no loss to recover")


def constant(value_d: Tensor) -> Callable[[Tensor], Tensor]:
    """Replacement of all vectors by one."""
    return lambda x_bpd: value_d.to(x_bpd).expand_as(x_bpd)


def log_probabilities(logits_bk: Tensor) -> Tensor:
    """(B, K) float64 on the CPU."""
    return logits_bk.cpu().double().log_softmax(1)


def losses(log_bk: Tensor, target_b: Tensor) -> Tensor:
    """(B,) cross-entropies."""
    return F.nll_loss(log_bk, target_b, reduction="none")


def kl(log_p_bk: Tensor, log_q_bk: Tensor) -> Tensor:
    """(B,) KL(p ‖ q) of the rows."""
    return F.kl_div(log_q_bk, log_p_bk, reduction="none", log_target=True).sum(1)


def _in_batches(
    dataset: ImageDataset, model: LoadedModel, batch_size: int, workers: int, indices: Sequence[int], what: str
) -> Iterable[Batch]:
    n_batches = -(-len(indices) // batch_size)
    return progress(batches(dataset, model.transform, batch_size, workers, indices), what, n_batches, unit="batch")
