from __future__ import annotations

import sys
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
import torch

from mis_lab.core import build as build_module
from mis_lab.core.build import allow, build, locate
from mis_lab.core.errors import ConfigError

PACKAGE = """
from dataclasses import dataclass
from os import getcwd
from collections import OrderedDict
import subprocess

class Thing:
    def __init__(self, **options):
        self.options = options

class Strict:
    def __init__(self, config, width):
        self.config, self.width = config, width

def broken(a):
    raise TypeError("a bug of its own")
"""


@pytest.fixture
def own_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """A package of the user's own, on the path and allowed."""
    (tmp_path / "own_things.py").write_text(PACKAGE)
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.setattr(build_module, "ALLOWED", [*build_module.ALLOWED])
    allow("own_things.")
    yield "own_things"
    sys.modules.pop("own_things", None)


@dataclass
class StrictConfig:
    _target_: str = "own_things.Strict"
    k: int = 3


@dataclass
class ExternalConfig:
    _target_: str = "own_things.Thing"
    name: str = "own"
    kwargs: dict[str, Any] = field(default_factory=dict)


def test_a_mapping_is_spread_into_keywords() -> None:
    linear = build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3})
    assert isinstance(linear, torch.nn.Linear)
    assert linear.weight.shape == (3, 2)


def test_what_is_known_only_at_run_time_wins() -> None:
    assert build({"_target_": "torch.nn.Linear", "in_features": 2, "out_features": 3}, out_features=5).out_features == 5


def test_nested_targets_are_built_first(own_package: str) -> None:
    inner = {"_target_": "own_things.Thing", "b": 2}
    thing = build({"_target_": "own_things.Thing", "one": inner, "many": [inner, 7], "plain": {"x": inner}})
    assert thing.options["one"].options == {"b": 2}
    assert thing.options["many"][0].options == {"b": 2}
    assert thing.options["many"][1] == 7
    assert thing.options["plain"]["x"].options == {"b": 2}


def test_a_dataclass_is_handed_over_whole(own_package: str) -> None:
    config = StrictConfig(k=5)
    strict = build(config, width=8)
    assert strict.config is config
    assert strict.width == 8


def test_kwargs_of_the_schema_external_are_spread(own_package: str) -> None:
    thing = build(ExternalConfig(kwargs={"a": 1, "inner": {"_target_": "own_things.Thing"}}), split="train")
    assert thing.options.keys() == {"a", "inner", "split"}
    assert build({"_target_": "own_things.Thing", "a": 1, "kwargs": {"b": 2}}).options == {"a": 1, "b": 2}


@pytest.mark.parametrize(
    "target",
    [
        "os.system",
        "subprocess.run",
        "builtins.eval",
        "torch.load",
        "torch.hub.load",
        "mis_labels.Thing",
        "timmy.create_model",
    ],
)
def test_other_packages_are_not_allowed(target: str) -> None:
    with pytest.raises(ConfigError, match=r"not allowed.*looked in mis_lab\..*conf/local"):
        build({"_target_": target})


@pytest.mark.parametrize(
    "target",
    [
        "mis_lab.core.files.os.system",
        "mis_lab.core.files.shutil.rmtree",
        "mis_lab.core.store.FileLock",
        "mis_lab.core.build.importlib.import_module",
        "mis_lab.core.tensors.load_file",
        "mis_lab.core.tensors.torch.load",
        "torch.nn.modules.module.torch.load",
        "mis_lab.core",
    ],
)
def test_what_an_allowed_module_imports_is_not_allowed_by_that(target: str) -> None:
    with pytest.raises(ConfigError):
        locate(target)


@pytest.mark.parametrize("target", ["own_things.subprocess.run", "own_things.getcwd", "own_things.OrderedDict"])
def test_nor_what_the_users_own_module_imports(own_package: str, target: str) -> None:
    with pytest.raises(ConfigError):
        locate(target)


@pytest.mark.parametrize(
    "target",
    [
        "torch.nn.ReLU",
        "torch.optim.Adam",
        "timm.create_model",
        "torchvision.models.resnet18",
        "mis_lab.core.store.Store",
    ],
)
def test_what_is_promised_is_found(target: str) -> None:
    assert callable(locate(target))


def test_a_misspelt_name_lists_the_nearest() -> None:
    with pytest.raises(ConfigError, match=r"no Linaer there; looked in torch\.nn\. Nearest: Linear"):
        locate("torch.nn.Linaer")


def test_a_module_that_does_not_exist_is_told(own_package: str) -> None:
    allow("no_such_package_at_all.")
    with pytest.raises(ConfigError, match="no such module"):
        locate("no_such_package_at_all.Thing")
    with pytest.raises(ConfigError, match="no core_of_it there"):
        locate("mis_lab.core_of_it.Thing")


def test_a_package_that_a_module_of_yours_misses_keeps_its_traceback(own_package: str, tmp_path: Path) -> None:
    (tmp_path / "own_broken.py").write_text("import no_such_package_at_all\n")
    allow("own_broken.")
    with pytest.raises(ModuleNotFoundError, match="no_such_package_at_all"):
        locate("own_broken.Thing")


def test_wrong_option_names_are_told(own_package: str) -> None:
    with pytest.raises(ConfigError, match=r"torch\.nn\.Linear: .*in_featurs.*option names"):
        build({"_target_": "torch.nn.Linear", "in_featurs": 2, "out_features": 3})
    with pytest.raises(ConfigError, match=r"own_things\.Strict: .*width"):
        build(StrictConfig())


def test_a_bug_keeps_its_traceback(own_package: str) -> None:
    with pytest.raises(TypeError, match="a bug of its own"):
        build({"_target_": "own_things.broken", "a": 1})


@pytest.mark.parametrize("config", [{}, {"name": "x"}, {"_target_": ""}, 3, None, ["torch.nn.ReLU"]], ids=repr)
def test_what_cannot_be_built_is_told(config: object) -> None:
    with pytest.raises(ConfigError):
        build(config)


def test_an_installed_entry_point_allows_its_package(own_package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    build_module.ALLOWED.remove("own_things.")
    monkeypatch.setattr(build_module, "_installed_prefixes", lambda: ("own_things.",))
    assert locate("own_things.Thing").__name__ == "Thing"
