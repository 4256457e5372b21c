"""Files, hashes and the surroundings of the package's loader, with a stand-in for the package (its import is slow)."""

from __future__ import annotations

import hashlib
import importlib.util
import re
import runpy
import sys
import types
import warnings
from dataclasses import replace
from pathlib import Path
from urllib.error import URLError

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.metric import dreamsim_files
from mis_lab.metric.config import DreamSimConfig
from mis_lab.metric.dreamsim import DreamSim
from mis_lab.metric.dreamsim_files import find_type
from mis_lab.metric.load import load_metric

TYPES = [
    "ensemble",
    "dino_vitb16",
    "clip_vitb32",
    "open_clip_vitb32",
    "dinov2_vitb14",
    "synclr_vitb16",
    "dino_vitb16_patch",
    "dinov2_vitb14_patch",
]
SPEC = importlib.util.find_spec("dreamsim")
PACKAGE = Path(SPEC.submodule_search_locations[0])
ARCHIVES = runpy.run_path(str(PACKAGE / "config.py"))["dreamsim_weights"]


def fill(folder: Path, kind: str) -> dict[str, str]:
    """Files of the right names with anything inside: place → sha256."""
    hashes = {}
    for place in find_type(kind).sources:
        path = folder / place
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(f"this is {place}\n".encode() if path.suffix != ".py" else b"x = 1\n")
        hashes[place] = hashlib.sha256(path.read_bytes()).hexdigest()
    return hashes


def images(n: int) -> list[Image.Image]:
    rng = np.random.default_rng(0)
    return [Image.fromarray(rng.integers(0, 256, (30, 40, 3), dtype=np.uint8)) for _ in range(n)]


class StandIn(types.ModuleType):
    """Behaves as badly as the package does, and its network flattens small images."""

    def __init__(self, fails: Exception | None = None, patches: bool = False) -> None:
        super().__init__("dreamsim")
        self.__spec__ = SPEC
        self.asked: list[dict] = []
        self.fails, self.patches = fails, patches

    def dreamsim(self, **asked):
        self.asked.append(asked)
        torch.hub.set_dir(asked["cache_dir"])
        print("Using cached weights")
        warnings.warn("something is deprecated", stacklevel=1)
        torch.nn.Linear(3, 3)
        if self.fails:
            raise self.fails
        if (Path(asked["cache_dir"]) / dreamsim_files.DINO_CODE).exists():
            self.loaded = torch.hub.load("facebookresearch/dino:main", "dino_vitb16")

        def transform(image):
            pixels = np.asarray(image.convert("RGB").resize((4, 4)), dtype=np.float32)
            return torch.from_numpy(pixels).permute(2, 0, 1)[None] / 255

        def embed(x_bchw):
            tokens = x_bchw.flatten(2).mT  # the class token and 15 patches
            return tokens if self.patches else tokens.flatten(1)

        return types.SimpleNamespace(embed=embed), transform


@pytest.fixture
def stand_in(monkeypatch):
    def install(*arguments, **options) -> StandIn:
        package = StandIn(*arguments, **options)
        monkeypatch.setitem(sys.modules, "dreamsim", package)
        return package

    return install


@pytest.fixture(autouse=True)
def _no_network(monkeypatch):
    def refuse(*_arguments, **_options):
        raise AssertionError("the network was asked")

    monkeypatch.setattr("urllib.request.urlopen", refuse)
    monkeypatch.setattr("torch.hub.urlopen", refuse)


