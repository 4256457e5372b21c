"""Measures of circuits as numbers for people: entries of ``circuit.json``, and the flat headline of a stage."""

# S sizes

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from mis_lab.circuit.activity import ActivityBeside
from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.circuit.circuit import Circuit
from mis_lab.circuit.completeness import ComplementCurve
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.graph import Edges
from mis_lab.circuit.minimality import Minimality
from mis_lab.core.intervals import Interval

AREAS = ("cpr", "cmd", "cpr_log", "cmd_log")


def listed(values: Any) -> list[float]:
    """An array as plain numbers."""
    return np.asarray(values, dtype=np.float64).tolist()


def numbers(interval: Interval) -> list[float]:
    """Estimate, low, high."""
    return [float(number) for number in interval]


def interval_of(told: list[float]) -> Interval:
    """What :func:`numbers` told."""
    return Interval(*told)


def of_curve(curve: Curve) -> dict[str, Any]:
    """Faithfulness of every size, areas, and the random circuits."""
    faithfulness, random = curve.faithfulness, curve.random
    return {
        "sizes": curve.sizes.tolist(),
        "fractions": curve.fractions.tolist(),
        "faithfulness": listed(faithfulness.estimate),
        "low": listed(faithfulness.low),
        "high": listed(faithfulness.high),
        "random": {
            "mean": listed(random.mean(0)),
            "lowest": listed(random.min(0)),
            "highest": listed(random.max(0)),
        },
        "live_only": curve.live_only,
        **areas(curve),
        "random_cpr": listed(curve.random_cpr),
        "random_cmd": listed(curve.random_cmd),
        "n_groups": len(np.unique(curve.groups_n)),
    }


def areas(curve: Curve) -> dict[str, list[float]]:
    """CPR and CMD over the share of nodes and over its logarithm."""
    return {name: numbers(getattr(curve, name)) for name in AREAS}


def of_areas(curve: Curve) -> dict[str, float]:
    """The areas alone, and the mean of the random circuits' CMD."""
    found = {name: float(getattr(curve, name).estimate) for name in AREAS}
    return found | {"random_cmd": float(curve.random_cmd.mean())}


def of_other(curve: Curve) -> dict[str, Any]:
    """Faithfulness and areas of a circuit that another is compared with."""
    return {"faithfulness": listed(curve.faithfulness.estimate), **areas(curve)}


def of_complement(curve: ComplementCurve) -> dict[str, Any]:
    """Completeness of every size."""
    completeness = curve.completeness
    named = zip(("completeness", "low", "high"), completeness, strict=True)
    return {"sizes": curve.sizes.tolist()} | {name: listed(values) for name, values in named}


def of_minimality(measured: Minimality) -> dict[str, Any]:
    """Minimality of every node, their median, and the share without need."""
    return {
        "per_node": listed(measured.per_node),
        "median": measured.median,
        "needless": measured.needless(),
    }


def of_edges(edges: Edges) -> dict[str, Any]:
    """How many, made how, and what they cover."""
    return {
        "n_edges": len(edges),
        "methods": edges.methods,
        "n_vjps": edges.n_vjps,
        "n_forwards": edges.n_forwards,
        "median_coverage": median_coverage(edges),
    }


def median_coverage(edges: Edges) -> float:
    """Median over upstream nodes of the share of each that its edges tell; NaN where nothing is passed on."""
    known = edges.coverage[~edges.coverage.isnan()].numpy()
    return float(np.median(known)) if len(known) else float("nan")


def of_agreement(found: ExactAgreement) -> dict[str, Any]:
    """Correlations on the largest nodes, on random ones, and on both."""
    return {name: getattr(found, name)._asdict() for name in ("top", "random", "both")}


def of_activity(beside: Mapping[str, ActivityBeside]) -> dict[str, Any]:
    """Dead shares and mean densities of every site, on the circuit's images and on all."""
    return {
        site: {
            "n_images": [of_site.circuit.n_images, of_site.everything.n_images],
            "dead_share": [of_site.circuit.dead_share, of_site.everything.dead_share],
            "mean_density": [float(of_site.circuit.density.mean()), float(of_site.everything.density.mean())],
            "silent_here": of_site.silent_here,
        }
        for site, of_site in beside.items()
    }


def of_shown(shown: Circuit) -> list[dict[str, Any]]:
    """The nodes of the pictured circuit."""
    rows = zip(shown.nodes, shown.effect, shown.standard_error, shown.n_active, strict=True)
    return [
        {
            "site": node.site,
            "feature": node.feature,
            "effect": float(effect),
            "standard_error": float(error),
            "n_active": int(n_active),
        }
        for node, effect, error, n_active in rows
    ]
