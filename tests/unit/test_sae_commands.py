"""``mis-lab sae`` in this process: a run exported, an SAE of another library imported, both found again."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from mis_lab.cli import main
from mis_lab.commands import COMMANDS
from mis_lab.sae import load_sae
from mis_lab.sae.share import hub
from mis_lab.sae.share.adopt import READERS
from mis_lab.sae.share.export import UNKNOWN_LICENCE, SharedPrecision
from mis_lab.sae_commands import FORMATS, PRECISIONS

GOLDEN = Path(__file__).resolve().parents[1] / "golden" / "sae_formats"


@pytest.fixture
def mis_lab(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Callable[..., list[str]]:
    """Calls ``mis-lab sae``; gives the lines of stdout, or of stderr where it must fail."""
    monkeypatch.setattr("signal.signal", lambda *_arguments: None)  # the handler of a process of its own

    def call(*words: object, expect: int = 0) -> list[str]:
        with pytest.raises(SystemExit) as ended:
            main(["sae", *map(str, words)])
        told = capsys.readouterr()
        assert ended.value.code == expect, told
        return (told.err if expect else told.out).splitlines()

    return call


def test_export_and_import(mis_lab: Callable[..., list[str]], made_run: Callable[..., Any], tmp_path: Path) -> None:
    run = made_run(("blocks.2", "blocks.4"))
    shared = tmp_path / "shared"
    assert mis_lab("export", run.folder, shared, "--site", "blocks.4", "--precision", "float16") == [
        str(shared / "blocks.4")
    ]
    assert load_sae(shared).n_features == 20
    assert len(mis_lab("export", run.folder, shared, "--licence", "mit")) == 2
    assert "license: mit\n" in (shared / "README.md").read_text()
    source = GOLDEN / "overcomplete" / "topk" / "sae.pt"
    words = ("import", source, tmp_path / "mine", "--format", "overcomplete", "--set", "class=TopKSAE")
    assert mis_lab(*words, "--set", "top_k=5", "--site", "blocks.4", "--width", 12) == [str(tmp_path / "mine")]
    expected = load_file(source.parent / "expected.safetensors")
    torch.testing.assert_close(load_sae(tmp_path / "mine").encode(expected["x"]), expected["codes"])
    (told,) = mis_lab(*words, "--set", "top_k=5", "--site", "blocks.4", "--run", run.folder, expect=2)
    assert told == f"mis-lab: the SAE in {source} reads vectors of width 12, blocks.4 of the run has 8."
    (told,) = mis_lab(*words, "--set", "top_k", expect=2)
    assert told == "mis-lab: --set top_k. Write --set NAME=VALUE."
    (told,) = mis_lab(*words, expect=2)
    assert "does not say top_k" in told
    (told,) = mis_lab("export", tmp_path, shared, expect=2)
    assert "is no finished run" in told


def test_push_and_pull(mis_lab: Callable[..., list[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What the options become; test_hub.py pushes and pulls for real."""
    asked: list[tuple[Any, ...]] = []

    def push(*arguments: Any) -> str:
        asked.append(arguments)
        return "http://hub/commit/1"

    def pull(*arguments: Any) -> list[Path]:
        asked.append(arguments)
        return [tmp_path / "blocks.4"]

    monkeypatch.setattr(hub, "push", push)
    monkeypatch.setattr(hub, "pull", pull)
    assert mis_lab("push", tmp_path, "me/saes", "--private", "--message", "first") == ["http://hub/commit/1"]
    assert mis_lab("pull", "me/saes", tmp_path, "--site", "blocks.4", "--revision", "v1") == [
        str(tmp_path / "blocks.4")
    ]
    assert mis_lab("pull", "me/saes", tmp_path) == [str(tmp_path / "blocks.4")]
    assert asked == [
        (tmp_path, "me/saes", True, "first"),
        ("me/saes", tmp_path, "blocks.4", "v1"),
        ("me/saes", tmp_path, "", None),
    ]


def test_the_command_is_known_and_its_choices_are_those_of_the_code() -> None:
    assert "sae" in COMMANDS
    assert set(FORMATS) == set(READERS)
    assert set(PRECISIONS) == set(SharedPrecision.__members__)
    assert UNKNOWN_LICENCE == "unknown"


def test_help_and_mistakes_come_without_torch() -> None:
    code = (
        "import sys; from mis_lab.sae_commands import sae\n"
        "try: sae(sys.argv[1:])\n"
        "except SystemExit: assert 'torch' not in sys.modules"
    )
    for words, said in ((["--help"], "export"), (["import", "a", "b", "--format", "npz"], "invalid choice: 'npz'")):
        done = subprocess.run(
            [sys.executable, "-c", code, *words], capture_output=True, text=True, check=True, env=os.environ
        )
        assert said in done.stdout + done.stderr


def test_the_run_says_what_its_result_says(
    mis_lab: Callable[..., list[str]], made_run: Callable[..., Any], tmp_path: Path
) -> None:
    run = made_run()
    moved = run.store.rename(tmp_path / "moved")
    (told,) = mis_lab("export", run.folder, tmp_path / "shared", expect=2)
    assert "is not in the store" in told
    (folder,) = mis_lab("export", run.folder, tmp_path / "shared", "--store", moved)
    assert (
        json.loads((Path(folder) / "sae.json").read_text())["provenance"]["artifact"] == f"sae/{run.saes['blocks.4']}"
    )