# Files -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", TYPES)
def test_missing_files_are_all_named_with_folder_and_source(tmp_path, kind):
    hashes = fill(tmp_path / "whole", kind)
    empty = tmp_path / "empty"
    with pytest.raises(MissingFileError) as raised:
        load_metric(DreamSimConfig(type=kind, folder=str(empty)))
    line = str(raised.value)
    assert "\n" not in line
    assert f"looked in {empty}" in line
    assert ARCHIVES[kind] in line
    assert "metric.download=true" in line
    assert f"lacks {len(hashes)} files" in line
    assert all(place in line for place in hashes)
    assert ("https://github.com/facebookresearch/dino" in line) == ("dino" in kind or kind == "ensemble")
    assert not empty.exists()
    assert not {"dreamsim", "peft", "transformers"} & ({*sys.modules} - BEFORE), "the package need not be imported"

    for place in hashes:  # one missing file at a time
        path = tmp_path / "whole" / place
        kept = path.read_bytes()
        path.unlink()
        with pytest.raises(
            MissingFileError, match=re.escape(f"lacks 1 files: {place}; looked in {tmp_path / 'whole'}")
        ):
            DreamSim(DreamSimConfig(type=kind, folder=str(tmp_path / "whole")))
        path.write_bytes(kept)


BEFORE = {*sys.modules}


def test_every_type_that_the_package_offers_is_known():
    offered = set(runpy.run_path(str(PACKAGE / "config.py"))["dreamsim_args"]["model_config"])
    assert offered == {*TYPES}
    for kind in TYPES:
        assert find_type(kind).archive == ARCHIVES[kind]


@pytest.mark.parametrize("kind", TYPES)
def test_what_the_package_asks_for_is_among_the_files(kind):
    """The table inside its downloader, read from its source."""
    source = (PACKAGE / "model.py").read_text()
    table = source.partition("dreamsim_required_ckpts = {")[2].partition("}")[0]
    (entry,) = re.findall(rf'"{kind}": \[(.*?)\]', table, re.DOTALL)
    places = find_type(kind).sources
    for required in re.findall(r'"([^"]+)"', entry):
        assert any(place == required or place.startswith(f"{required}/") for place in places), required


def test_an_adapter_of_either_kind_will_do(tmp_path):
    fill(tmp_path, "clip_vitb32")
    adapter = tmp_path / "clip_vitb32_single_lora" / "adapter_model.safetensors"
    one = DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path))).fingerprint
    adapter.rename(adapter.with_suffix(".bin"))
    assert DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path))).fingerprint != one


def test_an_unknown_type_and_a_missing_package_are_told(monkeypatch):
    with pytest.raises(ConfigError, match=r"metric\.type=dino_vitb17 is no type of DreamSim\. Use dino_vitb16"):
        DreamSim(DreamSimConfig(type="dino_vitb17"))
    monkeypatch.setattr(dreamsim_files, "find_spec", lambda name: None)
    with pytest.raises(ConfigError, match="needs the package dreamsim"):
        DreamSim(DreamSimConfig())


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(tmp_path):
    fill(tmp_path, "ensemble")
    with pytest.raises(ConfigError, match="device=cuda:1 is not available"):
        DreamSim(DreamSimConfig(folder=str(tmp_path)), "cuda:1")


def test_a_known_sha256_is_checked(tmp_path):
    hashes = fill(tmp_path, "ensemble")
    config = DreamSimConfig(folder=str(tmp_path))
    first = "dino_vitb16_pretrain.pth"
    right = DreamSim(replace(config, sha256={place: sha256[:16].upper() for place, sha256 in hashes.items()}))
    assert right.fingerprint == DreamSim(config).fingerprint
    with pytest.raises(
        MissingFileError, match=rf"{first} is not the file expected \(sha256 {hashes[first][:12]}, not 01234567\)"
    ):
        DreamSim(replace(config, sha256={first: "01234567"}))
    with pytest.raises(ConfigError, match=r"metric\.sha256 names other\.pth, which DreamSim ensemble does not use"):
        DreamSim(replace(config, sha256={"other.pth": "01234567"}))


@pytest.mark.parametrize("text", ["", "0123", "not hexadecimal", "0" * 65])
def test_what_is_no_sha256_is_refused(text):
    with pytest.raises(ConfigError, match=r"metric\.sha256\[a\.pth\]=.* is no beginning of a sha256"):
        DreamSimConfig(sha256={"a.pth": text})


