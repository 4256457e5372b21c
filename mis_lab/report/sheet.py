"""The explanation sheet of a unit: what a judge of its tasks sees, with the answers beside it.

A task shows K strongly and K weakly activating images and asks which of two queries belongs to the strong side
(Zimmermann, Klindt and Brendel 2024). A sheet is one or a few tasks, large; :func:`overview` is all of a unit's tasks.
"""

# K explanations a side  N tasks

from __future__ import annotations

import math
from collections.abc import Collection, Mapping, Sequence
from typing import NamedTuple

from PIL import Image

from mis_lab.dataset.base import ImageDataset
from mis_lab.mis.unit_tasks import Outcome, UnitTask, UnitTasks
from mis_lab.report.canvas import Canvas
from mis_lab.report.charts import Scale
from mis_lab.report.glossary import GLOSSARY
from mis_lab.report.wording import NEGATIVES, count, fixed, interval, named, number, plural

STRONG, WEAK = "feature", "pos"  # the orange and the teal of the page
OUTCOME_COLOURS = {Outcome.right: "ink", Outcome.tie: "faint", Outcome.wrong: "neg"}
WEAK_SIDES = {"bottom": "Least activating", "random": "Random images", "within_class": "Random, same classes"}
TILE, QUERY, ROW_TILE = 108, 136, 66  # pixels
GAP, EDGE, INSET, CAPTION = 6, 32, 12, 22
HEADER, PANEL_HEAD, BESIDE, NARROWEST, NARROWEST_SIDE = 124, 72, 34, 924, 230
N_SHOWN = 3  # explanations a side in an overview

Activations = Mapping[int, float]  # image index → the unit's image activation


