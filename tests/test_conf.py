"""Every preset under conf/ composes and validates; what cannot work is told in one line naming the option."""

from __future__ import annotations

import dataclasses
import importlib.util
import re
import shutil
from collections.abc import Callable, Iterator
from enum import Enum
from pathlib import Path
from typing import Any

import hydra
import pytest
import yaml
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hypothesis import given
from hypothesis import strategies as st
from omegaconf import DictConfig, OmegaConf

from mis_lab import cli, config
from mis_lab.core.errors import ConfigError

CONF = config.conf_dir()
GROUPS = [*config.SCHEMAS]
# What an option needs beside its own name.
NEEDED = {"dataset=image_folder": ["dataset.root=/data/birds"]}
# Options that cannot change a result, beside everything in config.NOT_IN_RUN_KEY: they are in no key.
NO_EFFECT = {
    "activations.batch_size",
    "activations.shard_mib",
    "activations.workers",
    "circuit.batch_size",
    "metric.batch_size",
    "metric.download",
    "metric.folder",
    "metric.model.channels_last",
    "metric.trunk",
    "mis.chunk",
    "mis.parts",
    "model.channels_last",
    "trainer.checkpoint_steps",
    "trainer.log_steps",
}
Compose = Callable[..., DictConfig]


def options(group: str) -> list[str]:
    return sorted(path.stem for path in (CONF / group).glob("*.yaml"))


