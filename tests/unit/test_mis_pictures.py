"""``mis-lab mis sheet`` and ``montage`` in this process, on a small run with real scores and a store of its own."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from mis_lab.cli import main

COMMAND = "mis"
SITE, N_IMAGES, WIDTH, DEAD = "layer.1", 60, 4, 3


@dataclass(frozen=True)
class ScoredFolder:
    """A finished run that scored units, its store, and the images' folder."""

    folder: Path
    store: Path
    images: Path


@pytest.fixture(scope="module")
def pristine(tmp_path_factory: pytest.TempPathFactory) -> ScoredFolder:
    """Neurons, features, random directions and permuted neurons scored on coloured squares; a circuit of features."""
    import torch

    from mis_lab.activations.shards import ActivationWriter, StoredActivations
    from mis_lab.activations.units import Neurons, RandomDirections, UnitSource
    from mis_lab.circuit.circuit import ERROR, Circuit
    from mis_lab.circuit.faithfulness import Curve
    from mis_lab.circuit.result import CircuitResult, KindResult
    from mis_lab.core.build import build
    from mis_lab.core.files import write_json
    from mis_lab.core.keys import plain
    from mis_lab.core.seeding import generator
    from mis_lab.core.store import Recipe, Store
    from mis_lab.dataset.config import ImageFolderConfig
    from mis_lab.dataset.load import load_dataset
    from mis_lab.metric.base import Embedding
    from mis_lab.mis.config import MisConfig
    from mis_lab.mis.run import score_units
    from mis_lab.model.sites import Site
    from mis_lab.sae import io
    from mis_lab.sae.config import TopKConfig
    from mis_lab.sae.units import Features

    root = tmp_path_factory.mktemp("scored")
    random = np.random.default_rng(0)
    for split in ("train", "score"):
        (root / "images" / split / "a").mkdir(parents=True)
        for number in range(N_IMAGES if split == "score" else 1):
            pixels = random.integers(0, 256, (1, 1, 3), dtype=np.uint8).repeat(8, 0).repeat(8, 1)
            Image.fromarray(pixels).save(root / "images" / split / "a" / f"{number:03d}.png")
    config = ImageFolderConfig(root=str(root / "images"))
    dataset, store = load_dataset(config, "score"), Store(root / "store")
    scoring = MisConfig(n_explanations=2, n_tasks=4, min_tasks=2, n_bootstrap=20, n_control_units=6)
    rows_nd = torch.from_numpy(np.stack([np.asarray(dataset.image(index))[0, 0] for index in range(N_IMAGES)])).float()
    rows_nd = rows_nd / rows_nd.norm(dim=1, keepdim=True)
    embedded = Embedding("test", dataset.ids, "cosine", 1.0, "f", rows=rows_nd)

    def activations(folder: Path) -> None:
        with ActivationWriter(
            folder, Site(SITE, "bchw", WIDTH, 4, (2, 2)), dataset.ids, dataset.groups, dataset.labels
        ) as writer:
            x_bpd = torch.from_numpy(random.standard_normal((N_IMAGES, 4, WIDTH)).astype(np.float32))
            x_bpd[..., DEAD] = 0
            writer.append(x_bpd, range(N_IMAGES))

    def sae(folder: Path) -> None:
        made = build(TopKConfig(n_features=10, k=3), width=WIDTH)
        made.initialise(torch.randn(64, WIDTH, generator=generator(0, "test")), generator(1, "test"))
        io.save(made, folder)

    stored = store.get(Recipe("activations", 1, {}, {}), activations)
    trained = store.get(Recipe("sae", 1, {}, {"activations": stored.key}), sae)
    artifacts = {f"activations/score/{SITE}": stored.key, f"sae/{SITE}": trained.key}
    read = StoredActivations(stored.path)
    sources: dict[str, UnitSource] = {
        "neuron": Neurons(WIDTH),
        "feature": Features(io.load(trained.path)),
        "random_directions": RandomDirections(WIDTH, scoring.n_control_units, 3),
        "permuted": Neurons(WIDTH),
    }
    for kind, source in sources.items():
        scores = score_units(
            read, source, embedded, scoring, 3, temperature=0.2, control="permuted" if kind == "permuted" else ""
        )
        inputs = {"activations": stored.key} | ({"sae": trained.key} if kind == "feature" else {})
        recipe = Recipe("mis", 1, {"kind": kind, "mis": plain(scoring), "seed": 3}, inputs)
        artifacts[f"mis/{SITE}/{kind}"] = store.get(recipe, scores.write).key

    def circuit_of(kind: str) -> KindResult:
        values = np.linspace(0, 1, 6).reshape(2, 3)
        curve = Curve(kind, np.array([0, 3]), values, values[None], values[1], np.arange(values.shape[1]))
        features = torch.tensor([2, ERROR, 0]) if kind == "feature" else torch.tensor([2, 1, 0])
        numbers = torch.tensor([0.5, -0.4, 0.3], dtype=torch.float64)
        counts = torch.tensor([9, 9, 9])
        n_nodes = {SITE: 11 if kind == "feature" else WIDTH}
        sites = torch.zeros(3, dtype=torch.int64)
        circuit = Circuit(kind, n_nodes, kind == "feature", sites, features, numbers, numbers.abs(), counts)
        return KindResult(circuit, (), curve, torch.ones(3, 4))

    found = CircuitResult(
        circuit_of("feature"), circuit_of("neuron"), ("a",), ("b",), torch.zeros(1, dtype=torch.int64),
        torch.zeros(1, dtype=torch.int64), torch.zeros(3, 2, 2, dtype=torch.float64), {"edges_per_node": 5},
    )  # fmt: skip
    artifacts["circuit"] = store.get(Recipe("circuit", 1, {}, {}), found.write).key
    told: dict[str, Any] = {"dataset": plain(config), "paths": {"store": str(store.root)}, "seed": 3}
    write_json(root / "run" / "result.json", {"artifacts": artifacts, "config": told, "seed": 3, "overrides": []})
    return ScoredFolder(root / "run", store.root, root / "images")


