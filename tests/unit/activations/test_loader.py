from __future__ import annotations

import itertools

import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare

from mis_lab.activations.config import Precision
from mis_lab.activations.loader import VectorLoader
from mis_lab.activations.paired import PairedActivations
from mis_lab.core.errors import DataError

# 1,000 images of 40 vectors of 16 numbers: 2.7 MiB with their order, three times the 1 MiB that is held.
N_IMAGES, N_POSITIONS, WIDTH = 1000, 40, 16
MEMORIES = pytest.mark.parametrize("memory_mib", [1, 100], ids=["in blocks", "in memory"])


def visited(loader: VectorLoader, epoch: int) -> list[int]:
    """Numbers of the vectors that an epoch shows, in order."""
    steps = range(epoch * loader.steps_per_epoch, (epoch + 1) * loader.steps_per_epoch)
    return [int(number) for step in steps for number in loader.batch(step)[:, 0]]


@pytest.fixture
def stored(numbered):
    return numbered(N_IMAGES, N_POSITIONS, WIDTH)


@MEMORIES
@pytest.mark.usefixtures("untouched_rng")
def test_an_epoch_visits_every_vector_once(stored, memory_mib):
    loader = VectorLoader(stored, batch_size=256, seed=3, memory_mib=memory_mib)
    assert loader.n_vectors == 40_000
    assert loader.steps_per_epoch == 156
    epochs = [visited(loader, epoch) for epoch in range(2)]
    for numbers in epochs:
        assert len(numbers) == len(set(numbers)) == 156 * 256
    assert epochs[0] != epochs[1]
    assert set(epochs[0]) != set(epochs[1])  # what is left out at the end differs


@MEMORIES
def test_a_batch_that_divides_the_vectors_leaves_none_out(stored, memory_mib):
    loader = VectorLoader(stored, batch_size=800, seed=0, memory_mib=memory_mib)
    assert sorted(visited(loader, 1)) == list(range(40_000))


@MEMORIES
def test_batches_depend_on_seed_and_step_alone(stored, memory_mib):
    def loader(seed):
        return VectorLoader(stored, batch_size=3000, seed=seed, memory_mib=memory_mib)

    steps = list(range(30))  # 13 an epoch; batches straddle what is held
    through = [loader.batch(step) for loader in [loader(5)] for step in steps]
    again = loader(5)
    for step in (29, 3, 4, 17, 0, 13, 12, 29):
        assert torch.equal(again.batch(step), through[step])
    resumed = loader(5)
    assert all(torch.equal(resumed.batch(step), through[step]) for step in steps[20:])
    assert not any(torch.equal(loader(6).batch(step), through[step]) for step in (0, 5))


