from __future__ import annotations

import logging
import os
from collections import Counter
from pathlib import Path

import pytest
from PIL import Image
from timm.data import ImageNetInfo

from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.dataset.config import ImageFolderConfig
from mis_lab.dataset.image_folder import ImageFolder


def _fill(root: Path, names: list[str]) -> Path:
    for number, name in enumerate(names):
        (root / name).parent.mkdir(parents=True, exist_ok=True)
        Image.new("RGB", (5, 4), (number % 256, 7, 9)).save(root / name)
    return root


def _open(root: Path, split: str = "train", **options: object) -> ImageFolder:
    return ImageFolder(ImageFolderConfig(root=str(root), **options), split)


def _both(root: Path, **options: object) -> tuple[ImageFolder, ImageFolder]:
    return _open(root, "train", **options), _open(root, "score", **options)


@pytest.fixture
def pets(tmp_path: Path) -> Path:
    names = [f"{kind}/{box}/{number}.png" for kind in ("cat", "dog") for box in "ab" for number in range(10)]
    return _fill(tmp_path / "pets", names)


def test_ids_are_paths_below_the_root_and_labels_the_first_folder(pets):
    train, score = _both(pets)
    assert sorted(train.ids + score.ids) == sorted(path.relative_to(pets).as_posix() for path in pets.rglob("*.png"))
    assert train.ids == sorted(train.ids)
    assert train.class_names == score.class_names == ["cat", "dog"]
    for dataset in (train, score):
        kinds = [image_id.split("/")[0] for image_id in dataset.ids]
        assert [dataset.class_names[label] for label in dataset.labels] == kinds
        assert dataset.groups == dataset.ids
        assert dataset.image(0).getpixel((0, 0))[1:] == (7, 9)


def test_an_id_leads_to_its_file_and_to_its_index(pets):
    for dataset in _both(pets):
        for index, image_id in enumerate(dataset.ids):
            assert dataset.ids.index(image_id) == index
            assert dataset.file(index).path == pets / image_id
            assert dataset.image(index).tobytes() == Image.open(pets / image_id).tobytes()


def test_imagenets_folders_are_numbered_as_its_networks_number_classes(tmp_path):
    wordnet_ids = ImageNetInfo().label_names()
    _fill(tmp_path / "one", ["a.JPEG"])
    content = (tmp_path / "one" / "a.JPEG").read_bytes()
    for split, wanted in (("train", wordnet_ids), ("val", wordnet_ids[::50])):
        for wordnet_id in wanted:
            folder = tmp_path / "imagenet" / split / wordnet_id
            folder.mkdir(parents=True)
            (folder / f"{wordnet_id}_1.JPEG").write_bytes(content)
    train, score = _both(tmp_path / "imagenet")
    assert train.ids == [f"train/{name}/{name}_1.JPEG" for name in wordnet_ids]
    assert train.class_names == score.class_names == wordnet_ids
    assert (train.labels, score.labels) == (list(range(1000)), list(range(0, 1000, 50)))


def test_the_score_split_is_a_share_of_each_class(pets):
    _, score = _both(pets, score_share=0.25)
    assert Counter(image_id.split("/")[0] for image_id in score.ids) == {"cat": 5, "dog": 5}


def test_the_split_stays_when_the_folder_moves_or_another_class_grows(pets, tmp_path):
    before = _open(pets, "score")
    fingerprint = before.fingerprint
    pets.rename(tmp_path / "moved")
    moved = _open(tmp_path / "moved", "score")
    assert moved.ids == before.ids
    assert moved.fingerprint == fingerprint
    _fill(tmp_path / "moved", [f"fish/{number}.png" for number in range(7)])
    grown = _open(tmp_path / "moved", "score")
    assert [image_id for image_id in grown.ids if not image_id.startswith("fish")] == before.ids


@pytest.mark.parametrize(
    ("group", "names"), [("class", {"cat", "dog"}), ("folder", {"cat/a", "cat/b", "dog/a", "dog/b"})]
)
def test_images_that_share_a_group_are_on_one_side(pets, group, names):
    train, score = _both(pets, group=group, score_share=0.5)
    assert set(train.groups) | set(score.groups) == names
    assert not set(train.groups) & set(score.groups)
    assert len(set(score.groups)) == len(names) // 2


@pytest.mark.parametrize("folder", ["score", "val", "validation", "test"])
def test_folders_for_the_splits_are_used_when_there_are_both(tmp_path, folder):
    _fill(tmp_path, ["train/cat/1.png", "train/dog/1.jpg", f"{folder}/dog/deep/2.png"])
    train, score = _both(tmp_path)
    assert train.ids == ["train/cat/1.png", "train/dog/1.jpg"]
    assert score.ids == [f"{folder}/dog/deep/2.png"]
    assert train.class_names == score.class_names == ["cat", "dog"]
    assert score.labels == [1]


@pytest.mark.parametrize("kinds", [["car", "train"], ["cat", "test"]])
def test_a_class_may_be_called_like_a_split(tmp_path, kinds):
    _fill(tmp_path, [f"{kind}/{number}.png" for kind in kinds for number in range(5)])
    train, score = _both(tmp_path)
    assert train.class_names == kinds
    assert len(train) + len(score) == 10


