"""Tiny networks in float64, dictionaries at their sites, and slow but obvious oracles, for the tests of circuits."""

# B images  P positions  D site width  F features  N nodes

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mis_lab.circuit.baselines import SiteNodes, mean, mean_image, zero
from mis_lab.circuit.circuit import Circuit, rank
from mis_lab.circuit.config import CircuitConfig, EffectMethod, Objective
from mis_lab.circuit.dictionaries import Neurons, NodeDictionary, SaeFeatures, n_nodes
from mis_lab.circuit.effects import InputPath, node_effects
from mis_lab.circuit.objectives import OBJECTIVES, Problem
from mis_lab.circuit.patching import PatchedNodes
from mis_lab.circuit.quadrature import midpoint
from mis_lab.circuit.result import CircuitResult
from mis_lab.circuit.run import discover_and_evaluate
from mis_lab.circuit.splice import ablations
from mis_lab.core.seeding import generator, numpy_generator
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.load import LoadedModel
from mis_lab.model.sites import Site
from mis_lab.sae.architectures.relu import ReluSae
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.config import ReluConfig, TopKConfig

N_CLASSES = 4


class Pooled(nn.Module):
    """Mean over positions, then linear: what follows the last site of both networks of maps."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.linear = nn.Linear(width, N_CLASSES)

    def forward(self, x_bchw: Tensor) -> Tensor:
        return self.linear(x_bchw.mean((2, 3)))


class Tokens(nn.Module):
    """Patches → tokens, mixed over positions by a linear map after a GELU; read out by another GELU."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Conv2d(3, 6, 2, 2)
        self.position = nn.Parameter(torch.randn(9, 6))
        self.mix = nn.Linear(9, 9)
        self.block = nn.Identity()
        self.out = nn.Linear(6, N_CLASSES)
        self.tokens = nn.Identity()

    def forward(self, images_bchw: Tensor) -> Tensor:
        x_btd = self.tokens(self.embed(images_bchw).flatten(2).transpose(1, 2) + self.position)
        mixed = self.mix(nn.functional.gelu(x_btd).transpose(1, 2)).transpose(1, 2)
        return self.out(nn.functional.gelu(self.block(mixed)).mean(1))


def relu_network() -> nn.Sequential:
    """Two sites, `first` (5 channels at 6×6) and `second` (7 at 3×3), in-place ReLUs right behind them."""
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), nn.ReLU(inplace=True), nn.Conv2d(5, 7, 2, 2), nn.ReLU(inplace=True)),
        Pooled(7),
    )


def linear_network() -> nn.Sequential:
    """The same without ReLUs: every estimate of an effect is exact here."""
    return nn.Sequential(
        *(nn.Conv2d(3, 5, 3, padding=1), nn.Identity(), nn.Conv2d(5, 7, 2, 2), nn.Identity()), Pooled(7)
    )


MAPS = (Site("1", "bchw", 5, 36, (6, 6)), Site("3", "bchw", 7, 9, (3, 3)))
BEFORE_RELU = (Site("0", "bchw", 5, 36, (6, 6)), Site("2", "bchw", 7, 9, (3, 3)))
SEQUENCES = (Site("tokens", "btd", 6, 9, (3, 3)), Site("block", "btd", 6, 9, (3, 3)))


