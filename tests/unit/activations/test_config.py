from __future__ import annotations

import pytest

from mis_lab.activations.config import ActivationsConfig, Precision
from mis_lab.core.errors import ConfigError
from mis_lab.core.keys import plain


@pytest.mark.parametrize("option", ["shard_mib", "batch_size", "memory_mib"])
def test_sizes_must_be_positive(option):
    with pytest.raises(ConfigError, match=rf"activations\.{option}=0: at least 1"):
        ActivationsConfig(**{option: 0})


def test_workers_must_not_be_negative():
    with pytest.raises(ConfigError, match=r"activations\.workers=-1 is negative"):
        ActivationsConfig(workers=-1)


def test_what_changes_no_result_stays_out_of_the_key():
    same = ActivationsConfig(shard_mib=1, batch_size=1, workers=3)
    assert plain(same) == plain(ActivationsConfig())
    assert plain(ActivationsConfig(precision=Precision.float16)) != plain(same)
    assert plain(ActivationsConfig(memory_mib=1)) != plain(same)  # the order of training depends on it
