from __future__ import annotations

from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.stats import chisquare
from torch import Tensor

from mis_lab.activations import pools as pools_module
from mis_lab.activations import units as units_module
from mis_lab.activations.config import ImageActivation
from mis_lab.activations.order import hash_keys, image_ordinals, mix
from mis_lab.activations.pools import PoolGatherer, Pools, gather, gather_part
from mis_lab.activations.units import Neurons, RandomDirections, image_slices, permute_images
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.tensors import hash_tensors, read_tensors, write_tensors

GOLDEN = Path(__file__).resolve().parents[2] / "golden" / "mis" / "mis_golden.npz"
TIE_FREE = [0, 1, 2, 3, 5, 8, 9, 12]
WITH_TIES = [4, 6, 7, 10, 11, 13]


def pools_of(a_nu: Tensor, size: int, seed: int = 0, ids=None, **options) -> Pools:
    """Pools of all images at once."""
    ids = ids or [f"{index:05d}" for index in range(len(a_nu))]
    gatherer = PoolGatherer(a_nu.shape[1], size, ids, seed, **options)
    gatherer.update(a_nu, range(len(a_nu)))
    return gatherer.result()


def equal(one: Pools, other: Pools) -> bool:
    return all(
        torch.equal(torch.nan_to_num(a, 7e30), torch.nan_to_num(b, 7e30)) if isinstance(a, Tensor) else a == b
        for a, b in zip(one, other, strict=True)
    )


class ByHand:
    """Pools of one unit, by sorting and walking down the list."""

    def __init__(self, values, ids, unit, seed, size, groups, per_group, positive_only):
        ordinals = image_ordinals(ids)
        ties = mix(ordinals, hash_keys(seed, "ties", [unit]))[0].tolist()
        lots = mix(ordinals, hash_keys(seed, "random pool", [unit]))[0].tolist()
        images = range(len(values))
        ascending = sorted(images, key=lambda image: (values[image], ties[image]))
        active = [image for image in ascending if values[image] > 0]

        def take(wanted):
            taken = []
            for image in wanted:
                of_group = sum(groups[other] == groups[image] for other in taken)
                if len(taken) < size and (not per_group or of_group < per_group):
                    taken.append(image)
            return taken

        self.top = take(reversed(active if positive_only else ascending))
        self.bottom = take(ascending)
        self.random = take(image for image in sorted(images, key=lambda image: -lots[image]) if image not in self.top)
        self.n_active = len(active)


@st.composite
def streams(draw):
    """Activations with ties, groups, and a way they may arrive."""
    n_images, n_units = draw(st.integers(1, 30)), draw(st.integers(1, 4))
    level = st.sampled_from([-2.5, -1.0, -0.0, 0.0, 0.0, 1e-40, 0.25, 1.0, 3e38]) | st.floats(-2, 2, width=32)
    row = st.lists(level, min_size=n_units, max_size=n_units)
    a_nu = torch.tensor(draw(st.lists(row, min_size=n_images, max_size=n_images)), dtype=torch.float32)
    groups = draw(st.lists(st.sampled_from("abcd"), min_size=n_images, max_size=n_images))
    arrival = draw(st.permutations(range(n_images)))
    cuts = sorted(draw(st.lists(st.integers(0, n_images), max_size=8)))
    chunks = [arrival[start:stop] for start, stop in zip([0, *cuts], [*cuts, n_images], strict=True)]
    return a_nu, groups, chunks


