"""What of a configuration enters the key of a circuit."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from mis_lab.circuit.config import Baseline, CircuitConfig, Objective, Pairing, Target
from mis_lab.core.errors import MissingFileError
from mis_lab.pipeline.stages import _named, _pairs


def by_file(path: Path) -> CircuitConfig:
    return CircuitConfig(baseline=Baseline.counterfactual, pairing=Pairing.file, pairs_file=str(path))


def test_a_file_of_pairs_counts_by_its_content_wherever_it_lies(tmp_path: Path) -> None:
    a, b, c = (tmp_path / name for name in ("a.csv", "b.csv", "c.csv"))
    for path, text in ((a, "x,y\n"), (b, "x,y\n"), (c, "x,z\n")):
        path.write_text(text)
    assert _pairs(by_file(a)) == _pairs(by_file(b)) != _pairs(by_file(c))
    assert _pairs(CircuitConfig()) == {}
    with pytest.raises(MissingFileError, match=r"no file of image pairs.*d\.csv"):
        _pairs(by_file(tmp_path / "d.csv"))


@pytest.mark.parametrize(
    "by_name",
    [
        {"target": Target.chosen, "target_class": "cat"},
        {"objective": Objective.logit_diff, "other_class": "dog"},
        {"classes": ["3", "cat"]},
    ],
)
def test_names_of_classes_count_where_one_is_given(by_name) -> None:
    config = replace(CircuitConfig(), **by_name)
    assert _named(config, ["cat", "dog"]) == _named(config, ("cat", "dog")) != _named(config, ["dog", "cat"])
    assert set(_named(config, ["cat", "dog"])) == {"class_names"}


@pytest.mark.parametrize(
    "by_number",
    [{}, {"target": Target.chosen, "target_class": "1"}, {"objective": Objective.logit_diff}, {"classes": ["0", "1"]}],
)
def test_names_do_not_count_where_classes_are_numbers(by_number) -> None:
    assert _named(replace(CircuitConfig(), **by_number), ["cat", "dog"]) == {}
