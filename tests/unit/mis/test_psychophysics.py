"""The interface of the authors' code: the call of its README, its numbers on its ids, none of its faults."""

from __future__ import annotations

import random
import subprocess
import sys

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.core.errors import ConfigError, DataError, MisLabError
from mis_lab.metric.base import Metric
from mis_lab.mis import run_psychophysics, task_config
from mis_lab.mis.psychophysics import score_tasks
from mis_lab.mis.tasks import Tasks

DRAWS = pytest.mark.parametrize("draw", ["q25", "q05", "extreme"])
SILENT = pytest.mark.filterwarnings("ignore:.*units are (active on fewer|constant)")
N_IMAGES, N_CLUSTERS = 240, 6


class Pixels(Metric):
    """An image's 3 x 3 pixels about grey, of length 1."""

    similarity = "cosine"
    fingerprint = "pixels"
    n_embedded = 0

    def embed(self, images):
        self.n_embedded += len(images)
        rows = torch.stack([torch.from_numpy(np.array(image, dtype=np.float32)).flatten() - 127.5 for image in images])
        return torch.nn.functional.normalize(rows, dim=1)


class Squared(Pixels):
    similarity = "squared_euclidean"
    fingerprint = "squared pixels"


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    return np.random.default_rng(0).integers(0, N_CLUSTERS, N_IMAGES)


@pytest.fixture(scope="module")
def image_list(clusters) -> list[Image.Image]:
    rng = np.random.default_rng(1)
    centres = rng.integers(40, 216, (N_CLUSTERS, 3, 3, 3))
    noisy = centres[clusters] + rng.integers(-30, 31, (N_IMAGES, 3, 3, 3))
    return [Image.fromarray(pixels.astype(np.uint8)) for pixels in noisy]


@pytest.fixture
def activations(clusters) -> torch.Tensor:
    """Unit c sees cluster c; unit 6 is noise."""
    rng = np.random.default_rng(2)
    seeing = (clusters[:, None] == np.arange(N_CLUSTERS)) + 0.1 * rng.standard_normal((N_IMAGES, N_CLUSTERS))
    return torch.from_numpy(np.column_stack([seeing, rng.standard_normal(N_IMAGES)])).float()


def run(images, activations, seed=117, k=3, n=30, quantile=0.1, **options) -> torch.Tensor:
    task_data = task_config(device="cpu", image_set=images, activations=activations)
    options = {"metric_type": "pixels", "metric": Pixels(), **options}
    return run_psychophysics(seed, task_data, K=k, N=n, quantile=quantile, **options)


def golden_tasks(golden, draw: str) -> Tasks:
    top, bottom = (torch.from_numpy(golden[f"{draw}_{side}"].astype(np.int32)) for side in ("top", "bot"))
    return Tasks(top[..., :-1], top[..., -1], bottom[..., :-1], bottom[..., -1], torch.full((len(top),), 20))


# The call and its numbers ------------------------------------------------------------------------------------


def test_the_call_of_the_readme(image_list, activations, monkeypatch):
    asked = []

    def load(config, device):
        asked.append((config.name, device))
        return Pixels()

    monkeypatch.setattr("mis_lab.mis.psychophysics.load_metric", load)
    device = "cpu"
    task_data = task_config(device=device, image_set=image_list, activations=activations)
    seed = 117
    metric_type = "dreamsim"
    K = 9
    N = 100
    quantile = 0.25
    alpha = None
    MIS = run_psychophysics(seed, task_data, metric_type=metric_type, K=K, N=N, quantile=quantile, alpha=alpha)
    assert asked == [("dreamsim", torch.device("cpu"))]
    assert MIS.shape == (7,)
    assert MIS.dtype == torch.float32
    assert MIS.device == torch.device("cpu")
    sharper = run_psychophysics(seed, task_data, metric_type=metric_type, K=K, N=N, quantile=0.1, alpha=alpha)
    assert (sharper[:6] > 0.9).all()
    assert abs(sharper[6] - 0.5) < 0.25
    assert len(asked) == 1
    soft = run_psychophysics(seed, task_data, metric_type=metric_type, K=K, N=N, quantile=0.1, alpha=6.25)
    assert (soft != sharper).all()
    run_psychophysics(seed, task_data, "LPIPS", K, N, quantile)
    assert asked[1][0] == "lpips"


