"""A sweep is read as its runs left it, and ranked as scipy ranks."""

from __future__ import annotations

import json
from itertools import pairwise
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import rankdata

from mis_lab.core.errors import ConfigError
from mis_lab.core.tensors import write_tensors
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.report import sweep
from mis_lab.report.sweep import MEASURES, RANKED, pareto_front, rank, read_sweep
from mis_lab.sae import io
from mis_lab.sae.architectures.topk import TopKSae
from mis_lab.sae.config import TopKConfig
from mis_lab.sae.stability import match

VALUES = st.lists(st.sampled_from([0.1, 0.2, 0.3]), min_size=5, max_size=5)


def test_a_sweep_has_the_options_that_differ_and_their_values(swept):
    found = swept()
    assert found.options == {"sae.k": ["4", "16"]}  # the second is the preset's: that run was not told
    assert [sae.options["sae.k"] for sae in found.at("a.1")] == ["4", "4", "16", "16"]
    assert (found.sites, found.architectures, found.n_seeds) == (["a.1", "a.2"], ["topk"], 2)
    assert [run.seed for run in found.runs] == [0, 1, 0, 1]


def test_numbers_are_those_of_held_out_images_where_there_are_any(swept):
    first = swept().saes[0]
    assert first.number("fvu") == 0.4
    assert first.number("loss_difference") == pytest.approx(2.5 - 1.0)
    assert np.isnan(first.number("mis_median"))


def test_without_held_out_images_numbers_are_those_of_the_seen(swept):
    assert swept(parts=("seen",)).saes[0].number("fvu") == 0.2


def test_densities_and_the_course_of_training_are_means_and_paths(swept):
    first = swept().saes[0]
    assert first.density == pytest.approx(0.2)
    assert first.image_density == pytest.approx(0.6)
    assert first.course["fvu"].tolist() == [1.0, 0.5, 0.4]
    assert sweep.has_course(first)


def test_seeds_are_compared_with_seeds_and_with_nothing_else(swept, tmp_path):
    found = swept()
    assert [(one.site, [sae.seed for sae in one.saes]) for one in found.stabilities] == [
        ("a.1", [0, 1]), ("a.2", [0, 1]), ("a.1", [0, 1]), ("a.2", [0, 1]),
    ]  # fmt: skip
    first = found.stabilities[0]
    a_fd, b_fd = (io.load(sae.folder).dictionary for sae in first.saes)
    assert first.found.mcc == match(a_fd, b_fd).mcc
    assert 0.1 < first.found.mcc < 0.99


def test_what_the_store_has_no_more_is_left_out(swept):
    found = swept(with_store=False)
    assert found.saes[0].number("fvu") == 0.4
    assert not sweep.has_course(found.saes[0])
    assert np.isnan(found.saes[0].density)
    assert found.stabilities == []
    told = "topk: no dictionaries of several seeds to compare"
    assert found.notes == [f"a.1, {told}", f"a.2, {told}"]


def test_mis_is_of_the_features_that_have_one(swept, monkeypatch):
    soft = SimpleNamespace(estimate=torch.tensor([0.5, float("nan"), 0.9, 0.55]))
    scores = SimpleNamespace(by_negatives={"random": SimpleNamespace(scores=SimpleNamespace(soft=soft))})
    monkeypatch.setattr(UnitScores, "read", lambda folder: scores)
    first = swept(with_mis=True).saes[0]
    assert first.number("mis_median") == pytest.approx(0.55)
    assert first.number("mis_mean") == pytest.approx(0.65)


def test_a_sweep_without_saes_has_runs(results):
    for result in results:
        result["artifacts"] = {}
    found = read_sweep("none", results, sweep.Path("nowhere"))
    assert len(found.runs) == 4
    assert (found.saes, found.sites, found.stabilities, found.notes) == ([], [], [], [])


@pytest.mark.parametrize(
    ("option", "value"), [("sae", "topk"), ("sae.k", "8"), ("sae.l1", "0.5"), ("sae.gone", ""), ("trainer.at", "[1,2]")]
)
def test_an_option_that_was_not_given_has_the_value_that_it_had(option, value):
    config = {"sae": {"name": "topk", "k": 8, "l1": 0.5}, "trainer": {"at": [1, 2]}}
    words = {"sae.k": "8"}
    assert sweep._value(config, option, words) == value
    assert sweep._value(config, "sae", {"sae": "topk_wide"}) == "topk_wide"


def saes_of(made_sae, **numbers):
    n = len(next(iter(numbers.values())))
    return [
        made_sae(seed=place, numbers={name: values[place] for name, values in numbers.items()}) for place in range(n)
    ]


@given(VALUES, VALUES, VALUES)
def test_ranks_are_scipys_and_ties_share_them(made_sae, fvu, l0, mis):
    saes = saes_of(made_sae, fvu=fvu, l0=l0, mis_median=mis)
    found = rank(saes)
    assert found.measures == ["fvu", "l0", "mis_median"]
    expected = np.stack([rankdata(fvu), rankdata(l0), rankdata(-np.array(mis))], 1)
    order = [sae.seed for sae in found.saes]
    assert found.ranks_sm == pytest.approx(expected[order])
    assert found.mean_rank_s == pytest.approx(expected.mean(1)[order])
    assert found.final_rank_s == pytest.approx(rankdata(expected.mean(1))[order])
    assert all(a <= b for a, b in pairwise(found.final_rank_s))


