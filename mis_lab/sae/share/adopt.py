"""SAEs of other libraries turned into ours: read, checked against the site they are for, written with a card."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch

from mis_lab.core.errors import ConfigError, StoreError
from mis_lab.core.files import read_json
from mis_lab.core.keys import hash_file
from mis_lab.sae import io
from mis_lab.sae.share.export import UNKNOWN_LICENCE, SharedPrecision, write
from mis_lab.sae.share.formats import overcomplete, saelens, thesis
from mis_lab.sae.share.formats.foreign import Foreign, Settings
from mis_lab.sae.share.provenance import ENTRY, FinishedRun, Provenance


def _own(path: Path, given: Mapping[str, str]) -> Foreign:
    Settings("mis_lab", given, {})
    sae = io.load(path)
    made = read_json(path / io.DESCRIPTION).get(ENTRY, {})
    return Foreign(sae.float(), made.get("site", {}).get("path", ""), made)


READERS: dict[str, Callable[[Path, Mapping[str, str]], Foreign]] = {
    "mis_lab": _own,
    "saelens": saelens.read,
    "overcomplete": overcomplete.read,
    "thesis": thesis.read,
}
FILES = {"saelens": saelens.WEIGHTS}  # the one that is hashed, of formats that are folders


def adopt(
    source: Path,
    folder: Path,
    format_name: str,
    site: str = "",
    run: FinishedRun | None = None,
    width: int = 0,
    settings: Mapping[str, str] | None = None,
    licence: str = UNKNOWN_LICENCE,
) -> Path:
    """Write the SAE in `source` into `folder`, in our format.

    Args:
        source: file or folder.
        folder: gets ``sae.safetensors``, ``sae.json`` and a card.
        format_name: one of :data:`READERS`.
        site: where it belongs; what the file says by default.
        run: a finished run with an SAE at that site, whose width, network and data set are then known.
        width: of the site, where there is no such run; 0 = not known.
        settings: what the format does not say.
        licence: goes into the card.

    Raises:
        ConfigError: for an unknown format or setting.
        StoreError: when `source` is damaged, of another architecture, or not of the site's width.
    """
    if format_name not in READERS:
        raise ConfigError(f"no format {format_name}", fix=f"Use one of {', '.join(READERS)}.")
    if not source.exists():
        raise StoreError(f"no file or folder {source}")
    try:
        found = READERS[format_name](source, settings or {})
    except (AttributeError, KeyError, TypeError, ValueError) as error:
        told = " ".join(str(error).split())
        raise StoreError(
            f"{source} is no {format_name} SAE that can be read ({type(error).__name__}: {told})"
        ) from error
    if not all(torch.isfinite(tensor).all() for tensor in found.sae.state_dict().values()):
        raise StoreError(f"the SAE in {source} has weights that are not finite, as they are read")
    site = site or found.site
    if run is not None and not site:
        raise ConfigError(f"{source} does not say its site", fix=f"Add --site, one of {', '.join(run.sites)}.")
    known = run.place(site) if run is not None else Provenance()
    for expected, whose in ((known.site.get("width", 0), f"{site} of the run"), (width, site or "the site")):
        if expected and expected != found.sae.width:
            raise StoreError(f"the SAE in {source} reads vectors of width {found.sae.width}, {whose} has {expected}")
    if format_name == "mis_lab":
        made = Provenance(**found.about)
    else:
        made = Provenance(origin=_origin(source, format_name, found, settings or {}))
    made = replace(
        made,
        site=known.site or ({"path": site} if site not in ("", made.site.get("path")) else made.site),
        network=known.network or made.network,
    )
    write(found.sae, made, folder, folder, SharedPrecision.float32, licence)
    return folder


def _origin(source: Path, format_name: str, found: Foreign, settings: Mapping[str, str]) -> dict[str, Any]:
    file = source / FILES.get(format_name, "") if source.is_dir() else source
    return {
        "format": format_name,
        "file": source.name,
        "sha256": hash_file(file) if file.is_file() else "",
        "settings": dict(settings),
        "said": dict(found.about),
    }
