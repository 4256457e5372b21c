"""Words that tell runs apart."""

from __future__ import annotations

from types import SimpleNamespace

import pytest

from mis_lab.pipeline.scored import run_labels


def runs(*overrides: str) -> list:
    return [
        SimpleNamespace(overrides=words.split(), run=SimpleNamespace(folder=SimpleNamespace(name=f"run{number}")))
        for number, words in enumerate(overrides)
    ]


@pytest.mark.parametrize(
    ("overrides", "labels"),
    [
        (("seed=0 sae=topk", "seed=1 sae=topk"), ["seed=0", "seed=1"]),
        (("a=1", "a=1 b=2"), ["run0", "b=2"]),
        (("a=1", "a=1"), ["run0", "run1"]),
        # An option that has one value wherever it is given says nothing, unless it is all there is.
        (("x=1", "x=2 control=pca log=f", "x=2 control=nmf log=f"), ["x=1", "x=2 control=pca", "x=2 control=nmf"]),
        (("x=1 log=f", "x=1 log=f b=2", "x=1 b=2"), ["log=f", "log=f b=2", "b=2"]),
        (("a=1 seed=0", "a=2 seed=0", "a=1 seed=1"), ["a=1 seed=0", "a=2 seed=0", "a=1 seed=1"]),
    ],
)
def test_labels_are_what_tells_runs_apart(overrides: tuple[str, ...], labels: list[str]) -> None:
    assert run_labels(runs(*overrides)) == labels
