"""Which files a type of DreamSim is made of, where they come from, and whether they are here and the right ones.

Types and the address of each type's archive are read from the installed package's own table, without importing the
package (its import takes many seconds). An archive has no networks of torch hub: the package runs the code of the
repositories ``facebookresearch/dino`` and ``dinov2``, which this reads from `folder` too.
"""

from __future__ import annotations

import runpy
from collections.abc import Mapping
from importlib.util import find_spec
from pathlib import Path
from typing import NamedTuple

from mis_lab.core.errors import ConfigError, MissingFileError, nearest_first
from mis_lab.core.keys import hash_file

_HUB = "https://github.com/facebookresearch/"
_HUB_WEIGHTS = "https://dl.fbaipublicfiles.com/"
DINO_CODE, DINOV2_CODE = "facebookresearch_dino_main", "facebookresearch_dinov2_main"

# Network → its file in the package's archive, and what torch hub brings: place below the folder → source.
BACKBONES: dict[str, tuple[str, dict[str, str]]] = {
    "dino_vitb16": (
        "dino_vitb16_pretrain.pth",
        {
            **{f"{DINO_CODE}/{name}.py": _HUB + "dino" for name in ("hubconf", "utils", "vision_transformer")},
            "checkpoints/dino_vitbase16_pretrain.pth": _HUB_WEIGHTS
            + "dino/dino_vitbase16_pretrain/dino_vitbase16_pretrain.pth",
        },
    ),
    "dinov2_vitb14": (
        "dinov2_vitb14_pretrain.pth",
        {
            f"{DINOV2_CODE}/hubconf.py": _HUB + "dinov2",
            "checkpoints/dinov2_vitb14_pretrain.pth": _HUB_WEIGHTS + "dinov2/dinov2_vitb14/dinov2_vitb14_pretrain.pth",
        },
    ),
    "clip_vitb16": ("clip_vitb16_pretrain.pth.tar", {}),
    "clip_vitb32": ("clip_vitb32_pretrain.pth.tar", {}),
    "open_clip_vitb16": ("open_clip_vitb16_pretrain.pth.tar", {}),
    "open_clip_vitb32": ("open_clip_vitb32_pretrain.pth.tar", {}),
    "synclr_vitb16": ("synclr_vit_b_16.pth", {}),
}
ADAPTERS = ("adapter_model.safetensors", "adapter_model.bin")  # either will do


class DreamSimType(NamedTuple):
    """One type of the package.

    Attributes:
        name: of the type.
        backbones: the networks whose features stand side by side.
        archive: address of the package's archive.
    """

    name: str
    backbones: tuple[str, ...]
    archive: str

    @property
    def is_patch(self) -> bool:
        """Whether patches count beside the class token."""
        return self.name.endswith("_patch")

    @property
    def adapter_dir(self) -> str:
        """Folder of the adapter, as the package names it."""
        if self.name == "ensemble":
            return "ensemble_lora"
        return f"{self.backbones[0]}_{'patch' if self.is_patch else 'single'}_lora"

    @property
    def sources(self) -> dict[str, str]:
        """Every file it needs, below the folder → where it comes from."""
        found: dict[str, str] = {}
        for backbone in self.backbones:
            in_archive, from_hub = BACKBONES[backbone]
            found |= {in_archive: self.archive} | from_hub
        return found | {f"{self.adapter_dir}/{name}": self.archive for name in ("adapter_config.json", ADAPTERS[0])}


def find_type(name: str) -> DreamSimType:
    """The type of this name.

    Raises:
        ConfigError: when the package is not installed, or has no such type.
    """
    spec = find_spec("dreamsim")
    if spec is None or not spec.submodule_search_locations:
        raise ConfigError("metric dreamsim needs the package dreamsim", fix="Install dreamsim>=0.2.1.")
    table = runpy.run_path(str(Path(spec.submodule_search_locations[0]) / "config.py"))
    networks, archives = table["dreamsim_args"]["model_config"], table["dreamsim_weights"]
    types = {}
    for offered in networks:
        backbones = tuple(networks[offered]["model_type"].split(","))
        if offered in archives and {*backbones} <= {*BACKBONES}:
            types[offered] = DreamSimType(offered, backbones, archives[offered])
    if name not in types:
        raise ConfigError(
            f"metric.type={name} is no type of DreamSim", fix=f"Use {', '.join(nearest_first(name, types))}."
        )
    return types[name]


def present(kind: DreamSimType, folder: Path) -> tuple[list[str], list[str]]:
    """The files of a type that are in `folder`, and those that are missing."""
    there, missing = [], []
    for place in kind.sources:
        names = [place]
        if place.endswith(ADAPTERS[0]):
            names = [place.replace(ADAPTERS[0], name) for name in ADAPTERS]
        found = [name for name in names if (folder / name).is_file()]
        there += found[:1]
        missing += [] if found else [place]
    return there, missing


def require_files(kind: DreamSimType, folder: Path, known: Mapping[str, str]) -> dict[str, str]:
    """sha256 of every file that decides the embeddings, code from torch hub included, by its place below `folder`.

    Args:
        known: place → what its sha256 begins with.

    Raises:
        MissingFileError: naming all files that are missing and their sources, or the first that is another one.
        ConfigError: when `known` names a file that the type does not use.
    """
    there, missing = present(kind, folder)
    if missing:
        by_source: dict[str, list[str]] = {}
        for place in missing:
            by_source.setdefault(kind.sources[place], []).append(place)
        fix = "; ".join(f"{', '.join(places)} from {source}" for source, places in by_source.items())
        raise MissingFileError(
            f"DreamSim {kind.name} lacks {len(missing)} files: {', '.join(missing)}",
            looked=folder.absolute(),
            fix=f"Put there {fix}; or set metric.download=true.",
        )
    code = [path for place in there if place.endswith("hubconf.py") for path in (folder / place).parent.rglob("*.py")]
    places = dict.fromkeys([*there, *sorted(path.relative_to(folder).as_posix() for path in code)])
    unknown = [place for place in known if place not in places]
    if unknown:
        raise ConfigError(
            f"metric.sha256 names {', '.join(unknown)}, which DreamSim {kind.name} does not use",
            fix=f"Its files are {', '.join(kind.sources)}.",
        )
    found = {place: hash_file(folder / place) for place in places}
    for place, expected in known.items():
        if not found[place].startswith(expected.lower()):
            raise MissingFileError(
                f"{folder / place} is not the file expected (sha256 {found[place][:12]}, not {expected[:12]})",
                fix=f"Fetch it again from {kind.sources.get(place, _HUB)}, or mend metric.sha256.",
            )
    return found
