"""The partner of each image, whose state ablated nodes take: drawn at random, of another class, or from a file.

A draw depends on the seed and the image's id, not on where the image stands.
"""

# n images  M candidates

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from mis_lab.core.errors import DataError, MissingFileError, StoreError
from mis_lab.core.files import read_json
from mis_lab.core.seeding import generator

COLUMNS = ("image", "partner")


def random_partners(ids: Sequence[str], candidates: Sequence[str], seed: int) -> Tensor:
    """Another image for each of `ids`, (n,) int64 places in `candidates`.

    Raises:
        DataError: naming an image for which there is none.
    """
    return _draw(ids, ids, candidates, candidates, seed, "another image")


def partners_of_other_class(
    ids: Sequence[str],
    targets_n: Tensor,
    candidates: Sequence[str],
    candidate_targets_m: Tensor,
    seed: int,
    partner_class: int | None = None,
) -> Tensor:
    """An image of another class for each of `ids`, (n,) int64 places in `candidates`.

    Args:
        ids, targets_n: images and the class of each.
        candidates, candidate_targets_m: images that may be partners and the class of each; those of `ids`, say.
        seed: which.
        partner_class: the class of all partners; any other by default.

    Raises:
        DataError: naming an image for which there is none.
    """
    classes = candidate_targets_m.tolist()
    if partner_class is None:
        return _draw(ids, targets_n.tolist(), candidates, classes, seed, "an image of another class")
    of_class = [place for place, number in enumerate(classes) if number == partner_class]
    chosen = [candidates[place] for place in of_class]
    what = f"an image of class {partner_class}, which is not its own,"
    drawn = _draw(ids, targets_n.tolist(), chosen, [partner_class] * len(chosen), seed, what)
    return torch.tensor(of_class, dtype=torch.int64)[drawn]


def partners_from_file(path: Path, ids: Sequence[str], candidates: Sequence[str]) -> Tensor:
    """The partners that a file names, (n,) int64 places in `candidates`.

    A CSV has the columns ``image`` and ``partner``; a JSON maps ids to ids, or is a list of pairs of them. It may
    hold more images than are asked for.

    Args:
        ids: of the images.
        candidates: ids of the images that may be partners: the whole data set, say.

    Raises:
        MissingFileError: when there is no such file.
        DataError: when it cannot be read, names an image twice, leaves one out, or names an unknown partner.
    """
    pairs = _read(path)
    places = {image_id: place for place, image_id in enumerate(candidates)}
    for image_id in ids:
        if image_id not in pairs:
            raise DataError(f"image {image_id} has no partner", looked=path, fix="Add a pair, or use fewer images.")
        if pairs[image_id] not in places:
            raise DataError(
                f"the partner {pairs[image_id]} of image {image_id} is no image of the data set",
                looked=path,
                fix="Partners are named by their image ids.",
            )
    return torch.tensor([places[pairs[image_id]] for image_id in ids], dtype=torch.int64)


def _draw(
    ids: Sequence[str],
    kinds: Sequence[object],
    candidates: Sequence[str],
    candidate_kinds: Sequence[object],
    seed: int,
    what: str,
) -> Tensor:
    """For each image a candidate of another kind, by a generator of the image's own."""
    by_id = sorted(range(len(candidates)), key=lambda place: candidates[place])
    found = []
    for image_id, kind in zip(ids, kinds, strict=True):
        others = [place for place in by_id if candidate_kinds[place] != kind]
        if not others:
            raise DataError(
                f"there is not {what} as the partner of {image_id}",
                looked=f"{len(candidates)} images",
                fix="Use more images, or other classes.",
            )
        random = generator(seed, "circuit", "partner", image_id)
        found.append(others[int(torch.randint(len(others), (1,), generator=random))])
    return torch.tensor(found, dtype=torch.int64)


def _read(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise MissingFileError("there is no file of image pairs", looked=path, fix="Give one in circuit.pairs_file.")
    rows = _json_pairs(path) if path.suffix.lower() == ".json" else _csv_pairs(path)
    pairs: dict[str, str] = {}
    for image_id, partner in rows:
        if image_id in pairs:
            raise DataError(f"image {image_id} has two partners", looked=path, fix="Leave one pair an image.")
        pairs[image_id] = partner
    return pairs


def _csv_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        with open(path, newline="", encoding="utf-8") as file:
            reader = csv.DictReader(file)
            if not {*COLUMNS} <= {*(reader.fieldnames or ())}:
                raise DataError(f"the pairs have no columns {' and '.join(COLUMNS)}", looked=path)
            rows = [(row[COLUMNS[0]], row[COLUMNS[1]]) for row in reader]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"the pairs are no CSV ({error})", looked=path) from error
    cut = [image_id for image_id, partner in rows if not partner]
    if cut:
        raise DataError(f"the row of image {cut[0]} names no partner", looked=path)
    return rows


def _json_pairs(path: Path) -> list[tuple[str, str]]:
    try:
        told = read_json(path)
    except StoreError as error:
        raise DataError(f"the pairs are no JSON ({error.__cause__})", looked=path) from error
    rows = list(told.items()) if isinstance(told, Mapping) else told
    if not isinstance(rows, list) or not all(
        isinstance(row, list | tuple) and len(row) == 2 and all(isinstance(part, str) for part in row) for row in rows
    ):
        raise DataError("the pairs are neither a mapping of ids nor a list of pairs of ids", looked=path)
    return [(image_id, partner) for image_id, partner in rows]
