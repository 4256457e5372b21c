"""Model cards: ``README.md`` with a YAML header that a hub reads, and what a person wants to know first."""

from __future__ import annotations

import inspect
import re
import sys
from collections.abc import Iterable, Mapping
from typing import Any

import yaml

from mis_lab import __version__
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.share.provenance import Provenance

LIBRARY = "mis_lab"
DOCS_PAGE = re.compile(r"docs/\S+\.md\.?")
TAGS = ("sparse-autoencoder", "interpretability", "vision", LIBRARY)
PARTS = {"seen": "groups it was trained on", "held_out": "held-out groups"}
READ_BY_MACHINES = ("site", "network", "dataset", "seeds", "evaluation", "origin")
MEASURES = {
    "fvu": "share of the variance that is missed (FVU)",
    "l0": "active features a vector (L0)",
    "dead_share": "share of features that never fire",
    "recovered_mean": "loss recovered, against the site's mean vector",
    "recovered_zero": "loss recovered, against zeros at the site",
    "kl": "KL(network ‖ network with the reconstruction), nats",
    "agreement": "images whose predicted class stays",
    "n_images": "images",
    "n_vectors": "vectors",
}


def formula(sae: Autoencoder) -> str:
    """What the architecture computes and where it was published: its module's docstring, less the way to our docs."""
    documented = sys.modules[type(sae).__module__].__doc__ or type(sae).__doc__ or ""
    paragraphs = [" ".join(DOCS_PAGE.sub("", part).split()) for part in inspect.cleandoc(documented).split("\n\n")]
    return "\n\n".join(filter(None, paragraphs))


def sae_card(sae: Autoencoder, made: Provenance, where: str, precision: str, licence: str) -> str:
    """The card of one SAE.

    Args:
        sae: with the weights that are shared.
        made: where it comes from.
        where: how :func:`~mis_lab.sae.load_sae` finds it, seen from the folder that is shared.
        precision: of the stored weights.
        licence: an identifier of the hub's list (``apache-2.0``).
    """
    site = made.site.get("path", "")
    scale = float(sae.scale)
    facts = {
        "architecture": type(sae).__name__,
        "site": site or "not said",
        "layout": made.site.get("layout"),
        "width": sae.width,
        "features": sae.n_features,
        "network": made.network.get("name"),
        "weights of the network": made.network.get("fingerprint"),
        "data set": "/".join(filter(None, (made.dataset.get("name"), made.dataset.get("split")))),
        "fingerprint of the data": made.dataset.get("fingerprint"),
        "normalisation": _normalisation(made, scale),
        "training budget": _budget(made.training),
        "seeds": _listed(made.seeds),
        "precision of the weights": precision,
        "artifact": made.artifact,
        "licence": licence,
    }
    title = " ".join(filter(None, [type(sae).__name__, f"at {site}" if site else "", _of(made)]))
    parts = [
        header(licence, _machine_readable(sae, made, precision)),
        f"# {title}",
        formula(sae),
        _table(("", ""), ((name, value) for name, value in facts.items() if value not in (None, ""))),
        _quality(made.evaluation),
        _loading(where),
        _making(made),
    ]
    return "\n\n".join(parts) + "\n"


def overview_card(cards: Mapping[str, Mapping[str, Any]], licence: str, name: str) -> str:
    """The card of a folder of SAEs, for a hub's front page.

    Args:
        cards: folder → facts to show.
        licence: identifier of the hub's list.
        name: of the folder.
    """
    columns = list(dict.fromkeys(column for facts in cards.values() for column in facts))
    rows = [
        (f"[{folder}]({folder}/README.md)", *(facts.get(at, "") for at in columns)) for folder, facts in cards.items()
    ]
    parts = [
        header(licence, {"saes": list(cards)}),
        f"# Sparse autoencoders: {name}",
        _table(("SAE", *columns), rows),
        _loading(f"{name}/{next(iter(cards))}"),
    ]
    return "\n\n".join(parts) + "\n"


