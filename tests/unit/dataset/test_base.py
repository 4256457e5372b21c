from __future__ import annotations

import hashlib
import json
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset import base
from mis_lab.dataset.base import ImageDataset, SourceFile, check_split


class Shades(ImageDataset):
    """Grey squares made in memory."""

    def __init__(self, shades: list[int], **columns: object) -> None:
        self.shades = shades
        super().__init__("shades", "train", **{"ids": [f"shade/{i}" for i in range(len(shades))]} | columns)

    def image(self, index: int) -> Image.Image:
        return Image.new("L", (4, 3), self.shades[index])


class OnDisk(ImageDataset):
    """Images in files; two of them share one."""

    def __init__(self, folder: Path, ids: list[str], names: list[str]) -> None:
        self.folder, self.names = folder, names
        super().__init__("disk", "score", ids)

    def file(self, index: int) -> SourceFile:
        return SourceFile(self.names[index], self.folder / self.names[index])


def test_without_groups_and_labels_every_image_is_its_own_group_and_has_no_label():
    dataset = Shades([1, 2])
    assert dataset.groups == ["shade/0", "shade/1"]
    assert dataset.labels == [-1, -1]
    assert dataset.class_names == []
    assert len(dataset) == 2


@pytest.mark.parametrize(
    ("columns", "words"),
    [
        ({"ids": ["a", "b", "a"]}, ["ids that name several images", "a for one"]),
        ({"groups": ["g"]}, ["3 ids", "1 groups"]),
        ({"labels": [0, 1, 2], "class_names": ["x", "y"]}, ["label 2", "shade/2", "2 class names"]),
        ({"labels": [0, -2, 0], "class_names": ["x"]}, ["label -2", "shade/1"]),
    ],
)
def test_columns_that_do_not_fit_are_told_in_one_line(columns, words):
    with pytest.raises(DataError) as raised:
        Shades([1, 2, 3], **columns)
    line = str(raised.value)
    assert "\n" not in line
    for word in ["shades/train", *words]:
        assert word in line


def test_a_subset_keeps_the_columns_and_the_images_in_the_order_asked_for():
    dataset = Shades([10, 20, 30, 40], groups=list("aabb"), labels=[0, 1, 0, 1], class_names=["x", "y"])
    subset = dataset.subset([3, 0]).subset([1])
    assert (subset.ids, subset.groups, subset.labels) == (["shade/0"], ["a"], [0])
    assert subset.class_names == ["x", "y"]
    assert np.asarray(subset.image(0)).max() == 10
    assert (subset.name, subset.split) == ("shades", "train")


def test_a_subset_that_takes_an_image_twice_is_refused():
    with pytest.raises(DataError, match="shade/1"):
        Shades([1, 2]).subset([1, 1])


def test_the_manifest_is_json_and_says_what_the_files_hold(tmp_path):
    (tmp_path / "a.bin").write_bytes(b"first")
    (tmp_path / "b.bin").write_bytes(b"second one")
    dataset = OnDisk(tmp_path, ["i", "j", "k"], ["a.bin", "b.bin", "a.bin"])
    manifest = dataset.manifest()
    assert json.loads(json.dumps(manifest)) == manifest
    assert manifest["files"]["n"] == 2
    assert manifest["files"]["hashed"]["b.bin"] == {
        "bytes": 10,
        "sha256": hashlib.sha256(b"second one").hexdigest(),
    }
    assert str(tmp_path) not in json.dumps(manifest)


def test_the_fingerprint_follows_content_and_not_place(tmp_path):
    for folder, text in (("here", b"same"), ("there", b"same"), ("changed", b"Same")):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.bin").write_bytes(text)
    here, there, changed = (
        OnDisk(tmp_path / folder, ["i"], ["a.bin"]).fingerprint for folder in ("here", "there", "changed")
    )
    assert here == there != changed


@pytest.mark.parametrize(
    "other",
    [
        {"ids": ["shade/0", "shade/x"]},
        {"groups": ["g", "g"]},
        {"labels": [0, 0], "class_names": ["x"]},
    ],
)
def test_the_fingerprint_follows_every_column(other):
    assert Shades([1, 2]).fingerprint != Shades([1, 2], **other).fingerprint


def test_pixels_made_in_memory_are_hashed():
    assert Shades([1, 2]).fingerprint == Shades([1, 2]).fingerprint
    assert Shades([1, 2]).fingerprint != Shades([1, 3]).fingerprint


def test_equal_bytes_of_another_shape_are_another_image(monkeypatch):
    lying = Shades([1]).fingerprint
    monkeypatch.setattr(Shades, "image", lambda self, index: Image.new("L", (3, 4), self.shades[index]))
    assert Shades([1]).fingerprint != lying


def test_ids_that_read_the_same_when_joined_are_other_ids():
    assert (
        Shades([1, 2], ids=["a", "bc"]).manifest()["ids_sha256"]
        != (Shades([1, 2], ids=["ab", "c"]).manifest()["ids_sha256"])
    )


def test_the_fingerprint_of_a_subset_depends_on_its_own_images_alone():
    whole, other = Shades([1, 2, 3]), Shades([1, 2, 99])
    assert whole.subset([0, 1]).fingerprint == other.subset([0, 1]).fingerprint
    assert whole.subset([0, 1]).fingerprint != whole.subset([0, 2]).fingerprint


def test_of_very_many_files_a_seeded_sample_is_hashed_unless_all_are_asked_for(monkeypatch):
    monkeypatch.setattr(base, "HASH_ALL_UP_TO", 20)
    monkeypatch.setattr(base, "HASH_SAMPLE", 5)
    files = Shades(list(range(21))).manifest()["files"]
    assert files["n"] == 21
    assert len(files["hashed"]) == 5
    assert Shades(list(range(21))).manifest()["files"] == files
    assert len(Shades(list(range(20))).manifest()["files"]["hashed"]) == 20
    monkeypatch.setattr(Shades, "verify_all", True)
    assert len(Shades(list(range(21))).manifest()["files"]["hashed"]) == 21


def test_a_file_that_has_gone_is_named(tmp_path):
    with pytest.raises(DataError, match=r"gone\.bin cannot be read"):
        OnDisk(tmp_path, ["i"], ["gone.bin"]).manifest()


def test_a_subclass_without_images_says_so():
    with pytest.raises(NotImplementedError, match="ImageDataset must implement image"):
        ImageDataset("bare", "train", ["a"]).image(0)


def test_an_unknown_split_is_refused():
    check_split("shades", "score")
    with pytest.raises(ConfigError, match=r"shades has no split test\. Use train or score"):
        check_split("shades", "test")
