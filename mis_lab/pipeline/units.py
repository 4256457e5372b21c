"""Units of every kind at a site, and what scores them: where their activations come from, and what decides a score."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch

from mis_lab.activations.pools import PoolGatherer, Pools
from mis_lab.activations.shards import StoredActivations
from mis_lab.activations.units import Neurons, RandomDirections, UnitSource
from mis_lab.core.files import read_json, write_json
from mis_lab.core.keys import plain
from mis_lab.core.store import Artifact, Recipe
from mis_lab.metric.base import Embedding, embed_dataset
from mis_lab.mis.config import BESIDE_SCORES, MisConfig, Negatives
from mis_lab.mis.run import PERMUTED, pool_part, sample_units, score_units
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.pipeline.activations import activations
from mis_lab.pipeline.evaluation import classes, evaluate, is_labelled, predicted
from mis_lab.pipeline.lab import SUMMARY, VERSIONS, Lab
from mis_lab.pipeline.saes import sae
from mis_lab.sae import io as sae_io
from mis_lab.sae.architectures.neurons import NeuronsSae
from mis_lab.sae.baseline_config import NeuronsConfig
from mis_lab.sae.units import Features

N_MEAN = 32_768  # vectors whose mean sparse neurons are told apart from


def embedding(lab: Lab) -> Artifact:
    """Stage ``metric``: how alike the images of the split ``score`` look to the metric."""
    dataset = lab.data["score"]
    recipe = Recipe(
        "metric",
        VERSIONS["metric"],
        {"name": lab.config.metric.name},
        {"metric": lab.metric.fingerprint, "data": dataset.fingerprint},
        label=f"{lab.config.metric.name} of {dataset.name}/score",
    )

    def build(folder: Path) -> None:
        embedded = embed_dataset(lab.metric, dataset, scratch_dir=folder)
        embedded.write(folder)
        write_json(folder / SUMMARY, {"n_images": len(dataset)} | embedded.quality)

    return lab.store.get(recipe, build)


def kinds_of_units(lab: Lab) -> list[str]:
    """The kinds of units that a run scores at each site: ``neuron``, ``feature``, and the controls asked for."""
    controls = [kind for kind in lab.config.mis.controls if lab.has_sae or kind != "sparse_neurons"]
    return ["neuron", *(["feature"] if lab.has_sae else []), *controls]


@dataclass(frozen=True)
class Units:
    """The units of one kind at one site.

    Attributes:
        stored: activations that they are computed from.
        source: makes them of these; `inputs`: keys of what it needs for that.
        is_permuted: whether their activations are dealt to other images.
    """

    site: str
    kind: str
    stored: Artifact
    source: Callable[[StoredActivations], UnitSource]
    inputs: Mapping[str, str] = field(default_factory=dict)
    is_permuted: bool = False


def units_of(lab: Lab, site: str, kind: str) -> Units:
    """The control ``permuted`` is of features where there are any, else of neurons."""
    is_permuted = kind == PERMUTED
    stored = activations(lab, "score")
    if kind == "feature" or (is_permuted and lab.has_sae):
        trained = sae(lab, site)

        def features(read: StoredActivations) -> UnitSource:
            return Features(sae_io.load(trained.path).to(lab.device))

        return Units(site, kind, stored[lab.reads(site)], features, {"sae": trained.key}, is_permuted)
    if kind == "random_directions":
        config = lab.config
        return Units(
            site,
            kind,
            stored[site],
            lambda read: RandomDirections(read.width, config.mis.n_control_units, config.seed),
        )
    if kind == "sparse_neurons":
        evaluated = evaluate(lab, site)
        return Units(
            site,
            kind,
            stored[site],
            lambda read: _sparse_neurons(lab, read, read_json(evaluated.path / SUMMARY)),
            {"evaluate": evaluated.key},
        )
    return Units(site, kind, stored[site], lambda read: Neurons(read.width), {}, is_permuted)


def _sparse_neurons(lab: Lab, read: StoredActivations, quality: Mapping[str, float]) -> Features:
    """Of each vector the neurons farthest from their means, as many as the SAE has active features."""
    l0 = quality.get("seen/l0", quality.get("held_out/l0", 1.0))
    neurons = NeuronsSae(NeuronsConfig(k=max(1, round(l0))), read.width)
    every = -(-read.n_images * read.n_positions // N_MEAN)
    neurons.initialise(read.take(range(0, read.n_images, every)).flatten(0, 1), torch.Generator())
    return Features(neurons.eval().requires_grad_(False).to(lab.device), "sparse_neuron")


def scoring(lab: Lab, config: MisConfig) -> dict[str, Any]:
    """What decides the scores of given units, for recipes."""
    options = {name: value for name, value in plain(config).items() if name not in BESIDE_SCORES}
    return {"mis": options, "temperature": lab.metric.temperature, "seed": lab.config.seed}


def inputs_of(lab: Lab, units: Units, by_class: bool) -> dict[str, str]:
    """What units are scored from, for recipes; `by_class`: the images' classes, too."""
    found = {"activations": units.stored.key, "metric": embedding(lab).key, **units.inputs}
    if by_class:
        found["classes"] = lab.data["score"].fingerprint if is_labelled(lab) else predicted(lab).key
    return found


class Scorer:
    """Scores the units of one kind at one site, as often as asked, from what is read once."""

    def __init__(self, lab: Lab, units: Units, source: UnitSource | None = None) -> None:
        self.lab, self.units = lab, units
        self.read = StoredActivations(units.stored.path)
        self.source = source or units.source(self.read)
        self.embedding = Embedding.read(embedding(lab).path)
        self.classes = classes(lab) if Negatives.within_class in lab.config.mis.negatives else None

    @property
    def sample(self) -> list[int]:
        """Some units, the same whenever asked."""
        return sample_units(self.source.n_units, self.lab.config.mis.n_control_units, self.lab.config.seed)

    def scores(
        self, config: MisConfig, seed: int, some: Sequence[int] | None = None, pools: Pools | None = None
    ) -> UnitScores:
        """Scores of all units, or of `some`; `pools` are theirs where they were gathered before."""
        return score_units(
            self.read,
            self.source,
            self.embedding,
            config,
            seed,
            temperature=self.lab.metric.temperature,
            units=some,
            control=PERMUTED if self.units.is_permuted else "",
            device=self.lab.device,
            classes=self.classes,
            pools=pools,
        )

    def pools(self, images: range | None = None) -> PoolGatherer:
        """What the images (all by default) tell of the units' pools."""
        config = self.lab.config
        return pool_part(self.read, self.source, config.mis, config.seed, images=images, device=self.lab.device)
