from __future__ import annotations

import pytest
import torch

from mis_lab.core.errors import DataError
from mis_lab.mis.units import UnitStatus, is_sparse, silent_status


def test_status_from_activations_alone():
    n_active, minimum, maximum = zip(
        (0, 0.0, 0.0),  # dead
        (90, 3.0, 3.0),  # constant
        (0, -1.0, -1.0),  # constant below zero
        (4, 0.0, 2.0),
        (0, -2.0, -1.0),  # signed and never above zero: graded all the same
        (90, 1.0, 1.0 + 1e-6),
        (5, -1e-9, 5e-9),  # within 1e-8
        strict=True,
    )
    status = silent_status(torch.tensor(n_active), torch.tensor(minimum), torch.tensor(maximum))
    names = [UnitStatus(number).name for number in status.tolist()]
    assert names == ["dead", "constant", "constant", "ok", "ok", "ok", "constant"]


def test_a_unit_is_sparse_when_it_is_never_negative():
    assert is_sparse(torch.tensor([0.0, 1.0, -0.0, -1e-30])).tolist() == [True, True, True, False]


@pytest.mark.parametrize("broken", [torch.nan, torch.inf, -torch.inf])
def test_units_that_are_not_finite_are_named(broken):
    minimum = torch.zeros(4)
    minimum[2] = broken
    with pytest.raises(DataError, match=r"1 units have activations that are NaN or infinite \(unit 2\)"):
        silent_status(torch.ones(4, dtype=torch.int64), minimum, torch.ones(4))


def test_the_numbers_that_are_stored_never_change():
    assert {status.name: status.value for status in UnitStatus} == {
        "ok": 0,
        "dead": 1,
        "constant": 2,
        "too_rare": 3,
        "too_few_groups": 4,
    }
