from __future__ import annotations

import pytest

from mis_lab.core.errors import ConfigError
from mis_lab.mis.config import MisConfig, NegativeQuery, Negatives, Protocol, Query


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
        ({"pool_size": -1}, "mis.pool_size=-1 is negative"),
        ({"pool_size": 49}, r"mis.pool_size=49 does not do for tasks of K\+1 = 10 images. Use at least 50"),
        ({"pool_size": 9, "protocol": Protocol.quantile}, "Use at least 10"),
        ({"query_percentile": 50.0}, "mis.query_percentile=50.0: at 50 both sides"),
        ({"query_percentile": 100.0}, "Use 50 < query_percentile < 100"),
        ({"query": Query.percentile}, "mis.protocol=extreme with mis.query=percentile: hard, and it alone"),
        ({"query_negative": NegativeQuery.percentile, "protocol": Protocol.quantile}, "mis.protocol=quantile"),
        ({"protocol": Protocol.hard}, "mis.protocol=hard with mis.query=most_extreme.* Use mis=hard"),
        ({"protocol": Protocol.hard, "query": Query.percentile, "one_per_group": True}, "does not go with"),
        ({"ties": -1e-6}, "mis.ties=-1e-06 is negative"),
        ({"controls": ["permutated"]}, "unknown permutated"),
    ],
)
def test_ranges(options, words):
    with pytest.raises(ConfigError, match=words):
        MisConfig(**options)


def test_the_negative_side_asks_as_the_positive_one_unless_told_otherwise():
    assert MisConfig(query=Query.least_extreme).queries() == (Query.least_extreme, Query.least_extreme)
    asymmetric = MisConfig(query_negative=NegativeQuery.least_extreme)
    assert asymmetric.queries() == (Query.most_extreme, Query.least_extreme)
