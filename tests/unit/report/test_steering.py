"""Pictures of a steered network show the classes that matter, with bars as long as probabilities are large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.circuit.steer import Steered
from mis_lab.report import steering
from mis_lab.report.canvas import palette
from mis_lab.report.steering import BAR, SteeredImage, dose_picture, shown_classes, steering_picture, summary

NAMES = ["ant", "bee", "cat", "dog"]


def answer(before: list[list[float]], after: list[list[float]]) -> Steered:
    """Logits that give these probabilities."""
    return Steered(torch.tensor(before).log(), torch.tensor(after).log())


ONE = answer([[0.7, 0.1, 0.15, 0.05]], [[0.1, 0.2, 0.05, 0.65]])


def pixels(picture: Image.Image, colour: str) -> np.ndarray:
    """(H, W) bool, where the picture has a colour of the palette."""
    code = palette()[colour].lstrip("#")
    return (np.asarray(picture) == [int(code[at : at + 2], 16) for at in (0, 2, 4)]).all(-1)


def runs(row: np.ndarray) -> list[int]:
    """Lengths of the runs of True in a row."""
    edges = np.flatnonzero(np.diff(np.concatenate([[0], row.astype(int), [0]])))
    return (edges[1::2] - edges[::2]).tolist()


def test_the_classes_shown_matter_before_or_after():
    before, after = ONE.probabilities_before[0], ONE.probabilities_after[0]
    assert shown_classes(before, after, 2) == [0, 3]
    assert shown_classes(before, after, 3) == [0, 1, 3]
    assert shown_classes(before, after, 4) == [0, 2, 1, 3]


def test_bars_are_as_long_as_probabilities(monkeypatch):
    drawn = []
    bar = steering.Canvas.bar
    monkeypatch.setattr(
        steering.Canvas, "bar", lambda self, *given: (drawn.append((given[4], given[2])), bar(self, *given))[1]
    )
    picture = steering_picture("a", "b", ONE, [SteeredImage(Image.new("RGB", (8, 8), "red"), "note")], NAMES, 2)
    bars = [(colour, width) for colour, width in drawn if width != 14]  # 14: those of the legend
    expected = [("faint", 0.7), ("feature", 0.1), ("faint", 0.05), ("feature", 0.65)]
    assert [colour for colour, _ in bars] == [colour for colour, _ in expected]
    assert [width for _, width in bars] == pytest.approx([BAR * share for _, share in expected], rel=1e-5)
    longest = max(length for row in pixels(picture, "feature") for length in runs(row))
    assert abs(longest - 0.65 * BAR) <= 2


def test_a_picture_has_a_row_an_image_and_says_what_changed(monkeypatch):
    said = []
    text = steering.Canvas.text
    monkeypatch.setattr(
        steering.Canvas,
        "text",
        lambda self, x, y, words, *more, **named: (said.append(words), text(self, x, y, words, *more, **named))[1],
    )
    two = answer([[0.7, 0.1, 0.15, 0.05]] * 2, [[0.1, 0.2, 0.05, 0.65], [0.6, 0.2, 0.15, 0.05]])
    image = SteeredImage(Image.new("RGB", (8, 8), "red"), "most activating")
    tall = steering_picture("feature 3 of act1", "removed", two, [image, image], [], 4)
    assert {"feature 3 of act1", "removed", "class 0", "class 3", "0.65", "most activating"} <= set(said)
    assert summary(two) in said
    assert summary(two).startswith("1 of 2 images another top class · probability of the former one −0.35")
    short = steering_picture("feature 3 of act1", "removed", ONE, [image], [], 4)
    assert tall.height > short.height
    assert (np.asarray(tall) == [255, 0, 0]).all(-1).sum() == 2 * (np.asarray(short) == [255, 0, 0]).all(-1).sum()


def test_a_curve_goes_through_the_mean_probability_at_each_value(monkeypatch):
    dots = []
    dot = steering.Canvas.dot
    monkeypatch.setattr(
        steering.Canvas,
        "dot",
        lambda self, x, y, r, colour: (dots.append((x, y, colour)), dot(self, x, y, r, colour))[1],
    )
    before = [[0.7, 0.3], [0.2, 0.8]]
    doses = [answer(before, after) for after in ([[0.1, 0.9], [0.4, 0.6]], before, [[0.5, 0.5], [0.6, 0.4]])]
    dose_picture("t", "set to 2, 0, 1", [2.0, 0.0, 1.0], doses)
    own = [(x, y) for x, y, colour in dots if colour == "feature"]
    kept = [(x, y) for x, y, colour in dots if colour == "neuron"]
    assert [x for x, _ in own] == sorted(x for x, _ in own)
    top, base = steering.HEADER, steering.HEADER + steering.CURVE_HEIGHT
    heights = [(base - y) / (base - top) for _, y in own]
    assert heights == pytest.approx([0.75, (0.5 + 0.4) / 2, (0.1 + 0.6) / 2], rel=1e-5)
    assert [(base - y) / (base - top) for _, y in kept] == pytest.approx([1.0, 0.5, 0.5])
