"""A sweep as data: the SAEs of all its runs, the options in which they differ, and how they rank.

Numbers are from the runs' ``result.json``; curves, densities and dictionaries from the artifacts that these name, where
the store still has them.
"""

# F features  M measures  S SAEs

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from scipy.stats import rankdata

from mis_lab.core.errors import ConfigError, StoreError, nearest_first
from mis_lab.core.keys import content_key
from mis_lab.core.tensors import read_tensors
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.report.sae_data import STEP, Curves, read_curves
from mis_lab.sae import io
from mis_lab.sae.base import Sae
from mis_lab.sae.stability import Stability, stability
from mis_lab.sae.train import EVALUATIONS


class Measure(NamedTuple):
    """A number to compare SAEs by.

    Attributes:
        term: its glossary key.
        number: its name in the evaluation; empty where it is computed here.
        high_is_good: whether a high value is good, or a low one.
    """

    term: str
    number: str
    high_is_good: bool


RECONSTRUCTION = "reconstruction.safetensors"  # read as it is: what wrote it takes seconds to import
PARTS = ("held_out", "seen")  # of an evaluation; the first that there is speaks for the SAE
MEASURES = {
    "fvu": Measure("sweep_fvu", "fvu", False),
    "nrmse": Measure("nrmse", "nrmse", False),
    "l1": Measure("code_l1", "l1", False),
    "dead_share": Measure("sweep_dead_share", "dead_share", False),
    "l0": Measure("sweep_l0", "l0", False),
    "loss_difference": Measure("loss_difference", "", False),
    "kl": Measure("kl", "kl", False),
    "agreement": Measure("sweep_agreement", "agreement", True),
    "recovered_zero": Measure("recovered_zero", "recovered_zero", True),
    "recovered_mean": Measure("recovered_mean", "recovered_mean", True),
    "mis_median": Measure("mis_median", "", True),
    "mis_mean": Measure("mis_mean", "", True),
}
RANKED = ("fvu", "nrmse", "l1", "dead_share", "l0", "loss_difference", "mis_median")
SEED = "seed"
SETTING = ("model", "dataset", "activations", "sae", "trainer")  # what an SAE depends on beside the seed
MOST_FEATURES = 8192  # of dictionaries that are matched; the time goes with the third power

Find = Callable[[str, str], Path | None]


@dataclass(frozen=True)
class SweptSae:
    """The SAE of one run at one site.

    Attributes:
        run, site, architecture, seed: which one.
        options: option → value as it was given, of the options in which the sweep's runs differ, without the seed.
        setting: hash of what an SAE depends on but the seed: equal for those that differ in their seed alone.
        numbers: measure → value; what is unknown is not there.
        course: evaluations in the course of training (``step``, ``fvu``, ``l0``); empty without.
        density, image_density: mean over the features of the share of vectors, and of images, that they are active on.
        folder: with the SAE itself; None where the store has it no more.
    """

    run: str
    site: str
    architecture: str
    seed: int
    options: Mapping[str, str]
    setting: str
    numbers: Mapping[str, float]
    course: Curves = field(default_factory=dict)
    density: float = float("nan")
    image_density: float = float("nan")
    folder: Path | None = None

    def number(self, measure: str) -> float:
        """The value of a measure, NaN where it is unknown."""
        return self.numbers.get(measure, float("nan"))


@dataclass(frozen=True)
class SweptRun:
    """One run of the sweep: its options as given, its headline number and how long it took."""

    key: str
    seed: int
    options: Mapping[str, str]
    headline: float | None
    seconds: float
    metrics: Mapping[str, float]


@dataclass(frozen=True)
class SeedStability:
    """Dictionaries at a site that differ in the seed alone."""

    site: str
    saes: Sequence[SweptSae]
    found: Stability


@dataclass(frozen=True)
class Ranking:
    """SAEs of one site ranked by several measures.

    Attributes:
        saes: S of them, the best first.
        measures: M names, those that at least one SAE has.
        counted: M, whether every SAE has the measure; others are shown and do not count.
        values_sm, ranks_sm: (S, M), 1 is best, ties share their mean rank; NaN where unknown.
        mean_rank_s, final_rank_s: (S,) mean over the counted measures, and its rank; NaN when none counts.
    """

    saes: Sequence[SweptSae]
    measures: Sequence[str]
    counted: Sequence[bool]
    values_sm: np.ndarray
    ranks_sm: np.ndarray
    mean_rank_s: np.ndarray
    final_rank_s: np.ndarray


