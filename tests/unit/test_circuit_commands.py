"""``mis-lab circuit steer`` in this process, on a small run with a network, an SAE and a store of its own."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

COMMAND = "circuit"
SITE, BARE, N_IMAGES, WIDTH, N_FEATURES = "act1", "fc1", 12, 6, 9


@dataclass(frozen=True)
class RunFolder:
    """A finished run and its store."""

    folder: Path
    store: Path


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """Activations of two sites of an untrained network on coloured squares, and an SAE at one of them."""
    import torch

    from mis_lab.activations.shards import ActivationWriter
    from mis_lab.core.build import build
    from mis_lab.core.files import write_json
    from mis_lab.core.keys import plain
    from mis_lab.core.seeding import generator
    from mis_lab.core.store import Recipe, Store
    from mis_lab.dataset.config import ImageFolderConfig, TransformConfig
    from mis_lab.dataset.load import load_dataset
    from mis_lab.dataset.loading import batches
    from mis_lab.model.capture import Capture
    from mis_lab.model.config import ModelConfig
    from mis_lab.model.load import load_model
    from mis_lab.model.sites import resolve_sites
    from mis_lab.sae import io
    from mis_lab.sae.config import TopKConfig

    root = tmp_path_factory.mktemp("steered")
    random = np.random.default_rng(0)
    for split in ("train", "score"):
        (root / "images" / split / "a").mkdir(parents=True)
        for number in range(N_IMAGES if split == "score" else 1):
            pixels = random.integers(0, 256, (8, 8, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / "images" / split / "a" / f"{number:03d}.png")
    data = ImageFolderConfig(root=str(root / "images"))
    config = ModelConfig(
        name="tiny",
        network={"_target_": "mis_lab.model.mlp.Mlp", "widths": [192, WIDTH, 4]},
        sites=[SITE, BARE],
        input=TransformConfig(size=8, interpolation="nearest"),
    )
    dataset, store, model = load_dataset(data, "score"), Store(root / "store"), load_model(config)
    sites = resolve_sites(model, [SITE, BARE])
    images = torch.cat([batch.images_bchw for batch in batches(dataset, model.transform, N_IMAGES)])
    with Capture(model, sites) as capture:
        vectors = capture.run(images)
    artifacts = {}
    for site in sites:

        def write(folder: Path, site: Any = site) -> None:
            with ActivationWriter(folder, site, dataset.ids, dataset.groups, dataset.labels) as writer:
                writer.append(vectors[site.path], range(N_IMAGES))

        recipe = Recipe("activations", 1, {"site": site.path}, {"weights": model.fingerprint, "data": "d"})
        artifacts[f"activations/score/{site.path}"] = store.get(recipe, write).key

    def sae(folder: Path) -> None:
        made = build(TopKConfig(n_features=N_FEATURES, k=4), width=WIDTH)
        made.initialise(vectors[SITE].flatten(0, 1).clone(), generator(1, "test"))
        io.save(made, folder)

    inputs = {"activations": artifacts[f"activations/score/{SITE}"]}
    artifacts[f"sae/{SITE}"] = store.get(Recipe("sae", 1, {}, inputs), sae).key
    told = {"model": plain(config), "dataset": plain(data), "paths": {"store": str(store.root)}, "seed": 3}
    write_json(root / "run" / "result.json", {"artifacts": artifacts, "config": told, "seed": 3, "overrides": []})
    return RunFolder(root / "run", store.root)


def opened(run: RunFolder, site: str = SITE, kind: str = "feature") -> Any:
    from mis_lab.pipeline.steerable import SteerableRun

    return SteerableRun(run.folder, site, kind)


def busiest(run: RunFolder) -> int:
    """The feature that is active on most images."""
    opening = opened(run)
    return max(range(N_FEATURES), key=lambda feature: int((opening.activations(feature).values > 0).sum()))


def test_the_table_tells_what_the_library_finds(
    mis_lab: Callable[..., list[str]], run: RunFolder, tmp_path: Path
) -> None:
    from mis_lab.circuit.steer import How, Steer, steered

    feature, opening = busiest(run), opened(run)
    words = ("steer", run.folder, "--site", SITE, "--feature", feature, "--images", 5, "--set", 30)
    lines = mis_lab(*words, "--out", tmp_path / "new" / "a.png")
    shown = opening.most_activating(feature, 5)
    answer = steered(
        opening.problem, opening.nodes, [Steer(SITE, feature, How.set, 30.0)], opening.images(shown.indices)
    )
    assert lines[0] == f"feature {feature} of {SITE}: set to 30"
    assert len(lines) == 1 + 1 + 5 + 1 + 1
    for row, line in enumerate(lines[2:7]):
        before, _, after = line.partition("→")
        assert opening.dataset.ids[shown.indices[row]] in before
        assert f"class {int(answer.top_before[row])} " in before
        own = after.split(",")[0]
        assert f"class {int(answer.top_after[row])} {float(answer.probabilities_after[row].max()):.2f}" in own
        assert f"{float(answer.probability_change()[row]):.3f}" in after
        assert ("changed" in after) == bool(answer.changed[row])
    assert f"{int(answer.changed.sum())} of 5 images another top class" in lines[7]
    assert lines[8] == str(tmp_path / "new" / "a.png")
    with Image.open(tmp_path / "new" / "a.png") as picture:
        assert picture.height > 5 * 100


def test_half_of_the_images_activate_the_feature_most(run: RunFolder) -> None:
    feature, opening = busiest(run), opened(run)
    values = opening.activations(feature).values
    shown = opening.most_activating(feature, 6)
    assert shown.reasons == ["most activating"] * 3 + ["random"] * 3
    assert len(set(shown.indices)) == 6
    rest = [float(values[index]) for index in range(N_IMAGES) if index not in shown.indices[:3]]
    assert min(float(values[index]) for index in shown.indices[:3]) >= max(rest)
    assert opened(run).most_activating(feature, 6) == shown
    assert len(opening.most_activating(feature, 100).indices) == N_IMAGES


def test_steps_are_multiples_of_the_features_strength(mis_lab: Callable[..., list[str]], run: RunFolder) -> None:
    from mis_lab.circuit.steer import strengths

    feature, opening = busiest(run), opened(run)
    dictionary = opening.nodes[SITE].dictionary
    expected = strengths(opening.problem, opening.stored.site, dictionary, opening.images(range(N_IMAGES)))[feature]
    assert opening.strength(feature) == pytest.approx(expected, rel=1e-5)
    words = ("steer", run.folder, "--site", SITE, "--feature", feature)
    for unit, size in (("largest", expected.largest), ("mean", expected.mean_if_active), ("code", 1.0)):
        told = mis_lab(*words, "--add=-3", "--unit", unit)
        by_code = mis_lab(*words, f"--add={-3 * size!r}", "--unit", "code")
        assert told[1:] == by_code[1:]


def test_several_values_give_a_row_each_and_a_curve(
    mis_lab: Callable[..., list[str]], run: RunFolder, tmp_path: Path
) -> None:
    feature = busiest(run)
    words = ("steer", run.folder, "--site", SITE, "--feature", f"{feature},{(feature + 1) % N_FEATURES}")
    lines = mis_lab(*words, "--scale=1,-2,9", "--out", tmp_path / "curve.png")
    assert [line.split()[0] for line in lines[2:5]] == ["1", "-2", "9"]
    assert lines[2].split()[1:] == ["8", "0", lines[2].split()[3], "0.000"]  # a scale of one changes nothing
    assert float(lines[4].split()[4]) > 0
    assert (tmp_path / "curve.png").exists()


def test_neurons_are_steered_where_there_is_no_sae(mis_lab: Callable[..., list[str]], run: RunFolder) -> None:
    image = opened(run).dataset.ids[3]
    lines = mis_lab(
        "steer", run.folder, "--site", BARE, "--kind", "neuron", "--feature", 2, "--remove", "--image", image
    )
    assert lines[0] == f"neuron 2 of {BARE}: removed"
    assert image in lines[2]
    assert "wanted" in lines[2]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--site", "act7", "--feature", "1", "--remove"], f"has no site act7. It has {SITE}, {BARE}"),
        (["--site", BARE, "--feature", "1", "--remove"], f"no SAE at {BARE}. It has SAEs at {SITE}"),
        (["--site", SITE, "--feature", "9", "--remove"], f"{SITE} has no feature 9. They are 0 to 8"),
        (["--site", SITE, "--feature", "x", "--remove"], "--feature x"),
        (["--site", SITE, "--feature", "1", "--set", "1;2"], "--set 1;2. Write numbers"),
        (["--site", SITE, "--feature", "1", "--set", "nan"], "finite"),
        (["--site", SITE, "--feature", "1,1", "--remove"], "changed twice"),
        (
            ["--site", SITE, "--feature", "1", "--remove", "--image", "a/77.png"],
            "no image a/77.png. Nearest: score/a/0",
        ),
        (["--site", SITE, "--feature", "1", "--remove", "--images", "0"], "--images 0"),
        (["--site", SITE, "--feature", "1", "--remove", "--out", "x.jpg"], "x.jpg is no name of a PNG"),
    ],
)
def test_a_mistake_is_told_in_one_line(
    mis_lab: Callable[..., list[str]], run: RunFolder, words: list[str], message: str
) -> None:
    lines = mis_lab("steer", run.folder, *words, expect=2)
    assert len(lines) == 1
    assert message in lines[0]


def test_no_run_and_another_network_are_told(mis_lab: Callable[..., list[str]], run: RunFolder, tmp_path: Path) -> None:
    from mis_lab.core.files import read_json, write_json

    words = ("--site", SITE, "--feature", 1, "--remove")
    (told,) = mis_lab("steer", tmp_path, *words, expect=2)
    assert "is no finished run" in told
    result = read_json(run.folder / "result.json")
    result["config"]["model"]["init_seed"] = 7
    write_json(tmp_path / "other" / "result.json", result)
    (told,) = mis_lab("steer", tmp_path / "other", *words, expect=2)
    assert "the weights of tiny are not those of the run" in told