@pytest.fixture(scope="module")
def conf(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A copy of conf/ without this machine's own conf/local."""
    copy = tmp_path_factory.mktemp("conf") / "conf"
    shutil.copytree(CONF, copy, ignore=shutil.ignore_patterns("local"))
    return copy


@pytest.fixture(scope="module")
def compose(conf: Path) -> Iterator[Compose]:
    config.register()
    with hydra.initialize_config_dir(str(conf), version_base="1.3"):
        yield lambda *overrides, **keywords: hydra.compose("config", [*overrides], **keywords)


# ---- what works


def test_a_group_is_a_folder_is_a_package() -> None:
    folders = {path.name for path in CONF.iterdir() if path.is_dir()} - {"local", "__pycache__"}
    assert folders == {*GROUPS, "experiment", "control", "sweep", "debug", "hydra"}
    packages = {path.parent.name for path in (Path(config.__file__).parent).glob("*/config.py")}
    assert {name for name in GROUPS if name not in ("trainer", "paths", "logger")} <= packages


@pytest.mark.parametrize("choice", [f"{group}={option}" for group in GROUPS for option in options(group)])
def test_every_group_option_composes_and_validates(compose: Compose, choice: str) -> None:
    run = config.validate(compose(choice, *NEEDED.get(choice, [])))
    assert isinstance(run, config.RunConfig)


@pytest.mark.parametrize("name", options("experiment"))
def test_every_experiment_composes_with_every_point_of_its_sweep(compose: Compose, name: str) -> None:
    composed = compose(f"experiment={name}", return_hydra_config=True)
    assert composed.name == name, "an experiment's folder has its name"
    axes = composed.hydra.sweeper.params or {}
    points = OverridesParser.create().parse_overrides([f"{axis}={values}" for axis, values in axes.items()])
    for axis in points:
        for value in axis.sweep_string_iterator() if axis.is_sweep_override() else [axis.get_value_string()]:
            config.validate(compose(f"experiment={name}", f"{axis.get_key_element()}={value}"))


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("debug", options("debug"))
def test_every_experiment_composes_small(compose: Compose, experiment: str, debug: str) -> None:
    config.validate(compose(f"experiment={experiment}", f"debug={debug}"))


@pytest.mark.parametrize("name", options("sweep"))
def test_every_sweep_preset_is_a_sweep(compose: Compose, name: str) -> None:
    composed = compose(f"sweep={name}", return_hydra_config=True)
    assert composed.hydra.mode.name == "MULTIRUN"
    assert composed.hydra.sweeper.params


@pytest.mark.parametrize("experiment", options("experiment"))
@pytest.mark.parametrize("control", options("control"))
def test_every_control_composes_with_every_experiment(compose: Compose, experiment: str, control: str) -> None:
    plain, other = (config.run_key(compose(f"experiment={experiment}", *more)) for more in ([], [f"control={control}"]))
    config.validate(compose(f"experiment={experiment}", f"control={control}"))
    assert plain != other


@pytest.mark.parametrize("debug", options("debug"))
@pytest.mark.parametrize("sae", options("sae"))
def test_debug_fits_every_sae(compose: Compose, debug: str, sae: str) -> None:
    config.validate(compose(f"debug={debug}", f"sae={sae}"))


@pytest.mark.parametrize("group", ["dataset", "metric", "sae"])
def test_what_has_no_schema_of_ours_uses_external(compose: Compose, conf: Path, group: str) -> None:
    defaults = f"defaults: [/schema/{group}/external@_here_, _self_]\n"
    preset = defaults + "_target_: my.Thing\nname: own\nkwargs: {a: 1}\n"
    (conf / group / "own.yaml").write_text(preset)
    try:
        run = config.validate(compose(f"{group}=own", f"{group}.kwargs.a=2", f"+{group}.kwargs.b=[x]"))
    finally:
        (conf / group / "own.yaml").unlink()
    own = getattr(run, group)
    assert (own._target_, own.name, own.kwargs) == ("my.Thing", "own", {"a": 2, "b": ["x"]})


@pytest.mark.parametrize("path", sorted((CONF / "hydra" / "launcher").glob("*.yaml")), ids=lambda path: path.stem)
def test_launcher_presets(compose: Compose, path: Path) -> None:
    plugin = {"joblib": "hydra_joblib_launcher", "submitit_slurm": "hydra_submitit_launcher"}
    (base,) = yaml.safe_load(path.read_text())["defaults"]
    if importlib.util.find_spec("hydra_plugins") and importlib.util.find_spec(f"hydra_plugins.{plugin[base]}"):
        launcher = compose(f"hydra/launcher={path.stem}", return_hydra_config=True).hydra.launcher
        assert plugin[base] in launcher._target_
    else:  # the extra is not installed: the preset must at least say what it stands on
        assert base in plugin
        assert "extra `launchers`" in path.read_text()


def test_local_settings_win_over_presets_but_not_over_the_command_line(compose: Compose, conf: Path) -> None:
    (conf / "local").mkdir()
    (conf / "local" / "default.yaml").write_text("# @package _global_\npaths: {data: /here}\nthreads: 3\n")
    try:
        assert compose().paths.data == "/here"
        assert compose("experiment=quickstart", "threads=5").threads == 5
    finally:
        shutil.rmtree(conf / "local")


def test_paths_come_from_the_environment(compose: Compose, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MIS_LAB_OUTPUT", "/runs")
    monkeypatch.delenv("MIS_LAB_STORE")
    assert compose().paths.store == "/runs/.store"
    monkeypatch.setenv("MIS_LAB_STORE", "/artifacts")
    monkeypatch.setenv("MIS_LAB_DATA", "/images")
    paths = config.validate(compose()).paths
    assert (paths.output, paths.store, paths.data) == ("/runs", "/artifacts", "/images")
    assert compose("paths.store=/mine").paths.store == "/mine"


# ---- what cannot work


def told(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch, *arguments: str) -> str:
    """The one line that the command line prints when `arguments` do not compose."""
    monkeypatch.setenv("HYDRA_FULL_ERROR", "")
    monkeypatch.delenv("HYDRA_FULL_ERROR")
    monkeypatch.setattr("signal.signal", lambda *_: None)
    monkeypatch.setattr("sys.argv", ["mis-lab"])
    active = GlobalHydra.instance().hydra  # the module's own, see `compose`
    GlobalHydra.instance().clear()
    try:
        with pytest.raises(SystemExit) as left:
            cli.main([*arguments, "--cfg", "job"])
    finally:
        GlobalHydra.instance().hydra = active
    assert left.value.code == 2
    lines = capsys.readouterr().err.splitlines()
    assert len(lines) == 1
    return lines[0]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["sae.kk=3"], ["sae.kk"]),
        (["seeed=3"], ["seeed"]),
        (["sae=relu", "sae.k=3"], ["'k' not in 'ReluConfig'"]),
        (["model.input.siz=3"], ["model.input.siz"]),
        (["sae.k=few"], ["sae.k", "'few'", "Integer"]),
        (["sae.k=3.5"], ["sae.k", "3.5", "Integer"]),
        (["trainer.normalisation=half"], ["trainer.normalisation", "'half'", "none, unit_variance"]),
        (["stages=[activation]"], ["'activation'", "activations, sae, evaluate, mis, circuit, report"]),
        (["circuit.target=truth"], ["circuit.target", "'truth'", "prediction, label"]),
        (["mis.negatives=[top]"], ["mis.negatives", "'top'", "bottom, random"]),
        (["sae=topkk"], ["sae/topkk", "relu relu_april relu_thesis topk"]),
        (["experiment=quickstrat"], ["experiment/quickstrat", "quickstart"]),
        (["circuit.n_steps=null"], ["circuit.n_steps", "not Optional"]),
        (["stagess=topk"], ["stagess"]),
    ],
    ids=lambda value: " ".join(value) if "=" in value[0] else "",
)
def test_typos_types_and_groups_fail_when_composed(
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
    arguments: list[str],
    words: list[str],
) -> None:
    line = told(capsys, monkeypatch, *arguments)
    assert all(word in line for word in words), line