@dataclass(frozen=True)
class Sweep:
    """All runs of a name.

    Attributes:
        options: option → its different values, in the order of their size; those with more than one, without the seed.
        sites: in the order of the first run.
        n_seeds: different seeds.
    """

    name: str
    runs: Sequence[SweptRun]
    saes: Sequence[SweptSae]
    options: Mapping[str, Sequence[str]]
    n_seeds: int
    stabilities: Sequence[SeedStability] = ()
    notes: Sequence[str] = ()

    @property
    def sites(self) -> list[str]:
        return list(dict.fromkeys(sae.site for sae in self.saes))

    @property
    def architectures(self) -> list[str]:
        return sorted({sae.architecture for sae in self.saes})

    def at(self, site: str) -> list[SweptSae]:
        return [sae for sae in self.saes if sae.site == site]


def read_sweep(name: str, results: Sequence[Mapping[str, Any]], store: Path) -> Sweep:
    """What the runs of a name made.

    Args:
        results: what their ``result.json`` say, at least one.
        store: where their artifacts are.
    """
    given = [_given(result) for result in results]
    names = sorted({option for words in given for option in words} - {SEED})
    valued = [
        {option: _value(result["config"], option, words) for option in names}
        for result, words in zip(results, given, strict=True)
    ]
    found = {option: _ordered(one[option] for one in valued if one[option]) for option in names}
    options = {option: values for option, values in found.items() if len(values) > 1}
    runs, saes = [], []
    for result, values in zip(results, valued, strict=True):
        swept = {option: values[option] for option in options}
        runs.append(
            SweptRun(
                result["run_key"],
                result["seed"],
                swept,
                result["headline"],
                float(result["seconds"]),
                result["metrics"],
            )
        )
        saes += _saes(result, swept, _finder(result, store))
    stabilities, notes = _stabilities(saes)
    return Sweep(name, runs, saes, options, len({run.seed for run in runs}), stabilities, notes)


def _given(result: Mapping[str, Any]) -> dict[str, str]:
    """Option → value as typed; the last word wins."""
    words = (word.partition("=") for word in result["overrides"])
    return {option.lstrip("+~"): value for option, _, value in words}


def _value(config: Mapping[str, Any], option: str, words: Mapping[str, str]) -> str:
    """An option's value in a run, also where the run left it alone; empty where it has no such option."""
    value: Any = config
    for part in option.split("."):
        value = value.get(part) if isinstance(value, Mapping) else None
    if isinstance(value, Mapping):  # a preset: by the name that was given, or that it gives itself
        return words.get(option, str(value.get("name", "")))
    if value is None:
        return words.get(option, "")
    if isinstance(value, list):
        return f"[{','.join(map(str, value))}]"
    return f"{value:g}" if isinstance(value, float) else str(value)


def _ordered(values: Iterable[str]) -> list[str]:
    """Different values, numbers by size before names."""
    return sorted(set(values), key=lambda value: (as_number(value) is None, as_number(value) or 0.0, value))


def as_number(value: str) -> float | None:
    """The number that an option's value is, None for a name."""
    try:
        return float(value)
    except ValueError:
        return None


def _finder(result: Mapping[str, Any], store: Path) -> Find:
    def find(stage: str, name: str) -> Path | None:
        key = result["artifacts"].get(name)
        folder = store / stage / str(key)
        return folder if key and folder.exists() else None

    return find


def _saes(result: Mapping[str, Any], options: Mapping[str, str], find: Find) -> list[SweptSae]:
    setting = content_key({part: result["config"].get(part) for part in SETTING})
    found = []
    for name in result["artifacts"]:
        stage, _, site = name.partition("/")
        if stage != "evaluate":
            continue
        evaluated, trained, scored = find(stage, name), find("sae", f"sae/{site}"), find("mis", f"mis/{site}/feature")
        numbers = _numbers(result["metrics"], site)
        density = image_density = float("nan")
        part = next((part for part in PARTS if evaluated and (evaluated / part).exists()), None)
        if evaluated and part:
            shares = read_tensors(evaluated / part / RECONSTRUCTION)
            density, image_density = (float(shares[name].mean()) for name in ("density_f", "image_density_f"))
        found.append(
            SweptSae(
                result["run_key"],
                site,
                str(result["config"]["sae"].get("name", "sae")),
                result["seed"],
                options,
                setting,
                numbers | (_mis(scored) if scored else {}),
                read_curves(trained / EVALUATIONS) if trained else {},
                density,
                image_density,
                trained,
            )
        )
    return found


def _numbers(metrics: Mapping[str, float], site: str) -> dict[str, float]:
    part = next((f"evaluate/{site}/{part}/" for part in PARTS if f"evaluate/{site}/{part}/fvu" in metrics), "")
    named = {name: part + measure.number for name, measure in MEASURES.items() if measure.number}
    numbers = {measure: float(metrics[name]) for measure, name in named.items() if name in metrics}
    if part + "loss_spliced" in metrics:
        numbers["loss_difference"] = metrics[part + "loss_spliced"] - metrics[part + "loss_original"]
    return numbers


