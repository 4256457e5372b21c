"""SAEs by folder or by the name under which they travel with mis_lab (``pretrained:quickstart/blocks.4``)."""

from __future__ import annotations

from pathlib import Path

import torch

from mis_lab.core.errors import StoreError, nearest_first
from mis_lab.sae import io
from mis_lab.sae.base import Autoencoder

PRETRAINED = Path(__file__).resolve().parent.parent / "pretrained"
SCHEME = "pretrained:"
HALVES = (torch.float16, torch.bfloat16)


def load_sae(where: str | Path, site: str | None = None, pretrained: Path = PRETRAINED) -> Autoencoder:
    """An SAE ready to encode: on the CPU, in float32 whatever it was stored in, its parameters frozen.

    Args:
        where: a folder with ``sae.json``, a folder of such folders (one a site), or ``pretrained:NAME[/SITE]``.
        site: which of several; may be left out where there is one.
        pretrained: folder of the names after ``pretrained:``.

    Raises:
        StoreError: when there is none, several and no `site`, or a file is missing or damaged; the first two list what
            there is.
    """
    sae = io.load(_folder(str(where), site, pretrained))
    halved = any(tensor.dtype in HALVES for tensor in sae.state_dict().values())
    return sae.float() if halved else sae


def folders_of(folder: Path) -> dict[str, Path]:
    """Site → folder of every SAE in `folder`: itself (the site is its own name then), or those in it."""
    if (folder / io.DESCRIPTION).is_file():
        return {folder.name: folder}
    return {path.parent.name: path.parent for path in sorted(folder.glob(f"*/{io.DESCRIPTION}"))}


def folder_name(site: str) -> str:
    """Name of a site's folder: the path of its module."""
    return site.replace("/", "-")


def _folder(where: str, site: str | None, pretrained: Path) -> Path:
    if where.startswith(SCHEME):
        name, _, in_name = where.removeprefix(SCHEME).partition("/")
        folder, site = pretrained / name, site or in_name or None
        if not name or not folders_of(folder):
            there = [
                f"{SCHEME}{path.name}/{found}"
                for path in sorted(pretrained.glob("*"))
                for found in folders_of(path)
                if path.is_dir()
            ]
            listed = ", ".join(nearest_first(where, there)) or "none: this copy of mis_lab has no packaged SAEs"
            raise StoreError(f"no packaged SAE {where}", looked=pretrained, fix=f"There are {listed}.")
    else:
        folder = Path(where)
    found = folders_of(folder)
    if not found:
        raise StoreError(
            f"no SAE in {folder}",
            looked=folder / io.DESCRIPTION,
            fix="'mis-lab sae export' writes such a folder from a run, 'mis-lab sae import' from another library.",
        )
    if site is None and len(found) == 1:
        return next(iter(found.values()))
    if site is not None and folder_name(site) in found:
        return found[folder_name(site)]
    sites = ", ".join(nearest_first(site or "", found))
    raise StoreError(
        f"{where} has SAEs of {len(found)} sites, not of {site}" if site else f"{where} has SAEs of {len(found)} sites",
        fix=f"Choose one of {sites}.",
    )
