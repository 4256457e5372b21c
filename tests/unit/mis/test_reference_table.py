from __future__ import annotations

import pickle
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from scipy.stats import mannwhitneyu, spearmanr

from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.mis.reference_comparison import compare_with_reference, differing
from mis_lab.mis.reference_table import blocks_of, read_table, rows_of, summarise_layers
from mis_lab.mis.score import score
from mis_lab.mis.tasks import Tasks
from mis_lab.mis.unit_scores import NegativesScores, Settings, UnitScores

# As the authors name them: a block's branches, and convolutions inside it.
AUTHORS = """,layer,unit,hard,confidence
0,mixed3a_1x1_pre_relu_conv,0,1.0,0.9
1,mixed3a_1x1_pre_relu_conv,1,0.9,0.7
2,mixed3a_3x3_pre_relu_conv,0,0.8,0.5
3,mixed3a_3x3_bottleneck_pre_relu_conv,0,0.1,0.1
4,mixed3b_1x1_pre_relu_conv,0,0.7,
5,mixed3b_1x1_pre_relu_conv,1,0.6,0.6
6,softmax2,0,1.0,0.99
"""
THESIS = """unit_idx,MIS,MIS_confidence,layer_name,model_key
0,1.0,0.9,mixed3a,a
1,0.5,0.6,mixed3a,a
0,0.4,0.4,mixed3a,b
"""


@pytest.fixture
def table_of(tmp_path):
    def write(text: str, name: str = "table.csv") -> Path:
        path = tmp_path / name
        path.write_text(text, encoding="utf-8")
        return path

    return write


def test_blocks_are_summed_up_over_branches_without_bottlenecks(table_of):
    table = read_table(table_of(AUTHORS))
    assert blocks_of(table) == ["mixed3a", "mixed3b", "softmax2"]
    first, second, logits = summarise_layers(table)
    assert (first.n_units, first.n_scored) == (3, 3)
    assert (first.soft_mean, first.soft_median) == pytest.approx((0.7, 0.7))
    assert (first.hard_mean, first.hard_median) == pytest.approx((0.9, 0.9))
    assert (second.n_units, second.n_scored, second.soft_mean) == (2, 1, 0.6)
    assert second.hard_mean == pytest.approx(0.65)
    assert logits.soft_median == 0.99
    assert summarise_layers(table, ["3a"]) == [replace(first, layer="3a")]
    (inner,) = summarise_layers(table, ["mixed3a_3x3_bottleneck_pre_relu_conv"])
    assert inner.soft_mean == 0.1
    with pytest.raises(ConfigError, match=r"no layer with .mixed4a. in its name\. Nearest: mixed3a"):
        summarise_layers(table, ["mixed4a"])
    with pytest.raises(ConfigError, match="no layer with ''"):
        summarise_layers(table, [""])


def test_the_thesis_spelling_and_its_models(table_of):
    path = table_of(THESIS)
    table = read_table(path, "a")
    assert summarise_layers(table)[0].soft_mean == pytest.approx(0.75)
    assert table.units.tolist() == [0, 1]
    with pytest.raises(ConfigError, match=r"rows of 2 models\. Choose with --model: a, b"):
        read_table(path)
    with pytest.raises(ConfigError, match="no rows of the model c"):
        read_table(path, "c")
    one = read_table(table_of(THESIS.replace(",b\n", ",a\n").replace("0,0.4", "2,0.4").replace(",", ";")))
    assert len(one.units) == 3
    scores = "Layer, Unit, mis_score, mis_confidence\nx,0,1,0.5\n"
    assert read_table(table_of("\ufeff" + scores)).soft.tolist() == [0.5]
    with pytest.raises(ConfigError, match="no rows of the model a"):
        read_table(table_of(scores), "a")


def test_a_number_is_not_a_part_of_a_longer_one(table_of):
    layers = ["layer1", "layer10", "layer1.0", "blocks.2.layer1"]
    table = read_table(table_of("layer,unit,hard,confidence\n" + "".join(f"{name},0,1,1\n" for name in layers)))
    assert rows_of(table, "layer1").tolist() == [True, False, False, False]
    assert rows_of(table, "ayer1").tolist() == [True, False, True, True]
    assert rows_of(table, "1.0").tolist() == [False, False, True, False]
    assert blocks_of(table) == layers


@pytest.mark.parametrize(
    ("text", "told"),
    [
        ("", "no column for the layer"),
        ("layer,unit,hard\nx,0,1\n", r"no column for the soft \(confidence"),
        ("layer,unit,hard,confidence\n", "has no rows"),
        ("layer,unit,hard,confidence\nx,0,1\n", "row 2 of .* has not 4 values"),
        ("layer,unit,hard,confidence\nx,0,1,1\nx,0,1,1\n", "unit 0 of x comes twice"),
        ("layer,unit,hard,confidence\nx,0,1,1.5\n", "row 2 of .*: '1.5' is no score between 0 and 1"),
        ("layer,unit,hard,confidence\nx,0,1,much\n", "'much' is no score"),
        ("layer,unit,hard,confidence\nx,0.5,1,1\n", "'0.5' is no number of a unit"),
        ("layer,unit,hard,confidence\nx,-1,1,1\n", "'-1' is no number of a unit"),
        ("layer,unit,hard,confidence\nx,inf,1,1\n", "'inf' is no number of a unit"),
        ("layer,unit,hard,confidence\nx,,1,1\n", "'' is no number of a unit"),
    ],
)
def test_mistakes_in_a_table_are_told(table_of, text, told):
    with pytest.raises(DataError, match=told):
        read_table(table_of(text))


