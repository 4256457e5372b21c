"""Do the numbers of the MIS keep what they promise? Simulations in which the truth is known.

    python benchmarks/mis/calibration.py [--simulations 2000] [--resamples 1000] [--seed 0]

Units that respond at random must score one half, with the spread of guessing; 95 % intervals must cover the truth;
tests must find a difference that is not there in 5 % of cases. What is simulated is said in each function of
chance_units.py, score_intervals.py and comparisons.py. Everything runs the code that a run uses. Exit code 1 when a
check fails.
"""

from __future__ import annotations

import argparse
import sys
import time

from chance_units import N_IMAGES, chance_scores, false_discoveries, random_units
from check import Check
from comparisons import agreement, groups, pairs, sites, two_sets
from score_intervals import task_intervals, wilson_coverage


def checks(n_simulations: int, n_resamples: int, seed: int, n_images: int = N_IMAGES) -> list[Check]:
    """All checks."""
    return [
        *random_units(chance_scores(n_simulations, seed, n_images)),
        *wilson_coverage(),
        *task_intervals(n_simulations, n_resamples, seed),
        *two_sets(n_simulations, n_resamples, seed),
        *pairs(n_simulations, n_resamples, seed),
        *sites(n_simulations, seed),
        *groups(n_simulations, n_resamples, seed),
        *false_discoveries(n_simulations, seed),
        *agreement(n_simulations, n_resamples, seed),
    ]


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--simulations", type=int, default=2000)
    options.add_argument("--resamples", type=int, default=1000, help="of a bootstrap (a run's default)")
    options.add_argument("--seed", type=int, default=0)
    chosen = options.parse_args(argv)
    started = time.perf_counter()
    found = checks(chosen.simulations, chosen.resamples, chosen.seed)
    width = max(len(check.what) for check in found)
    for check in found:
        error = f"± {check.error:.4f}" if check.error else "exact   "
        told = f"{check.what:{width}}  {check.value:.4f} {error}  ({check.low:g} to {check.high:g})  {check.verdict}"
        print(f"{told}  {check.note}".rstrip())
    failed = sum(check.verdict == "FAIL" for check in found)
    print(f"{len(found)} checks, {failed} failed, {time.perf_counter() - started:.0f} s")
    return int(failed > 0)


if __name__ == "__main__":
    sys.exit(main())
