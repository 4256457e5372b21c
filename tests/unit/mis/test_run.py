from __future__ import annotations

import logging
import re
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch

from mis_lab.activations.config import ImageActivation
from mis_lab.activations.pools import gather_part
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.activations.units import Neurons, RandomDirections, image_slices
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.keys import content_key
from mis_lab.core.tensors import read_tensors, write_tensors
from mis_lab.metric.base import Embedding
from mis_lab.mis.compare import compare
from mis_lab.mis.config import MisConfig, NegativeQuery, Negatives, Protocol, Query
from mis_lab.mis.run import pool_part, require_ids, sample_units, score_units
from mis_lab.mis.score import measure_temperature
from mis_lab.mis.unit_scores import UnitScores
from mis_lab.mis.units import UnitStatus
from mis_lab.model.sites import Site

N_IMAGES, N_CLUSTERS = 300, 10
SITE = Site("features.3", "bchw", N_CLUSTERS + 2, 4, (2, 2))


@pytest.fixture(scope="module")
def clusters() -> np.ndarray:
    return np.random.default_rng(0).integers(0, N_CLUSTERS, N_IMAGES)


@pytest.fixture(scope="module")
def stored(clusters, tmp_path_factory) -> StoredActivations:
    """Channel c sees cluster c; the last but one is noise, the last is dead."""
    rng = np.random.default_rng(1)
    x_bpd = rng.random((N_IMAGES, 4, SITE.width)).astype(np.float32)
    x_bpd[..., :N_CLUSTERS] *= clusters[:, None, None] == np.arange(N_CLUSTERS)
    x_bpd[..., N_CLUSTERS] -= 0.5
    x_bpd[..., -1] = 0
    folder = tmp_path_factory.mktemp("stored")
    ids, groups = [f"{n:04d}" for n in range(N_IMAGES)], [f"scene {n % 15}" for n in range(N_IMAGES)]
    with ActivationWriter(folder, SITE, ids, groups, [-1] * N_IMAGES) as writer:
        writer.append(torch.from_numpy(x_bpd), range(N_IMAGES))
    return StoredActivations(folder)


@pytest.fixture(scope="module")
def embedding(clusters, stored, embedding_of) -> Embedding:
    rng = np.random.default_rng(2)
    rows = rng.standard_normal((N_CLUSTERS, 24))[clusters] + 0.5 * rng.standard_normal((N_IMAGES, 24))
    return replace(embedding_of(rows, gram=True), ids=stored.ids)


CONFIG = MisConfig(n_explanations=3, n_tasks=6, min_tasks=3, n_bootstrap=50)


def assert_same(mine: UnitScores, whole: UnitScores, rows) -> None:
    """Equal to the bit."""
    assert mine.units.tolist() == whole.units[rows].tolist()
    for negatives, result in mine.by_negatives.items():
        expected = whole.of(negatives)
        assert torch.equal(result.status, expected.status[rows])
        assert all(torch.equal(one, two[rows]) for one, two in zip(result.tasks, expected.tasks, strict=True))
        np.testing.assert_array_equal(result.margins, expected.margins[rows])
        for one, two in zip(result.scores, expected.scores, strict=True):
            np.testing.assert_array_equal(np.array(one), np.array(two)[:, rows])


def test_neurons_that_see_a_cluster_are_told_from_noise_and_from_dead_ones(stored, embedding, tmp_path):
    scores = score_units(stored, Neurons(SITE.width), embedding, CONFIG, 0)
    assert list(scores.by_negatives) == ["random", "bottom"]
    for result in scores.by_negatives.values():
        names = [UnitStatus(number).name for number in result.status.tolist()]
        assert names == ["ok"] * (N_CLUSTERS + 1) + ["dead"]
        assert result.scores.hard.estimate[:N_CLUSTERS].mean() > 0.9  # a random image may be of the cluster
        assert result.scores.soft.estimate[N_CLUSTERS] < result.scores.soft.estimate[:N_CLUSTERS].min()
        assert np.isnan(result.scores.soft.estimate[-1])
    assert scores.n_active[-1] == 0
    assert scores.unit_names[3] == "neuron 3"
    assert (scores.site, scores.kind, scores.label) == ("features.3", "neuron", "neurons")
    scores.write(tmp_path)
    read = UnitScores.read(tmp_path)
    assert_same(read, scores, slice(None))
    assert read.settings == scores.settings


