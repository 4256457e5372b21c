"""The README does what it says: its files are written, its commands run (small)."""

from __future__ import annotations

import re
import runpy
from pathlib import Path

import pytest
import torch

from tests.integration.conftest import REPOSITORY, Lab

README = (REPOSITORY / "README.md").read_text(encoding="utf-8")


def files_of_the_readme() -> dict[str, str]:
    """Fenced blocks that begin with `# file: PATH`."""
    blocks = re.findall(r"^```(?:python|yaml)\n# file: (\S+)\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    return dict(blocks)


def commands_of_the_readme() -> list[str]:
    """Lines of bash blocks that call mis-lab, without their comments."""
    blocks = re.findall(r"^```bash\n(.*?)^```$", README, flags=re.DOTALL | re.MULTILINE)
    lines = [line.partition("  #")[0].strip() for block in blocks for line in block.splitlines()]
    return [line for line in lines if line.startswith("mis-lab ")]


def test_own_model_dataset_sae_and_metric(lab: Lab) -> None:
    files = files_of_the_readme()
    assert {Path(name).suffix for name in files} == {".py", ".yaml"}
    assert len(files) == 8
    for name, text in files.items():
        assert text.count("\n") <= 17, f"{name} is no short example"
        path = lab.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text, encoding="utf-8")
    (command,) = [command for command in commands_of_the_readme() if "--config-dir" in command]
    smoke = ("debug=smoke", "logger=files", "circuit.min_effect=1e-12", "trainer.n_vectors=2048")
    with lab.start(*command.split()[1:], *smoke) as process:  # of its own: it imports the files just written
        out, err = process.communicate(timeout=240)
    assert list(lab.outputs.rglob("report.html")), out + err
    stored = "\n".join(path.read_text() for path in lab.store.rglob("manifest.json"))
    assert all(name in stored for name in ("my_lab.nets.Tiny", "my_lab.saes.ShrinkSae", "thumbnail", "colours"))


@pytest.mark.parametrize("command", ["mis-lab --help", "mis-lab --cfg job"])
def test_looking_commands(lab: Lab, command: str) -> None:
    assert command in commands_of_the_readme()
    assert "topk" in lab.run(*command.split()[1:]).stdout


def test_every_named_preset_exists() -> None:
    for command in commands_of_the_readme():
        for group, name in re.findall(r"\b(experiment|sae|metric|model|dataset)=([a-z_0-9]+)", command):
            own = name in ("tiny", "colours", "shrink", "thumbnail")
            assert own or (REPOSITORY / "conf" / group / f"{name}.yaml").exists(), f"{group}={name}"


def test_every_linked_file_exists() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        assert target.startswith("http") or (REPOSITORY / target).exists(), target


def test_example_runs_as_a_library(tmp_path: Path) -> None:
    verdict = runpy.run_path(str(REPOSITORY / "examples" / "own_model.py"))["main"](tmp_path, n_vectors=4096)
    assert "features" in verdict


def test_three_lines_load_an_sae() -> None:
    pattern = r"^```python\n(from mis_lab\.sae import load_sae\n.*?)^```$"
    (block,) = re.findall(pattern, README, re.DOTALL | re.MULTILINE)
    names = {"activations": torch.randn(5, 112, generator=torch.Generator().manual_seed(0))}
    exec(block, names)
    assert names["codes"].shape == (5, 448)
    assert 0 < (names["codes"] != 0).sum(1).max() <= 16