@given(
    stream=streams(),
    size=st.integers(1, 8) | st.just(40),
    per_group=st.integers(0, 3),
    positive_only=st.booleans(),
    seed=st.integers(0, 3),
    keys_at_once=st.sampled_from([1, 50, 10**6]),
)
@settings(max_examples=100)
def test_pools_are_those_of_sorting_whatever_the_chunks(stream, size, per_group, positive_only, seed, keys_at_once):
    a_nu, groups, chunks = stream
    n_images, n_units = a_nu.shape
    ids = [f"image {7919 * index % 1009}" for index in range(n_images)]  # sorted otherwise than stored
    with patch.dict(pools_module.KEYS_AT_ONCE, cpu=keys_at_once):
        gatherer = PoolGatherer(n_units, size, ids, seed, groups, per_group, positive_only)
        for chunk in chunks:
            gatherer.update(a_nu[chunk], chunk)
        found = gatherer.result()
    assert found.n_images == n_images
    assert torch.equal(found.minimum, a_nu.amin(0))
    assert torch.equal(found.maximum, a_nu.amax(0))
    for unit in range(n_units):
        values = a_nu[:, unit].tolist()
        hand = ByHand(values, ids, unit, seed, size, groups, per_group, positive_only)
        for images, expected in (
            (found.top, hand.top),
            (found.bottom, hand.bottom),
            (found.random, hand.random),
        ):
            assert images[unit].tolist() == expected + [-1] * (size - len(expected))
        for read, expected in ((found.top_values, hand.top), (found.bottom_values, hand.bottom)):
            assert read[unit, : len(expected)].tolist() == [values[image] for image in expected]
            assert read[unit, len(expected) :].isnan().all()
        assert found.n_active[unit] == hand.n_active


def test_types_and_shapes():
    found = pools_of(torch.randn(30, 4), size=5)
    assert [images.dtype for images in (found.top, found.bottom, found.random)] == [torch.int32] * 3
    assert [tensor.shape for tensor in found[:5]] == [(4, 5)] * 5
    assert (found.top_values.dtype, found.n_active.dtype) == (torch.float32, torch.int64)


def test_the_order_of_the_store_changes_nothing():
    a_nu = torch.randint(0, 3, (60, 5)).float()
    ids = [f"id {index}" for index in range(60)]
    groups = [f"g{index % 9}" for index in range(60)]
    shuffled = torch.randperm(60).tolist()
    one = pools_of(a_nu, 12, ids=ids, groups=groups, per_group=2)
    other = pools_of(
        a_nu[shuffled],
        12,
        ids=[ids[index] for index in shuffled],
        groups=[groups[index] for index in shuffled],
        per_group=2,
    )
    for name in ("top", "bottom", "random"):
        named = [[ids[image] for image in unit] for unit in getattr(one, name).tolist()]
        assert named == [[ids[shuffled[image]] for image in unit] for unit in getattr(other, name).tolist()]


def test_units_by_name_in_any_order_and_chunks():
    a_nu = torch.randint(0, 3, (60, 5)).float()
    names = [f"unit {u}" for u in range(5)]
    whole = pools_of(a_nu, 12, units=names)
    part = pools_of(a_nu[:, [3, 1]], 12, units=["unit 3", "unit 1"])
    for found, expected in zip(part[:5], whole[:5], strict=True):
        assert torch.equal(found, expected[[3, 1]])


def test_units_break_ties_differently_and_seeds_too():
    constant = torch.full((200, 6), 3.0)
    pools = pools_of(constant, 20, seed=1)
    sets = {tuple(sorted(unit)) for unit in pools.top.tolist()}
    assert len(sets) == 6
    assert not set(map(tuple, pools_of(constant, 20, seed=2).top.tolist())) & set(map(tuple, pools.top.tolist()))


def test_ties_are_uniform_over_images():
    n_images, n_units = 40, 8000
    found = pools_of(torch.zeros(n_images, n_units), 4)
    for images in (found.top, found.bottom, found.random):
        assert chisquare(torch.bincount(images.flatten(), minlength=n_images).numpy()).pvalue > 1e-4
        assert chisquare(torch.bincount(images[:, 0], minlength=n_images).numpy()).pvalue > 1e-4
    assert not (found.top[:, :, None] == found.bottom[:, None]).any()  # opposite ends of one order


def test_the_random_pool_is_uniform_outside_the_top_pool_and_the_same_for_any_activations():
    a_nu = torch.randn(50, 1).expand(50, 6000).contiguous()
    found = pools_of(a_nu, 5)
    assert not (found.top[:, :, None] == found.random[:, None]).any()
    outside = [image for image in range(50) if image not in found.top[0]]
    counts = torch.bincount(found.random.flatten(), minlength=50).numpy()
    assert chisquare(counts[outside]).pvalue > 1e-4
    assert counts[found.top[0].long()].sum() == 0
    other = pools_of(-a_nu, 5).random
    common = (other[:, :, None] == found.random[:, None]).any(2).float().mean()
    assert common > 0.8  # but for the images of the two top pools


