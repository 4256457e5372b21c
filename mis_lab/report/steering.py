"""Pictures of a steered network: what it says of each image before and after, or over a range of values."""

# n images  C classes  V values

from __future__ import annotations

from collections.abc import Sequence
from itertools import pairwise
from typing import NamedTuple

import numpy as np
from PIL import Image
from torch import Tensor

from mis_lab.circuit.steer import Steered
from mis_lab.report.about import Picture
from mis_lab.report.canvas import Canvas
from mis_lab.report.charts import Scale
from mis_lab.report.wording import fixed, number, plural

BEFORE, AFTER = "faint", "feature"
TILE, EDGE, GAP, LINE = 108, 32, 14, 27  # pixels
HEADER, NAME, BAR, VALUES = 124, 190, 300, 150
CURVE_WIDTH, CURVE_HEIGHT = 620, 300


class SteeredImage(NamedTuple):
    """An image of a picture: itself, and what is written below it."""

    picture: Picture
    note: str


def class_name(names: Sequence[str], which: int) -> str:
    """What a class is called: its number where there are no names."""
    return names[which] if names else f"class {which}"


def shown_classes(before_c: Tensor, after_c: Tensor, n: int) -> list[int]:
    """The `n` classes with the largest probability on either side, in the order of those before."""
    either = np.maximum(before_c.numpy(), after_c.numpy())
    largest = np.argsort(-either, kind="stable")[:n]
    return sorted(largest.tolist(), key=lambda which: -float(before_c[which]))


def steering_picture(
    title: str, change: str, steered: Steered, images: Sequence[SteeredImage], names: Sequence[str], n_top: int = 5
) -> Image.Image:
    """Each image with bars of its top classes, before and after.

    Args:
        title: of what is steered.
        change: what is done to it.
        steered: the answers, an image a row.
        images: the images in that order.
        names: of the classes; empty for numbers.
        n_top: classes an image.
    """
    before_nc, after_nc = steered.probabilities_before, steered.probabilities_after
    n_top = min(n_top, before_nc.shape[1])
    step = max(TILE + 24, n_top * LINE) + 2 * GAP
    width = 2 * EDGE + TILE + GAP + NAME + BAR + VALUES
    canvas = Canvas(width, HEADER + EDGE + len(images) * step)
    _header(canvas, title, change, steered)
    for row, image in enumerate(images):
        y = HEADER + EDGE + row * step
        canvas.line(EDGE, y - GAP, width - EDGE, y - GAP)
        canvas.tile(image.picture, EDGE, y, TILE)
        canvas.text(EDGE + TILE / 2, y + TILE + 5, image.note, 12, "muted", anchor="ma", most=TILE + GAP)
        for place, which in enumerate(shown_classes(before_nc[row], after_nc[row], n_top)):
            top_of = (which == int(steered.top_before[row]), which == int(steered.top_after[row]))
            probabilities = float(before_nc[row, which]), float(after_nc[row, which])
            _bars(canvas, y + place * LINE, class_name(names, which), probabilities, top_of)
    return canvas.image


def _header(canvas: Canvas, title: str, change: str, steered: Steered) -> None:
    room = canvas.image.width - 2 * EDGE
    canvas.text(EDGE, EDGE - 4, title, 24, bold=True, most=room)
    canvas.text(EDGE, EDGE + 32, change, 16, most=room)
    canvas.text(EDGE, EDGE + 58, summary(steered), 13, "muted", most=room)
    x: float = EDGE + TILE + GAP + NAME
    for words, colour in (("before", BEFORE), ("after", AFTER)):
        canvas.bar(x, HEADER - 6, 14, 10, colour)
        x += 20
        x += canvas.text(x, HEADER - 8, words, 12, "muted") + 16


def summary(steered: Steered) -> str:
    """How much the answers changed, in words."""
    n_changed = int(steered.changed.sum())
    words = f"{n_changed} of {plural(len(steered.changed), 'image')} another top class"
    change = float(steered.probability_change().mean())
    return f"{words} · probability of the former one {fixed(change, 2, True)} · KL {number(float(steered.kl.mean()))}"