def scores_of(run: ScoredFolder, kind: str) -> Any:
    from mis_lab.pipeline.scored import ScoredRun

    return ScoredRun(run.folder, run.store).scores(SITE, kind)


@pytest.mark.parametrize("kind", ["neuron", "feature", "random_directions"])
def test_activations_of_a_run_are_those_that_its_units_were_ranked_by(pristine: ScoredFolder, kind: str) -> None:
    from mis_lab.pipeline.scored import ScoredRun

    run = ScoredRun(pristine.folder)
    scores, maps = run.scores(SITE, kind), run.maps(SITE, kind)
    images = run.images_of(scores)
    assert images.ids == scores.image_ids
    assert maps is not None
    for row, unit in enumerate(scores.units.tolist()):
        values = maps.of(unit, range(N_IMAGES)).values
        assert float(values.min()) == pytest.approx(float(scores.minimum[row]), abs=1e-6)
        assert float(values.max()) == pytest.approx(float(scores.maximum[row]), abs=1e-6)
        assert int((values > 0).sum()) == int(scores.n_active[row])
    assert run.maps(SITE, "permuted") is None


def test_a_sheet_is_the_one_of_the_library(
    mis_lab: Callable[..., list[str]], pristine: ScoredFolder, tmp_path: Path
) -> None:
    from mis_lab.mis.unit_tasks import unit_tasks
    from mis_lab.pipeline.scored import ScoredRun
    from mis_lab.report.sheet import overview, sheet

    run = ScoredRun(pristine.folder)
    scores, maps = run.scores(SITE, "neuron"), run.maps(SITE, "neuron")
    assert maps is not None
    activations = dict(enumerate(maps.of(1, range(N_IMAGES)).values.tolist()))
    words = ("sheet", pristine.folder, "--site", SITE, "--kind", "neuron", "--unit", 1, "--out", tmp_path / "a.png")
    for more, expected in (
        ((), sheet(unit_tasks(scores, 1, "random"), run.dataset, activations=activations)),
        (
            ("--negatives", "bottom", "--task", 2, "--task", 1),
            sheet(unit_tasks(scores, 1, "bottom"), run.dataset, [2, 1], activations),
        ),
        (("--all-tasks",), overview(unit_tasks(scores, 1, "random"), run.dataset)),
    ):
        assert mis_lab(*words, *more) == [str(tmp_path / "a.png")]
        with Image.open(tmp_path / "a.png") as found:
            assert np.array_equal(np.asarray(found), np.asarray(expected))
    assert mis_lab("sheet", pristine.folder, "--site", SITE, "--kind", "permuted", "--unit", 1, *words[-2:])


