"""What nodes become when they are ablated: a state of each site, kept as features and error.

The mean of tokens is taken per position (a transformer never meets anything like its mean over positions),
that of maps and vectors over all positions: one number a feature; ``mean_per_position`` keeps positions apart in
maps too. States that differ from image to image are in :mod:`mis_lab.circuit.patching`.
"""

# n images  B images of a batch  P positions  D site width  F features  N nodes

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.circuit.config import Baseline
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress
from mis_lab.model.capture import Capture
from mis_lab.model.sites import Site


@dataclass(frozen=True, eq=False)
class SiteNodes:
    """The nodes of one kind at one site, and what each becomes when ablated.

    Attributes:
        dictionary: which nodes.
        features: (F,), (P, F) or (B, P, F), codes of ablated features.
        error: (D,), (P, D) or (B, P, D), value of an ablated error node.
        state: (D,), (P, D) or (B, P, D), the site with every node ablated: Σ_k features_k·atom_k + offset + error.
            With B it belongs to the images of one batch, one after the other.
    """

    dictionary: NodeDictionary
    features: Tensor
    error: Tensor
    state: Tensor

    @classmethod
    def of(cls, dictionary: NodeDictionary, features: Tensor, error: Tensor) -> SiteNodes:
        return cls(dictionary, features, error, dictionary.combine(features) + dictionary.offset + error)

    def check_fits(self, x_bpd: Tensor) -> None:
        """Raise unless the baseline can take the place of these vectors (B, P, D).

        Raises:
            DataError: when it has other positions, another width, or belongs to a batch of another size.
        """
        n_lacking = x_bpd.ndim - self.state.ndim
        if n_lacking < 0 or self.state.shape != x_bpd.shape[n_lacking:]:
            raise DataError(
                f"a baseline of shape {tuple(self.state.shape)} does not fit vectors of shape {tuple(x_bpd.shape)}",
                fix="Make it at the same site, on images of the same size, and on as many where each has its own.",
            )

    def chunks(self, x_bpd: Tensor) -> Iterator[tuple[Tensor, SiteNodes]]:
        """Vectors of some images at a time, as many as their codes allow, with the nodes of these images.

        Raises:
            DataError: as :meth:`check_fits`.
        """
        self.check_fits(x_bpd)
        n_at_once = n_images_at_once(self.dictionary, x_bpd.shape[1])
        for start in range(0, len(x_bpd), n_at_once):
            stop = start + n_at_once
            mine = (t[start:stop] if t.ndim == 3 else t for t in (self.features, self.error, self.state))
            yield x_bpd[start:stop], SiteNodes(self.dictionary, *mine)


# Site path → nodes, in the order of the network; and kind of nodes → those.
NodeSet = Mapping[str, SiteNodes]
Dictionaries = Mapping[str, Mapping[str, NodeDictionary]]
BaselineFunction = Callable[[Problem, Dictionaries, Images], dict[str, dict[str, SiteNodes]]]


def zero(problem: Problem, dictionaries: Dictionaries, images: Images) -> dict[str, dict[str, SiteNodes]]:
    """Features and error zero: the end point is the dictionary's offset, which is x = 0 for neurons alone."""
    return {
        kind: {
            path: SiteNodes.of(d, d.offset.new_zeros(d.n_features), torch.zeros_like(d.offset))
            for path, d in of_kind.items()
        }
        for kind, of_kind in dictionaries.items()
    }


def mean(problem: Problem, dictionaries: Dictionaries, images: Images) -> dict[str, dict[str, SiteNodes]]:
    """Mean feature and mean error over `images`, accumulated in float64: the end point is the mean of x.

    Raises:
        DataError: when there are no images.
    """
    return _means(problem, dictionaries, images, {site.path: per_position(site) for site in problem.sites})


def mean_per_position(problem: Problem, dictionaries: Dictionaries, images: Images) -> dict[str, dict[str, SiteNodes]]:
    """:func:`mean` at each position on its own, in maps as well as tokens.

    Raises:
        DataError: when there are no images.
    """
    return _means(problem, dictionaries, images, dict.fromkeys((site.path for site in problem.sites), True))


def _means(
    problem: Problem, dictionaries: Dictionaries, images: Images, apart: Mapping[str, bool]
) -> dict[str, dict[str, SiteNodes]]:
    """The mean at each site, its positions kept `apart` or not."""
    vectors = {site.path: _Mean(apart[site.path]) for site in problem.sites}
    codes = {
        kind: {path: _Mean(vectors[path].per_position) for path in of_kind} for kind, of_kind in dictionaries.items()
    }
    with Capture(problem.model, problem.sites) as capture, torch.inference_mode():
        for images_bchw in progress(images, "circuit baselines", unit="batch"):
            for path, x_bpd in capture.run(images_bchw).items():
                vectors[path].update(x_bpd)
                for kind, of_kind in dictionaries.items():
                    for chunk_bpd in x_bpd.split(n_images_at_once(of_kind[path], x_bpd.shape[1])):
                        codes[kind][path].update(of_kind[path].encode(chunk_bpd))
    return {
        kind: {path: _mean_nodes(d, vectors[path].result(), codes[kind][path].result()) for path, d in of_kind.items()}
        for kind, of_kind in dictionaries.items()
    }


# Those that are the same for every image.
BASELINES: dict[Baseline, BaselineFunction] = {
    Baseline.zero: zero,
    Baseline.mean: mean,
    Baseline.mean_per_position: mean_per_position,
}


def per_position(site: Site) -> bool:
    """Whether the site's mean is taken for each position on its own: for tokens."""
    return site.layout == "btd"


def mean_image(images: Images) -> Tensor:
    """Mean of `images` as the network gets them (normalised), (C, H, W) float64.

    Raises:
        DataError: when there are no images.
    """
    total = _Mean(per_position=True)
    for images_bchw in images:
        total.update(images_bchw)
    return total.result()


def _mean_nodes(dictionary: NodeDictionary, x: Tensor, codes: Tensor) -> SiteNodes:
    """Baseline from the float64 means of x and f: x̂ is affine in f, so mean error = mean x − x̂(mean f)."""
    like = dictionary.offset
    features = codes.to(like)
    if not dictionary.has_error:
        return SiteNodes.of(dictionary, features, torch.zeros_like(like))
    reconstruction = dictionary.combine(features) + dictionary.offset
    return SiteNodes(dictionary, features, x.to(like) - reconstruction, x.to(like))


class _Mean:
    """Running float64 mean over images, and over positions unless `per_position`."""

    def __init__(self, per_position: bool) -> None:
        self.per_position, self.count, self.total = per_position, 0, torch.zeros((), dtype=torch.float64)

    def update(self, values: Tensor) -> None:
        dims = (0,) if self.per_position else tuple(range(values.ndim - 1))
        summable = values.cpu() if values.device.type == "mps" else values  # mps has no float64
        self.total = self.total + summable.sum(dims, dtype=torch.float64).cpu()
        self.count += values.shape[: len(dims)].numel()

    def result(self) -> Tensor:
        if not self.count:
            raise DataError("no images to take the mean over", fix="Give at least one discovery image.")
        return self.total / self.count