def test_the_fingerprint_follows_type_and_content_of_every_file_but_no_place(tmp_path):
    hashes = fill(tmp_path / "a", "ensemble")
    fill(tmp_path / "b", "ensemble")
    config = DreamSimConfig(folder=str(tmp_path / "a"))
    one = DreamSim(config).fingerprint
    assert DreamSim(replace(config, folder=str(tmp_path / "b"), name="other", batch_size=1)).fingerprint == one
    extra = tmp_path / "b" / dreamsim_files.DINO_CODE / "more" / "code.py"
    extra.parent.mkdir()
    extra.write_text("y = 2\n")
    found = {one, DreamSim(replace(config, folder=str(tmp_path / "b"))).fingerprint}
    for place in hashes:
        path = tmp_path / "a" / place
        kept = path.read_bytes()
        path.write_bytes(kept + b"#")
        found.add(DreamSim(config).fingerprint)
        path.write_bytes(kept)
    assert len(found) == 2 + len(hashes)


# The loader --------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("untouched_rng")
def test_the_package_gets_what_it_needs_and_leaves_no_trace(tmp_path, monkeypatch, stand_in, capfd):
    fill(tmp_path, "ensemble")
    code = tmp_path / dreamsim_files.DINO_CODE
    (code / "utils.py").write_text("NAME = 'dino'\n")
    (code / "vision_transformer.py").write_text("from utils import NAME\n")
    (code / "hubconf.py").write_text(
        "dependencies = ['torch']\nimport vision_transformer\n"
        "def dino_vitb16(pretrained=True):\n    return vision_transformer.NAME\n"
    )
    ours = types.ModuleType("utils")
    monkeypatch.setitem(sys.modules, "utils", ours)
    before = (torch.hub._hub_dir, torch.hub.load, torch.hub.download_url_to_file, torch.load, list(sys.path))
    filters = list(warnings.filters)
    package = stand_in()
    metric = DreamSim(DreamSimConfig(folder=str(tmp_path)))
    rows_bd = metric.embed(images(3))
    assert package.loaded == "dino", "torch hub read the folder, although a module of this name was there"
    assert package.asked == [
        {
            "pretrained": True,
            "device": "cpu",
            "cache_dir": str(tmp_path),
            "dreamsim_type": "ensemble",
            "use_patch_model": False,
        }
    ]
    assert (torch.hub._hub_dir, torch.hub.load, torch.hub.download_url_to_file, torch.load, list(sys.path)) == before
    assert list(warnings.filters) == filters
    assert sys.modules["utils"] is ours
    assert not {"vision_transformer", "hubconf"} & {*sys.modules}
    assert capfd.readouterr().out == ""
    assert rows_bd.norm(dim=1).tolist() == pytest.approx([1.0] * 3)
    assert metric.embed(images(3)[1:2])[0] == pytest.approx(rows_bd[1], abs=1e-6)
    assert len(package.asked) == 1, "the network is built once"
    assert metric.temperature == 0.16


def test_patches_count_as_their_mean_beside_the_class_token(tmp_path, stand_in):
    fill(tmp_path, "dinov2_vitb14_patch")
    (tmp_path / dreamsim_files.DINOV2_CODE / "hubconf.py").write_text("dependencies = []\n")
    package = stand_in(patches=True)
    metric = DreamSim(DreamSimConfig(type="dinov2_vitb14_patch", folder=str(tmp_path)))
    a, b = metric.embed(images(2))
    assert (package.asked[0]["dreamsim_type"], package.asked[0]["use_patch_model"]) == ("dinov2_vitb14", True)
    _, transform = metric.network
    tokens = [transform(image)[0].flatten(1).T for image in images(2)]
    whole = [torch.cat([token[0], token[1:].mean(0)]) for token in tokens]
    assert float(a @ b) == pytest.approx(float(torch.cosine_similarity(*whole, dim=0)), abs=1e-6)


