"""Data flows one way: a package imports only what stands left of it (docs/decisions.md has the order)."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

PACKAGE = Path(__file__).resolve().parent.parent / "mis_lab"
MODULES = sorted(PACKAGE.rglob("*.py"))

# Packages of one row may not import each other.
ROWS = [
    {"core"},
    {"dataset"},
    {"model"},
    {"metric", "activations"},
    {"sae", "mis"},
    {"circuit"},
    {"report"},
    {"config"},
    {"pipeline"},
    {"cli"},
    {"__main__"},
]
RANK = {name: rank for rank, row in enumerate(ROWS) for name in row}
TRACKING_IS_FOR = {"config", "pipeline", "cli"}
# The subcommands are the command line's other half.
COMMANDS = (
    *("commands", "sae_commands", "mis_commands", "mis_run_commands", "mis_pictures"),
    *("circuit_commands", "circuit_run_commands", "terminal"),
)
ONE_PACKAGE = dict.fromkeys(COMMANDS, "cli")
HYDRA_IS_FOR = {"config", "pipeline", "cli"}
HYDRA = {"hydra", "omegaconf"}
SLOW_TO_IMPORT = {
    "torch",
    "torchvision",
    "timm",
    "lpips",
    "dreamsim",
    "wandb",
    "matplotlib",
    "skimage",
    "sklearn",
    "mlxtend",
    "captum",
    "scipy",
    "pandas",
    "transformers",
}


def name_of(path: Path) -> str:
    parts = ["mis_lab", *path.relative_to(PACKAGE).with_suffix("").parts]
    return ".".join(parts[:-1] if parts[-1] == "__init__" and len(parts) > 2 else parts)


def imports(path: Path, source: str | None = None) -> Iterator[tuple[str, int]]:
    """Every module that a file imports, also inside functions and for type checking, with its line."""
    for node in ast.walk(ast.parse(source or path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from ((alias.name, node.lineno) for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = node.module or ""
            if node.level:
                package = ["mis_lab", *path.relative_to(PACKAGE).parent.parts]
                module = ".".join([*package[: len(package) - node.level + 1], *filter(None, [module])])
            if module == "mis_lab":  # from mis_lab import sae, __version__
                names = {alias.name for alias in node.names} & {path.stem for path in PACKAGE.iterdir()}
                yield from ((f"mis_lab.{name}", node.lineno) for name in sorted(names))
            else:
                yield module, node.lineno


def owner(module: str) -> str:
    """The package of mis_lab a module belongs to."""
    parts = module.split(".")
    return ONE_PACKAGE.get(parts[1], parts[1]) if len(parts) > 1 else "__init__"


def complaint(importer: str, imported: str) -> str | None:
    """Why a package may not import another, or None when it may."""
    if importer == imported or imported == "__init__":
        return None
    if imported == "tracking":
        return None if importer in TRACKING_IS_FOR else f"only {', '.join(sorted(TRACKING_IS_FOR))} may"
    if importer == "tracking":
        return None if imported == "core" else "tracking knows core alone"
    if importer == "__init__":
        return "mis_lab/__init__.py imports nothing of its own packages"
    for name in (importer, imported):
        if name not in RANK:
            return f"{name} has no place in ROWS"
    return None if RANK[imported] < RANK[importer] else f"{imported} does not stand left of {importer}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_imports_go_leftwards(path: Path) -> None:
    importer = owner(name_of(path))
    assert importer == "tracking" or importer == "__init__" or importer in RANK
    for module, line in imports(path):
        root = module.split(".")[0]
        if root == "mis_lab":
            why = complaint(importer, owner(module))
            assert why is None, f"{path}:{line} imports {module}: {why}"
        if root in HYDRA:
            assert importer in HYDRA_IS_FOR, f"{path}:{line}: only pipeline, cli and config know Hydra"


@pytest.mark.parametrize("path", [path for path in MODULES if path.name in ("config.py", "__init__.py")], ids=name_of)
def test_configuration_imports_nothing_slow(path: Path) -> None:
    slow = [(module, line) for module, line in imports(path) if module.split(".")[0] in SLOW_TO_IMPORT]
    assert not slow, f"{path} must load in an instant: {slow}"


def test_the_command_line_starts_without_torch() -> None:
    code = "import sys, mis_lab.config, mis_lab.cli; print(*{name.partition('.')[0] for name in sys.modules})"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert not SLOW_TO_IMPORT & set(done.stdout.split())


@pytest.mark.parametrize(
    ("importer", "imported", "allowed"),
    [
        ("mis", "sae", False),
        ("sae", "mis", False),
        ("metric", "activations", False),
        ("activations", "metric", False),
        ("core", "dataset", False),
        ("circuit", "report", False),
        ("sae", "tracking", False),
        ("tracking", "dataset", False),
        ("tracking", "core", True),
        ("circuit", "sae", True),
        ("mis", "metric", True),
        ("pipeline", "tracking", True),
        ("newcomer", "core", False),
        ("report", "pipeline", False),
    ],
)
def test_the_rule_itself(importer: str, imported: str, allowed: bool) -> None:
    assert (complaint(importer, imported) is None) == allowed


def test_imports_are_found_wherever_they_hide() -> None:
    source = "def f():\n    import mis_lab.mis.score\n    from ...mis import run\n    from mis_lab import report\n"
    found = {module for module, _ in imports(PACKAGE / "sae" / "architectures" / "hidden.py", source)}
    assert found == {"mis_lab.mis.score", "mis_lab.mis", "mis_lab.report"}
