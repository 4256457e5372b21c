"""From an SAE's artifacts to what the page tells of its quality, its training, its selectivity and its geometry."""

# F features  D dimensions  K features of the picture

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from scipy.cluster.hierarchy import leaves_list, linkage
from scipy.spatial.distance import squareform
from torch import Tensor

from mis_lab.report.data import SiteSae
from mis_lab.report.sae_data import ClassSelectivity, Superposition, TrainingCourse, read_curves
from mis_lab.sae.base import Autoencoder, Sae
from mis_lab.sae.dead import Fates
from mis_lab.sae.evaluate import ReconstructionQuality
from mis_lab.sae.geometry import Geometry, overlaps
from mis_lab.sae.selectivity import Selectivity
from mis_lab.sae.splice import SpliceQuality
from mis_lab.sae.train import EVALUATIONS, LOSSES

N_PICTURED = 64


@dataclass(frozen=True)
class SaeResults:
    """What is known of the SAE of a site; `held_out` None without held-out groups, `splice` on the same images as it
    (or as `seen`); `geometry` of its dictionary, and `weights` of the site's own layer, None where there is none."""

    sae: Autoencoder
    folder: Path
    n_vectors: int
    seen: ReconstructionQuality
    held_out: ReconstructionQuality | None
    splice: SpliceQuality
    selectivity: Mapping[str, Selectivity] = field(default_factory=dict)
    geometry: Geometry | None = None
    weights: Geometry | None = None


def site_sae(site: str, results: SaeResults) -> SiteSae:
    """What the page says of the SAE of a site."""
    quality, splice = results.held_out or results.seen, results.splice
    density_f = results.seen.density_f.numpy()
    spaces = {}
    if results.geometry is not None:
        directions_fd = results.sae.dictionary if isinstance(results.sae, Sae) else None
        spaces["dictionary"] = superposition(results.geometry, "dictionary", directions_fd, density_f)
    if results.weights is not None:
        spaces["weights"] = superposition(results.weights, "weights")
    return SiteSae(
        site=site,
        name=results.sae.config.name if hasattr(results.sae.config, "name") else type(results.sae).__name__,
        n_features=results.sae.n_features,
        n_vectors=results.n_vectors,
        fvu=results.seen.fvu,
        fvu_held_out=results.held_out.fvu if results.held_out else None,
        l0=quality.l0,
        dead_share=results.seen.dead_share,
        ce_clean=splice.loss_original,
        ce_spliced=splice.loss_spliced,
        kl=splice.kl,
        top1_agreement=splice.agreement,
        loss_recovered_zero=splice.recovered_zero,
        loss_recovered_mean=splice.recovered_mean,
        evaluated_on=f"{splice.n_images} {'held-out ' if results.held_out else ''}images, target: the {splice.target}",
        density_f=density_f,
        course=training_course(results.folder),
        selectivity=selectivities(results.selectivity),
        superposition=spaces,
    )


def training_course(folder: Path) -> TrainingCourse:
    """What training left in the SAE's folder; parts that are not there stay empty."""
    return TrainingCourse(read_curves(folder / LOSSES), read_curves(folder / EVALUATIONS), Fates.read(folder))


def class_selectivity(kind: str, found: Selectivity) -> ClassSelectivity:
    return ClassSelectivity(
        kind, found.n_classes, found.histogram.numpy(), found.entropy_u.numpy(), found.gini_u.numpy()
    )


def selectivities(found: Mapping[str, Selectivity]) -> list[ClassSelectivity]:
    """Features before neurons."""
    return [class_selectivity(kind, found[kind]) for kind in ("feature", "neuron") if kind in found]


def superposition(
    shape: Geometry, what: str, directions_fd: Tensor | None = None, density_f: np.ndarray | None = None
) -> Superposition:
    """Geometry for the page.

    Args:
        shape: of all directions.
        what: ``dictionary`` or ``weights``.
        directions_fd: for a picture of the overlaps of some.
        density_f: which of them are used most.
    """
    cosines_kk, shown = None, []
    if directions_fd is not None and density_f is not None:
        shown = most_used(density_f, shape.norm_f.numpy())
        if len(shown) > 1:
            cosines_kk = _cosines(overlaps(directions_fd, shown).numpy())
            order = alike_together(cosines_kk)
            cosines_kk, shown = cosines_kk[np.ix_(order, order)], [shown[place] for place in order]
    return Superposition(
        what,
        len(shape.norm_f),
        shape.n_dimensions,
        shape.dimensionality_f.numpy(),
        shape.singular_values.numpy(),
        shape.coherence,
        shape.effective_rank,
        cosines_kk,
        shown,
    )


def most_used(density_f: np.ndarray, norm_f: np.ndarray, n: int = N_PICTURED) -> list[int]:
    """The living features that fire most often, most used first; the first of equals."""
    order = np.argsort(-density_f, kind="stable")
    return [int(f) for f in order if density_f[f] > 0 and norm_f[f] > 0][:n]


def alike_together(cosines_kk: np.ndarray) -> np.ndarray:
    """(K,) order that puts directions with a large |cos| beside each other (average linkage, best order of leaves)."""
    distance_kk = 1 - np.abs(cosines_kk).clip(0, 1)
    np.fill_diagonal(distance_kk, 0)
    if len(distance_kk) < 3:
        return np.arange(len(distance_kk))
    distances = squareform((distance_kk + distance_kk.T) / 2, checks=False)
    return np.asarray(leaves_list(linkage(distances, "average", optimal_ordering=True)))


def _cosines(products_kk: np.ndarray) -> np.ndarray:
    norm_k = np.sqrt(np.diag(products_kk))
    return np.clip(products_kk / norm_k[:, None] / norm_k, -1, 1)
