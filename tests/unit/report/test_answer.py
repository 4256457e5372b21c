"""The answer follows from the numbers, whatever they are."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from mis_lab.core.intervals import Interval
from mis_lab.report import answer

FEATURE, NEURON, NONE = (
    {"mean_difference": Interval(0.1, 0.05, 0.15), "mean_difference_groups": Interval(0.1, 0.01, 0.2), "p_holm": 0.001},
    {
        "mean_difference": Interval(-0.1, -0.15, -0.05),
        "mean_difference_groups": Interval(-0.1, -0.2, 0.1),
        "p_holm": 0.001,
    },
    {"mean_difference": Interval(0.01, -0.05, 0.05), "mean_difference_groups": None, "p_holm": 0.9},
)


LOCAL = FEATURE | {"mean_difference_groups": Interval(0.1, -0.1, 0.3)}


def with_rows(data, *changes, negatives=("random",) * 3 + ("bottom",) * 3):
    rows = [
        dataclasses.replace(row, negatives=kind, **change)
        for row, kind, change in zip(data.comparisons, negatives, changes, strict=False)
    ]
    return dataclasses.replace(data, comparisons=rows)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        (
            [FEATURE] * 6,
            "SAE features score as more interpretable than neurons at every site, whichever negatives are used.",
        ),
        ([FEATURE] * 3, "SAE features score as more interpretable than neurons at every site."),
        (
            [FEATURE, LOCAL, FEATURE],
            "On these 15 scenes, SAE features score as more interpretable than neurons at every site.",
        ),
        ([NEURON], "On these 15 scenes, neurons score as more interpretable than SAE features at blocks.2."),
        ([NONE] * 6, "No clear difference between SAE features and neurons."),
        (
            [FEATURE] * 3 + [NONE] * 3,
            "SAE features score as more interpretable than neurons in 3 of 6 comparisons; the others are unclear.",
        ),
        (
            [FEATURE] * 3 + [NEURON] * 3,
            "On these 15 scenes, it depends on what units are held against: SAE features lead with random negatives, "
            "neurons with bottom negatives.",
        ),
        (
            [FEATURE, NEURON, NONE],
            "On these 15 scenes, it depends on the site: SAE features are ahead in 1, neurons in 1 of 3 comparisons.",
        ),
    ],
)
def test_headline(data, changes, words):
    assert answer.headline(with_rows(data, *changes)) == words


def test_headline_without_sae_without_scores_without_comparison(data):
    assert "without an SAE there is nothing to compare" in answer.headline(
        dataclasses.replace(data, saes=(), comparisons=())
    )
    assert "No unit was scored" in answer.headline(dataclasses.replace(data, mis=None, comparisons=()))
    assert "without a comparison" in answer.headline(dataclasses.replace(data, comparisons=()))


def test_sentences_count_sites_and_name_what_is_sure(data):
    text = " ".join(answer.sentences(with_rows(data, FEATURE, FEATURE, NEURON)))
    assert "SAE features are clearly ahead at 2 of 3 sites and neurons are clearly ahead at 1 of 3 sites" in text
    assert "Of the 3 clear differences, 2 also keep their sign when the 15 scenes" in text
    medians = [row.median_a for row in data.comparisons[:3]]
    assert f"{min(medians):.2f} to {max(medians):.2f} for features" in text


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ([NONE], "None of 1 comparison passes the test"),
        ([NEURON, NEURON], "Of the 2 clear differences, none keeps its sign"),
        ([FEATURE, NEURON], "Of the 2 clear differences, 1 also keeps its sign"),
        ([FEATURE, FEATURE], "All 2 clear differences also keep their sign"),
    ],
)
def test_how_sure(data, changes, words):
    assert words in " ".join(answer.sentences(with_rows(data, *changes)))


def test_controls_and_their_chance_level(data):
    permuted = [np.median(one.of("random", "soft")) for one in data.scores if one.kind == "permuted"]
    text = " ".join(answer.sentences(data))
    assert f"permuted features {min(permuted):.2f} to {max(permuted):.2f}" in text
    assert "chance is 0.50." in text
    margin = dataclasses.replace(data, mis=dataclasses.replace(data.mis, headline=("delta_over_tau", "random")))
    assert "chance is 0.00." in " ".join(answer.sentences(margin))


def test_the_circuit_is_told_with_its_rivals(data):
    text = " ".join(answer.sentences(data))
    curves = {(curve.kind, curve.selection): curve for curve in data.faithfulness}
    size, value = curves["feature", "effect"].at(len(data.circuit.nodes))
    neuron = curves["neuron", "effect"].at(size)[1].estimate
    assert f"{size} of 3\u202f054 live nodes keep <strong>{100 * value.estimate:.0f}\u202f%</strong>" in text
    assert f"as many neurons {100 * neuron:.0f}\u202f%" in text
    assert "as many random feature nodes 1\u202f%" in text
    left = data.circuit_details.completeness_at("feature", size)[1]
    assert f"without them {100 * left:.0f}\u202f% is left" in text
    limits = " to ".join(f"{100 * limit:.0f}\u202f%" for limit in (value.low, value.high))
    assert f"(95 % interval over scenes {limits})" in text
    neurons = dataclasses.replace(data, faithfulness=[curve for curve in data.faithfulness if curve.kind == "neuron"])
    assert "as many neurons" not in " ".join(answer.sentences(neurons))
    bare = [dataclasses.replace(one, low=one.low * np.nan, high=one.high * np.nan) for one in data.faithfulness]
    assert "(no interval over scenes)" in " ".join(answer.sentences(dataclasses.replace(data, faithfulness=bare)))


def test_names_from_the_run_are_escaped_in_sentences(data):
    circuit = dataclasses.replace(data.circuit, objective="<b>the logit</b>")
    assert "<b>" not in " ".join(answer.sentences(dataclasses.replace(data, circuit=circuit)))
