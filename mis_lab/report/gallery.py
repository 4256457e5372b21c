"""What the template shows of units: tiles, captions, alternative texts, scores in words."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import NamedTuple

from markupsafe import Markup
from PIL import Image

from mis_lab.report import figures
from mis_lab.report.data import PICKS, ReportData, UnitCard, UnitImage
from mis_lab.report.images import SpriteSheet, data_uri, largest_activation
from mis_lab.report.wording import (
    IMAGE_SETS,
    KINDS_SINGULAR,
    count,
    fixed,
    interval,
    named,
    number,
    percent,
    plural,
)
from mis_lab.report.wording import (
    PICKS as PICK_WORDS,
)

SHEET_QUALITY = 65


class Shown(NamedTuple):
    """How much the page shows: images a unit, units a kind and pick."""

    images: int
    units: int


class Tile(NamedTuple):
    """Place of an image in its strip, as a CSS position, and what hovering says."""

    x: str
    title: str


@dataclass(frozen=True)
class TileSet:
    """Images of one kind of a unit: style classes of strip and heat-map, tiles, alternative text."""

    name: str
    strip: str
    heat: str | None
    tiles: Sequence[Tile]
    alt: str


class ScoreLine(NamedTuple):
    """Scores of a unit with one kind of negatives: its name, a small chart, and numbers."""

    negatives: str
    chart: Markup
    soft: str
    hard: str
    title: str


@dataclass(frozen=True)
class Card:
    """A unit as the template shows it."""

    id: str
    css: str
    title: str
    status: str
    sets: Sequence[TileSet]
    scores: Sequence[ScoreLine]
    active: str


class Pick(NamedTuple):
    words: str
    rows: Sequence[Sequence[Card]]


class SheetView(NamedTuple):
    """A unit's tasks in one picture: of which unit, its address, and its size in pixels."""

    title: str
    css: str
    uri: str
    width: int
    height: int


class Gallery(NamedTuple):
    site: str
    picks: Sequence[Pick]
    sheets: Sequence[SheetView]


def card_id(site: str, kind: str, unit: int) -> str:
    """Element id of a unit's card."""
    return "unit-" + re.sub(r"[^A-Za-z0-9_.-]", "-", f"{site}-{kind}-{unit}")


def chosen_cards(data: ReportData, shown: Shown) -> list[UnitCard]:
    """The cards that are shown: the first `shown.units` of every site, kind and pick; a unit once a site."""
    kept: list[UnitCard] = []
    seen: dict[tuple[str, str, str], int] = {}
    units = set()
    for card in sorted(data.units, key=lambda card: PICKS.index(card.pick) if card.pick in PICKS else len(PICKS)):
        place, unit = (card.site, card.kind, card.pick), (card.site, card.kind, card.number)
        if seen.get(place, 0) < shown.units and unit not in units:
            seen[place] = seen.get(place, 0) + 1
            units.add(unit)
            kept.append(card)
    return kept


def galleries(data: ReportData, shown: Shown, sprites: SpriteSheet) -> list[Gallery]:
    """Cards by site, pick and kind."""
    cards = chosen_cards(data, shown)
    found = []
    for site in dict.fromkeys([site.path for site in data.sites] + [card.site for card in cards]):
        picks = []
        for pick in dict.fromkeys([*PICKS, *(card.pick for card in cards)]):
            here = [card for card in cards if (card.site, card.pick) == (site, pick)]
            kinds = sorted({card.kind for card in here}, key=lambda kind: (*figures.KIND_ORDER, kind).index(kind))
            rows = [[_card(card, shown, sprites) for card in here if card.kind == kind] for kind in kinds]
            if rows:
                picks.append(Pick(named(PICK_WORDS, pick), rows))
        if picks:
            sheets = [_sheet(card, card.sheet) for card in cards if card.site == site and card.sheet is not None]
            found.append(Gallery(site, picks, sheets))
    return found


def teasers(data: ReportData, shown: Shown, sprites: SpriteSheet) -> list[Card]:
    """The best feature of every site (neuron without an SAE), for the top of the page."""
    cards = chosen_cards(data, shown)
    kind = "feature" if any(card.kind == "feature" for card in cards) else "neuron"
    found: dict[str, UnitCard] = {}
    for card in cards:
        if (card.kind, card.pick) == (kind, "best"):
            found.setdefault(card.site, card)
    return [_card(card, shown, sprites) for card in found.values()]


def image_sets(data: ReportData) -> list[tuple[str, str]]:
    """The sets of images that cards have: key and words, top first."""
    present = {name for card in data.units for name, images in card.images.items() if images}
    return [(name, words) for name, words in IMAGE_SETS.items() if name in present]


def _sheet(card: UnitCard, picture: Image.Image) -> SheetView:
    title = f"{named(KINDS_SINGULAR, card.kind)} {card.number}"
    return SheetView(title, figures.kind_class(card.kind), data_uri(picture, SHEET_QUALITY), *picture.size)


def _card(card: UnitCard, shown: Shown, sprites: SpriteSheet) -> Card:
    title = f"{named(KINDS_SINGULAR, card.kind)} {card.number}"
    largest = largest_activation(card.images.get("top", ()))
    sets = [
        tile_set(name, images[: shown.images], largest, f"{title} of {card.site}", sprites)
        for name in IMAGE_SETS
        if (images := card.images.get(name))
    ]
    scores = [
        ScoreLine(
            negatives,
            figures.score_strip(score.soft),
            fixed(float(score.soft.estimate)),
            fixed(float(score.hard.estimate)),
            f"soft {interval(score.soft)}, hard {interval(score.hard)}, {plural(score.n_tasks, 'task')}",
        )
        for negatives, score in card.scores.items()
    ]
    active = f"{percent(card.n_active / max(card.n_images, 1))} of {count(card.n_images)} images"
    status = "" if card.status == "ok" else card.status.replace("_", " ")
    return Card(
        card_id(card.site, card.kind, card.number), figures.kind_class(card.kind), title, status, sets, scores, active
    )


def tile_set(name: str, images: Sequence[UnitImage], largest: float, of: str, sprites: SpriteSheet) -> TileSet:
    """Images of one kind, of the unit named `of`; heat-maps relative to `largest`."""
    last = max(len(images) - 1, 1)
    tiles = [
        Tile(f"{100 * place / last:.4g}%", f"{image.group} · {image.image_id} · activation {number(image.activation)}")
        for place, image in enumerate(images)
    ]
    groups = ", ".join(f"{group} ({n})" if n > 1 else group for group, n in _counted(image.group for image in images))
    what = {"top": "that activate it most", "bottom": "that activate it least"}.get(name, "drawn at random")
    alt = f"{len(images)} images {what}, of {of}: {groups}"
    return TileSet(name, sprites.images(images), sprites.heat(images, largest), tiles, alt)


def _counted(names: object) -> list[tuple[str, int]]:
    counts: dict[str, int] = {}
    for name in names:  # type: ignore[attr-defined]
        counts[name] = counts.get(name, 0) + 1
    return list(counts.items())


def shown_ids(cards: Sequence[UnitCard]) -> Mapping[tuple[str, str, int], str]:
    """(site, kind, number) → element id of the card."""
    return {(card.site, card.kind, card.number): card_id(card.site, card.kind, card.number) for card in cards}