def test_other_files_are_refused_unread(tmp_path):
    class Bomb:
        def __reduce__(self):
            return (pytest.fail, ("a pickle was run",))

    path = tmp_path / "table.csv"
    path.write_bytes(pickle.dumps(Bomb()))
    with pytest.raises(DataError, match="a pickle, which runs what it reads"):
        read_table(path)
    path.write_bytes(b"PAR1....")
    with pytest.raises(DataError, match="is Parquet"):
        read_table(path)
    path.write_bytes(b"layer,\xff\n")
    with pytest.raises(DataError, match="no CSV file"):
        read_table(path)
    with pytest.raises(MissingFileError, match="there is no table"):
        read_table(tmp_path / "none.csv")


SETTINGS = Settings(
    protocol="extreme",
    query="most_extreme",
    query_negative="most_extreme",
    query_percentile=0.0,
    quantile=0.0,
    n_explanations=9,
    n_tasks=20,
    min_tasks=5,
    pool_size=200,
    one_per_group=False,
    image_activation="mean",
    ties=1e-6,
    metric="dreamsim",
    metric_fingerprint="abc",
    temperature=0.16,
    tie=1e-6,
    n_images=500,
    images="def",
    classes="",
)


def run_scores(n_units: int, settings: Settings = SETTINGS, seed: int = 0, dead: int = 0) -> UnitScores:
    rng = np.random.default_rng(seed)
    delta = torch.tensor(rng.normal(0.2, 0.2, (n_units, 20)) + rng.normal(0, 0.1, (n_units, 1)))
    delta[:dead] = torch.nan
    counts = delta.isfinite().sum(1)
    images = torch.zeros(n_units, 20, dtype=torch.int32)
    explained = images[..., None].expand(-1, -1, 9)
    scores = score(delta, counts, 0.16, 1e-6, 20, 0)
    status = (counts == 0).long()
    result = NegativesScores(status, Tasks(explained, images, explained, images, counts), delta, scores)
    return UnitScores(
        site="inception3a",
        kind="neuron",
        control="",
        units=torch.arange(n_units),
        unit_names=[f"neuron {unit}" for unit in range(n_units)],
        settings=settings,
        seed=0,
        n_active=torch.full((n_units,), 9),
        minimum=torch.zeros(n_units),
        maximum=torch.ones(n_units),
        image_ids=["image"],
        image_groups=["all"],
        by_negatives={"bottom": result},
    )


def whole_layer(n_units: int, hard: np.ndarray, soft: np.ndarray) -> str:
    rows = [f"mixed3a,{unit},{hard[unit]},{soft[unit]}\n" for unit in reversed(range(n_units))]
    return "layer,unit,hard,confidence\n" + "".join(rows)


def test_a_run_beside_the_table(table_of):
    scores, rng = run_scores(30, dead=2), np.random.default_rng(1)
    hard, soft = (np.asarray(getattr(scores.of("bottom").scores, name).estimate) for name in ("hard", "soft"))
    theirs = np.clip(soft + rng.normal(0.1, 0.05, 30), 0, 1)
    theirs[:2] = 0.5
    table = read_table(table_of(whole_layer(30, np.round(rng.random(30) * 20) / 20, theirs)))
    of_soft, of_hard = compare_with_reference(table, "mixed3a", scores, "bottom", n_bootstrap=200)
    assert (of_soft.measure, of_hard.measure) == ("soft", "hard")
    assert (of_soft.n_run, of_soft.n_reference) == (28, 30)
    assert of_soft.run_mean == pytest.approx(soft[2:].mean())
    assert of_soft.reference_median == pytest.approx(np.median(theirs))
    assert of_soft.mean_difference.estimate == pytest.approx(soft[2:].mean() - theirs.mean())
    assert of_soft.mean_difference.low < of_soft.mean_difference.estimate < 0
    assert of_soft.p_value == pytest.approx(mannwhitneyu(soft[2:], theirs).pvalue)
    assert of_soft.spearman == pytest.approx(spearmanr(soft[2:], theirs[2:]).statistic)
    assert of_hard.run_median == pytest.approx(np.median(hard[2:]))
    fewer = compare_with_reference(table, "mixed3a", run_scores(20), "bottom", n_bootstrap=20)[0]
    assert np.isnan(fewer.spearman)
    dead = compare_with_reference(table, "mixed3a", run_scores(3, dead=3), "bottom", n_bootstrap=20)[0]
    assert dead.n_run == 0
    assert np.isnan(dead.run_mean)
    branches = read_table(table_of(AUTHORS))
    assert np.isnan(compare_with_reference(branches, "mixed3a", run_scores(3), "bottom", n_bootstrap=20)[0].spearman)
    with pytest.raises(ConfigError, match="no scores with random negatives"):
        compare_with_reference(table, "mixed3a", scores, "random")


def test_soft_scores_of_other_metrics_are_not_compared_and_differences_are_told(table_of):
    table = read_table(table_of(AUTHORS))
    assert differing(SETTINGS, "bottom") == []
    for changed, told in (
        ({"metric": "lpips"}, "metric is lpips, not dreamsim"),
        ({"temperature": 0.2}, "temperature is 0.2, not 0.16"),
    ):
        settings = replace(SETTINGS, **changed)
        found = compare_with_reference(table, "mixed3a", run_scores(5, settings), "bottom", n_bootstrap=20)
        assert [one.measure for one in found] == ["hard"]
        assert differing(settings, "bottom") == [told]
    more = replace(SETTINGS, n_tasks=50, pool_size=500)
    assert differing(more, "random") == [
        "n_tasks is 50, not 20",
        "pool_size is 500, not 200",
        "negatives are random, not bottom",
    ]
    lpips = replace(SETTINGS, metric="lpips", temperature=0.3)
    assert len(compare_with_reference(table, "mixed3a", run_scores(5, lpips), "bottom", "lpips", 20)) == 2
    assert differing(lpips, "bottom", "lpips") == []
