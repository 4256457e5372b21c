from __future__ import annotations

import errno

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from PIL import Image

from mis_lab.core.errors import ConfigError, DataError, StoreError
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric import base
from mis_lab.metric.base import Embedding, Metric, embed_dataset
from mis_lab.metric.config import ExternalMetricConfig, MetricConfig
from mis_lab.metric.load import load_metric


class Noise(ImageDataset):
    """Images of 3 by 2 pixels, drawn from a seed."""

    def __init__(self, n: int) -> None:
        super().__init__("noise", "score", [f"noise/{index}" for index in range(n)])

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(np.random.default_rng(index).integers(0, 256, (2, 3), dtype=np.uint8))


class Pixels(Metric):
    """The pixels themselves, through a fixed map into `width` dimensions."""

    similarity = "squared_euclidean"
    fingerprint = "pixels"

    def __init__(self, width: int = 6, device: str = "cpu") -> None:
        super().__init__(MetricConfig(name="pixels", batch_size=5), device)
        self.map_hd = torch.from_numpy(np.random.default_rng(0).random((6, width), dtype=np.float32))

    def embed(self, images):
        return (
            torch.stack([torch.from_numpy(np.array(image)).float().flatten() / 255 for image in images]) @ self.map_hd
        )


class Directions(Pixels):
    """The same, made unit vectors."""

    similarity = "cosine"
    fingerprint = "directions"

    def embed(self, images):
        return torch.nn.functional.normalize(super().embed(images), dim=1)


class Breaking(Pixels):
    """Gives the image `noise/7` something that cannot be used."""

    def __init__(self, value: float, similarity: str) -> None:
        super().__init__()
        self.value, self.similarity = value, similarity

    def embed(self, images):
        rows_bd = torch.nn.functional.normalize(super().embed(images), dim=1)
        seventh = np.asarray(Noise(8).image(7))
        for row_d, image in zip(rows_bd, images, strict=True):
            if np.array_equal(image, seventh):
                row_d.mul_(self.value)
        return rows_bd


def _float64_rows(metric: Metric, n: int) -> torch.Tensor:
    return metric.embed([Noise(n).image(index) for index in range(n)]).double()


@pytest.mark.parametrize("metric", [Pixels(), Directions()], ids=["squared_euclidean", "cosine"])
def test_few_images_give_their_gram_matrix(metric):
    embedding = embed_dataset(metric, Noise(23))
    rows_nd = _float64_rows(metric, 23)
    assert embedding.rows is None
    assert embedding.gram.dtype == torch.float32
    assert torch.allclose(embedding.gram.double(), rows_nd @ rows_nd.T, rtol=1e-6)
    assert torch.equal(embedding.gram, embedding.gram.T)
    assert embedding.scale == pytest.approx(float(rows_nd.square().sum(1).mean()), rel=1e-6)
    assert embedding.ids == Noise(23).ids
    assert (embedding.metric, embedding.fingerprint) == ("pixels", metric.fingerprint)


def test_chunks_and_blocks_that_do_not_divide_evenly_give_the_same_matrix(monkeypatch):
    metric = Pixels(width=29)
    whole = embed_dataset(metric, Noise(23)).gram
    monkeypatch.setattr(base, "COLUMNS", 8)
    monkeypatch.setattr(base, "BLOCK", 5)
    assert torch.allclose(embed_dataset(metric, Noise(23)).gram, whole, rtol=1e-6)


def test_the_matrix_keeps_small_distances_between_long_wide_rows():
    metric = Pixels(width=30_000)
    gram = embed_dataset(metric, Noise(6)).gram.double()
    rows_nd = _float64_rows(metric, 6)
    assert ((gram - rows_nd @ rows_nd.T).abs() / gram).max() < 3e-7


def test_many_images_give_their_rows(monkeypatch):
    monkeypatch.setattr(base, "GRAM_UP_TO", 22)
    embedding = embed_dataset(Pixels(), Noise(23))
    assert embedding.gram is None
    assert torch.equal(embedding.rows.double(), _float64_rows(Pixels(), 23))
    assert embedding.scale == pytest.approx(embed_dataset(Pixels(), Noise(22)).scale, rel=0.2)
    assert embedding.scale == pytest.approx(float(embedding.rows.double().square().sum(1).mean()), rel=1e-9)


@given(st.integers(0, 10_000))
def test_the_margin_factor_turns_inner_products_into_margins(seed):
    rng = np.random.default_rng(seed)
    for similarity in base.MARGIN_FACTORS:
        rows = rng.normal(size=(8, 5))
        if similarity == "cosine":
            rows /= np.linalg.norm(rows, axis=1, keepdims=True)

        def alike(a, b, similarity=similarity):
            return a @ b if similarity == "cosine" else -((a - b) ** 2).sum()

        query_p, query_n, explained_p, explained_n = rows[0], rows[1], rows[2:5], rows[5:8]
        by_definition = sum(
            sign * np.mean([alike(query, other) for other in explained])
            for sign, query, explained in (
                (1, query_p, explained_p),
                (-1, query_p, explained_n),
                (-1, query_n, explained_p),
                (1, query_n, explained_n),
            )
        )
        embedding = Embedding("x", [], similarity, 1.0, "")
        short = (query_p - query_n) @ (explained_p.mean(0) - explained_n.mean(0))
        assert embedding.margin_factor * short == pytest.approx(by_definition, abs=1e-12)