@pytest.mark.parametrize("per_group", [0, 2])
def test_gathering_goes_on_after_a_look(per_group):
    a_nu, groups = torch.randn(90, 3), [str(index % 11) for index in range(90)]
    ids = [f"{index:05d}" for index in range(90)]
    gatherer = PoolGatherer(3, 6, ids, 0, groups, per_group)
    gatherer.update(a_nu[:40], range(40))
    assert gatherer.result().n_images == 40
    assert gatherer.result().top.max() < 40
    assert gatherer.result().random.max() < 40
    gatherer.update(a_nu[40:], range(40, 90))
    assert equal(gatherer.result(), pools_of(a_nu, 6, ids=ids, groups=groups, per_group=per_group))


def test_the_callers_tensor_is_its_own_again():
    a_nu = torch.randn(6, 3)
    gatherer, buffer = PoolGatherer(3, 4, [f"{index:05d}" for index in range(6)], 0), torch.empty(2, 3)
    for start in (0, 2, 4):
        buffer.copy_(a_nu[start : start + 2])
        gatherer.update(buffer, [start, start + 1])
    assert equal(gatherer.result(), pools_of(a_nu, 4))


def test_nothing_seen_gives_empty_pools():
    found = PoolGatherer(2, 3, ["a", "b"], 0).result()
    assert found.n_images == 0
    assert (torch.cat([found.top, found.bottom, found.random]) == -1).all()


@pytest.mark.parametrize(("value", "word"), [(torch.nan, "NaN"), (torch.inf, "infinite"), (-torch.inf, "infinite")])
def test_an_activation_that_is_no_number_names_unit_and_image(value, word):
    a_nu = torch.randn(20, 3)
    a_nu[13, 2] = value
    gatherer = PoolGatherer(3, 4, [f"photo {index}" for index in range(20)], 0, units=["a", "b", "c"])
    gatherer.update(a_nu[:10], range(10))
    with pytest.raises(DataError, match=f"unit c on image photo 13 is {word}"):
        gatherer.update(a_nu[10:], range(10, 20))


def test_an_image_that_comes_twice_is_a_bug():
    gatherer = PoolGatherer(1, 2, ["a", "b", "c"], 0)
    gatherer.update(torch.zeros(2, 1), [0, 2])
    for indices in ([2], [1, 1]):
        with pytest.raises(ValueError, match="came twice"):
            gatherer.update(torch.zeros(len(indices), 1), indices)


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"size": 0}, "pools of 0 images"),
        ({"per_group": 1}, "needs a group"),
        ({"units": ["a"]}, "1 names for 2 units"),
    ],
)
def test_options_that_cannot_be(options, words):
    with pytest.raises(ValueError, match=words):
        PoolGatherer(2, **{"size": 3, "ids": ["a", "b"], "seed": 0} | options)


@pytest.mark.parametrize("quantile", ["q25", "q05"])
def test_golden_pools(quantile):
    golden = np.load(GOLDEN)
    act = golden["act"]
    size = int(np.ceil(int(quantile[1:]) / 100 * 400))
    found = pools_of(torch.from_numpy(act), size)
    ascending = np.argsort(act, axis=0, kind="stable").T
    for side, images, values, by_sorting in (
        ("top", found.top, found.top_values, ascending[:, ::-1]),
        ("bot", found.bottom, found.bottom_values, ascending),
    ):
        tasks = golden[f"{quantile}_{side}"]
        for unit in TIE_FREE:
            pool = images[unit].tolist()
            assert pool == by_sorting[unit, :size].tolist()
            # A task's images come from the pool, explanations the most extreme first and the query last.
            places = [[pool.index(image) for image in task] for task in tasks[unit]]
            assert all(task == sorted(set(task)) for task in places)
        for unit in WITH_TIES:
            assert values[unit].tolist() == act[by_sorting[unit, :size], unit].tolist()
            assert values[unit].tolist() == act[images[unit].numpy(), unit].tolist()
            assert set(act[tasks[unit], unit].ravel().tolist()) <= set(values[unit].tolist())
    assert torch.equal(found.n_active, torch.from_numpy((act > 0).sum(0)))