@dataclass
class Toy:
    """A problem with images, targets and nodes of both kinds at its sites."""

    problem: Problem
    images: list[Tensor]
    targets_n: Tensor
    saes: Mapping[str, nn.Module]
    baseline: Callable = mean
    node_sets: dict[str, dict[str, SiteNodes]] = field(init=False)

    def __post_init__(self) -> None:
        like = self.images[0]
        dictionaries = {
            "feature": {site.path: SaeFeatures.at(site, self.saes[site.path]) for site in self.problem.sites},
            "neuron": {site.path: Neurons.at(site, like) for site in self.problem.sites},
        }
        self.node_sets = self.baseline(self.problem, dictionaries, self.images)

    @property
    def module(self) -> nn.Module:
        return self.problem.model.module

    @property
    def all_images(self) -> Tensor:
        return torch.cat(list(self.images))

    def clean(self) -> tuple[Tensor, dict[str, Tensor]]:
        """Objective (n,) and vectors of all images."""
        return self.problem.observe(self.all_images, self.targets_n)

    def kept(self, kind: str, value: bool = True) -> dict[str, Tensor]:
        """A mask a site, all `value`."""
        return {path: torch.full((n_nodes(nodes.dictionary),), value) for path, nodes in self.node_sets[kind].items()}

    @torch.no_grad()
    def objective(self, kind: str, kept: Mapping[str, Tensor]) -> Tensor:
        """Objective (n,) with the nodes outside `kept` ablated."""
        return self.problem.values(self.all_images, self.targets_n, ablations(self.node_sets[kind], kept))

    def exact(self, kind: str, path: str) -> Tensor:
        """(n, N): m(clean) − m(do(node = baseline)), a forward pass a node."""
        found = []
        for node in range(len(self.kept(kind)[path])):
            kept = self.kept(kind)
            kept[path][node] = False
            found.append(self.objective(kind, self.kept(kind)) - self.objective(kind, kept))
        return torch.stack(found, dim=1)

    def dictionaries(self, kind: str) -> dict[str, NodeDictionary]:
        """Site path → which nodes."""
        return {path: nodes.dictionary for path, nodes in self.node_sets[kind].items()}

    def patched(self, kind: str, places: Sequence[int]) -> PatchedNodes:
        """Nodes that become what they are on the image at each of `places`, in batches like the images'."""
        partners = self.all_images[list(places)].split([len(batch) for batch in self.images])
        return PatchedNodes(self.problem, self.dictionaries(kind), partners)

    def circuit(self, kind: str) -> Circuit:
        """All live nodes by attribution patching."""
        path = InputPath(mean_image(self.images), midpoint(1))
        found = node_effects(self.problem, self.node_sets, self.images, self.targets_n, EffectMethod.atp, path)
        return rank(kind, found[kind])


class Spliced(nn.Module):
    """A two-site network of maps with one site written as features and error, each behind a module of its own."""

    def __init__(self, toy: Toy, path: str) -> None:
        super().__init__()
        cut = int(path) + 1
        self.before, self.after, self.sae = toy.module[:cut], toy.module[cut:], toy.saes[path]
        self.features, self.error = nn.Identity(), nn.Identity()

    def forward(self, images_bchw: Tensor) -> Tensor:
        maps = self.before(images_bchw)
        x_bpd = maps.flatten(2).transpose(1, 2)
        codes = self.sae.encode(x_bpd)
        error = (x_bpd - self.sae.decode(codes)).detach()
        # As features and error are nodes, neither may pass on a gradient through the other.
        codes, error = self.features(codes.detach().requires_grad_()), self.error(error.requires_grad_())
        return self.after((self.sae.decode(codes) + error).transpose(1, 2).unflatten(2, maps.shape[2:]).clone())


def loaded(module: nn.Module, n_classes: int = N_CLASSES) -> LoadedModel:
    """A network as the library hands it out."""
    module.eval().requires_grad_(False)
    transform = ImageTransform(TransformConfig(size=6, mean=[0.5] * 3, std=[0.5] * 3, interpolation="nearest"))
    return LoadedModel("toy", module, "0" * 64, transform, (3, 6, 6), False, n_classes, torch.device("cpu"))


def trained_sae(kind: str, x_bpd: Tensor, n_features: int = 11) -> nn.Module:
    """An SAE of these vectors that has a scale, a bias and an error; a few features never fire."""
    width, dtype = x_bpd.shape[-1], x_bpd.dtype
    sae = (
        ReluSae(ReluConfig(n_features=n_features, name="relu"), width)
        if kind == "relu"
        else TopKSae(TopKConfig(n_features=n_features, k=3, name="topk"), width)
    )
    sae.initialise(x_bpd.reshape(-1, width).float(), generator(0, "sae", kind))
    with torch.no_grad():
        sae.b_enc.uniform_(-0.3, 0.3)
        sae.b_enc[:2] = -100.0  # dead
    return sae.to(dtype).eval().requires_grad_(False)