@DRAWS
@pytest.mark.parametrize("gram", [False, True], ids=["rows", "gram"])
def test_golden_scores_on_the_references_own_ids(golden, embedding_of, draw, gram):
    tasks, embedding = golden_tasks(golden, draw), embedding_of(golden["emb"], gram=gram)
    with_ties, without = score_tasks(tasks, embedding), score_tasks(tasks, embedding, ties="wrong")
    np.testing.assert_allclose(with_ties, golden[f"{draw}_hard_halftie"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(without, golden[f"{draw}_hard"], rtol=0, atol=1e-6)
    np.testing.assert_allclose(without, golden[f"{draw}_ref_hard"], rtol=0, atol=1e-6)
    for alpha, name in ((0.16, "soft_a016"), (6.25, "soft_t016")):
        np.testing.assert_allclose(score_tasks(tasks, embedding, alpha), golden[f"{draw}_{name}"], rtol=0, atol=1e-6)


@SILENT
@pytest.mark.parametrize("quantile", [0.25, 0.05])
def test_draws_are_the_references_protocol_on_the_golden_data(golden, embedding_of, quantile, monkeypatch):
    """Tasks of the whole call: K+1 distinct images of the reference's pools, sorted, the least extreme asked."""
    seen: list[Tasks] = []

    def spy(tasks, *rest):
        seen.append(tasks)
        return score_tasks(tasks, *rest)

    monkeypatch.setattr("mis_lab.mis.psychophysics.score_tasks", spy)
    embedding = torch.from_numpy(golden["emb"])
    activations = torch.from_numpy(golden["act"])
    task_data = task_config("cpu", [Image.new("L", (1, 1))] * 400, activations, processed={"dreamsim": embedding})
    found = run_psychophysics(0, task_data, "dreamsim", 9, 400, quantile)
    order = golden["act"].argsort(0, kind="stable").T
    size = round(quantile * 400)
    for unit in (0, 1, 2, 3, 5, 8, 9, 12):  # without ties
        for explained, asked, ranked in (
            (seen[0].explanations_positive[unit], seen[0].query_positive[unit], order[unit, ::-1]),
            (seen[0].explanations_negative[unit], seen[0].query_negative[unit], order[unit]),
        ):
            rank = np.argsort(ranked)
            places = np.column_stack([rank[explained], rank[asked]])
            assert (np.diff(places, axis=1) > 0).all()
            assert set(places.flat) == set(range(size))  # the whole pool, and no more
    reference = golden["q25_ref_hard" if quantile == 0.25 else "q05_ref_hard"]
    units = [0, 1, 2, 3, 5, 8, 9, 12]
    np.testing.assert_allclose(found[units], reference[units], atol=5 * 0.5 / 20**0.5)  # 20 tasks against 400
    margin = golden["q25_delta" if quantile == 0.25 else "q05_delta"].mean(1)
    assert np.corrcoef(found[units], margin[units])[0, 1] > 0.8


def test_metrics_of_both_kinds_and_embeddings_one_already_has(image_list, activations):
    plain = run(image_list, activations)
    rows = torch.cat([Pixels().embed([image]) for image in image_list])
    given = task_config("cpu", image_list, activations, processed={"dreamsim": 3 * rows})
    torch.testing.assert_close(run_psychophysics(117, given, "dreamsim", 3, 30, 0.1), plain)
    mine = task_config("cpu", image_list, activations, processed={"mine": rows})
    torch.testing.assert_close(run_psychophysics(117, mine, "mine", 3, 30, 0.1), plain)
    # Of unit vectors the squared distance has twice the margin: the same hard score.
    torch.testing.assert_close(run(image_list, activations, metric=Squared()), plain)
    soft = run(image_list, activations, alpha=2.0)
    torch.testing.assert_close(run(image_list, activations, metric=Squared(), alpha=1.0), soft)


def test_what_a_task_config_tells(image_list, activations):
    task_data = task_config("cpu", image_list, activations, seed=5)
    assert len(task_data) == N_IMAGES
    image, of_units = task_data[3]
    assert image is image_list[3]
    assert torch.equal(of_units, activations[3])
    assert torch.equal(task_data.get_target(), activations.T)
    assert task_data.get_data() == image_list
    given = task_config("cpu", image_list, activations, processed={"dreamsim": torch.ones(N_IMAGES, 2)})
    assert torch.equal(given.get_processed("dreamsim"), torch.ones(N_IMAGES, 2))
    assert torch.equal(given.get_data("dreamsim"), torch.ones(N_IMAGES, 2))
    rows = task_data.get_processed("pixels", Pixels())
    assert rows.shape == (N_IMAGES, 27)
    torch.testing.assert_close(rows[7:8], Pixels().embed(image_list[7:8]))


def test_other_activations_for_the_same_images_use_the_same_embeddings(image_list, activations):
    task_data, metric = task_config("cpu", image_list, activations), Pixels()
    first = run_psychophysics(1, task_data, "pixels", 3, 30, 0.1, metric=metric)
    task_data.replace_y(activations.flip(1))
    other = run_psychophysics(1, task_data, "pixels", 3, 30, 0.1, metric=metric)
    fresh = run(image_list, activations.flip(1), seed=1)
    assert torch.equal(other, fresh)
    assert metric.n_embedded == N_IMAGES
    task_data.replace_y(activations)
    assert torch.equal(run_psychophysics(1, task_data, "pixels", 3, 30, 0.1, metric=metric), first)


def test_images_of_any_mode(image_list, activations):
    expected = run(image_list, activations)
    transparent = [image.convert("RGBA") for image in image_list]
    assert torch.equal(run(transparent, activations), expected)


# Faults of the authors' code, by their number in docs/mis_reference.md ------------------------------------------


def test_pitfall_1_nothing_is_shared_or_changed_between_calls(image_list, activations):
    rows = torch.cat([Pixels().embed([image]) for image in image_list])
    processed = {"dreamsim": rows}
    held, kept = rows.clone(), activations.clone()
    neurons = task_config("cpu", image_list, activations, processed=processed)
    first = run_psychophysics(0, neurons, "dreamsim", 3, 30, 0.1)
    features = task_config("cpu", image_list, activations.flip(1), processed=processed)
    run_psychophysics(0, features, "dreamsim", 3, 30, 0.1)
    assert torch.equal(run_psychophysics(0, neurons, "dreamsim", 3, 30, 0.1), first)
    assert list(processed) == ["dreamsim"]
    assert torch.equal(rows, held)
    assert torch.equal(activations, kept)
    alone, other = (task_config("cpu", image_list, activations) for _ in range(2))
    alone.embedding("pixels", Pixels())
    assert not other._embeddings  # no default that all objects share
    activations.zero_()
    assert torch.equal(run_psychophysics(0, neurons, "dreamsim", 3, 30, 0.1), first)


def test_pitfall_2_scores_that_count_silent_images_are_told_and_can_be_had_without(image_list, clusters):
    rng = np.random.default_rng(3)
    sparse = torch.from_numpy(((clusters == 2) & (rng.random(N_IMAGES) < 0.6)) * rng.uniform(1, 2, N_IMAGES))[:, None]
    with pytest.warns(UserWarning, match=r"1 units are active on fewer images than the pool of 60.*silent.*: 0$"):
        diluted = run(image_list, sparse, n=100, quantile=0.25)
    active = run(image_list, sparse, n=100, quantile=0.25, active_only=True)
    assert active > 0.9
    assert diluted < active - 0.1
    sparse[sparse.nonzero()[3:, 0]] = 0
    with pytest.warns(UserWarning, match="1 units are active on fewer than 4 images and have no score: 0"):
        assert run(image_list, sparse, active_only=True).isnan().all()


@pytest.mark.parametrize("quantile", [0.51, 0.75, 1.0, 0.0, -0.1, float("nan")])
def test_pitfall_3_a_quantile_that_inverts_the_task_is_refused(image_list, activations, quantile):
    with pytest.raises(ConfigError, match=f"quantile={quantile}: above 0.5 the task is inverted"):
        run(image_list, activations, quantile=quantile)


def test_pitfall_4_alpha_is_a_factor_as_in_the_reference(image_list, activations):
    faint, steep = (run(image_list, activations, alpha=alpha) for alpha in (0.16, 6.25))
    assert (faint < 0.66).all()  # whatever the units see: sigmoid(0.16 * 4) = 0.655
    assert (steep[:6] > faint[:6]).all()
    for alpha in (0.0, -1.0, float("nan")):
        with pytest.raises(ConfigError, match=f"alpha={alpha} is not positive"):
            run(image_list, activations, alpha=alpha)


def test_pitfall_5_ties_are_broken_by_seed_and_unit_and_not_by_the_order_of_images(image_list):
    rounded = torch.from_numpy(np.random.default_rng(4).integers(0, 2, (N_IMAGES, 1))).float().expand(-1, 40) - 0.5
    found = run(image_list, rounded)
    assert len(found.unique()) > 5  # units full of ties do not share their pools
    assert torch.equal(run(image_list, rounded), found)
    assert not torch.equal(run(image_list, rounded, seed=118), found)
    ids = [f"{place:03d}" for place in range(N_IMAGES)]
    moved = np.random.default_rng(5).permutation(N_IMAGES).tolist()
    named = task_config("cpu", image_list, rounded, ids=ids)
    other = task_config("cpu", [image_list[place] for place in moved], rounded[moved], ids=[ids[p] for p in moved])
    scores = [run_psychophysics(0, data, "pixels", 3, 30, 0.1, metric=Pixels()) for data in (named, other)]
    torch.testing.assert_close(*scores)


def test_pitfall_6_no_global_generator_is_seeded_or_drawn_from(image_list, activations):
    states = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()  # noqa: NPY002
    seed = torch.initial_seed()
    run(image_list, activations)
    assert torch.initial_seed() == seed
    assert torch.equal(torch.get_rng_state(), states[0])
    assert random.getstate() == states[1]
    assert (np.random.get_state()[1] == states[2]).all()  # noqa: NPY002


def test_pitfall_7_ties_count_one_half_or_as_in_the_reference(golden, embedding_of, activations):
    same = [Image.new("RGB", (3, 3), "white")] * N_IMAGES
    assert (run(same, activations) == 0.5).all()
    assert (run(same, activations, alpha=0.16) == 0.5).all()
    assert (run(same, activations, ties="wrong") == 0).all()
    tasks, equal = golden_tasks(golden, "q25"), embedding_of(np.ones((400, 8)))
    np.testing.assert_array_equal(score_tasks(tasks, equal, ties="wrong"), golden["allequal_ref_hard"])
    with pytest.raises(ConfigError, match="unknown rule for ties right"):
        run(same, activations, ties="right")


def test_pitfall_8_distances_are_averaged_over_explanations_with_and_without_alpha(golden, embedding_of):
    maps = np.concatenate([golden[f"lp_fm{number}"].reshape(400, -1) for number in (0, 1)], 1).astype(np.float64)
    embedding, tasks = embedding_of(maps, "squared_euclidean"), golden_tasks(golden, "q25")
    one = Tasks(*(part[:1] for part in tasks))

    def similarity(query, explained):
        return -np.mean(np.square(maps[query] - maps[explained]).sum(-1))

    delta = [
        similarity(qp, ep) - similarity(qp, en) - similarity(qn, ep) + similarity(qn, en)
        for ep, qp, en, qn in zip(*(part[0].numpy() for part in one[:4]), strict=True)
    ]
    assert score_tasks(one, embedding) == pytest.approx(np.mean(np.array(delta) > 0))
    assert score_tasks(one, embedding, 0.1) == pytest.approx(
        np.mean(1 / (1 + np.exp(-0.1 * np.array(delta)))), abs=1e-5
    )


def test_pitfall_9_broken_activations_and_small_pools_are_told(image_list, activations):
    for broken, kind in ((torch.nan, "NaN"), (torch.inf, "infinite")):
        bad = activations.clone()
        bad[17, 2] = broken
        with pytest.raises(DataError, match=f"activation of unit 2 on image 000000017 is {kind}"):
            run(image_list, bad)
        task_data = task_config("cpu", image_list, activations)
        with pytest.raises(DataError, match=f"activation of unit 2 on image 000000017 is {kind}"):
            task_data.replace_y(bad)
        assert torch.equal(task_data.get_target(), activations.T)
    with pytest.raises(DataError, match=r"quantile 0.1 of 240 images is 24, fewer than the K\+1 = 25 of a task"):
        run(image_list, activations, k=24)


def test_pitfall_10_constant_units_have_no_score(image_list, activations):
    with_constant = torch.cat([activations, torch.zeros(N_IMAGES, 1), torch.full((N_IMAGES, 1), -3.0)], 1)
    with pytest.warns(UserWarning, match="2 units are constant and have no score: 7, 8"):
        found = run(image_list, with_constant)
    assert found.isnan().tolist() == [False] * 7 + [True, True]
    assert torch.equal(found[:7], run(image_list, activations))


def test_pitfall_11_the_device_is_the_one_asked_for(image_list, activations):
    task_data = task_config("cpu", image_list, activations)
    assert task_data.device == torch.device("cpu")
    torch.set_default_device("meta")  # what is drawn there has no values
    try:
        found = run_psychophysics(117, task_data, "pixels", 3, 30, 0.1, metric=Pixels())
    finally:
        torch.set_default_device(None)
    assert torch.equal(found, run(image_list, activations))
    if not torch.cuda.is_available():
        with pytest.raises(ConfigError, match="device=cuda is not available"):
            task_config("cuda", image_list, activations)


def test_pitfall_12_no_explanations_are_laid_side_by_side():
    n_images, n_units, width = 400, 40, 1024
    rng = np.random.default_rng(6)
    rows = torch.from_numpy(rng.standard_normal((n_images, width))).float()
    activations = torch.from_numpy(rng.standard_normal((n_images, n_units))).float()
    task_data = task_config("cpu", [Image.new("L", (1, 1))] * n_images, activations, processed={"dreamsim": rows})
    largest = 0

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, func, types, args=(), kwargs=None):
            nonlocal largest
            made = func(*args, **(kwargs or {}))
            if isinstance(made, torch.Tensor):
                largest = max(largest, made.numel())
            return made

    with Watch():
        run_psychophysics(0, task_data, "dreamsim", 9, 50, 0.25)
    assert largest <= rows.numel()
    assert largest < n_units * 50 * 9 * width / 10  # what the reference makes for the explanations of one side


# Properties --------------------------------------------------------------------------------------------------


def test_units_are_scored_alike_in_any_chunk(image_list, activations, monkeypatch):
    expected = run(image_list, activations)
    monkeypatch.setattr("mis_lab.mis.psychophysics._UNITS_AT_ONCE", 3)
    torch.testing.assert_close(run(image_list, activations), expected)


def test_a_sign_flip_and_an_increasing_transform(image_list, activations):
    plain = run(image_list, activations, n=400)
    torch.testing.assert_close(run(image_list, activations.exp() - 1, n=400), plain)
    # Both sides change places; their draws are others.
    np.testing.assert_allclose(run(image_list, -activations, n=400), plain, atol=0.12)


def test_random_units_score_one_half(image_list):
    noise = torch.from_numpy(np.random.default_rng(7).standard_normal((N_IMAGES, 300))).float()
    found = run(image_list, noise, n=20, quantile=0.25)
    assert found.mean() == pytest.approx(0.5, abs=5 * 0.112 / 300**0.5)


# Bad input ---------------------------------------------------------------------------------------------------


def test_bad_input(image_list, activations):
    with pytest.raises(DataError, match=r"activations of shape \(239, 7\) for 240 images"):
        run(image_list, activations[1:])
    with pytest.raises(DataError, match=r"activations of shape \(240,\) for 240 images"):
        run(image_list, activations[:, 0])
    with pytest.raises(ConfigError, match="K=0: at least 1"):
        run(image_list, activations, k=0)
    with pytest.raises(ConfigError, match="N=0: at least 1"):
        run(image_list, activations, n=0)
    with pytest.raises(DataError, match="3 ids for 240 images"):
        task_config("cpu", image_list, activations, ids=["a", "b", "c"])
    ids = [f"{place}" for place in range(N_IMAGES)]
    with pytest.raises(DataError, match="images 4 and 9 have the same id 4"):
        task_config("cpu", image_list, activations, ids=[*ids[:9], "4", *ids[10:]])
    with pytest.raises(DataError, match="image 9 has no id"):
        task_config("cpu", image_list, activations, ids=[*ids[:9], "", *ids[10:]])
    with pytest.raises(ConfigError, match="device=gpu is no device"):
        task_config("gpu", image_list, activations)
    with pytest.raises(ConfigError, match="metric_type dists is unknown; looked in dreamsim, lpips"):
        run(image_list, activations, metric_type="dists", metric=None)
    with pytest.raises(ConfigError, match="metric is of type function"):
        run(image_list, activations, metric=lambda one, other: one @ other)
    with pytest.raises(DataError, match=r"processed\['lpips'\] has shape \(240, 3, 8, 8\) for 240 images"):
        task_config("cpu", image_list, activations, processed={"lpips": torch.zeros(N_IMAGES, 3, 8, 8)})
    rows = torch.ones(N_IMAGES, 4)
    rows[5, 1] = torch.nan
    with pytest.raises(DataError, match=r"processed\['dreamsim'\] of image 000000005 is not finite"):
        task_config("cpu", image_list, activations, processed={"dreamsim": rows})


def test_named_metrics_that_are_not_here_are_told_in_one_line(image_list, activations, monkeypatch, tmp_path):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch.hub, "get_dir", lambda: str(tmp_path))
    for name in ("dreamsim", "lpips"):
        with pytest.raises(MisLabError) as told:
            run(image_list, activations, metric_type=name, metric=None)
        assert "\n" not in str(told.value)
        assert name in str(told.value).lower()


def test_the_package_is_imported_without_torch():
    code = "import sys, mis_lab.mis; assert 'torch' not in sys.modules"
    subprocess.run([sys.executable, "-c", code], check=True)
    with pytest.raises(ImportError, match="nothing_of_this_name"):
        from mis_lab.mis import nothing_of_this_name  # noqa: F401
