"""A run's SAEs in folders of their own: weights, where they come from, model cards."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml

from mis_lab.core.build import build
from mis_lab.core.errors import StoreError
from mis_lab.core.seeding import generator
from mis_lab.sae import io, load_sae
from mis_lab.sae.base import Sae
from mis_lab.sae.config import BatchTopKConfig, GatedConfig, JumpReluConfig, MatryoshkaConfig, ReluConfig, SaeConfig
from mis_lab.sae.share.export import SharedPrecision, export, write
from mis_lab.sae.share.provenance import Provenance


def header_of(card: str) -> dict[str, Any]:
    return yaml.safe_load(card.split("---\n")[1])


@pytest.fixture
def x() -> torch.Tensor:
    return torch.randn(6, 8, generator=generator(0, "x"))


def test_every_site_has_weights_description_and_card(
    made_run: Callable[..., Any], tmp_path: Path, x: torch.Tensor, untouched_rng: None
) -> None:
    run = made_run(("blocks.2", "blocks.4"))
    written = export(run.folder, tmp_path / "shared")
    assert [folder.name for folder in written] == ["blocks.2", "blocks.4"]
    for folder in written:
        assert {path.name for path in folder.iterdir()} == {"sae.safetensors", "sae.json", "README.md"}
        original = io.load(run.store / "sae" / run.saes[folder.name])
        assert torch.equal(load_sae(folder).encode(x), original.encode(x))
    assert not torch.equal(load_sae(written[0]).encode(x), load_sae(written[1]).encode(x))
    front = (tmp_path / "shared" / "README.md").read_text()
    assert header_of(front)["mis_lab"] == {"saes": ["blocks.2", "blocks.4"]}
    assert "| [blocks.4](blocks.4/README.md) | TopKSae | 8 | 20 | 0.25 |" in front


def test_where_it_comes_from(made_run: Callable[..., Any], tmp_path: Path) -> None:
    run = made_run()
    (folder,) = export(run.folder, tmp_path / "shared")
    made = json.loads((folder / "sae.json").read_text())["provenance"]
    assert made["site"]["path"] == "blocks.4"
    assert made["site"]["layout"] == "bchw"
    assert made["network"] == {"name": "efficientnet", "fingerprint": "f" * 64}
    assert made["dataset"] == {"name": "photo_patches", "split": "train", "fingerprint": "0123456789abcdef"}
    assert made["artifact"] == f"sae/{run.saes['blocks.4']}"
    assert made["seeds"] == {"run": 3, "network": 5, "held-out groups": 7}
    assert made["training"]["n_vectors"] == 4096
    assert made["evaluation"]["held_out"] == {"fvu": 0.25, "dead_share": 0.1, "recovered_mean": 0.875}
    assert made["evaluation"]["seen"] == {"fvu": 0.125, "l0": 3.0, "n_images": 40}
    assert made["command"] == "mis-lab sae=topk sae.k=3 'name=my lab'", (
        "no paths of the machine, quoted as a shell reads"
    )


def test_the_card_says_what_one_wants_to_know(made_run: Callable[..., Any], tmp_path: Path) -> None:
    (folder,) = export(made_run().folder, tmp_path / "shared", licence="apache-2.0")
    card = (folder / "README.md").read_text()
    header = header_of(card)
    assert header["license"] == "apache-2.0"
    assert header["library_name"] == "mis_lab"
    assert "sparse-autoencoder" in header["tags"]
    ours = header["mis_lab"]
    assert (ours["architecture"], ours["width"], ours["n_features"]) == ("TopKSae", 8, 20)
    assert ours["network"]["fingerprint"] == "f" * 64
    assert ours["evaluation"]["held_out"]["fvu"] == 0.25
    for said in (
        "# TopKSae at blocks.4 of efficientnet",
        "z = ReLU(TopK_k(W_enc",
        "arXiv 2406.04093",
        "| weights of the network | ffff",
        "| data set | photo_patches/train |",
        "| fingerprint of the data | 0123456789abcdef |",
        "| normalisation | unit_variance: vectors are multiplied by 0.",
        "| training budget | 4096 vectors in batches of 64, lr 0.01 |",
        "| seeds | run 3, network 5, held-out groups 7 |",
        "| licence | apache-2.0 |",
        "| share of the variance that is missed (FVU) | 0.125 | 0.25 |",
        "| loss recovered, against the site's mean vector |  | 0.875 |",
        "mis-lab sae=topk sae.k=3 'name=my lab'",
        "With mis_lab 0.1.0, torch 2.15.",
    ):
        assert said in card, said
    assert str(tmp_path) not in card
    assert "docs/" not in card


def test_the_three_lines_of_the_card_work(
    made_run: Callable[..., Any], tmp_path: Path, x: torch.Tensor, monkeypatch: pytest.MonkeyPatch
) -> None:
    (folder,) = export(made_run().folder, tmp_path / "shared")
    monkeypatch.chdir(tmp_path)
    for card in (folder / "README.md", tmp_path / "shared" / "README.md"):
        (code,) = re.findall(r"```python\n(.*?)```", card.read_text(), re.DOTALL)
        assert code.count("\n") == 3
        names: dict[str, Any] = {"x": x}
        exec(code, names)
        assert names["codes"].shape == (6, 20)


def test_half_precision(made_run: Callable[..., Any], tmp_path: Path, x: torch.Tensor) -> None:
    run = made_run()
    (whole,) = export(run.folder, tmp_path / "whole")
    (half,) = export(run.folder, tmp_path / "half", precision=SharedPrecision.float16)
    sizes = [(folder / io.WEIGHTS).stat().st_size for folder in (whole, half)]
    assert sizes[1] < 0.7 * sizes[0]
    assert "| precision of the weights | float16 |" in (half / "README.md").read_text()
    torch.testing.assert_close(load_sae(half)(x).reconstruction, load_sae(whole)(x).reconstruction, rtol=0, atol=2e-2)


@pytest.mark.parametrize("config", [ReluConfig, GatedConfig, JumpReluConfig, BatchTopKConfig, MatryoshkaConfig])
@pytest.mark.parametrize("precision", SharedPrecision)
def test_every_architecture(config: type[SaeConfig], precision: SharedPrecision, tmp_path: Path) -> None:
    sae: Sae = build(config(n_features=20), width=8)
    random = generator(0, "test")
    x = torch.randn(64, 8, generator=random) + 1
    sae.initialise(x, random)
    with torch.no_grad():
        for parameter in sae.parameters():
            parameter.add_(0.2 * torch.rand(parameter.shape, generator=random))
    exact = sae.eval()(x)
    write(sae, Provenance(), tmp_path / "sae", tmp_path / "sae", precision, "mit")
    found = load_sae(tmp_path / "sae")(x)
    rounding = 0.0 if precision is SharedPrecision.float32 else 1e-2
    assert ((found.codes - exact.codes).abs() > rounding).sum() <= (0 if rounding == 0 else 2), "but at a threshold"
    card = (tmp_path / "sae" / "README.md").read_text()
    assert f"| architecture | {type(sae).__name__} |" in card
    assert "Not said." in card, "of nothing is known how it was made"


def test_numbers_too_large_for_half_precision(made_run: Callable[..., Any], tmp_path: Path) -> None:
    run = made_run()
    folder = run.store / "sae" / run.saes["blocks.4"]
    sae = io.load(folder)
    sae.W_enc[0, 0] = 1e5
    io.save(sae, folder)
    with pytest.raises(StoreError, match=r"W_enc of blocks.4 has numbers up to 1e\+05, too large for float16"):
        export(run.folder, tmp_path / "half", precision=SharedPrecision.float16)


def test_one_site_and_again(made_run: Callable[..., Any], tmp_path: Path) -> None:
    run = made_run(("blocks.2", "blocks.4"))
    assert len(export(run.folder, tmp_path / "shared", ["blocks.4"])) == 1
    assert not (tmp_path / "shared" / "blocks.2").exists()
    export(run.folder, tmp_path / "shared", ["blocks.2"], SharedPrecision.float16)
    front = (tmp_path / "shared" / "README.md").read_text()
    assert header_of(front)["mis_lab"] == {"saes": ["blocks.2", "blocks.4"]}, "the card is of all that are there"


def test_a_run_that_was_not_evaluated(made_run: Callable[..., Any], tmp_path: Path) -> None:
    (folder,) = export(made_run(evaluated=False).folder, tmp_path / "shared")
    assert "Not evaluated" in (folder / "README.md").read_text()
    assert "evaluation" not in json.loads((folder / "sae.json").read_text())["provenance"]


def test_what_cannot_be_exported(made_run: Callable[..., Any], tmp_path: Path) -> None:
    with pytest.raises(StoreError, match=r"is no finished run; looked in .*result\.json"):
        export(tmp_path, tmp_path / "shared")
    run = made_run(("blocks.2", "blocks.4"))
    with pytest.raises(StoreError, match=r"has no SAE at blocks.5. It has SAEs at blocks"):
        export(run.folder, tmp_path / "shared", ["blocks.2", "blocks.5"])
    with pytest.raises(StoreError, match=r"artifact sae/\w+ of .* is not in the store; .*--store"):
        export(run.folder, tmp_path / "shared", store=tmp_path)
    assert not (tmp_path / "shared").exists()
    run = made_run(trained=False, evaluated=False)
    with pytest.raises(StoreError, match=r"has no SAE\. Run it with sae=topk"):
        export(run.folder, tmp_path / "shared")


def test_a_store_that_moved(made_run: Callable[..., Any], tmp_path: Path) -> None:
    run = made_run()
    moved = run.store.rename(tmp_path / "moved")
    assert export(run.folder, tmp_path / "shared", store=moved)


def test_packaged_saes_are_loaded_by_name(
    made_run: Callable[..., Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("mis_lab.sae.share.export.PRETRAINED", tmp_path / "pretrained")
    (folder,) = export(made_run().folder, tmp_path / "pretrained" / "quickstart")
    for card in (folder / "README.md", tmp_path / "pretrained" / "quickstart" / "README.md"):
        assert 'load_sae("pretrained:quickstart/blocks.4")' in card.read_text()


def test_trained_on_activations_that_were_never_stored(made_run: Callable[..., Any], tmp_path: Path) -> None:
    """``activations.live``: the run then has those of the split ``score`` only."""
    run = made_run(live=True)
    (folder,) = export(run.folder, tmp_path / "shared")
    made = json.loads((folder / "sae.json").read_text())["provenance"]
    assert made["site"]["layout"] == "bchw"
    assert made["dataset"] == {"name": "photo_patches", "split": "score", "fingerprint": "0123456789abcdef"}