def test_a_folder_for_one_split_only_is_refused(tmp_path):
    _fill(tmp_path, ["train/cat/1.png"])
    with pytest.raises(MissingFileError, match=r"no folder for the split score.*Add score or val") as raised:
        _open(tmp_path, "train")
    assert "give train itself as root" in str(raised.value)


def test_images_without_a_class_folder_have_no_label(tmp_path):
    train, score = _both(_fill(tmp_path, [f"{number}.png" for number in range(10)]))
    assert train.class_names == []
    assert train.labels == [-1] * 8
    assert len(score) == 2
    assert set(_open(tmp_path, group="none").groups) == set(train.ids)


def test_every_common_suffix_is_found_and_the_rest_left_alone(tmp_path):
    names = ["a.jpg", "b.JPEG", "c.PNG", "d.webp", "e.bmp", "f.gif", "g.tif", "h.TIFF", "i.ppm", "j.pgm"]
    _fill(tmp_path, [f"one/{name}" for name in names])
    for other in ("one/notes.txt", "one/._a.jpg", ".cache/k.png"):
        (tmp_path / other).parent.mkdir(exist_ok=True)
        (tmp_path / other).write_text("no image")
    train, score = _both(tmp_path)
    assert sorted(train.ids + score.ids) == [f"one/{name}" for name in names]


def test_linked_class_folders_are_followed(tmp_path):
    _fill(tmp_path / "elsewhere", [f"{number}.png" for number in range(4)])
    (tmp_path / "root").mkdir()
    (tmp_path / "root" / "cat").symlink_to(tmp_path / "elsewhere")
    train, score = _both(tmp_path / "root")
    assert len(train) + len(score) == 4


def test_one_changed_pixel_changes_the_fingerprint(pets):
    train = _open(pets)
    before = train.fingerprint
    Image.new("RGB", (5, 4), (200, 200, 200)).save(pets / train.ids[3])
    assert _open(pets).fingerprint != before


def test_verify_full_hashes_all_and_does_not_change_the_key_of_a_small_folder(pets):
    assert _open(pets, verify="full").verify_all
    assert _open(pets, verify="full").fingerprint == _open(pets).fingerprint


def test_a_missing_folder_is_named(tmp_path):
    with pytest.raises(MissingFileError, match=r"dataset\.root=.*none is not a folder"):
        _open(tmp_path / "none")
    (tmp_path / "file").write_text("")
    with pytest.raises(MissingFileError, match="is not a folder"):
        _open(tmp_path / "file")


@pytest.mark.parametrize("names", [[], ["one/only.png"]])
def test_a_split_without_images_is_refused(tmp_path, names):
    _fill(tmp_path, names)
    with pytest.raises(DataError, match=r"no images for the split score .*\.jpg") as raised:
        _open(tmp_path, "score")
    assert "\n" not in str(raised.value)


def test_a_folder_without_permission_is_named(pets, monkeypatch):
    scandir = os.scandir

    def refusing(path: str) -> object:
        if str(path).endswith("cat"):
            raise PermissionError(13, "Permission denied", str(path))
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refusing)  # root may read everything, so no mode bits here
    with pytest.raises(DataError, match=r"folder cannot be read \(Permission denied\); looked in .*cat"):
        _open(pets)


def _break_two(root: Path) -> list[str]:
    names = ["cat/a/0.png", "dog/b/9.png"]
    (root / names[0]).write_text("no image")
    (root / names[1]).write_bytes((root / names[1]).read_bytes()[:40])
    return names


def test_a_broken_image_stops_at_its_reading(pets):
    broken = _break_two(pets)
    n_refused = 0
    for dataset in _both(pets):
        for index, image_id in enumerate(dataset.ids):
            if image_id in broken:
                with pytest.raises(DataError, match=f"image {image_id} cannot be read"):
                    dataset.image(index)
                n_refused += 1
    assert n_refused == 2


def test_broken_images_are_skipped_with_one_line_that_counts(pets, caplog):
    broken = _break_two(pets)
    with caplog.at_level(logging.WARNING):
        train, score = _both(pets, on_broken="skip", score_share=0.01)
    assert len(train) + len(score) == 38
    assert not set(broken) & {*train.ids, *score.ids}
    told = [record.getMessage() for record in caplog.records]
    assert sum(int(line.split(": ")[1].split()[0]) for line in told) == 2
    assert len(told) <= 2  # one a split
    assert all("cannot be read and are left out" in line for line in told)


def test_a_folder_of_broken_images_is_refused(tmp_path):
    for number in range(5):
        (tmp_path / f"{number}.png").write_text("no image")
    with pytest.raises(DataError, match="none of the 4 images"):
        _open(tmp_path, on_broken="skip")


@pytest.mark.parametrize(
    "options", [{"group": "box"}, {"on_broken": "ignore"}, {"score_share": 0.0}, {"verify": "none"}]
)
def test_options_that_cannot_work_are_refused(options):
    with pytest.raises(ConfigError, match=next(iter(options))):
        ImageFolderConfig(root="x", **options)
