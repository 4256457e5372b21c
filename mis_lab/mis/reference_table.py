"""Published tables of scores by unit: read, summed up by layer, put beside the scores of a run.

A table is a CSV file with a row for each unit: layer, unit, hard score (share of tasks right) and confidence (soft
score). Both spellings in use are read: the MIS authors' (``layer, unit, hard, confidence``; also ``mis_score,
mis_confidence``) and the thesis' (``layer_name, unit_idx, MIS, MIS_confidence, model_key``).
"""

# n rows, one a unit

from __future__ import annotations

import csv
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mis_lab.core.errors import ConfigError, DataError, MissingFileError, nearest_first

COLUMNS = {
    "layer": ("layer", "layer_name"),
    "unit": ("unit", "unit_idx"),
    "hard": ("hard", "mis_score", "mis"),
    "soft": ("confidence", "mis_confidence", "soft"),
}
MODEL = ("model_key", "model")
_OF_A_BRANCH = "_pre_relu_conv"  # names of the authors' table: mixed3a_1x1_pre_relu_conv
_INNER = "bottleneck"  # convolutions inside a block, whose channels are none of its output
_NOT_CSV = {b"\x80": "a pickle, which runs what it reads", b"PAR1": "Parquet", b"PK": "an archive"}


@dataclass(frozen=True)
class ReferenceTable:
    """Scores of n units.

    Attributes:
        path: where they were read.
        layers: (n,) names.
        units: (n,) int64 number of each unit in its layer.
        hard, soft: (n,) float64 in [0, 1]; NaN where the table has none.
    """

    path: Path
    layers: np.ndarray
    units: np.ndarray
    hard: np.ndarray
    soft: np.ndarray


@dataclass(frozen=True)
class LayerSummary:
    """One layer or block; means and medians of the units that have the score, NaN for none."""

    layer: str
    n_units: int
    n_scored: int
    soft_mean: float
    soft_median: float
    hard_mean: float
    hard_median: float


def read_table(path: Path, model: str = "") -> ReferenceTable:
    """Read a table.

    Args:
        model: only rows of this model, where a table has several.

    Raises:
        MissingFileError: when there is no such file.
        DataError: when it is no CSV file, lacks a column or has an impossible value, or a unit comes twice.
        ConfigError: when it has several models and `model` names none of them.
    """
    if not path.is_file():
        raise MissingFileError(f"there is no table {path}", looked=path.absolute(), fix="Give a CSV file.")
    with open(path, "rb") as file:
        start = file.read(4)
    for magic, what in _NOT_CSV.items():
        if start.startswith(magic):
            raise DataError(f"{path} is {what}", fix="Write it as CSV where you trust it: DataFrame.to_csv(FILE).")
    try:
        with open(path, newline="", encoding="utf-8-sig") as text:
            header = text.readline()
            text.seek(0)
            reader = csv.reader(text, delimiter=max(",;\t", key=header.count))
            names, *rows = [row for row in reader if row] or [[]]
    except (UnicodeDecodeError, csv.Error) as error:
        raise DataError(f"{path} is no CSV file ({error})", fix="Give a CSV file in UTF-8.") from error
    places = _places(path, names)
    short = next((number for number, row in enumerate(rows, 2) if len(row) != len(names)), None)
    if short is not None:
        raise DataError(f"row {short} of {path} has not {len(names)} values as its header says")
    rows = _of_model(path, [name.strip().lower() for name in names], rows, model)
    if not rows:
        raise DataError(f"{path} has no rows")
    table = ReferenceTable(
        path=path,
        layers=np.array([row[places["layer"]] for row in rows]),
        units=_numbers(path, rows, places["unit"], whole=True).astype(np.int64),
        hard=_numbers(path, rows, places["hard"]),
        soft=_numbers(path, rows, places["soft"]),
    )
    seen: set[tuple[str, int]] = set()
    for layer, unit in zip(table.layers.tolist(), table.units.tolist(), strict=True):
        if (layer, unit) in seen:
            raise DataError(f"unit {unit} of {layer} comes twice in {path}")
        seen.add((layer, unit))
    return table


