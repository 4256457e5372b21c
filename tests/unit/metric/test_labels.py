from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.core.errors import DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric import base
from mis_lab.metric.base import embed_dataset
from mis_lab.metric.config import LabelsConfig
from mis_lab.metric.load import load_metric
from mis_lab.mis.score import margins, measure_temperature, random_tasks, score

LABELS = [0, 1, 2, 1, 0, 2, 2, 1, 0, 0, 1, 2]


def labelled(labels: list[int]) -> ImageDataset:
    """Images that nobody can open: labels are enough."""
    return ImageDataset("named", "score", [f"i{n}" for n in range(len(labels))], None, labels, ["a", "b", "c"])


@pytest.mark.parametrize("gram_up_to", [0, 100])
def test_images_are_alike_when_their_class_is_the_same(monkeypatch, gram_up_to):
    monkeypatch.setattr(base, "GRAM_UP_TO", gram_up_to)
    embedding = embed_dataset(load_metric(LabelsConfig(batch_size=5)), labelled(LABELS))
    everything = slice(0, len(LABELS))
    expected = np.equal.outer(LABELS, LABELS).astype(np.float32)
    assert np.array_equal(embedding.inner_products(everything, everything), expected)
    assert (embedding.similarity, embedding.scale) == ("cosine", 1.0)


@pytest.mark.parametrize("gram_up_to", [0, 100])
def test_tasks_that_labels_cannot_decide_are_ties(monkeypatch, gram_up_to):
    monkeypatch.setattr(base, "GRAM_UP_TO", gram_up_to)
    embedding = embed_dataset(load_metric(LabelsConfig()), labelled(LABELS * 4))
    tasks = random_tasks(len(embedding.ids), 3, 500, seed=0)
    delta_un = margins(tasks, embedding)
    labels = np.array(LABELS * 4)

    def share(query, explanations):
        return (labels[query][..., None] == labels[explanations]).mean(-1)

    expected = (share(tasks.query_positive, tasks.explanations_positive)
                - share(tasks.query_positive, tasks.explanations_negative)
                - share(tasks.query_negative, tasks.explanations_positive)
                + share(tasks.query_negative, tasks.explanations_negative))  # fmt: skip
    np.testing.assert_allclose(delta_un, expected, atol=1e-6)
    tied = np.abs(expected) < 1e-9
    assert 0.1 < tied.mean() < 0.9
    temperature = measure_temperature(embedding, 3)
    hard = score(delta_un, tasks.n_tasks, temperature, 1e-6 * embedding.scale, 10, 0).hard.estimate
    assert hard[0] == pytest.approx((expected > 1e-9).mean() + tied.mean() / 2)


def test_an_image_without_a_label_is_named():
    with pytest.raises(DataError, match=r"image i2 of named has no label, and metric labels compares labels"):
        embed_dataset(load_metric(LabelsConfig()), labelled([0, 1, -1, 1]))


def test_a_picture_alone_has_no_label():
    with pytest.raises(DataError, match="by their class, not by their pixels"):
        load_metric(LabelsConfig()).embed([Image.new("RGB", (8, 8))])


def test_the_seed_and_the_batch_change_nothing():
    one, other = (embed_dataset(load_metric(LabelsConfig(batch_size=b)), labelled(LABELS)) for b in (1, 12))
    assert torch.equal(one.gram, other.gram)
    assert one.fingerprint == other.fingerprint
