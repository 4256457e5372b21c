"""A made-up run that looks like a real one: tiles of real photographs, units that are directions of simple image
statistics, scores and curves of plausible shape. Everything follows from one seed.
"""

# T tiles  C side of the grid of cells  D statistics of a cell

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest
import skimage.data
import torch
from PIL import Image
from sklearn.datasets import load_sample_image

from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.circuit.circuit import Node
from mis_lab.core.intervals import Interval
from mis_lab.mis.agreement import reseed_noise
from mis_lab.mis.discovery import InterpretableUnits
from mis_lab.mis.further import FurtherScores
from mis_lab.mis.over_sites import OverSites
from mis_lab.mis.pairs import compare_pairs
from mis_lab.report.about import ArtifactRef, DatasetSummary, ModelSummary, RunSummary, Scene, SiteSummary
from mis_lab.report.circuit_data import (
    CircuitDetails,
    CircuitEdge,
    CmdDifference,
    CompletenessCurve,
    Need,
    RankedNodes,
    SiteActivity,
)
from mis_lab.report.config import ReportConfig
from mis_lab.report.data import (
    CircuitNode,
    CircuitSite,
    CircuitView,
    ComparisonRow,
    FaithfulnessCurve,
    KindScores,
    MisSettings,
    ReportData,
    SiteSae,
    UnitCard,
    UnitImage,
    UnitScore,
)
from mis_lab.report.mis_data import AgreementMatrix, BesideScores, CourseCurve, PairedScores, ScoreCurve
from mis_lab.report.page import write_report
from mis_lab.report.sae_collect import superposition
from mis_lab.report.sae_data import ClassSelectivity, Superposition, TrainingCourse
from mis_lab.sae.dead import Fates
from mis_lab.sae.geometry import geometry

SCENES = (
    "astronaut",
    "brick",
    "camera",
    "cat",
    "coffee",
    "coins",
    "grass",
    "gravel",
    "hubble_deep_field",
    "immunohistochemistry",
    "moon",
    "retina",
    "rocket",
)
SITES = {"blocks.2": (40, 144, 320), "blocks.4": (112, 36, 896), "blocks.6": (320, 9, 2560)}
TILE, CELLS, HELD_OUT = 64, 6, ("china", "coins", "rocket", "cat")


@dataclass(frozen=True)
class Tiles:
    """Tiles (T, 64, 64, 3), the scene of each, standardised statistics of each cell (T, C, C, D), whole scenes."""

    pixels: np.ndarray
    scene: list[str]
    cells: np.ndarray
    whole: dict[str, np.ndarray]


@cache
def tiles() -> Tiles:
    whole = {name: _rgb(getattr(skimage.data, name)()) for name in SCENES}
    whole |= {name: load_sample_image(f"{name}.jpg") for name in ("china", "flower")}
    pixels, scene = [], []
    for name, image in whole.items():
        small = np.asarray(Image.fromarray(image).resize((384, 320), Image.Resampling.BILINEAR))
        for y in range(0, 320, TILE):
            for x in range(0, 384, 2 * TILE):
                pixels.append(small[y : y + TILE, x : x + TILE])
                scene.append(name)
    stacked = np.stack(pixels)
    return Tiles(stacked, scene, _cell_statistics(stacked), whole)


def _rgb(image: np.ndarray) -> np.ndarray:
    return np.repeat(image[..., None], 3, -1) if image.ndim == 2 else np.ascontiguousarray(image[..., :3])