def header(licence: str, more: Mapping[str, Any]) -> str:
    """The YAML header; what is ours stands under ``mis_lab``."""
    values = {"license": licence, "library_name": LIBRARY, "tags": list(TAGS), LIBRARY: dict(more)}
    return f"---\n{yaml.safe_dump(values, sort_keys=False, allow_unicode=True, width=1000)}---"


def overview_row(sae: Autoencoder, made: Provenance) -> dict[str, Any]:
    """The facts of one SAE in the overview."""
    part = next((part for part in ("held_out", "seen") if made.evaluation.get(part)), "")
    best = made.evaluation.get(part, {})
    return {
        "architecture": type(sae).__name__,
        "width": sae.width,
        "features": sae.n_features,
        **{
            f"{label}, {PARTS[part]}": _number(best[key])
            for key, label in (("fvu", "FVU"), ("l0", "L0"))
            if key in best
        },
    }


def _machine_readable(sae: Autoencoder, made: Provenance, precision: str) -> dict[str, Any]:
    told = made.as_json()
    return {
        "version": __version__,
        "architecture": type(sae).__name__,
        "width": sae.width,
        "n_features": sae.n_features,
        "precision": precision,
        **{name: told[name] for name in READ_BY_MACHINES if name in told},
    }


def _normalisation(made: Provenance, scale: float) -> str:
    kind = made.training.get("normalisation")
    told = f"vectors are multiplied by {scale:.6g} inside" if scale != 1 else "none: vectors are taken as they are"
    return f"{kind}: {told}" if kind and scale != 1 else told


def _budget(training: Mapping[str, Any]) -> str:
    if "n_vectors" not in training:
        return ""
    return f"{training['n_vectors']} vectors in batches of {training['batch_size']}, lr {training['lr']}"


def _quality(evaluation: Mapping[str, Mapping[str, float]]) -> str:
    if not evaluation:
        return "## Quality\n\nNot evaluated where it was exported."
    rows = [
        (label, *(_number(numbers[name]) if name in numbers else "" for numbers in evaluation.values()))
        for name, label in MEASURES.items()
        if any(name in numbers for numbers in evaluation.values())
    ]
    names = [PARTS.get(part, part) for part in evaluation]
    return "## Quality\n\n" + _table(("on images of", *names), rows)


def _loading(where: str) -> str:
    return (
        "## Load\n\n```python\n"
        "from mis_lab.sae import load_sae\n"
        f'sae = load_sae("{where}")\n'
        "codes = sae.encode(x)  # x: (..., width), raw activations of the site\n"
        "```\n\n`sae.decode(codes)` gives them back; `sae.json` says the rest of what is known."
    )


def _making(made: Provenance) -> str:
    if made.origin:
        origin = {name: value for name, value in made.origin.items() if value not in ("", {}, None)}
        return "## How it was made\n\nImported. " + "; ".join(
            f"{name}: {_text(value)}" for name, value in origin.items()
        )
    if not made.command:
        return "## How it was made\n\nNot said."
    versions = _listed(made.versions)
    return f"## How it was made\n\n```bash\n{made.command}\n```" + (f"\n\nWith {versions}." if versions else "")


def _of(made: Provenance) -> str:
    return f"of {made.network['name']}" if made.network.get("name") else ""


def _listed(values: Mapping[str, Any]) -> str:
    return ", ".join(f"{name} {value}" for name, value in values.items() if value is not None)


def _text(value: Any) -> str:
    return _listed(value) if isinstance(value, Mapping) else str(value)


def _number(value: float) -> str:
    return str(int(value)) if float(value).is_integer() else f"{value:.4g}"


def _table(names: Iterable[str], rows: Iterable[Iterable[Any]]) -> str:
    names = list(names)
    cells = [[str(cell).replace("|", "\\|") for cell in row] for row in rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in [names, ["---"] * len(names), *cells])
