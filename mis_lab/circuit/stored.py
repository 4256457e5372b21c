"""Measures of circuits as tensors on disk, each in a file of its own."""

# n images  S sizes  R random draws  F features

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from mis_lab.circuit.activity import Activity, ActivityBeside
from mis_lab.circuit.agreement import ExactAgreement
from mis_lab.circuit.circuit import Circuit, Node
from mis_lab.circuit.completeness import ComplementCurve
from mis_lab.circuit.faithfulness import Curve
from mis_lab.circuit.minimality import Minimality
from mis_lab.core.tensors import read_tensors, write_tensors

CURVE = ("sizes", "values", "random_values", "live_values", "groups_n")
COMPLEMENT = ("sizes", "values", "groups_n")
_ACTIVITY = ("mean", "mean_if_active", "active_images", "density")


def write_curve(path: Path, curve: Curve | ComplementCurve) -> None:
    """Write a curve's arrays; its kind is told elsewhere."""
    names = CURVE if isinstance(curve, Curve) else COMPLEMENT
    write_tensors(path, {name: torch.tensor(getattr(curve, name)) for name in names})


def read_curve(path: Path, kind: str) -> Curve:
    """Read what :func:`write_curve` wrote of a curve."""
    return Curve(kind, **_arrays(path))


def read_complement(path: Path, kind: str) -> ComplementCurve:
    """Read what :func:`write_curve` wrote of a complement's curve."""
    return ComplementCurve(kind, **_arrays(path))


def write_minimality(folder: Path, measured: Minimality) -> None:
    """Write ``minimality.json``, its circuit, and ``minimality_values.safetensors``."""
    measured.circuit.save(folder, "minimality")
    arrays = {"whole": measured.whole, "without": measured.without, "moved": np.float64(measured.moved)}
    write_tensors(
        folder / "minimality_values.safetensors", {name: torch.tensor(array) for name, array in arrays.items()}
    )


def read_minimality(folder: Path) -> Minimality:
    """Read what :func:`write_minimality` wrote."""
    arrays = _arrays(folder / "minimality_values.safetensors")
    moved = float(arrays["moved"])
    return Minimality(Circuit.load(folder, "minimality"), arrays["whole"], arrays["without"], moved)


def write_agreement(path: Path, found: ExactAgreement, sites: Sequence[str]) -> None:
    """Write the nodes compared and both effects; sites are numbers into `sites`."""
    rows = {
        "site": [list(sites).index(node.site) for node in found.nodes],
        "feature": [node.feature for node in found.nodes],
        "n_top": found.n_top,
        "signed": int(found.signed),
    }
    columns = {name: torch.tensor(numbers, dtype=torch.int64) for name, numbers in rows.items()}
    effects = {"estimated": torch.tensor(found.estimated), "exact": torch.tensor(found.exact)}
    write_tensors(path, columns | effects)


def read_agreement(path: Path, sites: Sequence[str]) -> ExactAgreement:
    """Read what :func:`write_agreement` wrote."""
    rows = _arrays(path)
    nodes = zip(rows["site"].tolist(), rows["feature"].tolist(), strict=True)
    return ExactAgreement(
        tuple(Node(sites[site], feature) for site, feature in nodes),
        int(rows["n_top"]),
        rows["estimated"],
        rows["exact"],
        bool(rows["signed"]),
    )


def write_activity(path: Path, beside: Mapping[str, ActivityBeside]) -> None:
    """Write the activity of every site, ``site/circuit/mean`` and so on."""
    tensors = {}
    for site, of_site in beside.items():
        for where, some in (("circuit", of_site.circuit), ("everything", of_site.everything)):
            tensors[f"{site}/{where}/n_images"] = torch.tensor(some.n_images)
            tensors |= {f"{site}/{where}/{name}": getattr(some, name) for name in _ACTIVITY}
    write_tensors(path, tensors)


def read_activity(path: Path, sites: Sequence[str]) -> dict[str, ActivityBeside]:
    """Read what :func:`write_activity` wrote."""
    tensors = read_tensors(path)

    def of(prefix: str) -> Activity:
        numbers = {name: tensors[f"{prefix}/{name}"] for name in _ACTIVITY}
        return Activity(int(tensors[f"{prefix}/n_images"]), **numbers)

    return {site: ActivityBeside(of(f"{site}/circuit"), of(f"{site}/everything")) for site in sites}


def _arrays(path: Path) -> dict[str, np.ndarray]:
    return {name: values.numpy() for name, values in read_tensors(path).items()}
