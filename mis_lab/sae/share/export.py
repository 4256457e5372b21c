"""From a run to folders that others can load: weights, description with provenance, model card; one folder a site."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from pathlib import Path

import torch

from mis_lab.core.errors import StoreError
from mis_lab.core.files import read_json, write_json, write_text
from mis_lab.sae import io
from mis_lab.sae.base import Autoencoder
from mis_lab.sae.share.card import overview_card, overview_row, sae_card
from mis_lab.sae.share.load import PRETRAINED, SCHEME, folder_name, folders_of, load_sae
from mis_lab.sae.share.provenance import ENTRY, FinishedRun, Provenance

CARD = "README.md"
UNKNOWN_LICENCE = "unknown"


class SharedPrecision(Enum):
    """Type of the stored matrices; vectors and single numbers stay float32."""

    float32 = 0
    float16 = 1


def export(
    run_dir: Path,
    folder: Path,
    sites: Sequence[str] = (),
    precision: SharedPrecision = SharedPrecision.float32,
    licence: str = UNKNOWN_LICENCE,
    store: Path | None = None,
) -> list[Path]:
    """Write the SAEs of a finished run into `folder`.

    Args:
        run_dir: the run's folder.
        folder: gets a folder for each site, and a card about all of them.
        sites: which; all of the run by default.
        precision: see :class:`SharedPrecision`.
        licence: goes into the cards; an identifier of the hub's list.
        store: where the run's artifacts are, if they moved.

    Returns:
        The sites' folders.

    Raises:
        StoreError: when the run is not finished, has no such SAE, or weights are too large for float16.
    """
    run = FinishedRun(run_dir, store)
    wanted = list(sites) or run.sites
    if not wanted:
        raise StoreError(f"the run {run_dir} has no SAE", fix="Run it with sae=topk (or another) and the stage sae.")
    sources = {site: run.sae_folder(site) for site in wanted}  # says what is missing before anything is written
    written = []
    for site, source in sources.items():
        target = folder / folder_name(site)
        write(io.load(source), run.provenance(site), target, folder, precision, licence)
        written.append(target)
    write_overview(folder, licence)
    return written


def write(
    sae: Autoencoder, made: Provenance, folder: Path, shared: Path, precision: SharedPrecision, licence: str
) -> None:
    """Write one SAE with its provenance and card; `shared` is `folder`, or the folder of it and others."""
    if precision is SharedPrecision.float16:
        halve(sae, folder)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise StoreError(f"{folder} cannot be made: {error.strerror}", fix="Name a folder that can.") from error
    (folder / io.DESCRIPTION).unlink(missing_ok=True)  # an interrupted rewrite must not pair old and new files
    io.save(sae, folder)
    write_text(folder / CARD, sae_card(sae, made, _where(folder, shared), precision.name, licence))
    write_json(folder / io.DESCRIPTION, read_json(folder / io.DESCRIPTION) | {ENTRY: made.as_json()})


def write_overview(folder: Path, licence: str) -> None:
    """Write the card of all the SAEs that `folder` has by now."""
    rows = {
        name: overview_row(load_sae(path), Provenance(**read_json(path / io.DESCRIPTION).get(ENTRY, {})))
        for name, path in folders_of(folder).items()
    }
    write_text(folder / CARD, overview_card(rows, licence, _where(folder, folder)))


def _where(folder: Path, shared: Path) -> str:
    """How `folder` is loaded by whoever has mis_lab installed, or `shared` beside them."""
    folder, shared = folder.absolute(), shared.absolute()
    if PRETRAINED in folder.parents:
        return f"{SCHEME}{folder.relative_to(PRETRAINED).as_posix()}"
    return folder.relative_to(shared.parent).as_posix()


@torch.no_grad()
def halve(sae: Autoencoder, folder: Path) -> None:
    """Turn the matrices of `sae` into float16, in place.

    Raises:
        StoreError: when a number is too large for it.
    """
    for name, tensor in [*sae.named_parameters(), *sae.named_buffers()]:
        if tensor.dim() >= 2 and tensor.is_floating_point():
            if tensor.abs().max() > torch.finfo(torch.float16).max:
                raise StoreError(
                    f"{name} of {folder.name} has numbers up to {tensor.abs().max():.3g}, too large for float16",
                    fix="Use --precision float32.",
                )
            tensor.data = tensor.data.half()