def test_golden_sign_flip_swaps_the_pools():
    act = torch.from_numpy(np.load(GOLDEN)["act"])
    found = pools_of(act, 100)
    assert torch.equal(found.top[8], found.bottom[0])  # unit 8 = −unit 0
    assert torch.equal(found.bottom[8], found.top[0])
    assert torch.equal(found.top[9], found.top[0])  # unit 9 = exp(3 · unit 0)


def test_gather_ranks_the_units_of_a_store(write):
    x_npd = torch.randn(40, 4, 6)
    stored = write(x_npd)
    found = gather(stored, Neurons(6), size=5, seed=0, image_activation=ImageActivation.max)
    expected = x_npd.amax(1).sort(0)
    assert torch.equal(found.top_values, expected.values.flip(0)[:5].T)
    assert torch.equal(found.top.long(), expected.indices.flip(0)[:5].T)
    assert torch.equal(found.bottom.long(), expected.indices[:5].T)


@pytest.mark.usefixtures("untouched_rng")
def test_gather_of_some_units_is_part_of_all(write):
    stored = write(torch.randn(40, 4, 6, generator=torch.Generator().manual_seed(0)).relu())
    source = RandomDirections(6, 9, seed=0)
    options = {"size": 30, "seed": 3, "per_group": 1, "positive_only": True}
    whole, part = gather(stored, source, **options), gather(stored, source, units=[7, 2], **options)
    for found, expected in zip(part[:5], whole[:5], strict=True):
        assert torch.equal(torch.nan_to_num(found), torch.nan_to_num(expected[[7, 2]]))
    assert (whole.top >= 0).sum(1).max() <= 14  # 14 scenes, one image each


def test_gather_with_permuted_images_keeps_values_and_follows_the_ids(write, tmp_path):
    x_npd = torch.randn(40, 1, 6)
    ids = [f"image {index}" for index in range(40)]
    found = gather(write(x_npd, ids=ids), Neurons(6), 8, 0, units=[4, 1], permute_seed=5)
    plain = gather(write(x_npd, ids=ids), Neurons(6), 8, 0, units=[4, 1])
    assert torch.equal(found.top_values, plain.top_values)
    assert not torch.equal(found.top, plain.top)
    by_id = image_ordinals(ids).argsort()
    a_nu = permute_images(x_npd[by_id, 0][:, [4, 1]], 5, ["blocks.2/neuron/4", "blocks.2/neuron/1"])
    assert torch.equal(found.top.long(), by_id[a_nu.argsort(0, descending=True)[:8].T])
    shuffled = torch.randperm(40)
    again = gather(
        write(x_npd[shuffled], ids=[ids[index] for index in shuffled]), Neurons(6), 8, 0, units=[4, 1], permute_seed=5
    )
    assert torch.equal(shuffled[again.top.long()], found.top.long())


def test_gather_names_site_unit_and_image_of_a_nan(write):
    stored = write(torch.randn(10, 2, 3))

    class Broken(Neurons):
        def activate(self, x_bpd):
            return x_bpd.log()  # NaN below zero

    with pytest.raises(DataError, match=r"unit blocks\.2/neuron/\d on image image/000\d is NaN"):
        gather(stored, Broken(3), 2, 0)


# ---- parts gathered apart


@given(
    stream=streams(),
    size=st.integers(1, 8) | st.just(40),
    per_group=st.integers(0, 3),
    positive_only=st.booleans(),
    keys_at_once=st.sampled_from([1, 10**6]),
    order=st.randoms(use_true_random=False),
)
@settings(max_examples=50)
def test_parts_of_the_images_merge_into_the_whole_to_the_bit(
    stream, size, per_group, positive_only, keys_at_once, order
):
    a_nu, groups, chunks = stream
    n_images, n_units = a_nu.shape
    ids = [f"image {7919 * index % 1009}" for index in range(n_images)]
    options = {"groups": groups, "per_group": per_group, "positive_only": positive_only}
    whole = PoolGatherer(n_units, size, ids, 3, **options)
    whole.update(a_nu, range(n_images))
    states = []
    with patch.dict(pools_module.KEYS_AT_ONCE, cpu=keys_at_once):
        for chunk in chunks:
            part = PoolGatherer(n_units, size, ids, 3, **options)
            part.update(a_nu[chunk], chunk)
            states.append(part.state())
        order.shuffle(states)
        merged = PoolGatherer(n_units, size, ids, 3, **options)
        for state in states:
            merged.merge(state)
    assert equal(merged.result(), whole.result())
    assert hash_tensors(merged.state()) == hash_tensors(whole.state())