def test_a_typo_in_a_preset_fails_when_composed(compose: Compose, conf: Path) -> None:
    (conf / "sae" / "typo.yaml").write_text("defaults: [/schema/sae/topk@_here_, _self_]\nkk: 3\n")
    try:
        with pytest.raises(HydraException, match=r"(?s)sae/typo.*'kk' not in 'TopKConfig'"):
            compose("sae=typo")
    finally:
        (conf / "sae" / "typo.yaml").unlink()


@pytest.mark.parametrize(
    ("override", "option"),
    [
        ("dataset.split.hold_out=1", "dataset.split.hold_out"),
        ("dataset.split.hold_out=-0.1", "dataset.split.hold_out"),
        ("dataset.split.limit=-1", "dataset.split.limit"),
        ("dataset.score.size=0", "tiles"),
        ("model.sites=[]", "model.sites"),
        ("model.sites=[a,a]", "model.sites"),
        ("model.weights=http://somewhere", "model.weights"),
        ("model.class_names=yes", "model.class_names"),
        ("model.input.channels=2", "model.input.channels"),
        ("model.input.std=[1.0]", "model.input"),
        ("model.input.interpolation=cubic", "model.input.interpolation"),
        ("model.training.lr=0", "model.training"),
        ("activations.batch_size=0", "activations"),
        ("sae.k=0", "sae.k"),
        ("sae.n_features=8", "sae.k=16 is more than the 8"),
        ("sae.n_features=-1", "sae"),
        ("sae.expansion=0", "sae.expansion"),
        ("sae.aux_k=-1", "sae.aux_k"),
        ("trainer.lr=0", "trainer"),
        ("trainer.warmup=0.9", "trainer.warmup"),
        ("metric.temperature=-1", "metric.temperature"),
        ("metric.size=16", "metric.size"),
        ("metric.sketch=-1", "metric.sketch"),
        ("mis.n_tasks=0", "mis.n_tasks"),
        ("mis.quantile=0.6", "mis.quantile"),
        ("mis.negatives=[]", "mis.negatives"),
        ("mis.controls=[shuffled]", "shuffled"),
        ("circuit.sizes=0", "circuit.sizes"),
        ("report.units=0", "report"),
    ],
)
def test_values_out_of_range_are_told(compose: Compose, override: str, option: str) -> None:
    with pytest.raises(ConfigError) as raised:
        config.validate(compose(override))
    line = str(raised.value)
    assert option in line
    assert "\n" not in line


def test_missing_values_are_told_together(compose: Compose) -> None:
    with pytest.raises(ConfigError, match=r"no value for dataset\.root, model\.name, sae\.k\."):
        config.validate(compose("dataset=image_folder", "model.name=???", "sae.k=???"))


# ---- run key


def leaves(node: DictConfig, start: str = "") -> Iterator[str]:
    for name in node:
        path = f"{start}{name}"
        if OmegaConf.is_dict(node[name]) and len(node[name]):
            yield from leaves(node[name], f"{path}.")
        else:
            yield path


def another(value: Any) -> Any:
    """Another value of the same type, or the same where there is no other."""
    if isinstance(value, Enum):
        return next((other for other in type(value) if other != value), value)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int | float):
        return value + 1
    if OmegaConf.is_list(value):
        if len(value):
            return list(value)[:-1]
        element = value._metadata.element_type
        return [1] if element is int else [[0.0, 0.5]] if "list" in str(element).lower() else ["more"]
    if OmegaConf.is_dict(value):
        return {"more": 1}
    return f"{value}_other"


@pytest.mark.parametrize(
    "overrides",
    [
        ["experiment=quickstart"],
        ["experiment=mnist", "sae=relu", "metric=embedding"],
        ["dataset=image_folder", "dataset.root=/data/birds", "sae=none", "metric=dreamsim"],
    ],
    ids=" ".join,
)
def test_the_run_key_changes_with_everything_that_can_change_a_result(compose: Compose, overrides: list[str]) -> None:
    composed = compose(*overrides)
    key = config.run_key(composed)
    paths = list(leaves(composed))
    assert len(paths) > 80
    for path in paths:
        value = OmegaConf.select(composed, path)
        if (other := another(value)) == value:
            continue
        changed = composed.copy()
        OmegaConf.update(changed, path, other, merge=False)
        ignored = path.partition(".")[0] in config.NOT_IN_RUN_KEY or path in NO_EFFECT
        assert (config.run_key(changed) == key) == ignored, f"{path}: {value!r} → {other!r}"


