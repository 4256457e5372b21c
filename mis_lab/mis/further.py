"""Further scores of the units that have a MIS: other answers to the question whether a unit stands for one thing.

The MIS sees the extremes and asks whether two sides can be told apart. MonoSemanticity weighs all images, coherence
looks at the top alone, odd-one-out asks for an intruder among it, classes say what the top has in common, and cross-MIS
whether another unit has the same. Where they rank units alike, a conclusion does not hang on one definition.
"""

# U units  S pool size  n images

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Self

import numpy as np
import torch
from torch import Tensor

from mis_lab.core.records import read_record, write_record
from mis_lab.core.seeding import derive_seed
from mis_lab.mis.coherence import coherence, pool_classes
from mis_lab.mis.config import MisConfig
from mis_lab.mis.cross_mis import cross_mis, neighbours
from mis_lab.mis.monosemanticity import Weighting, monosemanticity, pool_monosemanticity, stored_chunks
from mis_lab.mis.odd_one_out import odd_one_out
from mis_lab.mis.units import UnitStatus, is_sparse, silent_status

if TYPE_CHECKING:
    from mis_lab.activations.pools import Pools
    from mis_lab.activations.shards import StoredActivations
    from mis_lab.activations.units import UnitSource
    from mis_lab.metric.base import Embedding

RECORD = "further"
DUPLICATE = 0.99  # likeness of two units' explanations from which on they count as one
# Scores of a unit on a scale where more is more interpretable; cross-MIS and likeness tell of pairs of units.
MEASURES = (
    "monosemanticity",
    "monosemanticity_active",
    "monosemanticity_top",
    "coherence",
    "odd_one_out",
    "class_purity",
)


@dataclass(frozen=True, eq=False)
class FurtherScores:
    """Of U units, (U,) float64 each; NaN for units that have no such score.

    Attributes:
        site, kind: of the units.
        n_top: images that coherence, odd-one-out, classes and `monosemanticity_top` look at.
        base_rate: mean similarity of two images of the data set: what similarities are to be compared with.
        odd_one_out_chance: what odd-one-out scores by guessing.
        units: (U,) int64, their places at the site.
        monosemanticity: all images weighted by their activation between the unit's minimum and maximum (Pach et al.).
        monosemanticity_active: weighted by the positive part.
        monosemanticity_top: the top images alone.
        coherence: mean similarity of two of the top images.
        odd_one_out: share of intruders found among them.
        class_entropy, class_purity: classes of the top images, in bits and share of the most frequent one.
        class_majority: (U,) int64, that class; −1 for none.
        nearest: (U,) int64, the unit with the most similar explanations; −1 for none.
        likeness: cosine of both units' mean explanations about the mean of the data set.
        cross_mis: share of their images that can be told apart; one half for equal explanations.
    """

    site: str
    kind: str
    n_top: int
    base_rate: float
    odd_one_out_chance: float
    units: Tensor
    monosemanticity: Tensor
    monosemanticity_active: Tensor
    monosemanticity_top: Tensor
    coherence: Tensor
    odd_one_out: Tensor
    class_entropy: Tensor
    class_purity: Tensor
    class_majority: Tensor
    nearest: Tensor
    likeness: Tensor
    cross_mis: Tensor

    def measures(self) -> dict[str, np.ndarray]:
        """Name → (U,) score, of :data:`MEASURES`."""
        return {name: getattr(self, name).numpy() for name in MEASURES}

    @property
    def duplicate_share(self) -> float:
        """Share of the units with explanations that have a near-double among the others; NaN without any."""
        known = self.likeness.isfinite()
        return float((self.likeness[known] >= DUPLICATE).double().mean()) if known.any() else float("nan")

    def numbers(self) -> dict[str, float]:
        """Means over the units that have a score, for summaries."""
        means = {
            name: float(np.nanmean(values)) for name, values in self.measures().items() if np.isfinite(values).any()
        }
        return means | {"base_rate": self.base_rate, "duplicate_share": self.duplicate_share}

    def write(self, folder: Path) -> None:
        """Write the scores into `folder`."""
        write_record(folder, RECORD, self)

    @classmethod
    def read(cls, folder: Path) -> Self:
        """Read what :meth:`write` wrote.

        Raises:
            StoreError: when a file is missing or damaged.
        """
        return read_record(cls, folder, RECORD)


def further_scores(
    stored: StoredActivations,
    source: UnitSource,
    pools: Pools,
    embedding: Embedding,
    classes: Tensor,
    config: MisConfig,
    seed: int,
    device: torch.device | str = "cpu",
) -> FurtherScores:
    """Further scores of all units of `source`, in two passes over the stored activations.

    Args:
        pools: of the same units, by the same image activation.
        embedding: of the same images in the same order.
        classes: (n,) int64, labels or the network's own predictions.
        seed: of the odd-one-out tasks; a unit has its own stream.

    Raises:
        DataError: when images are missing, or an activation is NaN or infinite.
    """
    status_u = silent_status(pools.n_active, pools.minimum, pools.maximum)
    # Only images that activate a unit explain it, where zero means silent.
    inactive_us = is_sparse(pools.minimum)[:, None] & ~(pools.top_values > 0)
    unusable_us = inactive_us | (status_u != UnitStatus.ok.value)[:, None]
    pools = pools._replace(top=pools.top.masked_fill(unusable_us, -1))
    k, n_top = config.n_explanations, min(config.n_top, pools.top.shape[1])
    chunks = stored_chunks(stored, source, config.image_activation, device)
    scaled, active = (monosemanticity(chunks, embedding, weighting) for weighting in Weighting)
    alike = coherence(pools.top, embedding, n_top)
    odd = odd_one_out(
        pools.top[:, :n_top],
        pools.random,
        embedding,
        n_shown=min(5, n_top),
        n_tasks=config.n_tasks,
        seed=derive_seed(seed, "further", stored.site.path, source.kind),
    )
    in_top = pool_classes(pools.top, classes.tolist(), n_top)
    near = neighbours(pools.top, embedding, n=1, k=min(k, n_top))
    pairs_p2 = torch.stack([torch.arange(len(near.units)), near.units[:, 0].clamp_min(0)], 1)
    told_apart = cross_mis(pools.top, pairs_p2, embedding, k=max(2, min(k, n_top)))
    return FurtherScores(
        site=stored.site.path,
        kind=source.kind,
        n_top=n_top,
        base_rate=alike.base_rate,
        odd_one_out_chance=odd.chance,
        units=torch.arange(source.n_units),
        monosemanticity=scaled.score,
        monosemanticity_active=active.score,
        monosemanticity_top=pool_monosemanticity(pools, embedding, n_top).score,
        coherence=alike.coherence,
        odd_one_out=torch.as_tensor(odd.found.estimate),
        class_entropy=in_top.entropy,
        class_purity=in_top.purity,
        class_majority=in_top.majority,
        nearest=near.units[:, 0],
        likeness=near.likeness[:, 0].double(),
        cross_mis=told_apart.accuracy.masked_fill(near.units[:, 0] < 0, torch.nan),
    )
