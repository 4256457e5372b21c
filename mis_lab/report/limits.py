"""What a run cannot show, in plain sentences with the run's own numbers."""

from __future__ import annotations

from typing import NamedTuple

from mis_lab.core.intervals import wilson
from mis_lab.report.data import ReportData
from mis_lab.report.wording import count, fixed, number, plural, spread

FEW_GROUPS = 100  # below this the groups themselves are the sample


class Limit(NamedTuple):
    """One thing the run cannot show: a few words, and why."""

    title: str
    text: str


def limits(data: ReportData) -> list[Limit]:
    """What this comparison cannot show, with the run's own numbers."""
    found = [_few_groups(data)]
    if data.mis is not None:
        found += [_metric(data), _similarity(), _selection(data), _coarse(data)]
    if data.saes:
        found.append(_fitted(data))
    found.append(
        Limit(
            "One network, one seed",
            f"{data.model.name} with one set of weights, and everything random drawn from seed {data.run.seed}. "
            "Another network, another SAE seed or another data set may turn the result around; "
            "sweep=seeds repeats the run with three seeds.",
        )
    )
    if data.circuit is not None:
        found.append(_relative(data))
    return found


def _few_groups(data: ReportData) -> Limit:
    dataset, word = data.dataset, data.dataset.group_word
    if dataset.n_groups >= FEW_GROUPS:
        return Limit("One data set", f"All images are from {dataset.name}; units may mean something else elsewhere.")
    return Limit(
        f"Few {word}s",
        f"All {count(dataset.n_score)} scored images are parts of {plural(dataset.n_groups, word)}. Images of one "
        f"{word} look alike, so a unit can score high by recognising a {word}, and intervals over images alone would "
        f"be far too narrow; read the intervals over {word}s.",
    )


def _metric(data: ReportData) -> Limit:
    mis = data.mis
    assert mis is not None
    if mis.metric_is_calibrated:
        return Limit(
            "One metric", f"Similarity is judged by {mis.metric} alone; another metric may rank units otherwise."
        )
    how = "measured on random tasks" if mis.temperature_is_measured else "set by hand"
    return Limit(
        "Uncalibrated metric",
        f"{mis.metric} was never fitted to human judgements, and its temperature τ = {number(mis.temperature)} "
        f"is {how}. "
        "Soft scores compare units within this run; they do not compare with scores of other metrics or with published "
        "ones.",
    )


def _similarity() -> Limit:
    return Limit(
        "MIS measures image similarity",
        "It asks whether images that excite a unit look like each other. A unit that stands for something "
        "abstract, with "
        "images that look different, scores low; a unit that responds to a texture or to a colour scores high. It says "
        "nothing about what a unit does in the network.",
    )


def _selection(data: ReportData) -> Limit:
    n_units = sum(len(one.numbers) for one in data.scores if one.kind in ("feature", "neuron"))
    return Limit(
        "Chosen after the fact",
        f"The best and worst units above were picked out of {count(n_units)} by the very score they illustrate; "
        "only the "
        "random ones are typical. Units without a score (dead, too rare) are missing from every median.",
    )


def _coarse(data: ReportData) -> Limit:
    assert data.mis is not None
    low = fixed(float(wilson(1.0, data.mis.n_tasks).low))
    return Limit(
        "Coarse scores of single units",
        f"A unit is scored on {plural(data.mis.n_tasks, 'task')}: even one that solves all of them has a 95 % interval "
        f"from {low} to 1 in the hard score. Compare kinds of units, not single ones.",
    )


def _fitted(data: ReportData) -> Limit:
    dataset, word = data.dataset, data.dataset.group_word
    if dataset.n_groups < FEW_GROUPS:
        text = (
            f"SAEs were trained on images of {dataset.n_groups - dataset.n_held_out} of the "
            f"{plural(dataset.n_groups, word)}, but units are scored on all of them: features were made for "
            "most of these "
            f"{word}s, neurons for none in particular."
        )
    else:
        text = f"SAEs were trained on other images of {dataset.name}; neurons were not, or on far more data."
    both = [(sae.fvu, sae.fvu_held_out) for sae in data.saes if sae.fvu_held_out is not None]
    if both:
        text += (
            f" On {word}s the SAEs never saw, they leave {spread([held_out for _, held_out in both])} of the variance "
            f"unexplained, against {spread([seen for seen, _ in both])} on the others."
        )
    return Limit("Features were fitted to such images", text)


def _relative(data: ReportData) -> Limit:
    circuit = data.circuit
    assert circuit is not None
    return Limit(
        "Circuits are relative to their baseline",
        f"An ablated node takes its {circuit.baseline} value, effects are estimated by gradients "
        f"({circuit.method}), and "
        f"the objective is {circuit.objective}. The circuit was found on {plural(circuit.n_discovery, 'image')} of "
        f"{plural(circuit.n_discovery_groups, data.dataset.group_word)}; nodes that matter for other images are "
        "not in it.",
    )