@pytest.mark.parametrize("gram_up_to", [0, 100])
def test_what_is_written_is_read_back(tmp_path, monkeypatch, gram_up_to):
    monkeypatch.setattr(base, "GRAM_UP_TO", gram_up_to)
    embedding = embed_dataset(Directions(), Noise(9))
    embedding.write(tmp_path)
    again = Embedding.read(tmp_path)
    for name in ("metric", "ids", "similarity", "scale", "fingerprint", "margin_factor"):
        assert getattr(again, name) == getattr(embedding, name)
    kept, gone = ("gram", "rows") if gram_up_to else ("rows", "gram")
    assert torch.equal(getattr(again, kept), getattr(embedding, kept))
    assert getattr(again, gone) is None


def test_an_embedding_that_is_missing_or_damaged_is_told(tmp_path):
    with pytest.raises(StoreError, match="there is no embedding; looked in"):
        Embedding.read(tmp_path)
    embedding = embed_dataset(Pixels(), Noise(4))
    embedding.write(tmp_path)
    Embedding("pixels", ["one"], "cosine", 1.0, "x").write(tmp_path / "other")
    (tmp_path / "embedding.json").write_text((tmp_path / "other" / "embedding.json").read_text())
    with pytest.raises(StoreError, match="does not have one row an id"):
        Embedding.read(tmp_path)
    tensors = tmp_path / "embedding.safetensors"
    tensors.write_bytes(tensors.read_bytes()[:40])
    with pytest.raises(StoreError, match="damaged"):
        Embedding.read(tmp_path)


def test_the_temporary_file_lies_in_the_folder_asked_for_and_goes_away(tmp_path, monkeypatch):
    seen = []
    fromfile = np.fromfile
    monkeypatch.setattr(np, "fromfile", lambda path, dtype: seen.append(path) or fromfile(path, dtype))
    embed_dataset(Pixels(), Noise(4), scratch_dir=tmp_path)
    assert seen
    assert all(tmp_path in path.parents for path in seen)
    assert not list(tmp_path.iterdir())


def test_a_full_disk_is_told_in_one_line(tmp_path, monkeypatch):
    def full(*_args, **_options):
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(base, "open", full, raising=False)
    with pytest.raises(StoreError, match="the disk is full while writing"):
        embed_dataset(Pixels(), Noise(4), scratch_dir=tmp_path)


@pytest.mark.parametrize(
    ("value", "similarity", "words"),
    [
        (float("nan"), "squared_euclidean", "not finite"),
        (float("inf"), "cosine", "not finite"),
        (2.0, "cosine", "of length 2"),
        (0.0, "cosine", "of length 0"),
    ],
)
@pytest.mark.parametrize("gram_up_to", [0, 100])
def test_an_embedding_that_cannot_be_used_names_its_image(monkeypatch, value, similarity, words, gram_up_to):
    monkeypatch.setattr(base, "GRAM_UP_TO", gram_up_to)
    with pytest.raises(DataError, match=f"pixels gives image noise/7 .*{words}"):
        embed_dataset(Breaking(value, similarity), Noise(12))


def test_rows_that_do_not_fit_in_memory_are_refused_at_the_first_batch(monkeypatch):
    monkeypatch.setattr(base, "GRAM_UP_TO", 10)
    monkeypatch.setattr(base, "ROWS_GIB", 12 * 6 * 4 / 2**30)
    assert embed_dataset(Pixels(), Noise(12)).rows.shape == (12, 6)
    with pytest.raises(DataError, match=r"needs 0 GiB for the 13 images.*dataset\.split\.limit"):
        embed_dataset(Pixels(), Noise(13))


@pytest.fixture
def my_package(monkeypatch: pytest.MonkeyPatch) -> str:
    """As if the names of this file were those of an installed, allowed package."""
    monkeypatch.setattr("mis_lab.core.build.locate", lambda target: globals()[target.rpartition(".")[2]])
    return "my_package"


class Mine(Metric):
    """A metric of somebody's own, as short as it gets."""

    similarity = "cosine"
    fingerprint = "mine 1"

    def embed(self, images):
        return torch.ones(len(images), 1)


class Shapeless(Mine):
    similarity = "euclidean"


class Nameless(Mine):
    fingerprint = None


def test_a_metric_of_ones_own_gets_the_options_that_every_metric_has(my_package):
    config = ExternalMetricConfig(_target_=f"{my_package}.Mine", name="mine", temperature=0.5, batch_size=3)
    metric = load_metric(config)
    assert (metric.name, metric.temperature, metric.batch_size) == ("mine", 0.5, 3)
    assert embed_dataset(metric, Noise(7)).gram.tolist() == [[1.0] * 7] * 7


def no_metric(device: str) -> str:
    return device


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("Shapeless", r"does not state its similarity\. Set it to cosine or squared_euclidean"),
        ("Nameless", "metric mine has no fingerprint"),
        ("no_metric", r"my_package\.no_metric gave str, not a metric"),
    ],
)
def test_a_class_that_is_no_whole_metric_is_refused(my_package, name, words):
    with pytest.raises(ConfigError, match=words):
        load_metric(ExternalMetricConfig(_target_=f"{my_package}.{name}", name="mine"))


@pytest.mark.parametrize("options", [{"temperature": -0.1}, {"batch_size": 0}])
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match=f"metric.{next(iter(options))}="):
        MetricConfig(**options)


def test_a_metric_without_embed_says_so():
    with pytest.raises(NotImplementedError, match="Metric must implement embed"):
        Metric().embed([])
