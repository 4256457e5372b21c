"""SAEs of other libraries written as ours, for the site they are meant for."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mis_lab.core.errors import ConfigError, StoreError
from mis_lab.core.keys import hash_file
from mis_lab.sae import load_sae
from mis_lab.sae.share.adopt import READERS, adopt
from mis_lab.sae.share.export import export
from mis_lab.sae.share.provenance import FinishedRun


@pytest.mark.parametrize(
    ("format_name", "source", "settings"),
    [
        ("saelens", "saelens/gated", {}),
        ("saelens", "saelens/scaled", {}),
        ("overcomplete", "overcomplete/jump/sae.pt", {}),
        (
            "overcomplete",
            "overcomplete/batch_topk/sae.pt",
            {"class": "BatchTopKSAE", "running_threshold": "1.9648629426956177"},
        ),
        ("thesis", "thesis/legacy/checkpoint.pth", {}),
    ],
)
def test_what_is_written_still_gives_the_librarys_codes(
    golden: Path, tmp_path: Path, format_name: str, source: str, settings: dict[str, str]
) -> None:
    folder = adopt(golden / source, tmp_path / "mine", format_name, "blocks.4", settings=settings)
    where = golden / source
    expected = load_file((where if where.is_dir() else where.parent) / "expected.safetensors")
    output = load_sae(folder)(expected["x"])
    torch.testing.assert_close(output.codes, expected["codes"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.reconstruction, expected["reconstruction"], rtol=1e-5, atol=1e-5)
    made = json.loads((folder / "sae.json").read_text())["provenance"]
    assert made["site"] == {"path": "blocks.4"}
    assert made["origin"]["format"] == format_name
    assert made["origin"]["settings"] == settings
    file = where / "sae_weights.safetensors" if where.is_dir() else where
    assert made["origin"]["sha256"] == hash_file(file)
    card = (folder / "README.md").read_text()
    assert f"Imported. format: {format_name}" in card
    assert 'load_sae("mine")' in card


def test_the_site_that_the_file_says(copied: Callable[[str], Path], tmp_path: Path) -> None:
    folder = copied("saelens/standard")
    config = json.loads((folder / "cfg.json").read_text())
    (folder / "cfg.json").write_text(json.dumps(config | {"metadata": {"hook_name": "blocks.7"}}))
    described = adopt(folder, tmp_path / "mine", "saelens") / "sae.json"
    assert json.loads(described.read_text())["provenance"]["site"] == {"path": "blocks.7"}


def test_of_another_width_than_the_site(golden: Path, made_run: Callable[..., Any], tmp_path: Path) -> None:
    run = FinishedRun(made_run(trained=False, evaluated=False).folder)
    source = golden / "saelens" / "standard"
    with pytest.raises(StoreError, match=r"vectors of width 12, blocks\.4 of the run has 8\.$"):
        adopt(source, tmp_path / "mine", "saelens", "blocks.4", run)
    with pytest.raises(StoreError, match=r"vectors of width 12, blocks\.4 has 16\.$"):
        adopt(source, tmp_path / "mine", "saelens", "blocks.4", width=16)
    with pytest.raises(StoreError, match=r"no activations at blocks\.5. It has some at blocks\.4"):
        adopt(source, tmp_path / "mine", "saelens", "blocks.5", run)
    with pytest.raises(ConfigError, match=r"does not say its site\. Add --site"):
        adopt(source, tmp_path / "mine", "saelens", run=run)
    assert not (tmp_path / "mine").exists()
    adopt(source, tmp_path / "mine", "saelens", "blocks.4", width=12)


def test_our_own_keep_what_is_known_of_them(made_run: Callable[..., Any], tmp_path: Path) -> None:
    made = made_run()
    (shared,) = export(made.folder, tmp_path / "shared")
    again = adopt(shared, tmp_path / "again", "mis_lab", run=FinishedRun(made.folder))
    before, after = (json.loads((folder / "sae.json").read_text()) for folder in (shared, again))
    assert after == before
    plain = made.store / "sae" / made.saes["blocks.4"]
    told = json.loads((adopt(plain, tmp_path / "plain", "mis_lab", "blocks.4") / "sae.json").read_text())
    assert told["provenance"] == {"site": {"path": "blocks.4"}}
    with pytest.raises(ConfigError, match=r"mis_lab has no setting k\. It has none"):
        adopt(plain, tmp_path / "plain", "mis_lab", settings={"k": "3"})


def test_the_network_of_the_run_it_is_for(golden: Path, made_run: Callable[..., Any], tmp_path: Path) -> None:
    made = made_run()
    (shared,) = export(made.folder, tmp_path / "shared")
    described = json.loads((shared / "sae.json").read_text())
    (shared / "sae.json").write_text(json.dumps({**described, "provenance": {}}))
    told = json.loads(
        (adopt(shared, tmp_path / "a", "mis_lab", "blocks.4", FinishedRun(made.folder)) / "sae.json").read_text()
    )
    assert told["provenance"]["network"]["fingerprint"] == "f" * 64
    assert told["provenance"]["site"]["layout"] == "bchw"


def test_bad_input(golden: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"no format npz\. Use one of mis_lab, saelens, overcomplete, thesis"):
        adopt(golden, tmp_path / "mine", "npz")
    for name in READERS:
        with pytest.raises(StoreError, match="no file or folder"):
            adopt(golden / "nowhere", tmp_path / "mine", name)
    with pytest.raises(StoreError, match="no SAE in"):
        adopt(golden, tmp_path / "mine", "mis_lab")
    with pytest.raises(StoreError, match="no SAE of SAELens in"):
        adopt(golden / "thesis" / "legacy" / "checkpoint.pth", tmp_path / "mine", "saelens")
    with pytest.raises(StoreError, match="no file"):
        adopt(golden / "thesis", tmp_path / "mine", "thesis")
