"""How active the nodes of sites are on some images: means, densities and dead units.

A circuit's own images (those of a class, say) and all evaluation images side by side tell whether its nodes are
special to it. A neuron counts as active wherever it is not zero, which says little where no ReLU precedes it.
"""

# B images  P positions  D site width  F features

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from mis_lab.activations.shards import StoredActivations
from mis_lab.circuit.baselines import Dictionaries
from mis_lab.circuit.dictionaries import NodeDictionary, n_images_at_once
from mis_lab.circuit.objectives import Images, Problem
from mis_lab.core.errors import DataError
from mis_lab.core.progress import progress
from mis_lab.model.capture import Capture

# Batches of images: site path → vectors (B, P, D).
Vectors = Iterable[Mapping[str, Tensor]]


@dataclass(frozen=True, eq=False)
class Activity:
    """The features (or neurons) of a site on some images; the error node is left out.

    Attributes:
        n_images: how many.
        mean: (F,) float64, over images and positions.
        mean_if_active: (F,) float64, over the positions where it is not zero; NaN when there is none.
        active_images: (F,) float64, share of images with a position where it is not zero.
        density: (F,) float64, share of positions where it is not zero.
    """

    n_images: int
    mean: Tensor
    mean_if_active: Tensor
    active_images: Tensor
    density: Tensor

    @property
    def dead(self) -> Tensor:
        """(F,) bool: zero everywhere."""
        return self.active_images == 0

    @property
    def dead_share(self) -> float:
        """Share of features that are zero everywhere."""
        return float(self.dead.double().mean())


@dataclass(frozen=True, eq=False)
class ActivityBeside:
    """A site's activity on the images of a circuit, and on all images.

    Attributes:
        circuit, everything: on the circuit's images, and on all.
    """

    circuit: Activity
    everything: Activity

    @property
    def more_here(self) -> Tensor:
        """(F,) difference of the shares of active images: positive where the circuit's images have it more."""
        return self.circuit.active_images - self.everything.active_images

    @property
    def silent_here(self) -> float:
        """Of the features alive on all images, the share that is dead on the circuit's; NaN without any alive."""
        alive = ~self.everything.dead
        return float(self.circuit.dead[alive].double().mean())


@dataclass(frozen=True, eq=False)
class CapturedVectors:
    """The vectors of every site, a batch at a time, from forward passes over `images`."""

    problem: Problem
    images: Images

    def __len__(self) -> int:
        return len(self.images)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        with Capture(self.problem.model, self.problem.sites) as capture:
            for images_bchw in self.images:
                yield capture.run(images_bchw)


@dataclass(frozen=True, eq=False)
class StoredVectors:
    """The same of the images at these places, from where they are stored."""

    activations: Mapping[str, StoredActivations]
    indices: Sequence[int]
    batch_size: int

    def __len__(self) -> int:
        return -(-len(self.indices) // self.batch_size)

    def __iter__(self) -> Iterator[Mapping[str, Tensor]]:
        for start in range(0, len(self.indices), self.batch_size):
            some = self.indices[start : start + self.batch_size]
            yield {path: stored.take(some) for path, stored in self.activations.items()}


def activity(dictionaries: Mapping[str, NodeDictionary], vectors: Vectors) -> dict[str, Activity]:
    """Site path → activity on some images.

    Args:
        dictionaries: site path → nodes of one kind, for every site.
        vectors: of the images, :class:`CapturedVectors` or :class:`StoredVectors`.

    Raises:
        DataError: without images.
    """
    return _of_kinds({"": dictionaries}, vectors)[""]


def activity_beside(
    dictionaries: Dictionaries, vectors: Vectors, all_vectors: Vectors
) -> dict[str, dict[str, ActivityBeside]]:
    """Kind → site path → activity on a circuit's images and on all; kinds share the passes.

    Raises:
        DataError: when either has no images.
    """
    here, everywhere = (_of_kinds(dictionaries, some) for some in (vectors, all_vectors))
    return {
        kind: {path: ActivityBeside(here[kind][path], everywhere[kind][path]) for path in of_kind}
        for kind, of_kind in dictionaries.items()
    }


@torch.inference_mode()
def _of_kinds(dictionaries: Dictionaries, vectors: Vectors) -> dict[str, dict[str, Activity]]:
    tallies = {kind: {path: _Tally() for path in of_kind} for kind, of_kind in dictionaries.items()}
    for of_batch in progress(vectors, "circuit activity", unit="batch"):
        for kind, of_kind in dictionaries.items():
            for path, dictionary in of_kind.items():
                x_bpd = of_batch[path].to(dictionary.offset)
                for x in x_bpd.split(n_images_at_once(dictionary, x_bpd.shape[1])):
                    tallies[kind][path].update(dictionary.encode(x))
    return {kind: {path: tally.result() for path, tally in of_kind.items()} for kind, of_kind in tallies.items()}


class _Tally:
    """Sums over the images of a site, in float64."""

    def __init__(self) -> None:
        self.n_images = self.n_positions = 0
        self.total = self.active_images = self.active_positions = torch.zeros((), dtype=torch.float64)

    def update(self, codes_bpf: Tensor) -> None:
        codes = codes_bpf.cpu() if codes_bpf.device.type == "mps" else codes_bpf  # mps has no float64
        active = codes != 0
        self.n_images += len(codes)
        self.n_positions += codes.shape[0] * codes.shape[1]
        self.total = self.total + codes.sum((0, 1), dtype=torch.float64).cpu()
        self.active_images = self.active_images + active.any(1).sum(0).cpu().double()
        self.active_positions = self.active_positions + active.sum((0, 1)).cpu().double()

    def result(self) -> Activity:
        if not self.n_images:
            raise DataError("no images to see nodes active on", fix="Give at least one image.")
        return Activity(
            n_images=self.n_images,
            mean=self.total / self.n_positions,
            mean_if_active=self.total / self.active_positions,
            active_images=self.active_images / self.n_images,
            density=self.active_positions / self.n_positions,
        )