def test_every_setting_is_stored(stored, embedding):
    config = replace(CONFIG, image_activation=ImageActivation.max, one_per_group=True, negatives=[Negatives.bottom])
    settings = score_units(stored, Neurons(SITE.width), embedding, config, 5, temperature=0.3).settings
    assert settings.temperature == 0.3
    assert settings.tie == pytest.approx(1e-6 * embedding.scale)
    assert (settings.pool_size, settings.one_per_group, settings.image_activation) == (24, True, "max")
    assert (settings.metric, settings.metric_fingerprint) == (embedding.metric, embedding.fingerprint)
    assert (settings.n_images, settings.images) == (N_IMAGES, content_key(stored.ids))
    measured = score_units(stored, Neurons(SITE.width), embedding, CONFIG, 5)
    assert measured.settings.temperature == measure_temperature(embedding, 3)
    # The temperature belongs to metric and images: another seed has the same.
    assert score_units(stored, Neurons(SITE.width), embedding, CONFIG, 6).settings == measured.settings


@pytest.mark.parametrize(
    "options",
    [
        {},
        {"one_per_group": True},
        {"protocol": Protocol.quantile},
        {"protocol": Protocol.quantile, "one_per_group": True},
        {"protocol": Protocol.hard, "query": Query.percentile},
        {"protocol": Protocol.inner_quantile, "quantile": 0.02},
        {"n_tasks": 20, "pool_size": 24},
        {"negatives": [Negatives.within_class, Negatives.random]},
    ],
    ids=str,
)
def test_chunks_and_order_of_units_change_no_task(stored, embedding, clusters, options):
    config = replace(CONFIG, **options)
    whole = score_units(stored, Neurons(SITE.width), embedding, config, 0, classes=clusters)
    in_chunks = score_units(stored, Neurons(SITE.width), embedding, replace(config, chunk=5), 0, classes=clusters)
    assert_same(in_chunks, whole, slice(None))
    for units in ([7, 11, 0, 3], [10]):
        some = score_units(stored, Neurons(SITE.width), embedding, config, 0, units=units, classes=clusters)
        assert_same(some, whole, units)
        assert some.unit_names == [f"neuron {unit}" for unit in units]
    other = score_units(stored, Neurons(SITE.width), embedding, config, 1, classes=clusters)
    assert not torch.equal(other.of("random").tasks.query_negative, whole.of("random").tasks.query_negative)


@pytest.mark.parametrize("options", [{}, {"one_per_group": True}, {"protocol": Protocol.quantile}], ids=str)
@pytest.mark.parametrize("gram", [True, False], ids=["gram", "rows"])
def test_jobs_for_images_and_for_units_score_as_one_job_does(
    stored, embedding, embedding_of, clusters, tmp_path, monkeypatch, options, gram
):
    monkeypatch.setattr("mis_lab.activations.units.LARGEST_CHUNK", 16)
    config, source = replace(CONFIG, **options), Neurons(SITE.width)
    if not gram:
        rows = np.random.default_rng(3).standard_normal((N_CLUSTERS, 24))[clusters]
        embedding = replace(embedding_of(rows), ids=stored.ids)
    whole = score_units(stored, source, embedding, config, 0)

    for number, images in enumerate(image_slices(stored, source, 3)):
        write_tensors(tmp_path / str(number), pool_part(stored, source, config, 0, images=images).state())
    merged = pool_part(stored, source, config, 0, images=range(0))
    for number in (2, 0, 1):
        merged.merge(read_tensors(tmp_path / str(number)))
    pools = merged.result()
    folders = []
    for units in (range(5, 12), [3], range(3), [4]):
        of_units = pools.of_units(units)
        part = score_units(stored, source, embedding, config, 0, units=units, pools=of_units)
        part.write(tmp_path / str(units))
        folders.append(tmp_path / str(units))
    together = UnitScores.concatenate([UnitScores.read(folder) for folder in folders])
    order = [5, 6, 7, 8, 9, 10, 11, 3, 0, 1, 2, 4]
    assert_same(together, whole, order)
    assert together.unit_names == [f"neuron {unit}" for unit in order]
    assert together.settings == whole.settings
    assert torch.equal(together.n_active, whole.n_active[order])


def test_pools_of_other_units_or_of_part_of_the_images_are_refused(stored, embedding, monkeypatch):
    monkeypatch.setattr("mis_lab.activations.units.LARGEST_CHUNK", 16)
    source = Neurons(SITE.width)
    part = pool_part(stored, source, CONFIG, 0, images=range(0, 160)).result()
    with pytest.raises(DataError, match="24 of 160 images for 12 units; 24 of 300 for 12 are needed"):
        score_units(stored, source, embedding, CONFIG, 0, pools=part)
    whole = pool_part(stored, source, CONFIG, 0).result()
    with pytest.raises(DataError, match="24 of 300 images for 12 units; 24 of 300 for 2 are needed"):
        score_units(stored, source, embedding, CONFIG, 0, units=[1, 2], pools=whole)
    with pytest.raises(DataError, match="24 of 300 images for 12 units; 28 of 300 for 12 are needed"):
        score_units(stored, source, embedding, replace(CONFIG, n_tasks=7), 0, pools=whole)
    without = pool_part(stored, source, CONFIG, 0).result(random=False)
    with pytest.raises(DataError, match="the pools have no random images"):
        score_units(stored, source, embedding, CONFIG, 0, pools=without)
    config = replace(CONFIG, negatives=[Negatives.bottom])
    found = score_units(stored, source, embedding, config, 0, pools=without)
    assert_same(found, score_units(stored, source, embedding, CONFIG, 0), slice(None))