def test_a_montage_shows_the_best_the_wanted_or_the_circuits_units(
    mis_lab: Callable[..., list[str]], pristine: ScoredFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from mis_lab.report import montage as module

    drawn: list[tuple[list[str], str, dict[str, int]]] = []
    draw = module.montage

    def record(rows, title, left_out):  # type: ignore[no-untyped-def]
        drawn.append(([f"{row.name}, {row.note}" for row in rows], title, left_out))
        record.rows = rows  # type: ignore[attr-defined]
        return draw(rows, title, left_out)

    monkeypatch.setattr(module, "montage", record)
    words = ("montage", pristine.folder, "--out", tmp_path / "new" / "m.png", "--images", 3)
    at = ("--site", SITE, "--kind")
    scores = scores_of(pristine, "neuron")
    soft = np.asarray(scores.of("random").scores.soft.estimate)
    best = np.argsort(-np.nan_to_num(soft, nan=-1))[:2].tolist()
    mis_lab(*words, *at, "neuron", "--best", 2)
    assert drawn[-1] == ([f"neuron {u}, soft MIS {soft[u]:.2f}" for u in best], f"{SITE} · neurons", {})
    mis_lab(*words, *at, "neuron", "--units", f"2,{DEAD},0", "--heat")
    assert drawn[-1][0] == [f"neuron {u}, soft MIS {soft[u]:.2f}" for u in (2, 0)]
    assert drawn[-1][2] == {"dead": 1}
    assert all(image.heat is not None for row in record.rows for image in row.most)  # type: ignore[attr-defined]
    assert [len(row.most) for row in record.rows] == [3, 3]  # type: ignore[attr-defined]
    mis_lab(*words, "--circuit", 5)
    soft = np.asarray(scores_of(pristine, "feature").of("random").scores.soft.estimate)
    names = [f"feature {u}, {SITE} · soft MIS {'–' if np.isnan(soft[u]) else f'{soft[u]:.2f}'}" for u in (2, 0)]
    assert drawn[-1][:2] == (names, "The 2 largest nodes of the circuit")  # the error node has no images
    with Image.open(tmp_path / "new" / "m.png") as picture:
        assert picture.format == "PNG"


def test_without_its_activations_a_sheet_is_drawn_and_says_so(
    pristine: ScoredFolder, tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("signal.signal", lambda *_arguments: None)
    store = shutil.copytree(pristine.store, tmp_path / "store")
    shutil.rmtree(store / "activations")
    common = (str(pristine.folder), "--site", SITE, "--kind", "neuron", "--store", str(store), "--out", "a.png")
    monkeypatch.chdir(tmp_path)
    for words, code in ((("sheet", "--unit", "0"), 0), (("montage", "--best", "2"), 2)):
        with pytest.raises(SystemExit) as ended:
            main(["mis", words[0], *common, *words[1:]])
        told = capsys.readouterr()
        assert ended.value.code == code
        assert "is not in the store" in told.err
    assert (tmp_path / "a.png").is_file()


def test_mistakes_are_told_in_a_line(mis_lab: Callable[..., list[str]], pristine: ScoredFolder, tmp_path: Path) -> None:
    run, out = pristine.folder, ("--out", tmp_path / "a.png")
    sheet, neuron = ("sheet", run, *out, "--site"), ("--kind", "neuron", "--unit")
    montage = ("montage", run, *out)
    for words, told in (
        (("sheet", tmp_path, *out, "--site", SITE, "--unit", 0), "is no finished run; looked in"),
        ((*sheet, "layer.2", *neuron, 0), f"scored no units of kind neuron at layer.2. It did at {SITE}."),
        ((*sheet, SITE, "--kind", "pixel", "--unit", 0), "kind pixel. It scored neuron, feature, random_directions"),
        ((*sheet, SITE, *neuron, 99), f"neurons of {SITE} have no unit 99"),
        ((*sheet, SITE, *neuron, DEAD), f"neuron {DEAD} of {SITE} has no score with random negatives: it is dead"),
        ((*sheet, SITE, *neuron, 0, "--task", 5), "has no task 5. It has tasks 1 to 4."),
        ((*sheet, SITE, *neuron, 0, "--negatives", "within_class"), "no scores with within_class negatives"),
        (("sheet", run, "--out", "a.jpg", "--site", SITE, *neuron, 0), "a.jpg is no name of a PNG file. Use a.png."),
        (montage, "which units are to be shown. Give --site SITE, or --circuit N."),
        ((*montage, "--site", SITE, "--units", "1,x"), "--units 1,x. Write numbers: --units 1,5,9."),
        ((*montage, "--site", SITE, "--units", "1,77"), f"features of {SITE} have no unit 77. They are 10 units, 0 to"),
        ((*montage, "--site", SITE, "--images", 0), "--images 0: at least 1 is needed."),
        ((*montage, "--site", SITE, "--kind", "permuted"), "have no images: theirs were permuted."),
        ((*montage, "--site", SITE, "--kind", "neuron", "--units", DEAD), "no unit to show: 1 dead."),
    ):
        (line,) = mis_lab(*words, expect=2)
        assert told in line


def test_images_that_changed_are_not_shown(
    mis_lab: Callable[..., list[str]], pristine: ScoredFolder, tmp_path: Path
) -> None:
    from mis_lab.core.files import read_json, write_json

    images = shutil.copytree(pristine.images, tmp_path / "images")
    (images / "score" / "a" / "000.png").unlink()
    result = read_json(pristine.folder / "result.json")
    result["config"]["dataset"]["root"] = str(images)
    write_json(tmp_path / "run" / "result.json", result)
    words = ("sheet", tmp_path / "run", "--site", SITE, "--kind", "neuron", "--unit", 0, "--out", tmp_path / "a.png")
    (line,) = mis_lab(*words, expect=2)
    assert "has other images than those that were scored; looked in 59 images, 60 were scored." in line
    result["config"]["dataset"]["an_option"] = 1
    write_json(tmp_path / "run" / "result.json", result)
    (line,) = mis_lab(*words, expect=2)
    assert "data set image_folder has options that this version does not know" in line
    result["config"]["dataset"] = {"_target_": "os.system", "name": "mine", "split": {}, "kwargs": {}}
    write_json(tmp_path / "run" / "result.json", result)
    (line,) = mis_lab(*words, expect=2)
    assert "_target_=os.system is not allowed" in line