def _mis(folder: Path) -> dict[str, float]:
    """Median and mean soft score of the features that have one, with the run's first kind of negatives."""
    scores = UnitScores.read(folder)
    soft = np.asarray(next(iter(scores.by_negatives.values())).scores.soft.estimate)
    soft = soft[np.isfinite(soft)]
    return {"mis_median": float(np.median(soft)), "mis_mean": float(soft.mean())} if soft.size else {}


def by_setting(saes: Iterable[SweptSae]) -> list[list[SweptSae]]:
    """SAEs of one site and setting together: one a seed."""
    groups: dict[tuple[str, str], list[SweptSae]] = {}
    for sae in saes:
        groups.setdefault((sae.site, sae.setting), []).append(sae)
    return [sorted(group, key=lambda sae: sae.seed) for group in groups.values()]


def _stabilities(saes: Sequence[SweptSae]) -> tuple[list[SeedStability], list[str]]:
    found, notes = [], []
    for group in by_setting(saes):
        seeds = {sae.seed: sae for sae in group}  # the same run in two folders counts once
        if len(seeds) < 2:
            continue
        try:
            loaded = {seed: io.load(sae.folder) for seed, sae in seeds.items() if sae.folder is not None}
        except StoreError as error:
            notes.append(f"{group[0].site}: no stability between seeds ({error})")
            continue
        dictionaries = [sae.dictionary for sae in loaded.values() if isinstance(sae, Sae)]
        if len(dictionaries) < 2:
            notes.append(f"{group[0].site}, {group[0].architecture}: no dictionaries of several seeds to compare")
        elif max(len(one) for one in dictionaries) > MOST_FEATURES:
            notes.append(f"{group[0].site}: dictionaries of more than {MOST_FEATURES} features were not matched")
        else:
            found.append(SeedStability(group[0].site, [seeds[seed] for seed in loaded], stability(dictionaries)))
    return found, list(dict.fromkeys(notes))


def rank(saes: Sequence[SweptSae], measures: Sequence[str] = RANKED) -> Ranking:
    """Rank SAEs by each measure and by their mean rank; ties share the mean of their places.

    A measure that some SAE lacks is ranked among those that have it, and does not count for the mean: it would favour
    whoever lacks it.

    Raises:
        ConfigError: when a measure is none of :data:`MEASURES`.
    """
    for measure in measures:
        if measure not in MEASURES:
            raise ConfigError(
                f"no measure {measure} to rank by", fix=f"Nearest: {', '.join(nearest_first(measure, MEASURES, 3))}."
            )
    known = [measure for measure in measures if any(np.isfinite(sae.number(measure)) for sae in saes)]
    values_sm = np.array([[sae.number(measure) for measure in known] for sae in saes]).reshape(len(saes), len(known))
    ranks_sm = np.full(values_sm.shape, np.nan)
    for place, measure in enumerate(known):
        has_s = np.isfinite(values_sm[:, place])
        sign = -1 if MEASURES[measure].high_is_good else 1
        ranks_sm[has_s, place] = rankdata(sign * values_sm[has_s, place], method="average")
    counted = [bool(np.isfinite(values_sm[:, place]).all()) for place in range(len(known))]
    mean_s = ranks_sm[:, counted].mean(1) if any(counted) else np.full(len(saes), np.nan)
    final_s = rankdata(mean_s, method="average") if any(counted) else mean_s
    order = np.argsort(final_s, kind="stable")
    return Ranking(
        [saes[place] for place in order],
        known,
        counted,
        values_sm[order],
        ranks_sm[order],
        mean_s[order],
        final_s[order],
    )


def pareto_front(points: Sequence[tuple[float, float]], high_is_good: bool = False) -> list[int]:
    """Indices of the points that no other beats: x as small and y as small (or large) as can be, in the order of x."""
    sign = -1 if high_is_good else 1
    order = sorted(
        (place for place, point in enumerate(points) if np.isfinite(point).all()),
        key=lambda place: (points[place][0], sign * points[place][1]),
    )
    front: list[int] = []
    for place in order:
        if not front or sign * points[place][1] < sign * points[front[-1]][1]:
            front.append(place)
    return front


def has_course(sae: SweptSae) -> bool:
    """Whether a path of FVU against L0 is known: more than one evaluation."""
    return {STEP, "fvu", "l0"} <= set(sae.course) and len(sae.course[STEP]) > 1
