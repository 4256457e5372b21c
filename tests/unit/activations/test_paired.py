from __future__ import annotations

import pytest
import torch

from mis_lab.activations.config import Precision
from mis_lab.activations.paired import PairedActivations
from mis_lab.core.errors import DataError
from mis_lab.core.statistics import Moments


@pytest.fixture
def x_npd():
    return torch.randn(11, 4, 3) + 2, 5 * torch.randn(11, 4, 2)


def test_it_reads_like_one_store(write, x_npd):
    source, target = (write(part) for part in x_npd)
    pairs, both = PairedActivations(source, target), torch.cat(x_npd, 2)
    assert (pairs.n_images, pairs.n_positions, pairs.width, len(pairs)) == (11, 4, 5, 44)
    assert pairs.site == target.site
    assert (pairs.ids, pairs.groups, pairs.labels) == (target.ids, target.groups, target.labels)
    for images in ([2, 3, 4], [9, 0, 5], []):
        assert torch.equal(pairs.take(images), both[images])
    numbers = [43, 0, 17, 5]
    assert torch.equal(pairs.vectors(numbers), both.flatten(0, 1)[numbers])
    moments = Moments()
    moments.update(both.flatten(0, 1))
    for name, value in moments.state().items():
        torch.testing.assert_close(pairs.moments.state()[name], value)


@pytest.mark.parametrize(
    ("source", "target", "held"),
    [
        ("float16", "float16", torch.float16),
        ("float16", "float32", torch.float32),
        ("float32", "float16", torch.float32),
    ],
)
def test_neither_part_loses_precision(write, x_npd, source, target, held):
    stores = [write(part, precision=Precision[name]) for part, name in zip(x_npd, (source, target), strict=True)]
    pairs = PairedActivations(*stores)
    assert pairs.dtype == held
    x_bpd = pairs.take([3, 4], pairs.dtype)
    assert x_bpd.dtype == held
    assert torch.equal(x_bpd.float(), torch.cat([stored.take([3, 4]) for stored in stores], 2))


def test_sites_that_do_not_pair_are_refused(write, x_npd):
    source, target = x_npd
    with pytest.raises(DataError, match=r"sites blocks\.2 and blocks\.2 have 4 and 3 positions an image"):
        PairedActivations(write(source), write(target[:, :3]))
    others = [f"other/{index}" for index in range(11)]
    with pytest.raises(DataError, match=r"blocks\.2 and blocks\.2 are of different images"):
        PairedActivations(write(source), write(target, ids=others))