def _bars(canvas: Canvas, y: int, name: str, probabilities: tuple[float, float], top_of: tuple[bool, bool]) -> None:
    """A class: its name, two bars, two numbers; bold where it is the top class."""
    x = EDGE + TILE + GAP
    canvas.text(x, y + LINE / 2 - 2, name, 13, bold=any(top_of), anchor="lm", most=NAME - GAP)
    for place, (probability, colour) in enumerate(zip(probabilities, (BEFORE, AFTER), strict=True)):
        canvas.bar(x + NAME, y + 2 + place * 10, max(1.0, BAR * probability), 8, colour)
    at: float = x + NAME + BAR + 12
    at += canvas.text(at, y + LINE / 2 - 2, fixed(probabilities[0]), 13, "muted", top_of[0], "lm")
    at += canvas.text(at, y + LINE / 2 - 2, "  →  ", 13, "muted", anchor="lm")
    canvas.text(at, y + LINE / 2 - 2, fixed(probabilities[1]), 13, "ink", top_of[1], "lm")


def dose_picture(title: str, change: str, values: Sequence[float], doses: Sequence[Steered]) -> Image.Image:
    """The probability of each image's former top class over the value, its mean, and the share that keep that class.

    Args:
        title: of what is steered.
        change: what the values are.
        values: (V,) of the changes.
        doses: the answers at each.
    """
    order = sorted(range(len(values)), key=lambda place: values[place])
    at = [values[place] for place in order]
    own_vn = np.stack([_of_former_top(doses[place]) for place in order])
    kept_v = [1 - float(doses[place].changed.double().mean()) for place in order]
    canvas = Canvas(2 * EDGE + 40 + CURVE_WIDTH, HEADER + CURVE_HEIGHT + 90)
    canvas.text(EDGE, EDGE - 4, title, 24, bold=True, most=CURVE_WIDTH)
    canvas.text(EDGE, EDGE + 32, change, 16, most=CURVE_WIDTH)
    x = Scale(at[0], at[-1], EDGE + 40, EDGE + 40 + CURVE_WIDTH)
    y = Scale(0, 1, HEADER + CURVE_HEIGHT, HEADER)
    for tick in y.ticks():
        canvas.line(x.start, y(tick), x.end, y(tick))
        canvas.text(x.start - 8, y(tick), fixed(tick, 1), 12, "muted", anchor="rm")
    for value in at:
        canvas.text(x(value), y(0) + 8, number(value), 12, "muted", anchor="ma")
    for own_v in own_vn.T:
        _curve(canvas, x, y, at, own_v, BEFORE, 1)
    _curve(canvas, x, y, at, kept_v, "neuron", 3)
    _curve(canvas, x, y, at, own_vn.mean(1), AFTER, 3)
    _legend(canvas, x.start, HEADER + CURVE_HEIGHT + 40)
    return canvas.image


def _of_former_top(steered: Steered) -> np.ndarray:
    """(n,) probability, after the change, of the class that was the largest before."""
    return steered.probabilities_after.gather(1, steered.top_before[:, None]).squeeze(1).numpy()


def _curve(
    canvas: Canvas, x: Scale, y: Scale, at: Sequence[float], heights: Sequence[float], colour: str, thick: int
) -> None:
    points = [(x(value), y(height)) for value, height in zip(at, heights, strict=True)]
    for (x1, y1), (x2, y2) in pairwise(points):
        canvas.line(x1, y1, x2, y2, colour, thick)
    if thick > 1:
        for px, py in points:
            canvas.dot(px, py, 5, colour)


def _legend(canvas: Canvas, x: float, y: float) -> None:
    for words, colour in (
        ("former top class: mean probability", AFTER),
        ("each image", BEFORE),
        ("share that keep it", "neuron"),
    ):
        canvas.line(x, y + 8, x + 22, y + 8, colour, 3)
        x += 28
        x += canvas.text(x, y, words, 13, "muted") + 20
