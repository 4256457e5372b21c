"""House rules that a machine can check (docs/decisions.md says why they hold)."""

from __future__ import annotations

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
MODULES = sorted((ROOT / "mis_lab").rglob("*.py"))
MOST_LINES = 400
DRAWS = {"rand", "randn", "randint", "randperm", "normal", "bernoulli", "multinomial"}  # of torch
DRAWS_INTO = {"normal_", "uniform_", "random_", "bernoulli_", "exponential_", "log_normal_"}
NO_DRAW = {"zeros_", "ones_", "constant_", "eye_", "dirac_", "calculate_gain"}  # of torch.nn.init
SEEDS = {"torch.manual_seed", "torch.seed", "torch.cuda.manual_seed", "torch.cuda.manual_seed_all"}
PICKLES = {"pickle", "dill", "cloudpickle", "joblib", "shelve", "marshal"}
EXPLICIT = {"default_rng", "Generator", "SeedSequence", "PCG64", "BitGenerator"}  # of numpy.random


def name_of(path: Path) -> str:
    return str(path.relative_to(ROOT))


def dotted(node: ast.AST) -> str:
    """``a.b.c`` of an attribute chain; what is called or indexed on the way becomes ``?``."""
    if isinstance(node, ast.Name):
        return node.id
    return f"{dotted(node.value)}.{node.attr}" if isinstance(node, ast.Attribute) else "?"


def walk(node: ast.AST, forked: bool = False) -> Iterator[tuple[ast.AST, bool]]:
    """Every node, and whether it stands inside ``with torch.random.fork_rng():``."""
    yield node, forked
    if isinstance(node, ast.With):
        forked |= any("fork_rng" in ast.unparse(item.context_expr) for item in node.items)
    for child in ast.iter_child_nodes(node):
        yield from walk(child, forked)


def global_draws(tree: ast.AST) -> Iterator[str]:
    """Uses of a global random generator.

    Constructors of torch modules draw from the global one and take no other: ``fork_rng`` lends them a copy, which
    a module that uses it may seed.
    """
    forks = any(dotted(node).endswith(".fork_rng") for node in ast.walk(tree))
    for node, forked in walk(tree):
        if isinstance(node, ast.Import | ast.ImportFrom):
            names = [alias.name for alias in node.names] if isinstance(node, ast.Import) else [node.module]
            yield from (f"line {node.lineno}: import {name}" for name in names if name == "random")
        if not isinstance(node, ast.Call) or forked:
            continue
        name = dotted(node.func)
        package, _, last = name.rpartition(".")
        own = any(keyword.arg == "generator" for keyword in node.keywords)
        if (
            (name in SEEDS and not forks)
            or (package in ("np.random", "numpy.random") and last not in EXPLICIT)
            or (package == "torch" and last in DRAWS and not own)
            or (last in DRAWS_INTO and not own)
            or (package.endswith("init") and last.endswith("_") and last not in NO_DRAW and not own)
        ):
            yield f"line {node.lineno}: {name}"


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_keeps_the_house_rules(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    tree = ast.parse(text)
    assert text.count("\n") <= MOST_LINES, "a file is about one thing and fits in the head"
    assert ast.get_docstring(tree), "a module says what it is for"
    calls = [dotted(node.func) for node in ast.walk(tree) if isinstance(node, ast.Call)]
    assert "print" not in calls, "log, or write to sys.stdout where it is the result"
    assert not {"eval", "exec", "__import__"} & {*calls}
    if path.name != "packaged.py":  # the one restricted unpickler, docs/store.md
        names = {dotted(node) for node in ast.walk(tree) if isinstance(node, ast.Attribute)}
        uses = {name for name in names if name.split(".")[0] in PICKLES} - {"pickle.UnpicklingError"}
        assert not uses, "pickles run what they read"
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and dotted(node.func) == "torch.load":
            keywords = {keyword.arg: ast.unparse(keyword.value) for keyword in node.keywords}
            assert keywords.get("weights_only") == "True", f"line {node.lineno}: torch.load runs what it reads"
    assert not [*global_draws(tree)], "draw from core.seeding.generator(seed, ...)"


TEXTS = [
    *MODULES,
    *(
        path
        for folder in ("conf", "docs", "tests", "examples", "benchmarks", "experiments")
        for path in sorted((ROOT / folder).rglob("*"))
        if path.suffix in (".py", ".md", ".yaml", ".txt") and "local" not in path.parts
    ),
]


@pytest.mark.parametrize("path", TEXTS, ids=name_of)
def test_nothing_is_left_for_later_and_nothing_names_one_machine(path: Path) -> None:
    text = path.read_text(encoding="utf-8")
    for word in ("TO" + "DO", "FIX" + "ME", "XX" + "X", "/wo" + "rk/", "/ro" + "ot/", "/tmp/" + "boot"):
        assert word not in text


@pytest.mark.parametrize(
    ("source", "found"),
    [
        ("import random", True),
        ("from random import shuffle", True),
        ("torch.manual_seed(0)", True),
        ("np.random.seed(0)", True),
        ("np.random.permutation(3)", True),
        ("np.random.default_rng(0).permutation(3)", False),
        ("torch.randn(3)", True),
        ("torch.randn(3, generator=g)", False),
        ("torch.randn_like(x)", False),
        ("x.normal_()", True),
        ("x.normal_(generator=g)", False),
        ("nn.init.kaiming_uniform_(w)", True),
        ("nn.init.zeros_(w)", False),
        ("with torch.random.fork_rng(devices=[]):\n    torch.manual_seed(0)", False),
        ("with open(x):\n    torch.manual_seed(0)", True),
        ("with torch.random.fork_rng():\n    f()\ntorch.rand(3)", True),
    ],
)
def test_global_draws_are_found(source: str, found: bool) -> None:
    assert bool([*global_draws(ast.parse(source))]) == found
