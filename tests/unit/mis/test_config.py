from __future__ import annotations

import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.mis.config import MisConfig, Negatives


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"n_explanations": 0}, "mis.n_explanations=0: at least 1"),
        ({"n_tasks": 0}, "mis.n_tasks=0: at least 1"),
        ({"min_tasks": 0}, "mis.min_tasks=0: at least 1"),
        ({"n_bootstrap": 0}, "mis.n_bootstrap=0: at least 1"),
        ({"chunk": 0}, "mis.chunk=0: at least 1"),
        ({"n_tasks": 4}, "mis.min_tasks=5 is above mis.n_tasks=4"),
        # The reference runs with any quantile; above one half the top pool has the less active images.
        ({"quantile": 0.51}, "above 0.5 the task is inverted"),
        ({"quantile": 0.0}, "mis.quantile=0.0"),
        ({"negatives": []}, "mis.negatives=.. is empty"),
        ({"negatives": [Negatives.random, Negatives.random]}, "names one twice"),
        ({"ties": -1e-6}, "mis.ties=-1e-06 is negative"),
        ({"controls": ["permutated"]}, "unknown permutated"),
    ],
)
def test_ranges(options, words):
    with pytest.raises(ConfigError, match=words):
        MisConfig(**options)
