"""Every benchmark explains itself, and the parts of the SAE benchmarks that need no other library work."""

from __future__ import annotations

import contextlib
import importlib
import json
import runpy
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch.utils.flop_counter import FlopCounterMode

from mis_lab.sae.evaluate import evaluate_reconstruction

BENCHMARKS = Path(__file__).resolve().parent.parent / "benchmarks"
SAE, MIS = BENCHMARKS / "sae", BENCHMARKS / "mis"
SCRIPTS = [path for path in sorted(BENCHMARKS.rglob("*.py")) if "ArgumentParser(" in path.read_text(encoding="utf-8")]
TINY = ["--width", "8", "--features", "16", "--batch", "32", "--k", "2"]


@contextlib.contextmanager
def importable(folder: Path) -> Iterator[None]:
    """Modules in `folder` can be imported as the scripts there do; gone again afterwards, and threads as before."""
    names, threads = [path.stem for path in folder.glob("*.py")], torch.get_num_threads()
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(folder))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield
        for name in names:
            sys.modules.pop(name, None)
    torch.set_num_threads(threads)


@pytest.fixture
def sae() -> Iterator[Callable[[str], Any]]:
    """Imports a module of benchmarks/sae."""
    with importable(SAE):
        yield importlib.import_module


@pytest.fixture
def mis() -> Iterator[Callable[[str], Any]]:
    """Imports a module of benchmarks/mis."""
    with importable(MIS):
        yield importlib.import_module


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: str(path.relative_to(BENCHMARKS)))
def test_a_benchmark_explains_itself(
    script: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [str(script), "--help"])
    with importable(script.parent), pytest.raises(SystemExit) as stopped:
        runpy.run_path(str(script), run_name="__main__")
    assert stopped.value.code == 0
    assert "usage:" in capsys.readouterr().out


# ---- measure


def test_allocator_peak_is_what_is_alive_at_once(sae: Callable[[str], Any]) -> None:
    def work() -> None:
        first = torch.empty(3 * 2**18)
        second = torch.empty(2 * 2**18)
        del first
        third = torch.empty(1 * 2**18)
        del second, third

    assert sae("measure").allocator_peak(work) == pytest.approx(5.0, abs=0.01)


@pytest.mark.parametrize(
    ("value", "sign", "limit", "goal", "verdict"),
    [
        (2.0, ">=", 1.0, 3.0, "PASS"),
        (3.0, ">=", 1.0, 3.0, "PASS, goal reached"),
        (0.9, ">=", 1.0, None, "FAIL"),
        (0.9, "<=", 1.0, None, "PASS"),
        (1.1, "<=", 1.0, 0.5, "FAIL"),
        (None, "<=", 1.0, 0.5, "NOT MEASURED"),
    ],
)
def test_a_gate_says_whether_it_holds(
    sae: Callable[[str], Any], value: float | None, sign: str, limit: float, goal: float | None, verdict: str
) -> None:
    assert sae("measure").Gate("x", value, sign, limit, goal).verdict == verdict


# ---- the known dictionary


def test_synthetic_vectors_are_those_of_the_protocol(sae: Callable[[str], Any]) -> None:
    synthetic = sae("synthetic")
    source = synthetic.Synthetic(5, 3.0)
    truth = torch.Generator().manual_seed(105)
    atoms = torch.randn(256, 64, generator=truth)
    atoms = atoms / atoms.norm(dim=1, keepdim=True)
    constant = torch.randn(64, generator=truth)
    constant = 3.0 * constant / constant.norm()
    rates = 1 / (torch.arange(256) + 10)
    rates = 6 * rates / rates.sum()
    stream = torch.Generator().manual_seed(12)
    for step in range(2):
        fires = torch.rand(512, 256, generator=stream) < rates
        codes = fires * (1 + 0.2 * torch.randn(512, 256, generator=stream)).abs()
        torch.testing.assert_close(source.batch(step), codes @ atoms + constant)
    assert float(rates.max() / rates.min()) == pytest.approx(26.5, rel=1e-4)
    unequal = synthetic.rates(synthetic.UNEQUAL)
    assert float(unequal.sum()) == pytest.approx(6.0, rel=1e-5)
    assert float(unequal.max() / unequal.min()) == pytest.approx(2650, rel=1e-3)
    assert float(unequal.max()) < 1