def sheet(
    unit: UnitTasks, dataset: ImageDataset, numbers: Sequence[int] = (), activations: Activations | None = None
) -> Image.Image:
    """Some tasks of a unit, one below the other.

    Args:
        dataset: the scored images; an image index of a task is a place here.
        numbers: of the tasks wanted; by default the one with the median margin and the hardest one.
        activations: written below the images.

    Raises:
        ConfigError: when there is no such task.
    """
    numbers = list(dict.fromkeys(numbers or (unit.median.number, unit.hardest.number)))
    tasks = [unit.task(wanted) for wanted in numbers]
    panel = _Panel(unit, dataset, activations)
    width = max(panel.width, NARROWEST) + 2 * EDGE
    canvas = Canvas(width, EDGE + HEADER + len(tasks) * (panel.height + EDGE))
    _header(canvas, unit, numbers)
    for place, task in enumerate(tasks):
        panel.draw(canvas, task, (width - panel.width) // 2, EDGE + HEADER + place * (panel.height + EDGE))
    return canvas.image


class _Panel:
    """How one task is drawn: strong side right, weak side left, queries between them."""

    def __init__(self, unit: UnitTasks, dataset: ImageDataset, activations: Activations | None) -> None:
        self.unit, self.dataset, self.activations = unit, dataset, activations
        k = unit.settings.n_explanations
        self.columns = math.ceil(math.sqrt(k))
        self.cell = TILE + (GAP if activations is None else CAPTION + 2)
        self.grid = self.columns * (TILE + GAP) - GAP
        self.side = max(self.grid + 2 * INSET, NARROWEST_SIDE)
        self.queries = 2 * (QUERY + CAPTION + 3 * GAP)
        self.box = math.ceil(k / self.columns) * self.cell + 2 * INSET - GAP
        self.inside = max(self.box, self.queries)
        self.across = 2 * (self.side + BESIDE) + QUERY
        self.width = max(self.across, NARROWEST)
        self.height = PANEL_HEAD + self.inside

    def draw(self, canvas: Canvas, task: UnitTask, x: int, y: int) -> None:
        unit, start = self.unit, x + (self.width - self.across) // 2
        canvas.line(x, y, x + self.width, y)
        canvas.text(x, y + 14, self._name(task), 17, bold=True)
        words = f"Δ {fixed(task.margin, 4, True)}    σ(Δ/τ) {fixed(task.probability)}    "
        _told_outcome(canvas, task, words, x + self.width, y + 14)
        weak, strong = named(WEAK_SIDES, unit.negatives), "Strongly activating"
        for left, words, colour, images in (
            (start, weak, WEAK, task.explanations_negative),
            (start + self.across - self.side, strong, STRONG, task.explanations_positive),
        ):
            top = y + PANEL_HEAD + (self.inside - self.box) // 2
            canvas.text(left + self.side / 2, top - 7, words, 15, colour, True, "ms")
            canvas.box(left, top, self.side, self.box, line=colour)
            for place, image in enumerate(images):
                row, column = divmod(place, self.columns)
                across = left + (self.side - self.grid) // 2 + column * (TILE + GAP)
                self._tile(canvas, image, across, top + INSET + row * self.cell, TILE, "rule")
        centre = x + self.width // 2
        canvas.text(centre, y + PANEL_HEAD - 7, "Which one belongs right?", 13, "muted", anchor="ms")
        top = y + PANEL_HEAD + (self.inside - self.queries) // 2 + 2 * GAP
        self._tile(canvas, task.query_positive, centre - QUERY // 2, top, QUERY, STRONG, "the answer")
        top += self.queries // 2
        self._tile(canvas, task.query_negative, centre - QUERY // 2, top, QUERY, WEAK)

    def _name(self, task: UnitTask) -> str:
        unit = self.unit
        told = {unit.hardest.number: ", the hardest", unit.median.number: ", the median margin"}
        return f"Task {task.number} of {len(unit.tasks)}{told.get(task.number, '')}"

    def _tile(self, canvas: Canvas, image: int, x: int, y: int, px: int, frame: str, words: str = "") -> None:
        canvas.tile(self.dataset.image(image), x, y, px, frame, 1 if frame == "rule" else 3)
        below = y + px + (4 if frame == "rule" else 6)
        value = "" if self.activations is None else number(self.activations[image])
        if words:
            shift = (
                canvas.text_width(f"▲ {words}", 12, True) / 2 + canvas.text_width(f"  {value}" * bool(value), 12) / 2
            )
            used = canvas.text(x + px / 2 - shift, below, f"▲ {words}", 12, frame, True)
            canvas.text(x + px / 2 - shift + used, below, f"  {value}" * bool(value), 12, "muted")
        else:
            canvas.text(x + px / 2, below, value, 12, "muted", anchor="ma")


def _told_outcome(canvas: Canvas, task: UnitTask, words: str, right: float, y: float) -> None:
    """The outcome as a coloured word at the right, `words` before it."""
    colour = OUTCOME_COLOURS[task.outcome]
    width = canvas.text_width(task.outcome.name, 14, True) + 20
    canvas.box(right - width, y - 2, width, 24, colour, colour, 12)
    canvas.text(right - width / 2, y + 15, task.outcome.name, 14, "surface", True, "ms")
    canvas.text(right - width, y + 15, words, 14, anchor="rs")


def _header(canvas: Canvas, unit: UnitTasks, marked: Collection[int]) -> None:
    """Who the unit is, its scores, and the margins of all its tasks."""
    settings, strip = unit.settings, 270
    right = canvas.image.width - EDGE
    room = right - strip - 2 * EDGE
    canvas.text(EDGE, EDGE, f"{unit.site} · {unit.name}", 26, bold=True, most=room)
    scores = {"soft": unit.soft, "hard": unit.hard}
    told = (f"{GLOSSARY[name].label} {fixed(score.estimate)} {interval(score)}" for name, score in scores.items())
    canvas.text(EDGE, EDGE + 40, "    ".join(told), 16, most=room)
    words = f"{plural(len(unit.tasks), 'task')} with {named(NEGATIVES, unit.negatives)} · status ok, active on "
    words += f"{count(unit.n_active)} of {count(settings.n_images)} images"
    canvas.text(EDGE, EDGE + 67, words, 13, "muted", most=room)
    words = f"protocol {settings.protocol.replace('_', ' ')}, K = {settings.n_explanations} · {settings.metric}, τ = "
    canvas.text(EDGE, EDGE + 86, f"{words}{number(settings.temperature)}", 13, "muted", most=room)
    _margins(canvas, unit, marked, right - strip, right, EDGE + 46)


def _margins(canvas: Canvas, unit: UnitTasks, marked: Collection[int], left: int, right: int, y: int) -> None:
    """A dot for the margin of every task beside zero; the marked ones larger, with their number."""
    x = _margin_scale(unit, left + 14, right - 14)
    canvas.text((left + right) / 2, y - 46, f"{GLOSSARY['margin'].label} of every task", 12, "muted", anchor="ma")
    canvas.line(left, y, right, y, "faint")
    canvas.line(x(0), y - 7, x(0), y + 14, "muted")
    canvas.text(x(0), y + 19, "0", 12, "muted", anchor="ma")
    for task in unit.tasks:
        canvas.dot(x(task.margin), y, 5, OUTCOME_COLOURS[task.outcome])
    written = -math.inf  # where the last number ends: those of equal margins would lie on each other
    for task in (task for task in reversed(unit.by_margin) if task.number in marked):
        at, half = x(task.margin), canvas.text_width(str(task.number), 12, True) / 2
        canvas.dot(at, y, 8, OUTCOME_COLOURS[task.outcome])
        if at - half > written + 3:
            canvas.text(at, y - 12, str(task.number), 12, bold=True, anchor="ms")
            written = at + half


def _margin_scale(unit: UnitTasks, start: float, end: float) -> Scale:
    """An axis with zero and every margin on it."""
    values = [0.0, *(task.margin for task in unit.tasks)]
    return Scale(min(values), max(values), start, end)


class _Column(NamedTuple):
    """Tiles of one kind in an overview."""

    words: str
    colour: str
    n: int
    gap: int = GAP

    @property
    def width(self) -> int:
        return self.n * (ROW_TILE + self.gap) - self.gap


def overview(unit: UnitTasks, dataset: ImageDataset) -> Image.Image:
    """A contact sheet of all tasks of a unit, the clearest first: the first explanations of each side and the queries
    (the answer beside the strong side), and a bar for the margin."""
    n = min(N_SHOWN, unit.settings.n_explanations)
    columns = (
        _Column(named(WEAK_SIDES, unit.negatives), WEAK, n),
        _Column("Queries", "ink", 2, 2 * GAP),
        _Column("Strongly activating", STRONG, n),
    )
    number_width, apart, step, bar = 40, 30, ROW_TILE + 3 * GAP, 230
    tiles = sum(column.width + apart for column in columns)
    width = max(EDGE + number_width + tiles + bar + EDGE, NARROWEST + 2 * EDGE)
    top = EDGE + HEADER + 40
    canvas = Canvas(width, top + len(unit.tasks) * step + EDGE - GAP)
    _header(canvas, unit, ())
    x = _margin_scale(unit, EDGE + number_width + tiles + 36, width - EDGE - 62)
    _column_names(canvas, columns, EDGE + number_width, apart, top - 14)
    canvas.text((x.start + x.end) / 2, top - 14, GLOSSARY["margin"].label, 13, "muted", anchor="ms")
    for place, task in enumerate(unit.by_margin):
        y = top + place * step
        canvas.text(EDGE + 22, y + ROW_TILE / 2, str(task.number), 15, "muted", anchor="rm")
        images = (
            [(image, "rule") for image in task.explanations_negative[:n]],
            [(task.query_negative, WEAK), (task.query_positive, STRONG)],
            [(image, "rule") for image in task.explanations_positive[:n]],
        )
        left = EDGE + number_width
        for column, framed in zip(columns, images, strict=True):
            for image, frame in framed:
                canvas.tile(dataset.image(image), left, y, ROW_TILE, frame, 1 if frame == "rule" else 3)
                left += ROW_TILE + column.gap
            left += apart - column.gap
        _margin_bar(canvas, task, x, y)
    return canvas.image


def _column_names(canvas: Canvas, columns: Sequence[_Column], left: int, apart: int, y: int) -> None:
    for column in columns:
        canvas.text(left + column.width / 2, y, column.words, 13, column.colour, True, "ms", most=column.width + apart)
        left += column.width + apart


def _margin_bar(canvas: Canvas, task: UnitTask, x: Scale, y: int) -> None:
    """The margin from zero on, its number behind it, and the chance of the right answer below."""
    middle = y + ROW_TILE / 2
    canvas.line(x(0), y - GAP, x(0), y + ROW_TILE + GAP, "faint")
    canvas.bar(x(0), middle - 9, x(task.margin) - x(0), 18, OUTCOME_COLOURS[task.outcome])
    end = max(x(0), x(task.margin)) + 8
    canvas.text(end, middle - 8, fixed(task.margin, 3, True), 12, anchor="lm")
    canvas.text(end, middle + 9, f"p {fixed(task.probability)}", 12, "muted", anchor="lm")