def settings_of(stored, embedding, classes=None, **options):
    return score_units(stored, Neurons(SITE.width), embedding, replace(CONFIG, **options), 0, classes=classes).settings


def test_settings_say_what_a_protocol_has_and_no_more(stored, embedding, clusters):
    plain = settings_of(stored, embedding, query_percentile=70.0, quantile=0.3)
    assert plain == settings_of(stored, embedding)  # options that this protocol does not look at
    assert (plain.query, plain.query_negative, plain.pool_size) == ("most_extreme", "most_extreme", 24)
    assert (plain.query_percentile, plain.quantile, plain.classes) == (0.0, 0.0, "")
    asymmetric = settings_of(stored, embedding, query_negative=NegativeQuery.least_extreme)
    with pytest.raises(ConfigError, match=r"differ in query_negative \(most_extreme and least_extreme\)"):
        plain.require_equal(asymmetric)
    hard = settings_of(stored, embedding, protocol=Protocol.hard, query=Query.percentile, query_percentile=80.0)
    assert (hard.protocol, hard.query_negative, hard.query_percentile) == ("hard", "percentile", 80.0)
    inner = settings_of(stored, embedding, protocol=Protocol.inner_quantile, quantile=0.1)
    assert (inner.quantile, inner.pool_size) == (0.1, 24)
    assert settings_of(stored, embedding, protocol=Protocol.quantile, quantile=0.1).pool_size == 30
    fixed = settings_of(stored, embedding, pool_size=31)
    assert (fixed.pool_size, fixed.n_tasks) == (28, 6)
    assert (settings_of(stored, embedding, n_tasks=3).pool_size, plain.n_tasks) == (12, 6)


