"""The calibration benchmark, small: every check holds up to the noise of few simulations, and can fail."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import ModuleType

import numpy as np
import pytest

from mis_lab.core.intervals import Interval

FOLDER = Path(__file__).resolve().parents[3] / "benchmarks" / "mis"


@pytest.fixture(scope="module")
def module() -> Iterator[Callable[[str], ModuleType]]:
    """Imports a module of benchmarks/mis, where the modules import each other by name."""
    names = [path.stem for path in FOLDER.glob("*.py")]
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(str(FOLDER))
        for name in names:
            patch.delitem(sys.modules, name, raising=False)
        yield importlib.import_module
        for name in names:
            sys.modules.pop(name, None)


def test_what_is_promised_holds_in_a_small_simulation(module):
    found = module("calibration").checks(60, 100, seed=1, n_images=1000)
    assert len({check.what for check in found}) == len(found)
    for check in found:
        slack = 4.5 * check.error
        assert check.low - slack <= check.value <= check.high + slack, check
    assert {check.verdict for check in found if not check.error} == {"PASS"}
    assert {int(check.what.split()[0]) for check in found if "coverage of soft" in check.what} == {5, 10, 20, 100}


def test_the_table_says_what_failed(module, monkeypatch, capsys):
    calibration = module("calibration")
    good = calibration.Check("mean", 0.5, 0.49, 0.51, 0.01, "beside it")
    bad = good._replace(value=0.52, error=0.0, note="")
    monkeypatch.setattr(calibration, "checks", lambda *_: [good, bad])
    assert calibration.main(["--simulations", "1"]) == 1
    first, second, last = capsys.readouterr().out.splitlines()
    assert first.endswith("0.5000 ± 0.0100  (0.49 to 0.51)  PASS  beside it")
    assert second.endswith("0.5200 exact     (0.49 to 0.51)  FAIL")
    assert last.startswith("2 checks, 1 failed")
    monkeypatch.setattr(calibration, "checks", lambda *_: [good])
    assert calibration.main([]) == 0


def test_percentiles_of_the_outcomes_alone_fail_at_twenty_tasks(module, monkeypatch):
    """The interval that a unit near 1 must not have: resamples of twenty outcomes, and nothing else."""
    intervals = module("score_intervals")

    def plain(values, random, n_bootstrap):
        counts = random.multinomial(values.shape[1], np.full(values.shape[1], 1 / values.shape[1]), n_bootstrap)
        return Interval(values.mean(1), *np.quantile(values @ counts.T / values.shape[1], [0.025, 0.975], axis=1))

    monkeypatch.setattr(intervals, "SIZES", (20,))
    honest = {check.what: check for check in intervals.task_intervals(300, 300, 0)}
    monkeypatch.setattr("mis_lab.mis.score.bounded_mean_interval", plain)
    narrow = {check.what: check for check in intervals.task_intervals(300, 300, 0)}
    assert honest["20 tasks: coverage of soft from 0.9 to 1"].verdict == "PASS"
    assert narrow["20 tasks: coverage of soft from 0.9 to 1"].verdict == "FAIL"


def test_an_interval_that_is_too_narrow_and_a_test_that_finds_too_much_fail(module, monkeypatch):
    intervals, comparisons, chance_units = map(module, ("score_intervals", "comparisons", "chance_units"))
    narrow = intervals.wilson
    monkeypatch.setattr(intervals, "wilson", lambda share, n: narrow(share, n, confidence=0.8))
    assert {check.verdict for check in intervals.wilson_coverage()} == {"FAIL"}
    monkeypatch.setattr(comparisons, "signed_rank", lambda _: 0.01)
    assert comparisons.pairs(5, 5, 0)[0].verdict == "FAIL"
    assert [check.verdict for check in comparisons.sites(5, 0)] == ["FAIL", "PASS", "FAIL", "FAIL"]
    # Units that are better than chance do not pass for random ones.
    scores = chance_units.chance_scores(30, 0, 500)
    result = scores.by_negatives["random"]
    better = result.scores._replace(hard=result.scores.hard._replace(estimate=np.full(30, 0.6)))
    scores = replace(scores, by_negatives={"random": replace(result, scores=better)})
    assert chance_units.random_units(scores)[0].verdict == "FAIL"


def test_mixtures_have_the_mean_that_draws_from_them_have(module):
    random = np.random.default_rng(0)
    for kind, units in module("score_intervals").kinds(random, 4).items():
        margins, truth = units.draw(random, 40_000), units.truth()
        for measure, drawn in (("soft", 1 / (1 + np.exp(-margins / 0.16))), ("delta_over_tau", margins / 0.16)):
            error = drawn.std(1) / 200
            assert (np.abs(drawn.mean(1) - truth[measure]) < 4.5 * error + 1e-9).all(), (kind, measure)