def test_the_true_dictionary_is_recovered(sae: Callable[[str], Any]) -> None:
    synthetic = sae("synthetic")
    source = synthetic.Synthetic(0, 0.0)
    shuffled = torch.cat([-2 * source.atoms_td[torch.randperm(256, generator=torch.Generator().manual_seed(0))]] * 2)
    mcc, recovered = synthetic.match(source.atoms_td, shuffled)
    assert mcc == pytest.approx(1.0, abs=1e-5)
    assert recovered == 0.0, "a reversed feature is matched, not recovered"


def test_quality_is_that_of_the_evaluation(sae: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    synthetic, ours = sae("synthetic"), sae("ours")
    monkeypatch.setattr(synthetic, "N_HELD_OUT", 500)
    from mis_lab.core.build import build
    from mis_lab.core.seeding import generator
    from mis_lab.core.statistics import Moments

    source = synthetic.Synthetic(1, 3.0)
    model = build(ours.recipe("topk", *ours.sizes("topk", 32, 4)).sae, width=64)
    model.initialise(source.sample(200), generator(0, "atoms"))
    quality = synthetic.judge(source, model.dictionary.detach(), model.encode, model.decode)

    class Stored:
        n_images, n_positions, groups = 500, 1, ["all"] * 500
        x = source.held_out().unsqueeze(1)
        moments = Moments()

        def take(self, indices: Any) -> torch.Tensor:
            return self.x[list(indices)]

    Stored.moments.update(Stored.x.squeeze(1))
    expected = evaluate_reconstruction(model, Stored())
    assert quality.fvu == pytest.approx(expected.fvu, rel=1e-4)
    assert quality.l0 == pytest.approx(expected.l0)
    assert quality.dead == pytest.approx(expected.dead_share)


# ---- the benchmarks, small


def test_every_architecture_has_a_preset(sae: Callable[[str], Any]) -> None:
    ours = sae("ours")
    assert ours.available() == [*ours.ARCHITECTURES]
    for name, architecture in ours.ARCHITECTURES.items():
        run = ours.recipe(name, *ours.sizes(name, 32, 3))
        assert run.sae.n_features == 32
        assert not architecture.has_k or run.sae.k == 3
        assert not architecture.penalty or getattr(run.sae, architecture.penalty) > 0


def test_step_measures_ours(sae: Callable[[str], Any], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    out = tmp_path / "step.json"
    some = ["--only", "mis_lab/topk", "mis_lab/relu_april", "mis_lab/archetypal"]
    sae("step").main([*TINY, "--ours", "--seeds", "0", "--rounds", "1", "--out", str(out), *some])
    printed = capsys.readouterr().out
    seconds = json.loads(out.read_text(encoding="utf-8"))["seconds"]
    names = {"topk", "topk:dense", "relu_april", "archetypal"}
    assert {*seconds} == {"matrix product", *(f"mis_lab/{name}" for name in names)}
    assert all(name in printed for name in seconds)
    assert "NOT MEASURED" in printed, "gates against other libraries need them"


def test_together_measures_a_gain(sae: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    gates = sae("together").main([*TINY, "--steps", "4", "--saes", "2", "--rounds", "1", "--ratios", "1"])
    assert gates[0].value > 0
    assert "÷ ideal" in capsys.readouterr().out


def test_recovery_judges_ours(
    sae: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    recovery, synthetic = sae("recovery"), sae("synthetic")
    monkeypatch.setattr(recovery, "N_STEPS", 2)
    monkeypatch.setattr(synthetic, "N_HELD_OUT", 100)
    gates = recovery.main(["--seeds", "0", "--only", "mis_lab/topk", "mis_lab/relu"])
    measured = {gate.what for gate in gates if gate.value is not None}
    assert "topk MCC" in measured
    assert "relu MCC moved by the offset" in measured
    recovery.main(["--seeds", "0", "--offsets", "0", "--only", "mis_lab/jump_relu", "--protocol", "unequal"])
    assert "unequal, 2k" in capsys.readouterr().out


def test_the_worst_offset_counts(sae: Callable[[str], Any]) -> None:
    recovery, quality = sae("recovery"), sae("synthetic").Quality
    runs = [
        recovery.Run("mis_lab/topk", "standard", offset, seed, 1.0, quality(mcc, 1.0, 0.1, 6.0, dead))
        for offset, seed, mcc, dead in [
            (0.0, 0, 0.97, 0.0),
            (0.0, 1, 0.99, 0.0),
            (3.0, 0, 0.93, 0.04),
            (3.0, 1, 0.95, 0.04),
        ]
    ]
    verdicts = {gate.what: gate for gate in recovery.gates(runs)}
    assert verdicts["topk MCC"].value == pytest.approx(0.94)
    assert verdicts["topk MCC"].verdict == "FAIL"
    assert verdicts["topk dead"].verdict == "FAIL"
    assert verdicts["topk MCC moved by the offset"].value == pytest.approx(0.04)
    assert verdicts["relu MCC"].verdict == "NOT MEASURED"


def test_pareto_reads_runs(sae: Callable[[str], Any], tmp_path: Path) -> None:
    pareto = sae("pareto")
    sites = ["a", "b"]
    for k in (8, 16):
        for seed in range(3):
            numbers = {"l0": k - 0.1 * seed, "fvu": 1 / k + 0.01 * seed, "recovered_mean": None if k == 8 else 0.9}
            numbers["dead_share"] = 0.0
            result = {
                "seed": seed,
                "config": {"sae": {"name": "topk", "k": k}, "model": {"sites": sites}},
                "metrics": {f"evaluate/{site}/held_out/{name}": x for site in sites for name, x in numbers.items()},
            }
            folder = tmp_path / "runs" / f"{k}-{seed}"
            folder.mkdir(parents=True)
            (folder / "result.json").write_text(json.dumps(result), encoding="utf-8")
    points = pareto.read(tmp_path / "runs")
    assert len(points) == 12
    first = pareto.rows(points)[0]
    assert first[:5] == ["a", "topk", "k 8", "3", "7.9 (7.8 to 8.0)"]
    assert first[6] == "", "no value where a seed has none"
    pareto.figure(points, tmp_path / "pareto.svg")
    assert "FVU at a" in (tmp_path / "pareto.svg").read_text(encoding="utf-8")


# ---- scoring at scale


def test_end_to_end_scores_the_same_tasks(mis: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    end_to_end = mis("end_to_end")
    assert end_to_end.main(["--small"]) == 0
    printed = capsys.readouterr().out
    assert "ratio: " in printed
    assert "largest difference on the same ids" in printed
    small = ["--images", "300", "--tasks", "6", "--units", "5", "--width", "32"]
    assert end_to_end.main([*small, "--alone", "plain"]) == 0
    assert json.loads(capsys.readouterr().out)["total"] > 0


def test_end_to_end_sees_a_wrong_score_and_a_wrong_id(
    mis: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    end_to_end = mis("end_to_end")
    given, right = end_to_end.problem(300, 5, 6, 32), end_to_end.ours
    found = right(given)
    tasks = found.tasks
    monkeypatch.setattr(end_to_end, "ours", lambda _: replace(found, tasks=tasks._replace(query_positive=tasks[3])))
    with pytest.raises(AssertionError):
        end_to_end.difference(given)
    monkeypatch.setattr(end_to_end, "ours", lambda _: found)
    monkeypatch.setattr(end_to_end, "TEMPERATURE", 0.2)
    assert end_to_end.difference(given) > end_to_end.TOLERANCE


def test_the_plain_implementation_finds_a_unit_that_sees_a_direction(mis: Callable[[str], Any]) -> None:
    end_to_end = mis("end_to_end")
    noise = end_to_end.problem(400, 3, 40, 32)
    seeing = noise._replace(a_nu=noise.embedding.rows[:, :3].contiguous())
    soft, hard = end_to_end.plain(seeing)
    assert (hard > 0.75).all()
    ours = end_to_end.ours(seeing).scores
    assert abs(float(soft.mean()) - float(ours.soft.estimate.mean())) < 0.05
    assert abs(float(end_to_end.plain(noise)[1].mean()) - 0.5) < 0.15


def test_full_scale_measures_the_cost_of_a_unit(mis: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    some = ["--units", "60", "--few", "10", "--images", "600", "--tasks", "8", "--width", "32", "--rounds", "2"]
    mis("full").main(some)
    printed = capsys.readouterr().out
    assert "60 units, 600 images, 8 tasks a unit" in printed
    assert "cost of a unit among many, over that among few" in printed
    assert printed.count("standard errors from one half") == 2


def test_streams_are_seeded_and_do_not_depend_on_who_asks(mis: Callable[[str], Any]) -> None:
    stream = mis("simulated").Stream(50, 4)
    first, again = ([x_bpd for _, x_bpd in stream.images(16)] for _ in range(2))
    assert all(torch.equal(one, other) for one, other in zip(first, again, strict=True))
    assert [len(x_bpd) for x_bpd in first] == [16, 16, 16, 2]
    assert stream.seconds > 0


def test_rare_features_are_understood(mis: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    rare = mis("rare")
    assert rare.main(["--images", "6000", "--rate", "0.04", "--features", "2"]) == 0
    assert rare.main(["--images", "6000", "--rate", "0.005", "--features", "2"]) == 1, "too rare for 20 tasks"
    capsys.readouterr()


def test_scoring_is_compared_with_its_definition(
    mis: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    scoring = mis("scoring")
    monkeypatch.setattr(scoring, "LIMIT", 1000)  # times this short say nothing
    small = ["--images", "500", "--width", "16", "--tasks", "300", "--rounds", "2"]
    assert scoring.main(small) == 0
    assert "ids as of sorting and of units one by one: True" in capsys.readouterr().out
    monkeypatch.setattr(scoring, "defined", lambda tasks, _: torch.zeros(tasks.query_positive.shape[1]))
    assert scoring.main(small) == 1


# ---- other libraries


def test_a_missing_library_is_named(sae: Callable[[str], Any], monkeypatch: pytest.MonkeyPatch) -> None:
    peer = sae("peer")
    monkeypatch.setattr(peer, "LIBRARIES", {"overcomplete": "no_such_library_anywhere"})
    peer._imported.cache_clear()
    assert "no_such_library_anywhere" in peer.missing()["overcomplete"]
    names = sae("peers").usable()
    assert not any(name.startswith("overcomplete/") for name in names)
    peer._imported.cache_clear()


def test_every_peer_says_what_it_is(sae: Callable[[str], Any]) -> None:
    peers, libraries = sae("peers").PEERS, sae("peer").LIBRARIES
    assert {name.partition("/")[0] for name in peers} == {*libraries}
    architectures = {name.partition("/")[2].partition(":")[0] for name in peers}
    assert architectures <= {*sae("ours").ARCHITECTURES}
    assert {*sae("recovery").PENALTIES} == {name for name, each in peers.items() if each.penalised}


# ---- circuits


@pytest.mark.slow
def test_effects_are_those_of_captum_and_of_loops(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with importable(SAE), importable(BENCHMARKS / "circuit"):
        effects = importlib.import_module("effects")
        gates = effects.main(["--small", "--out", str(tmp_path / "effects.json")])
    printed = capsys.readouterr().out
    differences = [gate for gate in gates if "largest difference" in gate.what]
    assert len(differences) == 8
    assert all(gate.verdict == "PASS" for gate in gates), printed
    written = json.loads((tmp_path / "effects.json").read_text(encoding="utf-8"))
    assert [gate["what"] for gate in written["gates"]] == [gate.what for gate in gates]
    assert "ig, gauss_legendre" in printed


def test_splicing_from_a_site_gives_the_numbers_of_whole_passes(
    sae: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    with importable(BENCHMARKS):
        sae("splice").main(["--rounds", "1", "--images", "18"])
    rows = [line.split(" | ") for line in capsys.readouterr().out.splitlines() if line.startswith("| blocks")]
    assert [row[0] for row in rows] == ["| blocks.2", "| blocks.4", "| blocks.6"]
    assert [row[-2] for row in rows] == ["18, 3"] * 3, "two images to try, one for the only batch"
    assert all(float(row[-1].rstrip(" |")) < 1e-5 for row in rows)


@pytest.fixture
def circuit() -> Iterator[Callable[[str], Any]]:
    """Imports a module of benchmarks/circuit."""
    with importable(SAE), importable(BENCHMARKS / "circuit"):
        yield importlib.import_module


@pytest.mark.slow
def test_edges_are_those_of_a_loop(circuit: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    gates = {gate.what: gate for gate in circuit("edges").main(["--small"])}
    printed = capsys.readouterr().out
    assert gates["largest difference from the loop"].verdict == "PASS", printed
    assert gates["backward passes over the loop's"].verdict == "PASS", printed
    assert "act1 → act2 | neuron" in printed


@pytest.mark.slow
def test_planted_features_are_found(circuit: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    gates = circuit("planted").main(["--small"])
    assert all(gate.verdict == "PASS" for gate in gates), capsys.readouterr().out


def test_auroc_counts_pairs_in_the_right_order(circuit: Callable[[str], Any]) -> None:
    auroc, random = circuit("planted").auroc, np.random.default_rng(0)
    scores, positive = random.integers(0, 6, 40).astype(float), random.random(40) < 0.3
    pairs = [(a > b) + (a == b) / 2 for a in scores[positive] for b in scores[~positive]]
    assert auroc(scores, positive) == pytest.approx(np.mean(pairs))


def test_the_counter_of_flops_counts_as_torchs(circuit: Callable[[str], Any]) -> None:
    cost = circuit("cost")
    layers = torch.nn.Sequential(torch.nn.Conv2d(3, 4, 3), torch.nn.Flatten(), torch.nn.Linear(4 * 36, 5))
    counted = []
    for counter in (cost.Flops(), FlopCounterMode(display=False)):
        with counter:
            layers(torch.randn(2, 3, 8, 8)).sum().backward()
        counted.append(counter.get_total_flops())
    assert counted[0] == counted[1] > 0


@pytest.mark.slow
def test_cost_counts_a_small_circuit(circuit: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    cost = circuit("cost")
    gates = {gate.what: gate for gate in cost.main(["--small"])}
    printed = capsys.readouterr().out
    assert gates["TFLOP"].verdict == "PASS"
    assert gates["peak resident set, GB"].verdict == "PASS", printed
    half = cost.main(["--small", "--part", "2"])[0].value
    assert half == pytest.approx(gates["TFLOP"].value, rel=0.1)  # every image takes the same


@pytest.mark.slow
def test_quality_compares_every_order(circuit: Callable[[str], Any], capsys: pytest.CaptureFixture[str]) -> None:
    quality = circuit("quality")
    gates = quality.main(["--small"])
    printed = capsys.readouterr().out
    for kind in ("feature", "neuron"):
        for order in quality.ORDERS:
            assert f"| {kind} | {order} |" in printed
    assert [gate.what.partition(",")[0] for gate in gates] == [
        "cnn: CMD of random less that of change",
        "cnn: CMD of change less that of ig_inputs",
    ]


def test_simulated_circuits_keep_what_they_should_on_average(circuit: Callable[[str], Any]) -> None:
    calibration, random = circuit("calibration"), np.random.default_rng(0)
    for case in (calibration.Case(2000, 4000, 0.3, True), calibration.Case(2000, 6000, 0.3, False)):
        curve, _ = calibration.draw(case, random)
        np.testing.assert_allclose(curve.faithfulness.estimate, calibration.FAITHFULNESS, atol=0.01)
        assert (np.bincount(curve.groups_n) == 2).all() == case.equal


def test_calibration_of_circuits_counts_intervals_that_hold_the_truth(
    circuit: Callable[[str], Any], capsys: pytest.CaptureFixture[str]
) -> None:
    calibration = circuit("calibration")
    gates = calibration.main(["--simulations", "4"])
    assert len(gates) == sum(case.n_groups >= 5 for case in calibration.CASES)
    assert "| 48 images of 5 photographs, unequal, spread 0.8 |" in capsys.readouterr().out
    single = calibration.coverage(calibration.Case(48, 48, 0.3, True), 30, 0)
    assert np.array_equal(single.over_groups, single.over_images), "each image is its own photograph"
    alike = calibration.coverage(calibration.Case(5, 48, 0.8, True), 100, 0)
    assert (alike.over_images < 0.8).all()
    assert (alike.over_groups > 0.85).all()


def test_quality_resamples_pairs_seeds_and_images_alike_for_all_orders(circuit: Callable[[str], Any]) -> None:
    from mis_lab.circuit.faithfulness import Curve

    quality, random = circuit("quality"), np.random.default_rng(1)
    measured = quality.Measured(2, 3, 200, "net")
    sizes, own = np.array([0, 1, 4, 10]), {}
    for seed in range(2):
        for pair in range(3):
            values = np.linspace(0, 2, 4)[:, None] + 0.1 * random.standard_normal((4, 7))
            worse = values.copy()
            worse[1:-1] -= 0.3
            curves = {
                name: [Curve("feature", sizes, each, each[None], each[-1], np.arange(7))]
                for name, each in (("good", values), ("same", values), ("worse", worse))
            }
            own[seed, pair] = {name: float(some[0].cmd.estimate) for name, some in curves.items()}
            measured.add(seed, pair, {"feature": curves})
    for name in ("good", "worse"):
        expected = np.mean([each[name] for each in own.values()])
        assert measured.interval("feature", name, "CMD").estimate == pytest.approx(expected)
    assert measured.difference("feature", "good", "same") == pytest.approx((0.0, 0.0, 0.0))
    difference = measured.difference("feature", "worse", "good")
    assert 0 < difference.low < difference.estimate < difference.high
