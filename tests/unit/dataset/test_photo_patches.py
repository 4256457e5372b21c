from __future__ import annotations

import re
from collections import Counter
from functools import cache

import numpy as np
import pytest
import skimage.data
from hypothesis import given
from hypothesis import strategies as st
from sklearn.datasets import load_sample_images

from mis_lab.core.errors import ConfigError
from mis_lab.dataset.config import PhotoPatchesConfig, TilesConfig
from mis_lab.dataset.photo_patches import SCENES, PhotoPatches, grid_cells, scene_tiles


@cache
def _split(name: str) -> PhotoPatches:
    return PhotoPatches(PhotoPatchesConfig(), name)


@cache
def _photographs(scene: str) -> dict[str, np.ndarray]:
    """The scene as its package hands it out."""
    if SCENES[scene].package == "scikit-learn":
        return {"": load_sample_images().images[["china", "flower"].index(scene)]}
    if scene == "motorcycle":
        left, right, _ = skimage.data.stereo_motorcycle()
        return {"left": left, "right": right}
    return {"": getattr(skimage.data, scene)()}


def test_there_are_eighteen_scenes_with_their_terms():
    assert len(SCENES) == 18
    assert all(scene.attribution for scene in SCENES.values())
    assert "CC BY 2.0" in SCENES["china"].attribution
    assert "CC BY 2.0" in SCENES["flower"].attribution
    assert not {"text", "page", "horse", "logo", "clock", "color", "phantom"} & set(SCENES)


@pytest.mark.parametrize("scene", SCENES)
def test_tiles_are_the_pixels_of_the_packages_own_photographs(scene):
    photographs, score = _photographs(scene), _split("score")
    mine = [index for index, group in enumerate(score.groups) if group == scene]
    for index in (mine[0], mine[-1]):
        _, split, place = score.ids[index].split("/")
        view, y, x = re.fullmatch(r"(?:(\w+)-)?(\d+)-(\d+)", place).groups()
        y, x = int(y), int(x)
        assert split == "score"
        assert np.array_equal(score.image(index), photographs[view or ""][y : y + 64, x : x + 64])


def test_the_default_splits():
    train, score = _split("train"), _split("score")
    assert len(train) == 3081
    assert len(score) == 1115
    assert max(Counter(train.groups).values()) == 200
    assert max(Counter(score.groups).values()) == 100
    assert set(train.groups) == set(score.groups) == set(SCENES)
    assert {train.image(index).size for index in range(0, 3081, 100)} == {(96, 96)}
    assert train.ids[:2] == ["astronaut/train/000-000", "astronaut/train/000-032"]
    assert set(train.labels) == {-1}
    assert train.class_names == []
    assert not set(train.ids) & set(score.ids)


@pytest.mark.parametrize("split", ["train", "score"])
def test_tiles_lie_inside_their_photograph(split):
    dataset = _split(split)
    sizes = {scene: {view: image.shape for view, image in _photographs(scene).items()} for scene in SCENES}
    for tile in dataset.tiles:
        height, width = sizes[tile.scene][tile.view][:2]
        assert 0 <= tile.y <= height - dataset.tiles_config.size
        assert 0 <= tile.x <= width - dataset.tiles_config.size


def test_score_tiles_do_not_overlap():
    for tile in _split("score").tiles:
        assert tile.y % 64 == tile.x % 64 == 0


def test_a_scene_smaller_than_the_tile_has_no_tiles():
    assert scene_tiles("microaneurysms", TilesConfig(102, 1, 9)) != []
    assert scene_tiles("microaneurysms", TilesConfig(103, 1, 9)) == []


def test_both_views_of_the_motorcycle_share_the_number_of_tiles():
    tiles = scene_tiles("motorcycle", TilesConfig(64, 64, 7))
    assert Counter(tile.view for tile in tiles) == {"left": 3, "right": 4}


@given(st.integers(0, 30), st.integers(0, 30), st.integers(1, 400))
def test_cells_are_evenly_spread(n_rows, n_columns, most):
    cells = grid_cells(n_rows, n_columns, most)
    assert len(set(cells)) == len(cells) == min(most, n_rows * n_columns)
    assert all(0 <= row < n_rows and 0 <= column < n_columns for row, column in cells)
    a_row = Counter(row for row, _ in cells)
    assert max(a_row.values(), default=0) - min((a_row[row] for row in range(n_rows)), default=0) <= 1
    for row, count in a_row.items():
        gaps = np.diff(sorted(column for other, column in cells if other == row))
        assert all(n_columns // count <= gap <= -(-n_columns // count) for gap in gaps)


def test_the_size_of_a_tile_is_part_of_the_fingerprint():
    small, large = (PhotoPatches(PhotoPatchesConfig(train=TilesConfig(size, 2000, 2)), "train") for size in (64, 96))
    assert small.ids == large.ids
    assert small.fingerprint != large.fingerprint
    assert small.manifest()["files"] == large.manifest()["files"]
    assert small.manifest()["files"]["n"] == 19  # the motorcycle has two


def test_an_unknown_split_is_refused():
    with pytest.raises(ConfigError, match="no split val"):
        PhotoPatches(PhotoPatchesConfig(), "val")
