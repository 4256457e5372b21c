"""A sheet shows the images of its tasks, each on its side, and says nothing twice in one place."""

from __future__ import annotations

from collections.abc import Callable
from itertools import combinations
from types import SimpleNamespace
from typing import NamedTuple

import numpy as np
import pytest
from PIL import Image

from mis_lab.core.errors import ConfigError
from mis_lab.core.intervals import Interval
from mis_lab.dataset.base import ImageDataset
from mis_lab.mis.unit_tasks import Outcome, UnitTask, UnitTasks
from mis_lab.report import sheet as sheets
from mis_lab.report.canvas import Canvas, font, palette, shortened
from mis_lab.report.sheet import QUERY, ROW_TILE, TILE, overview, sheet

SOFT, HARD = Interval(0.87, 0.81, 0.92), Interval(0.95, 0.76, 0.99)


class Plain(ImageDataset):
    """Image i has one colour that no other has."""

    def __init__(self, n: int) -> None:
        super().__init__("plain", "score", [str(index) for index in range(n)])

    def image(self, index: int) -> Image.Image:
        return Image.new("RGB", (9, 7), self.colour(index))

    @staticmethod
    def colour(index: int) -> tuple[int, int, int]:
        return (1 + index, 77, 200)


def made(k: int, margins: list[float], negatives: str = "bottom", name: str = "feature 17") -> UnitTasks:
    """A unit with tasks of images of their own: strong, query, weak, query."""
    tasks = []
    for place, margin in enumerate(margins):
        first = place * (2 * k + 2)
        images = list(range(first, first + 2 * k + 2))
        outcome = Outcome.tie if margin == 0 else Outcome.right if margin > 0 else Outcome.wrong
        probability = float(1 / (1 + np.exp(-margin)))
        weak, query = images[k + 1 : -1], images[-1]
        tasks.append(UnitTask(place + 1, images[:k], images[k], weak, query, margin, probability, outcome))
    settings = SimpleNamespace(
        n_explanations=k, protocol="inner_quantile", metric="lpips_baseline_squeeze", temperature=1.0213, n_images=1115
    )
    return UnitTasks("blocks.4", 17, name, negatives, settings, SOFT, HARD, 456, tasks)


class Place(NamedTuple):
    x: float
    y: float
    n_pixels: int


def places(picture: Image.Image, images: list[int]) -> list[Place]:
    """Middle of every image on the picture, and how many pixels it has."""
    pixels = np.asarray(picture)
    rows, columns = (pixels[..., 1:] == Plain.colour(0)[1:]).all(-1).nonzero()
    numbers = pixels[rows, columns, 0].astype(int) - 1
    found = []
    for image in images:
        here = numbers == image
        found.append(Place(columns[here].mean(), rows[here].mean(), here.sum()) if here.any() else Place(-1, -1, 0))
    return found


@pytest.mark.parametrize("k", [1, 5, 9])
def test_strong_images_are_right_weak_ones_left_and_queries_between(k):
    unit = made(k, [0.5])
    (task,) = unit.tasks
    picture = sheet(unit, Plain(40))
    strong, weak = (places(picture, side) for side in (task.explanations_positive, task.explanations_negative))
    right, wrong = places(picture, [task.query_positive, task.query_negative])
    assert {one.n_pixels for one in strong + weak} == {TILE**2}
    assert right.n_pixels == wrong.n_pixels == QUERY**2
    assert max(one.x for one in weak) + TILE / 2 < right.x - QUERY / 2
    assert right.x == wrong.x == pytest.approx(picture.width / 2, abs=1)
    assert right.x + QUERY / 2 < min(one.x for one in strong) - TILE / 2
    assert right.y + QUERY < wrong.y
    order = [(one.y, one.x) for one in strong]
    assert order == sorted(order)  # the most extreme one first, row by row


def test_the_answer_has_the_frame_of_the_strong_side():
    unit = made(4, [0.5])
    picture = sheet(unit, Plain(20))
    for query, name in ((unit.tasks[0].query_positive, "feature"), (unit.tasks[0].query_negative, "pos")):
        (at,) = places(picture, [query])
        frame = picture.getpixel((round(at.x), round(at.y - QUERY / 2 - 1.5)))
        assert frame == tuple(bytes.fromhex(palette()[name][1:]))


@pytest.fixture
def said(monkeypatch) -> list[tuple[str, tuple[float, ...], tuple[int, int]]]:
    """Every text that is written from now on: words, box, size of the picture."""
    found: list[tuple[str, tuple[float, ...], tuple[int, int]]] = []
    write: Callable[..., float] = Canvas.text

    def record(self, x, y, text, size=15, colour="ink", bold=False, anchor="la", most=None):
        words = text if most is None else shortened(text, most, font(size, bold))
        if words.strip():
            found.append((words, self._draw.textbbox((x, y), words, font(size, bold), anchor), self.image.size))
        return write(self, x, y, text, size, colour, bold, anchor, most)

    monkeypatch.setattr(Canvas, "text", record)
    return found