def test_the_run_key_ignores_logger_paths_device_and_threads(compose: Compose) -> None:
    key = config.run_key(compose())
    for overrides in (
        ["logger=files"],
        ["logger=wandb", "logger.project=elsewhere"],
        ["paths.output=/a", "paths.store=/b", "paths.data=/c"],
        ["device=cuda:1", "threads=7"],
        ["name=another"],
        ["hydra.verbose=true"],
    ):
        assert config.run_key(compose(*overrides)) == key, overrides


def test_the_run_key_is_the_same_whichever_way_a_value_is_said(compose: Compose) -> None:
    key = config.run_key(compose("sae.k=8", "seed=1", "trainer.lr=1e-3"))
    assert config.run_key(compose("trainer.lr=0.001", "seed=1", "sae.k=8")) == key
    assert len(key) == 12
    assert config.run_key(compose("sae.k=8", "seed=1", "trainer.lr=1e-3", return_hydra_config=True)) == key


def test_the_run_folder_is_named_by_the_run_key(compose: Compose) -> None:
    composed = compose("name=trial", "paths.output=/runs", return_hydra_config=True)
    key = config.run_key(composed)
    assert composed.hydra.run.dir == f"/runs/trial/{key}"
    assert (composed.hydra.sweep.dir, composed.hydra.sweep.subdir) == ("/runs/trial", key)


@given(seed=st.integers(0, 2**31), k=st.integers(1, 64), share=st.floats(0, 0.99))
def test_equal_settings_have_equal_run_keys_and_others_have_not(seed: int, k: int, share: float) -> None:
    def settings(**values: Any) -> DictConfig:
        return OmegaConf.create({"seed": seed, "sae": {"k": k}, "dataset": {"hold_out": share}} | values)

    assert config.run_key(settings()) == config.run_key(settings(device="cuda", threads=k))
    assert config.run_key(settings()) != config.run_key(settings(seed=seed + 1))
    assert config.run_key(settings()) != config.run_key(settings(sae={"k": k + 1}))


def test_every_field_of_a_schema_has_a_default() -> None:
    """A schema's fields have defaults or are marked missing, so that --cfg job can always print them."""
    for schemas in config.SCHEMAS.values():
        for schema in schemas.values():
            for each in dataclasses.fields(schema):
                has_default = each.default is not dataclasses.MISSING
                assert has_default or each.default_factory is not dataclasses.MISSING, f"{schema}.{each.name}"


# ---- documentation

PAGE = (Path(config.__file__).parent.parent / "docs" / "configuration.md").read_text(encoding="utf-8")


def test_the_page_lists_every_group_with_its_default() -> None:
    section = PAGE.partition("## Groups")[2].partition("\n## ")[0]
    listed = dict(re.findall(r"^\| `(\w+)` \| [^|]+ \| (?:`(\w+)`|none) \|$", section, re.MULTILINE))
    defaults = {}
    for entry in yaml.safe_load((CONF / "config.yaml").read_text())["defaults"]:
        if isinstance(entry, dict) and "optional local" not in entry:
            defaults |= {group: option or "" for group, option in entry.items()}
    assert listed == defaults


def test_the_commands_on_the_page_compose(compose: Compose) -> None:
    commands = [line.split("#")[0].split() for line in PAGE.splitlines() if line.startswith("mis-lab ")]
    composed = [words[1:] for words in commands if not {"--help", "--info", "--config-dir", "rerun"} & {*words}]
    assert len(composed) > 6
    for words in composed:
        overrides = []
        for override in OverridesParser.create().parse_overrides([word for word in words if "=" in word]):
            sweep = override.is_sweep_override()
            value = next(iter(override.sweep_string_iterator())) if sweep else override.get_value_string()
            overrides.append(f"{override.get_key_element()}={value}")
        if "model.sites=[layer2,layer3]" in words:
            overrides.append("model=resnet18")
        config.validate(compose(*overrides))


def test_the_presets_on_the_page_compose(compose: Compose, conf: Path) -> None:
    presets = re.findall(r"```yaml\n# my_conf/(\w+)/(\w+)\.yaml\n(.*?)```", PAGE, re.DOTALL)
    assert len(presets) == 2
    for group, name, text in presets:
        (conf / group / f"{name}.yaml").write_text(text)
        try:
            assert getattr(config.validate(compose(f"{group}={name}")), group).name == name
        finally:
            (conf / group / f"{name}.yaml").unlink()
