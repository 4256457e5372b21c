from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from mis_lab.core.seeding import derive_seed, generator, numpy_generator

names = st.text(alphabet=st.characters(exclude_characters="/"), max_size=6)
scopes = st.lists(names, max_size=4)
seeds = st.integers(-(2**40), 2**40)


@given(seeds, scopes, seeds, scopes)
def test_streams_are_the_same_exactly_when_seed_and_scope_are(
    seed: int, scope: list[str], other_seed: int, other_scope: list[str]
) -> None:
    same = (seed, scope) == (other_seed, other_scope)
    assert (derive_seed(seed, *scope) == derive_seed(other_seed, *other_scope)) == same


@given(seeds, scopes)
def test_a_seed_fits_every_generator(seed: int, scope: list[str]) -> None:
    assert 0 <= derive_seed(seed, *scope) < 2**63
    assert torch.equal(
        torch.rand(3, generator=generator(seed, *scope)), torch.rand(3, generator=generator(seed, *scope))
    )
    assert (numpy_generator(seed, *scope).random(3) == numpy_generator(seed, *scope).random(3)).all()


def test_neighbouring_streams_are_unrelated() -> None:
    draws = [torch.randn(2000, generator=generator(seed, "tasks", unit)) for seed in range(3) for unit in range(3)]
    correlation = np.corrcoef(torch.stack(draws).numpy())
    assert np.abs(correlation - np.eye(9)).max() < 5 / np.sqrt(2000)
    assert stats.kstest(torch.cat(draws).numpy(), "norm").pvalue > 1e-3


def test_the_seed_is_the_same_in_every_process_and_version() -> None:
    """Stored results say their seed: the stream behind it may not change from release to release."""
    assert derive_seed(0) == 3456079177858693020
    assert derive_seed(3, "sae", "blocks.2", 7) == derive_seed(3, "sae", "blocks.2", "7")
    code = "from mis_lab.core.seeding import derive_seed; print(derive_seed(3, 'sae', 'blocks.2'))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert int(done.stdout) == derive_seed(3, "sae", "blocks.2")


@pytest.mark.usefixtures("untouched_rng")
def test_the_global_generators_are_left_alone() -> None:
    torch.rand(3, generator=generator(0, "x"))
    numpy_generator(0, "x").random(3)