@MEMORIES
def test_images_left_out_never_come(stored, memory_mib):
    chosen = [index for index in range(N_IMAGES) if index % 7 and not 300 <= index < 400]
    loader = VectorLoader(stored, 500, seed=1, indices=chosen[::-1], memory_mib=memory_mib)
    assert loader.n_vectors == len(chosen) * N_POSITIONS
    numbers = visited(loader, 0)
    assert len(numbers) == len(set(numbers)) == loader.steps_per_epoch * 500
    assert {number // N_POSITIONS for number in numbers} == set(chosen)
    assert torch.equal(loader.batch(2), VectorLoader(stored, 500, 1, chosen, memory_mib).batch(2))


@pytest.mark.parametrize("precision", list(Precision))
def test_vectors_come_whole_and_in_float32(write, precision):
    x_npd = torch.randn(50, 4, 8)
    loader = VectorLoader(write(x_npd, precision=precision), 64, seed=0)
    batch = loader.batch(1)
    assert batch.dtype == torch.float32
    stored_npd = x_npd.half().float() if precision is Precision.float16 else x_npd
    rows = {tuple(row) for row in stored_npd.view(-1, 8).tolist()}
    assert {tuple(row) for row in batch.tolist()} <= rows


def test_orders_are_uniform(numbered):
    loader = VectorLoader(numbered(4, 3), batch_size=12, seed=0)
    first = torch.cat([loader.batch(step)[:1, 0] for step in range(6000)]).int()
    assert chisquare(torch.bincount(first, minlength=12).numpy()).pvalue > 1e-4


def test_blocks_are_mixed(stored):
    loader = VectorLoader(stored, batch_size=256, seed=0, memory_mib=1)
    numbers = visited(loader, 0)
    # Neighbours in the stream must not be neighbours on disk: of 256 vectors of 1,000 images, most from different ones.
    for start in range(0, len(numbers) - 256, 4096):
        assert len({number // N_POSITIONS for number in numbers[start : start + 256]}) > 120
    # Nor may an epoch walk through the disk: where a batch's vectors lie on average must not drift.
    halves = [sum(half) / len(half) for half in (numbers[:20_000], numbers[20_000:])]
    assert abs(halves[0] - halves[1]) < 10_000
    # And what is held together differs from epoch to epoch: of three parts, a third comes first again by chance.
    first, again = ({number // N_POSITIONS for number in visited(loader, epoch)[:10_000]} for epoch in (0, 1))
    assert 0.1 < len(first & again) / len(first) < 0.6


def test_each_image_is_read_once_an_epoch_and_memory_is_kept_to(stored, monkeypatch):
    read = []
    take = type(stored).take
    monkeypatch.setattr(
        type(stored), "take", lambda self, indices, dtype: read.extend(indices) or take(self, indices, dtype)
    )
    loader = VectorLoader(stored, batch_size=512, seed=0, memory_mib=1)
    for step in range(loader.steps_per_epoch):
        loader.batch(step)
        assert loader._held.nbytes + loader._order[1].nbytes <= 2**20
    assert sorted(read) == list(range(N_IMAGES))
    read.clear()
    whole = VectorLoader(stored, batch_size=512, seed=0, memory_mib=100)
    for step in range(2 * whole.steps_per_epoch):
        whole.batch(step)
    assert sorted(read) == list(range(N_IMAGES))  # held for good


@given(
    n_images=st.integers(1, 60),
    n_positions=st.integers(1, 9),
    batch_size=st.integers(1, 200),
    images_held=st.integers(1, 60),
    seed=st.integers(0, 5),
)
@settings(max_examples=30, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_any_sizes(numbered, n_images, n_positions, batch_size, images_held, seed):
    stored = numbered(n_images, n_positions)
    memory_mib = images_held * n_positions * (2 * 4 + 8) / 2**20  # a fraction, so that small stores do not fit
    loader = VectorLoader(stored, batch_size, seed, memory_mib=memory_mib)
    assert loader.batch_size == min(batch_size, n_images * n_positions)
    for epoch in range(2):
        numbers = visited(loader, epoch)
        assert len(numbers) == len(set(numbers)) == loader.steps_per_epoch * loader.batch_size
        assert set(numbers) <= set(range(n_images * n_positions))
    assert loader.n_vectors - loader.steps_per_epoch * loader.batch_size < loader.batch_size


def test_fewer_vectors_than_a_batch(numbered):
    loader = VectorLoader(numbered(3, 2), batch_size=4096, seed=0)
    assert loader.steps_per_epoch == 1
    assert [sorted(loader.batch(step)[:, 0].tolist()) for step in (0, 7)] == [list(range(6))] * 2


@MEMORIES
def test_a_sample_is_the_same_each_time_and_from_the_images_alone(stored, memory_mib):
    chosen = range(200, 300)
    loader = VectorLoader(stored, 256, seed=4, indices=chosen, memory_mib=memory_mib)
    sample = loader.sample(1000)
    assert torch.equal(sample, VectorLoader(stored, 64, seed=4, indices=chosen).sample(1000))
    numbers = sample[:, 0].int().tolist()
    assert len(set(numbers)) == 1000
    assert set(numbers) <= set(range(200 * N_POSITIONS, 300 * N_POSITIONS))
    assert abs(sum(numbers) / 1000 - 250 * N_POSITIONS) < 200  # spread over them: standard error 36
    assert not torch.equal(sample, VectorLoader(stored, 64, seed=5, indices=chosen).sample(1000))
    assert sorted(loader.sample(10**6)[:, 0].int().tolist()) == list(range(200 * N_POSITIONS, 300 * N_POSITIONS))


def test_no_images_are_told(stored):
    with pytest.raises(DataError, match=r"no images .* site blocks\.2.*hold_out"):
        VectorLoader(stored, 256, seed=0, indices=[])


def images_of(batch) -> list[int]:
    """Numbers of the images in a batch of whole ones; fails unless every image is whole and in order."""
    n_images, n_positions, _ = batch.shape
    first = batch[:, 0, 0]
    assert torch.equal(batch[:, :, 0], first[:, None] + torch.arange(n_positions))
    assert torch.equal(first % n_positions, torch.zeros(n_images))
    return (first // n_positions).int().tolist()


@MEMORIES
@pytest.mark.usefixtures("untouched_rng")
def test_whole_images_come_once_an_epoch(stored, memory_mib):
    loader = VectorLoader(stored, batch_size=290, seed=3, memory_mib=memory_mib, whole_images=True)
    assert (loader.n_vectors, loader.batch_size, loader.steps_per_epoch) == (40_000, 280, 142)  # 7 images a batch
    orders = []
    for epoch in range(2):
        steps = range(epoch * 142, (epoch + 1) * 142)
        orders.append([image for step in steps for image in images_of(loader.batch(step))])
        assert len(orders[-1]) == len(set(orders[-1])) == 142 * 7
    assert orders[0] != orders[1]
    if memory_mib == 1:
        assert loader._held.nbytes + loader._order[1].nbytes <= 2**20
    # Images of a batch come from all over what is held.
    assert sum(abs(a - b) for a, b in itertools.pairwise(orders[0])) / len(orders[0]) > 100


@MEMORIES
def test_batches_of_whole_images_depend_on_seed_and_step_alone(stored, memory_mib):
    def loader(seed, indices=None):
        return VectorLoader(stored, 3000, seed, indices, memory_mib, whole_images=True)

    through = [loader.batch(step) for loader in [loader(5)] for step in range(30)]  # 13 an epoch
    again = loader(5)
    for step in (29, 3, 17, 0, 13, 12, 29):
        assert torch.equal(again.batch(step), through[step])
    assert not torch.equal(loader(6).batch(0), through[0])
    chosen = [index for index in range(N_IMAGES) if index % 3]
    part = loader(5, chosen)
    shown = [image for step in range(part.steps_per_epoch) for image in images_of(part.batch(step))]
    assert set(shown) <= set(chosen)
    assert len(shown) == len(set(shown)) == part.steps_per_epoch * 75 == 600


def test_batches_and_samples_of_whole_images_count_vectors(numbered):
    stored = numbered(9, 6)
    sizes = {}
    for batch_size in (1, 6, 17, 18, 1000):
        loader = VectorLoader(stored, batch_size, seed=0, whole_images=True)
        sizes[batch_size] = len(loader.batch(0))
        assert loader.batch_size == 6 * sizes[batch_size]
    assert sizes == {1: 1, 6: 1, 17: 2, 18: 3, 1000: 9}
    loader = VectorLoader(stored, 12, seed=0, indices=[1, 3, 4, 8], whole_images=True)
    sample = loader.sample(20)
    assert sample.dtype == torch.float32
    assert torch.equal(sample, loader.sample(20))
    assert len(images_of(sample)) == len(set(images_of(sample))) == 3
    assert set(images_of(sample)) <= {1, 3, 4, 8}
    assert len(loader.sample(2)) == 1
    assert images_of(loader.sample(10**6)) == [1, 3, 4, 8]


def test_two_sites_side_by_side(numbered):
    source, target = numbered(20, 5, 3), numbered(20, 5, 2)
    loader = VectorLoader(PairedActivations(source, target), 16, seed=0)
    for batch in (loader.batch(2), loader.sample(30)):
        assert batch.shape[1] == 5
        assert torch.equal(batch[:, 0], batch[:, 3])  # the same vector of both
        assert torch.equal(batch[:, 1], batch[:, 4])
