"""Numbers and names as people read them; the one place that decides how many digits are shown."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import SupportsFloat

from mis_lab.core.intervals import Interval

NOTHING = "–"
MINUS = "−"
THIN = "\u202f"  # narrow no-break space, between thousands and before units

KINDS = {
    "feature": "SAE features",
    "neuron": "neurons",
    "permuted": "permuted features",
    "random_direction": "random directions",
    "sparse_neuron": "sparse neurons",
    "never_revived": "features never revived",
    "error": "error",
}
KINDS_SINGULAR = {
    "feature": "feature",
    "neuron": "neuron",
    "permuted": "permuted feature",
    "random_direction": "random direction",
    "sparse_neuron": "sparse neuron",
    "error": "error",
}
NEGATIVES = {"random": "random negatives", "bottom": "bottom negatives"}
MEASURES = {"soft": "soft MIS", "hard": "hard MIS", "delta_over_tau": "margin Δ/τ"}
IMAGE_SETS = {"top": "Top images", "bottom": "Least active", "random": "Random images"}
PICKS = {"best": "Best", "random": "Random", "worst": "Worst"}


def page_kind(kind: str) -> str:
    """The kind of an artifact's units as the page names it: ``random_directions`` are units of ``random_direction``."""
    return {"random_directions": "random_direction", "sparse_neurons": "sparse_neuron"}.get(kind, kind)


def named(names: dict[str, str], key: str) -> str:
    """`key` in words; a key of someone's own with spaces for underscores."""
    return names.get(key, key.replace("_", " "))


def number(value: float | None, digits: int = 3) -> str:
    """`digits` significant digits, thousands spaced, a real minus sign; a dash for None and NaN."""
    if value is None or math.isnan(value):
        return NOTHING
    if math.isinf(value):
        return "∞" if value > 0 else f"{MINUS}∞"
    if value == 0:
        return "0"
    if float(value).is_integer() and abs(value) < 1e15:
        return count(int(value))
    exponent = math.floor(math.log10(abs(value)))
    if exponent < -4 or exponent > 6:
        mantissa, power = f"{value:.{digits - 1}e}".split("e")
        return f"{mantissa.replace('-', MINUS)}×10{superscript(int(power))}"
    return f"{value:,.{max(digits - 1 - exponent, 0)}f}".replace(",", THIN).replace("-", MINUS)


def count(value: int) -> str:
    """A whole number, thousands spaced."""
    return f"{value:,}".replace(",", THIN).replace("-", MINUS)


def compact(value: int) -> str:
    """A large number as thousands or millions: ``250 k``, ``1.5 M``."""
    for size, letter in ((10**9, "G"), (10**6, "M"), (10**3, "k")):
        if abs(value) >= size:
            return f"{value / size:.3g}{THIN}{letter}"
    return count(value)


def fixed(value: SupportsFloat | None, decimals: int = 2, signed: bool = False) -> str:
    """A number with so many decimals, for columns that are compared line by line."""
    if value is None or math.isnan(value):
        return NOTHING
    shown = round(float(value), decimals) + 0.0  # + 0.0: no "−0.00"
    text = f"{shown:+.{decimals}f}" if signed and shown else f"{shown:.{decimals}f}"
    return text.replace("-", MINUS)


def percent(share: float | None, decimals: int = 0) -> str:
    """A share as a percentage; never 0 or 100 for what is only close to it."""
    if share is None or math.isnan(share):
        return NOTHING
    finest = 10.0**-decimals
    if 0 < share < finest / 200:
        return f"<{THIN}{finest:g}{THIN}%"
    if 1 - finest / 200 <= share < 1:
        return f">{THIN}{100 - finest:g}{THIN}%"
    return f"{100 * share:.{decimals}f}".replace("-", MINUS) + f"{THIN}%"


def p_value(p: float) -> str:
    """A p value; tiny ones as a bound."""
    if math.isnan(p):
        return NOTHING
    return "< 0.001" if p < 0.001 else f"{p:.3f}"


def interval(value: Interval | None, decimals: int = 2, signed: bool = False) -> str:
    """``[low, high]``, a dash when there is none."""
    if value is None or math.isnan(value.low) or math.isnan(value.high):
        return NOTHING
    return f"[{fixed(float(value.low), decimals, signed)}, {fixed(float(value.high), decimals, signed)}]"


def spread(values: Sequence[float], decimals: int = 2, signed: bool = False) -> str:
    """Several numbers as "a to b", or as one when they read the same; "a and b" for two."""
    texts = [fixed(value, decimals, signed) for value in sorted(values) if not math.isnan(value)]
    if not texts:
        return NOTHING
    return texts[0] if texts[0] == texts[-1] else f"{texts[0]} to {texts[-1]}"


def listed(items: Sequence[str]) -> str:
    """``a, b and c``."""
    return " and ".join([", ".join(items[:-1]), items[-1]] if len(items) > 1 else list(items))


def plural(n: int, word: str, words: str = "") -> str:
    """``1 scene``, ``3 scenes``."""
    return f"{count(n)} {word if n == 1 else words or word + 's'}"


def superscript(power: int) -> str:
    """A power as raised digits."""
    return str(power).translate(str.maketrans("-0123456789", "⁻⁰¹²³⁴⁵⁶⁷⁸⁹"))