NETWORKS = {
    "relu": (relu_network, MAPS),
    "before_relu": (relu_network, BEFORE_RELU),
    "linear": (linear_network, MAPS),
    "tokens": (Tokens, SEQUENCES),
}


def build_toy(
    network: str = "relu",
    sae: str = "relu",
    baseline: Callable = mean,
    n: int = 7,
    dtype: torch.dtype = torch.float64,
) -> Toy:
    """A toy of `n` images in batches of three; every network with every kind of SAE and baseline."""
    make_network, sites = NETWORKS[network]
    problem = Problem(loaded(make_network().to(dtype)), sites, OBJECTIVES[Objective.logit])
    images = list(torch.randn(n, 3, 6, 6, dtype=dtype).split(3))
    targets_n = torch.randint(N_CLASSES, (n,))
    vectors = problem.observe(torch.cat(images), targets_n).vectors
    saes = {path: trained_sae(sae, x_bpd) for path, x_bpd in vectors.items()}
    return Toy(problem, images, targets_n, saes, baseline)


@pytest.fixture
def make_toy() -> Callable[..., Toy]:
    """:func:`build_toy`."""
    return build_toy


@pytest.fixture
def make_sae() -> Callable[..., nn.Module]:
    """:func:`trained_sae`."""
    return trained_sae


@pytest.fixture
def splice() -> Callable[[Toy, str], Spliced]:
    """:class:`Spliced`, for Captum's layers."""
    return Spliced


@pytest.fixture(params=["relu", "before_relu", "tokens"])
def nonlinear(request: pytest.FixtureRequest) -> str:
    """Names of the networks that are not linear."""
    return request.param


@pytest.fixture(params=[mean, zero], ids=["mean", "zero"])
def baseline(request: pytest.FixtureRequest) -> Callable:
    """Every baseline."""
    return request.param


@pytest.fixture(params=["feature", "neuron"])
def kind(request: pytest.FixtureRequest) -> str:
    """Every kind of nodes."""
    return request.param


@pytest.fixture
def as_model() -> Callable[..., LoadedModel]:
    """:func:`loaded`."""
    return loaded


@pytest.fixture(scope="session")
def shared_toy() -> Toy:
    """One toy for properties that hypothesis tries many times."""
    with torch.random.fork_rng():
        return build_toy()


STAGE = CircuitConfig(
    n_steps=3,
    n_discovery=6,
    n_evaluation=5,
    sizes=4,
    n_random=2,
    n_shown=5,
    batch_size=4,
    min_effect=1e-9,
)


class Noise(ImageDataset):
    """Noise of 6×6 pixels, four images a group; the last image has no label."""

    def __init__(self, n: int = 24) -> None:
        labels = [index % 4 for index in range(n - 1)] + [-1]
        super().__init__(
            "noise", "score", [f"noise/{i}" for i in range(n)], [f"g{i // 4}" for i in range(n)], labels, list("abcd")
        )

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(numpy_generator(0, "noise", index).integers(0, 256, (6, 6, 3), dtype=np.uint8))


@pytest.fixture
def noise() -> Callable[..., Noise]:
    """:class:`Noise`."""
    return Noise


@pytest.fixture
def stage_config() -> CircuitConfig:
    """Options of a small stage."""
    return STAGE


@pytest.fixture
def run() -> Callable[..., CircuitResult]:
    """run(network, seed, **options or arguments): the stage on groups 0 to 2 of noise, evaluated on 3 to 5."""

    def stage(network: str = "relu", seed: int = 0, **changes: Any) -> CircuitResult:
        torch.manual_seed(0)
        toy = build_toy(network, dtype=torch.float32)
        options = {each.name: changes.pop(each.name) for each in fields(CircuitConfig) if each.name in changes}
        arguments = {
            "model": toy.problem.model,
            "sites": toy.problem.sites,
            "saes": toy.saes,
            "dataset": Noise(),
            "discovery": range(12),
            "evaluation": range(12, 23),
        }
        return discover_and_evaluate(**(arguments | changes), config=replace(STAGE, **options), seed=seed)

    return stage