def assert_apart(said: list[tuple[str, tuple[float, ...], tuple[int, int]]]) -> None:
    for words, (left, top, right, bottom), (width, height) in said:
        assert 0 <= left < right <= width, words
        assert 0 <= top < bottom <= height, words
    for (one, a, _), (two, b, _) in combinations(said, 2):
        across = min(a[2], b[2]) - max(a[0], b[0])
        down = min(a[3], b[3]) - max(a[1], b[1])
        assert across < 0.5 or down < 0.5, (one, two, a, b)


@pytest.mark.parametrize("k", [1, 9, 16])
@pytest.mark.parametrize("negatives", ["bottom", "within_class"])
def test_no_text_lies_on_another_or_outside(said, k, negatives):
    unit = made(k, [0.5, -1.25], negatives, "permuted random direction 1234567, a long name of a unit of one's own")
    sheet(unit, Plain(80), activations={image: -0.000123456 * image for image in range(80)})
    assert_apart(said)
    said.clear()
    overview(unit, Plain(80))
    assert_apart(said)
    said.clear()
    sheet(made(k, [0.5, 0.501]), Plain(80))  # numbers of the same margin
    assert_apart(said)


def test_what_a_sheet_says(said):
    unit = made(4, [0.5, 0.1, -0.2, 0.3, 0.0], "random")
    sheet(unit, Plain(60), activations={image: image / 8 for image in range(60)})
    words = [one for one, _, _ in said]
    assert "blocks.4 · feature 17" in words
    assert "Soft MIS 0.87 [0.81, 0.92]    Hard MIS 0.95 [0.76, 0.99]" in words
    assert "5 tasks with random negatives · status ok, active on 456 of 1\u202f115 images" in words
    assert "protocol inner quantile, K = 4 · lpips_baseline_squeeze, τ = 1.02" in words
    assert "Task 2 of 5, the median margin" in words
    assert "Task 3 of 5, the hardest" in words
    assert {"right", "wrong", "Random images", "Strongly activating"} <= set(words)
    assert "Δ −0.2000    σ(Δ/τ) 0.45" in [one.strip() for one in words]
    assert "1.25" in words  # of image 10
    said.clear()
    sheet(unit, Plain(60), [5])
    assert {"Task 5 of 5", "tie"} <= {one for one, _, _ in said}
    assert "1.25" not in {one for one, _, _ in said}


def test_tasks_wanted_are_shown_in_their_order_and_once():
    unit = made(2, [0.5, 0.1, -0.2])
    one, two, three = ([task.query_positive] for task in unit.tasks)
    picture = sheet(unit, Plain(20), [3, 1, 3])
    assert places(picture, three)[0].y < places(picture, one)[0].y
    assert places(picture, two)[0].n_pixels == 0
    assert places(picture, three)[0].n_pixels == QUERY**2
    with pytest.raises(ConfigError, match="no task 4"):
        sheet(unit, Plain(20), [4])
    single = made(2, [0.5])
    assert sheet(single, Plain(20)).height < sheet(unit, Plain(20)).height  # its only task is median and hardest


def test_an_overview_has_a_row_a_task_the_clearest_first(said):
    unit = made(5, [0.5, 2.0, -0.25])
    picture = overview(unit, Plain(40))
    rows = {}
    for task in unit.tasks:
        shown = [*task.explanations_negative[:3], task.query_negative, task.query_positive]
        shown += task.explanations_positive[:3]
        found = places(picture, shown)
        assert {one.n_pixels for one in found} == {ROW_TILE**2}
        assert [one.x for one in found] == sorted(one.x for one in found)
        assert len({one.y for one in found}) == 1
        assert [one.n_pixels for one in places(picture, task.explanations_positive[3:])] == [0, 0]
        rows[task.number] = found[0].y
    assert sorted(rows, key=lambda number: rows[number]) == [2, 1, 3]
    words = [one for one, _, _ in said]
    assert [one for one in words if one in ("+2.000", "+0.500", "−0.250")] == ["+2.000", "+0.500", "−0.250"]


def test_bars_are_as_long_as_margins():
    unit = made(3, [1.0, 2.0, -0.5])
    pixels = np.asarray(overview(unit, Plain(30)))
    right = pixels.shape[1] - sheets.EDGE - 62 + 2
    bars = {}
    for task, colour in zip(unit.by_margin, ("ink", "ink", "neg"), strict=True):
        (at,) = places(Image.fromarray(pixels), [task.query_positive])
        row = pixels[round(at.y) - 8 : round(at.y) + 8, :right]
        same = (row == np.array(tuple(bytes.fromhex(palette()[colour][1:])))).all(-1).all(0)
        bars[task.number] = int(same.sum())
    assert bars[2] / bars[1] == pytest.approx(2, rel=0.05)
    assert bars[1] / bars[3] == pytest.approx(2, rel=0.08)