def test_state_is_put_back_when_loading_fails(tmp_path, stand_in):
    fill(tmp_path, "clip_vitb32")
    before = (torch.hub._hub_dir, torch.hub.load, torch.load)
    stand_in(RuntimeError("size mismatch for blocks.0\nand more"))
    metric = DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path)))
    with pytest.raises(DataError, match=r"cannot be loaded \(size mismatch for blocks\.0\); looked in") as raised:
        metric.embed(images(1))
    assert "\n" not in str(raised.value)
    assert (torch.hub._hub_dir, torch.hub.load, torch.load) == before


def test_a_package_that_its_code_needs_is_named(tmp_path, stand_in):
    fill(tmp_path, "clip_vitb32")
    stand_in(ModuleNotFoundError("No module named 'xformers'", name="xformers"))
    with pytest.raises(ConfigError, match=r"cannot be imported \(No module named 'xformers'\)\. Install xformers\."):
        DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path))).embed(images(1))


class Fetching(StandIn):
    """Asks torch hub to fetch a file, as the package does when one is missing."""

    def dreamsim(self, **asked):
        torch.hub.download_url_to_file("https://somewhere/file.zip", f"{asked['cache_dir']}/file.zip")
        return super().dreamsim(**asked)


def test_nothing_is_fetched_unless_asked(tmp_path, monkeypatch):
    fill(tmp_path, "clip_vitb32")
    fetched = []
    monkeypatch.setattr("torch.hub.download_url_to_file", lambda url, dst, **_options: fetched.append(url))
    monkeypatch.setitem(sys.modules, "dreamsim", Fetching())
    config = DreamSimConfig(type="clip_vitb32", folder=str(tmp_path))
    with pytest.raises(MissingFileError, match=r"file\.zip is missing.*https://somewhere/file\.zip"):
        DreamSim(config).embed(images(1))
    assert fetched == []
    DreamSim(replace(config, download=True))  # everything is there: nothing to fetch
    assert fetched == []


def test_a_download_fills_the_folder_and_is_checked(tmp_path, monkeypatch):
    folder = tmp_path / "deep" / "folder"
    package = Fetching()
    monkeypatch.setitem(sys.modules, "dreamsim", package)
    monkeypatch.setattr(
        "torch.hub.download_url_to_file", lambda url, dst, **_options: fill(Path(dst).parent, "clip_vitb32")
    )
    config = DreamSimConfig(type="clip_vitb32", folder=str(folder), download=True)
    assert DreamSim(config).embed(images(2)).shape == (2, 48)
    assert len(package.asked) == 1
    with pytest.raises(MissingFileError, match="is not the file expected"):
        DreamSim(replace(config, sha256={"clip_vitb32_pretrain.pth.tar": "01234567"}))


def test_a_download_that_fails_is_told(tmp_path, stand_in):
    stand_in(URLError("no route to host"))
    with pytest.raises(MissingFileError, match=r"could not be fetched \(no route to host\)") as raised:
        DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path / "new"), download=True))
    assert ARCHIVES["clip_vitb32"] in str(raised.value)


def test_files_are_read_onto_the_cpu_and_as_tensors_only(tmp_path, monkeypatch):
    fill(tmp_path, "clip_vitb32")
    seen = []
    monkeypatch.setattr("torch.load", lambda *_arguments, **options: seen.append(options))

    class Reading(StandIn):
        def dreamsim(self, **asked):
            torch.load("a")
            torch.load("b", weights_only=False, map_location="meta")
            return super().dreamsim(**asked)

    monkeypatch.setitem(sys.modules, "dreamsim", Reading())
    DreamSim(DreamSimConfig(type="clip_vitb32", folder=str(tmp_path))).embed(images(1))
    assert seen == [
        {"map_location": "cpu", "weights_only": True},
        {"map_location": "meta", "weights_only": True},
    ]