def test_negatives_within_class_by_labels_or_predictions(stored, embedding, clusters):
    both = [Negatives.random, Negatives.within_class]
    neurons, config = Neurons(SITE.width), replace(CONFIG, negatives=both)
    predicted = torch.from_numpy(clusters // 2)  # pairs of clusters look alike to this network
    scores = score_units(stored, neurons, embedding, config, 0, classes=predicted)
    result = scores.of("within_class")
    assert (predicted[result.tasks.query_positive[:10]] == predicted[result.tasks.query_negative[:10]]).all()
    # By the clusters themselves there is nothing to tell apart: what the units see is their class.
    alone = score_units(stored, neurons, embedding, config, 0, classes=clusters)
    seeing = {name: np.nanmean(each.scores.soft.estimate[:10]) for name, each in alone.by_negatives.items()}
    assert seeing["random"] > 0.8
    assert abs(seeing["within_class"] - 0.5) < 0.1
    with pytest.raises(ConfigError, match="differ in classes"):
        compare(scores, alone, "within_class", n_bootstrap=20)
    without = score_units(stored, neurons, embedding, replace(CONFIG, negatives=[Negatives.random]), 0)
    assert compare(scores, without, "random", n_bootstrap=20).mean_difference.estimate == 0


def test_rows_and_gram_matrix_give_the_same_scores(stored, embedding, embedding_of):
    with_gram = score_units(stored, Neurons(SITE.width), embedding, CONFIG, 0)
    values, vectors = torch.linalg.eigh(embedding.gram.double())
    rows = (vectors * values.clamp_min(0).sqrt()).float()
    other = score_units(stored, Neurons(SITE.width), replace(embedding, gram=None, rows=rows), CONFIG, 0)
    for negatives, result in other.by_negatives.items():
        expected = with_gram.of(negatives)
        torch.testing.assert_close(result.margins, expected.margins, rtol=0, atol=1e-5, equal_nan=True)


def test_controls_score_less_and_can_be_compared(stored, embedding):
    config = replace(CONFIG, n_tasks=12)
    neurons = score_units(stored, Neurons(SITE.width), embedding, config, 0, units=range(N_CLUSTERS))
    permuted = score_units(
        stored, Neurons(SITE.width), embedding, config, 0, units=range(N_CLUSTERS), control="permuted"
    )
    directions = score_units(stored, RandomDirections(SITE.width, 40, 0), embedding, config, 0)
    assert (permuted.label, directions.label) == ("permuted neurons", "random directions")
    assert torch.equal(permuted.n_active, neurons.n_active)  # the same values, given to other images
    for negatives in ("random", "bottom"):
        assert abs(permuted.of(negatives).scores.hard.estimate.mean() - 0.5) < 0.2
        for control in (permuted, directions):
            found = compare(neurons, control, negatives, n_bootstrap=50)
            assert found.verdict.startswith("neurons higher by ")


def test_the_gatherer_is_asked_for_what_tasks_need(stored, embedding, monkeypatch):
    asked = {}

    def spy(*args, **kwargs):
        asked.update(size=args[2], **kwargs)
        return gather_part(*args, **kwargs)

    monkeypatch.setattr("mis_lab.mis.run.gather_part", spy)
    config = replace(CONFIG, one_per_group=True, image_activation=ImageActivation.max)
    scores = score_units(stored, Neurons(SITE.width), embedding, config, 0)
    assert (asked["size"], asked["per_group"], asked["permute_seed"]) == (24, 6, None)
    vectors = stored.read(0, N_IMAGES)
    assert torch.equal(scores.maximum, vectors.amax((0, 1)))  # the maximum over positions, not their mean


def test_progress_and_result_are_logged(stored, embedding, caplog):
    with caplog.at_level(logging.INFO, "mis_lab.mis.run"):
        score_units(stored, Neurons(SITE.width), embedding, CONFIG, 0)
    assert "neurons of features.3, random negatives: 91.7% ok, 8.3% dead, mean soft score" in caplog.text


def test_controls_take_a_seeded_sample_of_units():
    assert sample_units(5, 10, 0) == [0, 1, 2, 3, 4]
    some = sample_units(1000, 20, 0)
    assert len(set(some)) == 20
    assert some == sorted(some) == sample_units(1000, 20, 0)
    assert some != sample_units(1000, 20, 1)


class Broken(Neurons):
    def activate(self, x_bpd):
        return x_bpd * torch.where(torch.arange(x_bpd.shape[-1]) == 4, torch.nan, 1.0)


def test_bad_input(stored, embedding):
    neurons = Neurons(SITE.width)
    with pytest.raises(DataError, match="embedded 299 images, the activations are of 300"):
        score_units(stored, neurons, replace(embedding, ids=embedding.ids[:-1]), CONFIG, 0)
    moved = [*embedding.ids[:7], *reversed(embedding.ids[7:])]
    with pytest.raises(DataError, match="image 7 is 0007 in the activations and 0299 in the embedding"):
        score_units(stored, neurons, replace(embedding, ids=moved), CONFIG, 0)
    with pytest.raises(DataError, match=r"unit features.3/neuron/4 on image 0\d\d\d is NaN"):
        score_units(stored, Broken(SITE.width), embedding, CONFIG, 0)
    with pytest.raises(DataError, match="300 images are too few"):
        score_units(stored, neurons, embedding, MisConfig(n_explanations=39), 0)
    by_class = replace(CONFIG, negatives=[Negatives.within_class])
    with pytest.raises(ConfigError, match=r"negatives=\[within_class\] needs the class of every image"):
        score_units(stored, neurons, embedding, by_class, 0)
    with pytest.raises(DataError, match="299 classes for 300 images"):
        score_units(stored, neurons, embedding, by_class, 0, classes=[0] * 299)
    with pytest.raises(DataError, match=r"image 0299 has no class \(1 of 300"):
        score_units(stored, neurons, embedding, by_class, 0, classes=[0] * 299 + [-1])
    with pytest.raises(ConfigError, match="unknown control shuffled"):
        score_units(stored, neurons, embedding, CONFIG, 0, control="shuffled")
    with pytest.raises(ValueError, match="1 names for 12 units"):
        score_units(stored, neurons, embedding, CONFIG, 0, unit_names=["one"])


@pytest.mark.parametrize(
    ("ids", "words"),
    [
        (["a", "b", "a"], "images 0 and 2 have the same id a"),
        (["a", "", "c"], "image 1 has no id"),
    ],
)
def test_every_image_has_an_id_of_its_own(ids, words):
    with pytest.raises(DataError, match=words):
        require_ids(ids)


def test_the_documented_lines_score_in_jobs(stored, embedding, tmp_path):
    page = (Path(__file__).parents[3] / "docs" / "scale.md").read_text(encoding="utf-8")
    known = {
        **{"stored": stored, "source": Neurons(SITE.width), "embedding": embedding, "config": CONFIG, "seed": 0},
        **{"folder": tmp_path, "image_slices": image_slices, "pool_part": pool_part, "score_units": score_units},
        **{"write_tensors": write_tensors, "read_tensors": read_tensors, "UnitScores": UnitScores},
    }
    for name in ("images", "units"):
        lines = re.search(rf"<!-- {name} -->\n```python\n(.*?)```", page, re.S).group(1)
        exec(lines.replace("1000", "5"), known)
    assert_same(known["scores"], score_units(stored, Neurons(SITE.width), embedding, CONFIG, 0), slice(None))