def _places(path: Path, names: Sequence[str]) -> dict[str, int]:
    lowered = [name.strip().lower() for name in names]
    places = {}
    for role, spellings in COLUMNS.items():
        there = [spelling for spelling in spellings if spelling in lowered]
        if not there:
            raise DataError(
                f"{path} has no column for the {role} ({', '.join(spellings)})",
                looked=", ".join(names),
                fix="Rename the column in the first line.",
            )
        places[role] = lowered.index(there[0])
    return places


def _of_model(path: Path, names: Sequence[str], rows: list[list[str]], model: str) -> list[list[str]]:
    place = next((names.index(name) for name in MODEL if name in names), None)
    models = sorted({row[place] for row in rows}) if place is not None else []
    if model and model not in models:
        near = ", ".join(nearest_first(model, models)) or "no column model_key"
        raise ConfigError(f"{path} has no rows of the model {model}", fix=f"It has {near}.")
    if len(models) > 1 and not model:
        raise ConfigError(
            f"{path} has rows of {len(models)} models", fix=f"Choose with --model: {', '.join(models[:5])}."
        )
    return [row for row in rows if row[place] == model] if model and place is not None else rows


def _numbers(path: Path, rows: Sequence[Sequence[str]], place: int, whole: bool = False) -> np.ndarray:
    """Column of units (whole numbers) or of scores (in [0, 1]; empty and nan: none)."""
    found = np.empty(len(rows))
    for number, row in enumerate(rows):
        text = row[place].strip()
        try:
            value = float(text) if text or whole else np.nan
        except ValueError:
            value = np.inf
        good = (value >= 0 and value.is_integer()) if whole else (np.isnan(value) or 0 <= value <= 1)
        if not good:
            what = "is no number of a unit" if whole else "is no score between 0 and 1"
            raise DataError(f"row {number + 2} of {path}: {text!r} {what}")
        found[number] = value
    return found


def rows_of(table: ReferenceTable, block: str) -> np.ndarray:
    """(n,) bool, the units of the layer called `block`; else of a block: layers whose name contains it, inner ones not.

    Inner ones are called "bottleneck". A block that ends (or begins) in a digit does not go on with one: ``layer1`` is
    not in ``layer10``.

    Raises:
        ConfigError: when there are none.
    """
    exact = table.layers == block
    if exact.any():
        return exact
    before, after = (r"(?<!\d)" if block[:1].isdigit() else ""), (r"(?!\d)" if block[-1:].isdigit() else "")
    name_has = re.compile(before + re.escape(block) + after).search
    found = np.array([bool(name_has(layer)) and _INNER not in layer for layer in table.layers.tolist()])
    if not block or not found.any():
        near = ", ".join(nearest_first(block, blocks_of(table)))
        raise ConfigError(f"{table.path} has no layer with {block!r} in its name", fix=f"Nearest: {near}.")
    return found


def blocks_of(table: ReferenceTable) -> list[str]:
    """Names to sum up by, in the table's order: blocks of the authors' branch names, else the layers themselves."""
    names = (layer.split("_")[0] if layer.endswith(_OF_A_BRANCH) else layer for layer in table.layers.tolist())
    return [*dict.fromkeys(names)]


def summarise_layers(table: ReferenceTable, blocks: Sequence[str] = ()) -> list[LayerSummary]:
    """Mean and median by layer.

    Args:
        blocks: see :func:`rows_of`; those of :func:`blocks_of` by default.

    Raises:
        ConfigError: when a block has no units.
    """
    return [_summary(table, block, rows_of(table, block)) for block in blocks or blocks_of(table)]


def _summary(table: ReferenceTable, block: str, there: np.ndarray) -> LayerSummary:
    soft, hard = _scored(table.soft[there]), _scored(table.hard[there])
    return LayerSummary(
        layer=block,
        n_units=int(there.sum()),
        n_scored=int((np.isfinite(table.soft) & np.isfinite(table.hard) & there).sum()),
        soft_mean=_mean(soft),
        soft_median=_median(soft),
        hard_mean=_mean(hard),
        hard_median=_median(hard),
    )


def _scored(values: np.ndarray) -> np.ndarray:
    return values[np.isfinite(values)]


def _mean(values: np.ndarray) -> float:
    return float(values.mean()) if len(values) else np.nan


def _median(values: np.ndarray) -> float:
    return float(np.median(values)) if len(values) else np.nan