def test_a_measure_that_one_lacks_is_shown_and_does_not_count(made_sae):
    saes = saes_of(made_sae, fvu=[0.3, 0.2, 0.1], mis_median=[0.9, float("nan"), 0.8])
    found = rank(saes)
    assert found.counted == [True, False]
    assert [sae.seed for sae in found.saes] == [2, 1, 0]
    assert found.mean_rank_s.tolist() == [1, 2, 3]
    assert found.ranks_sm[:, 1] == pytest.approx([2, np.nan, 1], nan_ok=True)


def test_the_measures_are_for_the_user_to_choose(made_sae):
    saes = saes_of(made_sae, fvu=[0.3, 0.2], kl=[1.0, 2.0])
    assert [sae.seed for sae in rank(saes, ["kl"]).saes] == [0, 1]
    assert np.isnan(rank(saes, ["nrmse"]).final_rank_s).all()
    assert set(RANKED) <= set(MEASURES)
    with pytest.raises(ConfigError, match=r"no measure fuv to rank by.*Nearest: fvu"):
        rank(saes, ["fuv"])


POINT = st.tuples(st.integers(0, 6).map(float), st.integers(0, 6).map(float))


@given(st.lists(POINT, min_size=1, max_size=12), st.booleans())
def test_the_front_holds_what_nothing_beats(points, high):
    def beats(a, b):
        better = a[1] >= b[1] if high else a[1] <= b[1]
        return a[0] <= b[0] and better and a != b

    front = [points[place] for place in pareto_front(points, high)]
    assert set(front) == {point for point in points if not any(beats(other, point) for other in points)}
    assert len(set(front)) == len(front)
    assert front == sorted(front)


def test_points_that_are_unknown_are_on_no_front():
    assert pareto_front([(1.0, float("nan")), (2.0, 3.0)]) == [1]
    assert pareto_front([]) == []


@pytest.fixture(scope="module")
def made_sae():
    def made(seed=0, numbers=None, **more):
        given = {
            "run": f"run{seed}", "site": "a.1", "architecture": "topk", "seed": seed, "options": {},
            "setting": f"s{seed}", "numbers": numbers or {},
        }  # fmt: skip
        return sweep.SweptSae(**{**given, **more})

    return made


@pytest.fixture
def results():
    """What four runs say: k of 4 and, by default, 16, two seeds each, two sites."""
    found = []
    for words, k in ((["sae.k=4"], 4), ([], 16)):
        for seed in (0, 1):
            metrics, artifacts = {}, {}
            for place, site in enumerate(("a.1", "a.2")):
                fvu = 0.4 + 0.1 * place - 0.02 * k + 0.08 + 0.01 * seed
                for part, factor in (("seen", 0.5), ("held_out", 1.0)):
                    name = f"evaluate/{site}/{part}/"
                    metrics |= {
                        f"{name}fvu": round(fvu * factor, 6), f"{name}l0": float(k), f"{name}l1": k * 0.2,
                        f"{name}nrmse": fvu / 4, f"{name}dead_share": 0.0, f"{name}loss_original": 1.0,
                        f"{name}loss_spliced": 2.5, f"{name}recovered_mean": 0.3 + 0.01 * k,
                    }  # fmt: skip
                key = f"{k}-{seed}-{place}"
                artifacts |= {f"sae/{site}": key, f"evaluate/{site}": key, f"mis/{site}/feature": key}
            found.append(
                {
                    "run_key": f"run-{k}-{seed}", "seed": seed, "headline": None, "seconds": 1.5,
                    "overrides": ["experiment=x", *words, f"seed={seed}"], "artifacts": artifacts, "metrics": metrics,
                    "config": {"seed": seed, "sae": {"name": "topk", "k": k}, "mis": {"n_tasks": seed}},
                }
            )  # fmt: skip
    return found


@pytest.fixture
def swept(results, tmp_path):
    """The sweep of these runs: swept(parts=..., with_store=True, with_mis=False)."""

    def build(parts=("seen", "held_out"), with_store=True, with_mis=False):
        for result in results:
            result["metrics"] = {
                name: value for name, value in result["metrics"].items() if name.split("/")[2] in parts
            }
            for name, key in result["artifacts"].items() if with_store else ():
                write_artifact(tmp_path / name.split("/")[0] / key, name.split("/")[0], key, with_mis)
        return read_sweep("made-up", results, tmp_path)

    return build


def write_artifact(folder, stage, key, with_mis) -> None:
    if stage == "mis":
        if with_mis:
            folder.mkdir(parents=True)
        return
    folder.mkdir(parents=True)
    if stage == "evaluate":
        for part in ("seen", "held_out"):
            (folder / part).mkdir()
            shares = {"density_f": torch.tensor([0.1, 0.3]), "image_density_f": torch.tensor([0.2, 1.0])}
            write_tensors(folder / part / "reconstruction.safetensors", shares)
        return
    sae = TopKSae(TopKConfig(name="topk", n_features=12, k=4), width=6)
    random = torch.Generator().manual_seed(int(key.split("-")[1]))
    sae.initialise(torch.randn(50, 6, generator=random), random)
    io.save(sae, folder)
    curves = {"step": [0, 5, 10], "fvu": [1.0, 0.5, 0.4], "l0": [4, 4, 4]}
    (folder / "evaluations.json").write_text(json.dumps(curves))