def _cell_statistics(pixels: np.ndarray) -> np.ndarray:
    x = pixels.astype(np.float32) / 255
    grey = x.mean(-1)
    maps = [
        *np.moveaxis(x, -1, 0),
        x.max(-1) - x.min(-1),
        np.abs(np.gradient(grey, axis=1)),
        np.abs(np.gradient(grey, axis=2)),
    ]
    n = TILE // CELLS * CELLS
    cells = [m[:, :n, :n].reshape(len(m), CELLS, n // CELLS, CELLS, n // CELLS).mean((2, 4)) for m in maps]
    stacked = np.stack(cells, -1)
    flat = stacked.reshape(-1, stacked.shape[-1])
    return (stacked - flat.mean(0)) / flat.std(0)


def unit_images(random: np.random.Generator, n: int, sparse: bool) -> dict[str, list[UnitImage]]:
    """Top and least images of a random direction of the cells' statistics."""
    source = tiles()
    direction = random.normal(size=source.cells.shape[-1]) * (random.random(source.cells.shape[-1]) < 0.6)
    direction[random.integers(len(direction))] += 1
    maps = source.cells @ direction
    if sparse:
        maps = np.maximum(maps - np.quantile(maps, 0.93), 0)
    activation = maps.mean((1, 2))
    order = np.argsort(-activation, kind="stable")

    def image(at: int) -> UnitImage:
        return UnitImage(
            source.pixels[at], float(activation[at]), source.scene[at], f"{source.scene[at]}/{at:04d}", maps[at]
        )

    return {"top": [image(at) for at in order[:n]], "bottom": [image(at) for at in order[::-1][:n]]}


def interval(estimate: float, half: float) -> Interval:
    return Interval(estimate, estimate - half, estimate + half)


def share(estimate: float, half: float) -> Interval:
    return Interval(estimate, max(estimate - half, 0.0), min(estimate + half, 1.0))


def kind_scores(random: np.random.Generator, site: str, kind: str, n: int, level: float) -> KindScores:
    status = np.full(n, "ok", dtype=object)
    if kind == "feature":
        status[random.random(n) < 0.04] = "dead"
        status[random.random(n) < 0.11] = "too_rare"
        status[random.random(n) < 0.01] = "too_few_groups"
    if kind == "neuron":
        status[0] = "constant"
    scores = {}
    for negatives, shift in (("random", 0.0), ("bottom", 0.05 if kind == "neuron" else -0.03)):
        centre = 0.5 if kind == "permuted" else np.clip(level + shift, 0.05, 0.97)
        soft = random.beta(centre * 22, (1 - centre) * 22, n)
        hard = random.binomial(20, np.clip(1.35 * soft - 0.12, 0.02, 0.99)) / 20
        for values in (soft, hard):
            values[status != "ok"] = np.nan
        scores[negatives] = {"soft": soft, "hard": hard, "delta_over_tau": np.log(soft / (1 - soft))}
    n_active = random.integers(8, 1289, n) if kind == "feature" else np.full(n, 1288)
    return KindScores(site, kind, np.arange(n), status.tolist(), n_active, scores)


def unit_cards(random: np.random.Generator, one: KindScores, n: int, n_images: int) -> list[UnitCard]:
    soft = one.scores["random"]["soft"]
    order = np.argsort(-np.where(np.isfinite(soft), soft, -1), kind="stable")
    scored = order[: int(np.isfinite(soft).sum())]
    picks = {"best": scored[:n], "worst": scored[::-1][:n], "random": random.permutation(scored[n:-n])[:n]}
    cards = []
    for pick, units in picks.items():
        for unit in units.tolist():
            scores = {
                negatives: UnitScore(
                    share(float(values["soft"][unit]), 0.07), share(float(values["hard"][unit]), 0.12), 20
                )
                for negatives, values in one.scores.items()
            }
            cards.append(
                UnitCard(
                    one.site,
                    one.kind,
                    unit,
                    pick,
                    "ok",
                    int(one.n_active[unit]),
                    1288,
                    scores,
                    unit_images(random, n_images, one.kind == "feature"),
                )
            )
    return cards


def comparison(site: str, negatives: str, scores: list[KindScores]) -> ComparisonRow:
    values = {one.kind: one.of(negatives, "soft") for one in scores if one.site == site}
    a, b = values["feature"], values["neuron"]
    mean = float(a.mean() - b.mean())
    return ComparisonRow(
        site,
        negatives,
        "soft",
        "feature",
        "neuron",
        len(a),
        len(b),
        float(np.median(a)),
        float(np.median(b)),
        interval(float(np.median(a) - np.median(b)), 0.022),
        interval(mean, 0.02),
        interval(mean, 0.055),
        interval(4 * mean, 0.09),
        1e-5 if abs(mean) > 0.02 else 0.4,
        3e-5 if abs(mean) > 0.02 else 0.4,
    )


def circuit_view(random: np.random.Generator) -> CircuitView:
    nodes = []
    for depth, site in enumerate(SITES):
        for rank in range(5):
            effect = (1 if random.random() < 0.75 else -1) * float(random.exponential(0.16 + 0.14 * depth))
            nodes.append(
                CircuitNode(
                    site,
                    "feature",
                    int(random.integers(SITES[site][2])),
                    effect,
                    0.03 + 0.01 * rank,
                    share(float(random.uniform(0.55, 0.95)), 0.06),
                    unit_images(random, 5, True)["top"],
                    float(random.uniform(0.0, 0.05)),
                )
            )
        nodes.append(CircuitNode(site, "error", None, 0.35 - 0.2 * depth, 0.05, minimality=0.03))
    nodes.sort(key=lambda node: -abs(node.effect))
    told = ((0.31, 0.21, 0.62), (0.18, 0.14, 0.41), (0.02, 0.09, None))
    sites = [
        CircuitSite(site, live, *numbers) for site, live, numbers in zip(SITES, (301, 842, 1911), told, strict=True)
    ]
    return CircuitView(
        "the logit of the network's own prediction",
        "its top class of each image",
        "ig_inputs",
        "mean",
        128,
        96,
        10,
        4,
        sites,
        nodes,
    )


def circuit_edges(random: np.random.Generator, nodes: Sequence[CircuitNode]) -> list[CircuitEdge]:
    """Between nodes of neighbouring sites; of the last site's, their effects."""
    paths = list(SITES)
    depth = [paths.index(node.site) for node in nodes]
    found = []
    for source, node in enumerate(nodes):
        if depth[source] == len(paths) - 1:
            found.append(CircuitEdge(source, None, node.effect, node.effect_se))
        for target in range(len(nodes)):
            if depth[target] == depth[source] + 1:
                weight = 0.2 * node.effect * float(random.normal(0.3, 0.5))
                found.append(CircuitEdge(source, target, weight, 0.01 + abs(weight) / 4))
    return sorted(found, key=lambda edge: -abs(edge.weight))


def circuit_details(random: np.random.Generator, nodes: Sequence[CircuitNode]) -> CircuitDetails:
    n = np.unique(np.geomspace(1, 3054, 12).round().astype(int))
    left = 1 / (1 + n / 6)
    ranked, activity = [], []
    for kind, numbers, level in (("feature", (300, 841, 1910), 0.75), ("neuron", (40, 112, 320), 0.7)):
        site = random.permutation(np.repeat(np.arange(3), numbers))
        effect = np.sort(random.lognormal(-5, 1.5, len(site)))[::-1] * random.choice([-1, 1], len(site), p=[0.2, 0.8])
        mis = np.clip(random.normal(level, 0.1, len(site)), 0.2, 1.0)
        is_error = np.zeros(len(site), dtype=bool)
        if kind == "feature":
            is_error[[0, 4, 9]] = True
            mis[random.random(len(site)) < 0.1] = np.nan
        mis[is_error] = np.nan
        ranked.append(RankedNodes(kind, list(SITES), site, effect, is_error, mis, level))
        for depth, path in enumerate(SITES):
            everywhere = 10 ** random.normal(-2, 0.5, numbers[depth]).clip(-4, 0)
            here = (everywhere * 10 ** random.normal(0, 0.2, numbers[depth])).clip(0, 1)
            here[:5] = 0
            activity.append(SiteActivity(path, kind, 128, 96, here, everywhere, 5 / numbers[depth], 0.0, 0.02))
    estimated = random.normal(size=40)
    exact = estimated + random.normal(0, 0.3, 40)
    compared = tuple(Node("blocks.2", unit) for unit in range(40))
    return CircuitDetails(
        edges=circuit_edges(random, nodes),
        completeness=[CompletenessCurve(kind, n, left, left - 0.05, left + 0.05) for kind in ("feature", "neuron")],
        ranked=ranked,
        activity=activity,
        need=Need(0.012, 0.4, 0.01),
        agreement=[("feature", ExactAgreement(compared, 20, estimated, exact, signed=True))],
        cmd_differences=[
            CmdDifference("feature", "best_random", interval(-0.6, 0.05)),
            CmdDifference("feature", "by_change", interval(-0.01, 0.05)),
            CmdDifference("feature", "neuron", interval(-0.08, 0.04)),
            CmdDifference("neuron", "by_change", interval(0.2, 0.05)),
        ],
    )


def curves() -> list[FaithfulnessCurve]:
    n = np.unique(np.geomspace(1, 3054, 12).round().astype(int))
    found = []
    for kind, selection, half_at in (("feature", "effect", 40), ("neuron", "effect", 110), ("feature", "random", 1500)):
        value = n**1.1 / (n**1.1 + half_at**1.1) * (1 + half_at**1.1 / 3054**1.1)
        half = 0.12 * np.sqrt(np.clip(value * (1.05 - value), 0.01, 1))
        areas = (
            {}
            if selection == "random"
            else {"cpr": interval(0.93, 0.02), "cmd": interval(0.08, 0.02), "live_only": 0.97}
        )
        found.append(FaithfulnessCurve(kind, selection, n, value, value - half, value + half, **areas))
    return found


def site_sae(random: np.random.Generator, depth: int, site: str) -> SiteSae:
    n_features = SITES[site][2]
    density = 10 ** random.normal(-2.2, 0.6, n_features).clip(-5, -0.05)
    density[random.random(n_features) < 0.03] = 0
    steps = np.arange(25, 1000, 25)
    return SiteSae(
        site,
        "topk",
        n_features,
        n_vectors=1_000_000,
        fvu=0.17 + 0.05 * depth,
        fvu_held_out=0.24 + 0.06 * depth,
        l0=16.0,
        dead_share=float((density == 0).mean()),
        ce_clean=1.92,
        ce_spliced=2.2 + 0.1 * depth,
        kl=0.21 + 0.05 * depth,
        top1_agreement=0.83 - 0.04 * depth,
        loss_recovered_zero=0.96,
        loss_recovered_mean=0.91 - 0.02 * depth,
        evaluated_on="96 images of 4 held-out scenes",
        density_f=density,
        course=training_course(random, steps, depth),
        selectivity=[classes(random, "feature", n_features, 12), classes(random, "neuron", SITES[site][0], 40)],
        superposition={
            "dictionary": space(random, "dictionary", n_features, SITES[site][0]),
            **({"weights": space(random, "weights", SITES[site][0], 96)} if depth == 0 else {}),
        },
    )


def training_course(random: np.random.Generator, steps: np.ndarray, depth: int) -> TrainingCourse:
    fall = np.exp(-steps / 130)
    losses = {
        "step": steps, "loss": 0.2 + 0.9 * fall, "fvu": 0.18 + 0.8 * fall, "l0": 16 + 20 * fall, "aux": 0.1 * fall,
        "gradient_norm": 0.1 + fall, "dead_share": 0.02 * (1 - fall), "learning_rate": 0.003 * np.ones(len(steps)),
    }  # fmt: skip
    at = np.linspace(0, 1000, 9).round()
    held_out = {
        "step": at, "fvu": 0.22 + 0.9 * np.exp(-at / 150), "l0": 16 + 24 * np.exp(-at / 150),
        "silent_share": 0.1 + 0.5 * np.exp(-at / 150),
    }  # fmt: skip
    if depth == 2:
        return TrainingCourse(losses, held_out, Fates({int(step): frozenset() for step in at}, {}))
    dead = {int(step): frozenset(random.integers(0, 300, int(step // 20)).tolist()) for step in at}
    revived = {step: frozenset(random.integers(0, 300, 40).tolist()) for step in (251, 501, 751)}
    return TrainingCourse(losses, held_out, Fates(dead, revived))


def classes(random: np.random.Generator, kind: str, n: int, centre: float) -> ClassSelectivity:
    n_classes = 60
    active = np.clip(random.normal(centre, 8, n).round(), 0, n_classes).astype(int)
    entropy = np.where(active > 0, np.log(np.maximum(active, 1)) / np.log(n_classes), np.nan)
    gini = np.where(active > 0, 1 - active / n_classes, np.nan)
    return ClassSelectivity(kind, n_classes, np.bincount(active, minlength=n_classes + 1), entropy, gini)


def space(random: np.random.Generator, what: str, n: int, n_dimensions: int) -> Superposition:
    directions_fd = torch.from_numpy(random.normal(size=(n, n_dimensions)))
    density_f = np.ones(n) if what == "dictionary" else None
    return superposition(geometry(directions_fd), what, directions_fd, density_f)


def further(random: np.random.Generator, site: str, kind: str, n: int) -> FurtherScores:
    def around(level: float, spread: float) -> torch.Tensor:
        return torch.from_numpy(level + spread * random.standard_normal(n))

    return FurtherScores(
        site=site,
        kind=kind,
        n_top=50,
        base_rate=-8.5,
        odd_one_out_chance=1 / 6,
        units=torch.arange(n),
        monosemanticity=around(-8.3, 0.2),
        monosemanticity_active=around(-8.2, 0.3),
        monosemanticity_top=around(-7.8, 0.4),
        coherence=around(-7.6, 0.4),
        odd_one_out=around(0.4, 0.1).clamp(0, 1),
        class_entropy=around(3.5, 0.4),
        class_purity=around(0.3, 0.1).clamp(0, 1),
        class_majority=torch.zeros(n, dtype=torch.int64),
        nearest=torch.arange(n).roll(1),
        likeness=around(0.6, 0.2).clamp(-1, 1),
        cross_mis=around(0.7, 0.1).clamp(0, 1),
    )


def beside(random: np.random.Generator, scores: list[KindScores]) -> BesideScores:
    """What stands beside the scores of the made-up run."""
    by_kind = {(one.site, one.kind): one for one in scores}
    negatives, measures = ("random", "bottom"), ("soft", "hard")
    paired = [
        PairedScores(
            site,
            name,
            measure,
            by_kind[site, "feature"].scores[name][measure],
            random.choice(by_kind[site, "neuron"].of(name, measure), len(by_kind[site, "feature"].numbers)),
            random.uniform(0, 1, len(by_kind[site, "feature"].numbers)),
        )
        for site in SITES
        for name in negatives
        for measure in measures
    ]
    x = {"hardness": np.array([85.0, 90.0, 95.0, 100.0]), "quantile": np.array([0.01, 0.05, 0.1, 0.25])}
    steps, names = np.array([0.0, 130.0, 260.0, 390.0]), ("soft/random", "hard/random", "monosemanticity", "coherence")
    matrix = np.corrcoef(random.standard_normal((len(names), 9)))
    return BesideScores(
        further={(site, kind): further(random, site, kind, 40) for site in SITES for kind in ("neuron", "feature")},
        curves=[
            ScoreCurve(site, kind, name, setting, at, np.full(4, 30), band(0.8, at), band(0.7, at))
            for site in SITES
            for kind in ("neuron", "feature")
            for name in negatives
            for setting, at in x.items()
        ],
        course=[
            CourseCurve(site, name, steps, band(0.7, steps), 0.65, np.full(4, 30))
            for site in SITES
            for name in negatives
        ],
        noise={
            (site, kind, "random", "soft"): reseed_noise(
                0.7 + 0.1 * random.standard_normal((20, 1)) + 0.02 * random.standard_normal((20, 3))
            )
            for site in SITES
            for kind in ("neuron", "feature")
        },
        paired=paired,
        pairs={
            (one.site, one.negatives, one.measure): compare_pairs(one.feature_score, one.neuron_score, n_bootstrap=50)
            for one in paired
        },
        over_sites=[
            OverSites(name, "soft", 3, [0.1, 0.05, 0.08], interval(0.077, 0.06), 1.0, 0.25, 0.25) for name in negatives
        ],
        interpretable=[
            InterpretableUnits(site, kind, name, 200, 150, 90, 0.05, 1.05)
            for site in SITES
            for kind in ("neuron", "feature", "permuted")
            for name in negatives
        ],
        agreement=[AgreementMatrix(site, "feature", names, matrix) for site in SITES],
    )


def band(level: float, x: np.ndarray) -> Interval:
    """Means that fall along `x`, with limits."""
    means = level - 0.1 * (x - x.min()) / np.ptp(x)
    return Interval(means, means - 0.03, means + 0.03)


def run_summary() -> RunSummary:
    return RunSummary(
        "quickstart",
        "3f9a1c0e77b2",
        command="mis-lab experiment=quickstart seed=0",
        seed=0,
        device="cpu",
        versions={"mis_lab": "0.1.0", "torch": "2.15.0", "timm": "1.0.31"},
        config_yaml="name: quickstart\nseed: 0\nsae:\n  k: 16\n",
        artifacts=[
            ArtifactRef("activations", "blocks.2, score", "9b1deb4d3b7d4bad"),
            ArtifactRef("sae", "blocks.2", "2b0d7b3dcb6d4e9f"),
        ],
        stages=["activations", "sae", "evaluate", "mis", "circuit", "report"],
        finished_at="21 November 2026, 21:40 UTC",
    )


def mis_settings(n_groups: int) -> MisSettings:
    return MisSettings(
        "lpips_baseline_squeeze",
        metric_is_calibrated=False,
        temperature=0.0213,
        temperature_is_measured=True,
        protocol="extreme",
        query="most_extreme",
        n_explanations=9,
        n_tasks=20,
        negatives=("random", "bottom"),
        image_activation="mean",
        one_per_group=False,
        n_images=1288,
        n_groups=n_groups,
    )


@cache
def synthetic(n_units: int = 4, n_images: int = 9, seed: int = 0) -> ReportData:
    """The whole made-up run."""
    random = np.random.default_rng(seed)
    scores, units, saes = [], [], []
    for depth, (site, (width, _, n_features)) in enumerate(SITES.items()):
        levels = {
            "feature": 0.70 + 0.06 * depth,
            "neuron": 0.64 + 0.07 * depth,
            "permuted": 0.5,
            "random_direction": 0.6,
        }
        for kind, level in levels.items():
            one = kind_scores(random, site, kind, {"feature": n_features, "neuron": width}.get(kind, 256), level)
            scores.append(one)
            if kind in ("feature", "neuron"):
                first, *rest = unit_cards(random, one, n_units, n_images)
                units += [replace(first, sheet=Image.fromarray(tiles().whole["coffee"]).resize((240, 160))), *rest]
        saes.append(site_sae(random, depth, site))
    circuit = circuit_view(random)
    scenes = [Scene(name, image, 160, 86, name in HELD_OUT) for name, image in tiles().whole.items()]
    return ReportData(
        run_summary(),
        ModelSummary("tf_efficientnet_lite0", "package efficientnet_lite0", "57934424a1b2c3d4", 4_652_008, 96),
        DatasetSummary("photo_patches", "scene", 2400, 1288, len(scenes), len(HELD_OUT), scenes),
        sites=[SiteSummary(site, *numbers) for site, numbers in SITES.items()],
        saes=saes,
        mis=mis_settings(len(scenes)),
        scores=scores,
        units=units,
        comparisons=[comparison(site, negatives, scores) for negatives in ("random", "bottom") for site in SITES],
        circuit=circuit,
        circuit_details=circuit_details(random, circuit.nodes),
        faithfulness=curves(),
        beside=beside(np.random.default_rng(seed + 1), scores),
    )


@pytest.fixture(scope="session")
def made_up():
    """The builder: made_up(n_units=4, n_images=9, seed=0)."""
    return synthetic


@pytest.fixture(scope="session")
def data() -> ReportData:
    return synthetic()


@pytest.fixture(scope="session")
def page_path(data, tmp_path_factory):
    """The whole page of the made-up run, written once."""
    return write_report(data, tmp_path_factory.mktemp("report") / "report.html", ReportConfig())
