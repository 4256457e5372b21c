"""Tiles of the 18 photographic scenes that come with scikit-image and scikit-learn: nothing to download.

Drawings, text pages and test charts of those packages are left out; the two views of the motorcycle are one
scene. Group = scene. Eighteen are few: a score on them is about these photographs, not about photographs.
"""

from __future__ import annotations

from functools import cache
from typing import NamedTuple

from PIL import Image

from mis_lab.dataset.base import ImageDataset, SourceFile, check_split
from mis_lab.dataset.config import PhotoPatchesConfig, TilesConfig
from mis_lab.dataset.reading import packaged_file, read_image


class Scene(NamedTuple):
    """A photograph and where it is from.

    Attributes:
        package: the distribution it comes with.
        folder: its place below that package.
        files: view → file name; one view, named "", but for a stereo pair.
        attribution: what it shows, by whom, under which terms, as the package states them.
    """

    package: str
    folder: str
    files: dict[str, str]
    attribution: str


def _skimage(file: str, attribution: str) -> Scene:
    return Scene("scikit-image", "skimage/data", {"": file}, attribution)


SCENES: dict[str, Scene] = {
    "astronaut": _skimage("astronaut.png", "Eileen Collins, NASA; public domain"),
    "brick": _skimage("brick.png", "brick wall, CC0Textures; CC0"),
    "camera": _skimage("camera.png", "cameraman, Lav Varshney; CC0"),
    "cell": _skimage("cell.png", "cell in saline, quantitative phase image, Müller et al. 2018; CC0"),
    "chelsea": _skimage("chelsea.png", "Chelsea the cat, Stéfan van der Walt; CC0"),
    "coffee": _skimage("coffee.png", "cup of coffee, Rachel Michetti, Pikolo Espresso Bar; CC0"),
    "coins": _skimage("coins.png", "coins from Pompeii, Brooklyn Museum; no known copyright restrictions"),
    "grass": _skimage("grass.png", "grass, linolafett; CC0"),
    "gravel": _skimage("gravel.png", "gravel, CC0Textures; CC0"),
    "hubble_deep_field": _skimage("hubble_deep_field.jpg", "Hubble eXtreme Deep Field, NASA; public domain"),
    "immunohistochemistry": _skimage("ihc.png", "colonic glands, CMMI; no known copyright restrictions"),
    "microaneurysms": _skimage("microaneurysms.png", "retina with lesions, HRF database, Andreas Maier; CC0"),
    "moon": _skimage("moon.png", "surface of the moon; the package states no terms"),
    "motorcycle": Scene(
        "scikit-image",
        "skimage/data",
        {"left": "motorcycle_left.png", "right": "motorcycle_right.png"},
        "motorcycle, Middlebury stereo benchmark 2014, Scharstein et al.; the package states no terms",
    ),
    "retina": _skimage("retina.jpg", "human retina, Mikael Häggström; CC0 1.0"),
    "rocket": _skimage("rocket.jpg", "launch of DSCOVR, SpaceX; public domain"),
    "china": Scene(
        "scikit-learn",
        "sklearn/datasets/images",
        {"": "china.jpg"},
        "china.jpg by danielbuechele, flickr.com/photos/danielbuechele/6061409035; CC BY 2.0",
    ),
    "flower": Scene(
        "scikit-learn",
        "sklearn/datasets/images",
        {"": "flower.jpg"},
        "flower.jpg by vultilion, flickr.com/photos/vultilion/6056698931; CC BY 2.0",
    ),
}


class Tile(NamedTuple):
    """A square of a scene: which view, and its upper left corner in pixels."""

    scene: str
    view: str
    y: int
    x: int


class PhotoPatches(ImageDataset):
    """Tiles of all scenes; ids like ``chelsea/train/032-064`` (scene, split, y, x), no labels.

    Args:
        config: tile size, stride and number a scene, for each split.
        split: "train" or "score".
    """

    def __init__(self, config: PhotoPatchesConfig, split: str) -> None:
        check_split(config.name, split)
        self.tiles_config: TilesConfig = getattr(config, split)
        self.tiles = [tile for scene in SCENES for tile in scene_tiles(scene, self.tiles_config)]
        super().__init__(
            config.name, split, [_id(tile, split) for tile in self.tiles], [tile.scene for tile in self.tiles]
        )

    def image(self, index: int) -> Image.Image:
        tile, size = self.tiles[index], self.tiles_config.size
        return _photograph(tile.scene, tile.view).crop((tile.x, tile.y, tile.x + size, tile.y + size))

    def file(self, index: int) -> SourceFile:
        tile = self.tiles[index]
        return _source(tile.scene, tile.view)

    def portrait(self, group: str) -> Image.Image:
        return _photograph(group, next(iter(SCENES[group].files)))

    def credit(self, group: str) -> str:
        return SCENES[group].attribution

    @property
    def settings(self) -> dict[str, int]:
        return {"tile": self.tiles_config.size}


def scene_tiles(scene: str, config: TilesConfig) -> list[Tile]:
    """The tiles of a scene: whole ones only (a scene smaller than a tile has none), at most `per_scene`.

    The two views of a stereo pair share that number.
    """
    views = list(SCENES[scene].files)
    tiles = []
    for number, view in enumerate(views):
        most = config.per_scene * (number + 1) // len(views) - config.per_scene * number // len(views)
        width, height = _photograph(scene, view).size
        n_rows, n_columns = (max((side - config.size) // config.stride + 1, 0) for side in (height, width))
        for row, column in grid_cells(n_rows, n_columns, most):
            tiles.append(Tile(scene, view, row * config.stride, column * config.stride))
    return tiles


def grid_cells(n_rows: int, n_columns: int, most: int) -> list[tuple[int, int]]:
    """All (row, column) of a grid, or `most` of them, spread evenly over rows and columns."""
    n = min(most, n_rows * n_columns)
    cells = []
    for row in range(n_rows):
        n_here = n * (row + 1) // n_rows - n * row // n_rows
        cells += [(row, (2 * turn + 1) * n_columns // (2 * n_here)) for turn in range(n_here)]
    return cells


def _id(tile: Tile, split: str) -> str:
    view = f"{tile.view}-" if tile.view else ""
    return f"{tile.scene}/{split}/{view}{tile.y:03d}-{tile.x:03d}"


def _source(scene: str, view: str) -> SourceFile:
    package, folder, files, _ = SCENES[scene]
    return SourceFile(files[view], packaged_file(package, f"{folder}/{files[view]}"))


@cache
def _photograph(scene: str, view: str) -> Image.Image:
    """A whole scene, decoded once a process (all of them take 20 MB)."""
    source = _source(scene, view)
    return read_image(source.path, f"{scene} of photo_patches")