@pytest.mark.parametrize("options", [{}, {"per_group": 1}, {"positive_only": True}, {"units": [7, 2]}], ids=str)
def test_jobs_with_a_slice_of_the_store_each(write, tmp_path, options):
    x_npd = torch.randn(90, 2, 6, generator=torch.Generator().manual_seed(0)).relu()
    stored, source = write(x_npd), RandomDirections(6, 9, seed=0)
    with patch.object(units_module, "LARGEST_CHUNK", 8):
        whole = gather(stored, source, 12, 3, **options)
        for n_slices in (1, 2, 5, 100):
            merged = gather_part(stored, source, 12, 3, **options, images=range(0))
            for number, images in enumerate(reversed(image_slices(stored, source, n_slices))):
                path = tmp_path / f"{n_slices}-{number}.safetensors"
                write_tensors(path, gather_part(stored, source, 12, 3, **options, images=images).state())
                merged.merge(read_tensors(path))
            assert equal(merged.result(), whole)


def test_a_part_that_is_merged_may_go_on():
    a_nu = torch.randint(0, 3, (60, 3)).float()
    ids = [f"{index:05d}" for index in range(60)]
    first, second = PoolGatherer(3, 6, ids, 0), PoolGatherer(3, 6, ids, 0)
    first.update(a_nu[:10], range(10))
    second.update(a_nu[10:40], range(10, 40))
    first.merge(second.state())
    first.update(a_nu[40:], range(40, 60))
    assert equal(first.result(), pools_of(a_nu, 6))


def test_parts_that_do_not_belong_together_say_what_differs():
    ids = ["a", "b", "c", "d"]
    mine = {"n_units": 2, "size": 3, "ids": ids, "seed": 0, "groups": list("xxyy"), "per_group": 1}
    whole = PoolGatherer(**mine)
    for changed, named in (
        ({"size": 2}, "size of the pools"),
        ({"seed": 1}, "seed"),
        ({"ids": ["a", "b", "d", "c"]}, "images"),
        ({"units": [0, 2]}, "units"),
        ({"groups": list("xyyy")}, "groups"),
        ({"per_group": 2}, "images of a group"),
        ({"positive_only": True, "measure": "max"}, "only positive, measure"),
    ):
        with pytest.raises(ConfigError, match=f"do not belong together: they differ in {named}"):
            whole.merge(PoolGatherer(**mine | changed).state())
    with pytest.raises(ConfigError, match="differ in seed, size of the pools"):
        whole.merge({"top": torch.zeros(2, 3)})  # no state at all


def test_an_image_of_two_parts_is_named():
    parts = [PoolGatherer(1, 2, ["a", "b", "c"], 0) for _ in range(2)]
    parts[0].update(torch.zeros(2, 1), [0, 1])
    parts[1].update(torch.zeros(2, 1), [1, 2])
    with pytest.raises(DataError, match=r"image b is in two parts of the pools \(1 are\)"):
        parts[0].merge(parts[1].state())


def test_parts_with_means_and_with_maxima_do_not_mix(write):
    stored = write(torch.randn(20, 2, 6))
    means = gather_part(stored, Neurons(6), 3, 0, images=range(0))
    with pytest.raises(ConfigError, match="differ in measure"):
        means.merge(gather_part(stored, Neurons(6), 3, 0, ImageActivation.max).state())
    with pytest.raises(ValueError, match="a permutation needs all images"):
        gather_part(stored, Neurons(6), 3, 0, permute_seed=1, images=range(20))
