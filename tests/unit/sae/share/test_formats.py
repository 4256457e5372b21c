"""SAEs of other libraries give the codes and reconstructions that they gave there (tests/golden/sae_formats)."""

# N vectors  D site width  F features

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn

from mis_lab.core.errors import ConfigError, MisLabError, StoreError
from mis_lab.sae.share.formats import overcomplete, saelens, thesis
from mis_lab.sae.share.formats.foreign import inclusive

READ = {"saelens": saelens.read, "overcomplete": overcomplete.read, "thesis": thesis.read}
THRESHOLD = "1.9648629426956177"  # as the README of the fixtures says
CASES: list[tuple[str, str, dict[str, str], str]] = [
    ("saelens/standard", "", {}, "ReluSae"),
    ("saelens/scaled", "", {}, "ReluSae"),
    ("saelens/gated", "", {}, "GatedSae"),
    ("saelens/jumprelu", "", {}, "JumpReluSae"),
    ("saelens/batchtopk", "", {}, "JumpReluSae"),
    ("saelens/topk", "", {}, "TopKSae"),
    (
        "overcomplete/sae",
        "sae.pt",
        {"class": "SAE", "normalization": "max_l2"},
        "ReluSae",
    ),
    ("overcomplete/topk", "sae.pt", {"class": "TopKSAE", "top_k": "5"}, "TopKSae"),
    ("overcomplete/topk_untied", "sae.safetensors", {"class": "TopKSAE", "top_k": "5"}, "TopKSae"),
    ("overcomplete/jump", "sae.pt", {}, "JumpReluSae"),
    ("overcomplete/batch_topk", "sae.pt", {"class": "BatchTopKSAE", "running_threshold": THRESHOLD}, "BatchTopKSae"),
    ("thesis/sae_mlp", "checkpoint.pth", {}, "ReluSae"),
    ("thesis/legacy", "checkpoint.pth", {}, "ReluSae"),
    ("thesis/gated_sae", "checkpoint.pth", {}, "GatedSae"),
]


def read(path: Path, settings: Mapping[str, str] = {}) -> Any:
    name = next(name for name in READ if name in path.parts)
    return READ[name](path, settings)


def refused(path: Path, said: str, settings: Mapping[str, str] = {}, error: type[MisLabError] = StoreError) -> None:
    with pytest.raises(error, match=said) as told:
        read(path, settings)
    assert "\n" not in str(told.value)


def change(folder: Path, **entries: Any) -> None:
    path = folder / saelens.CONFIG
    path.write_text(json.dumps(json.loads(path.read_text()) | entries))


@pytest.mark.parametrize(("folder", "file", "settings", "architecture"), CASES, ids=[case[0] for case in CASES])
def test_codes_and_reconstructions_are_those_of_the_library(
    golden: Path, folder: str, file: str, settings: dict[str, str], architecture: str
) -> None:
    sae = read(golden / folder / file if file else golden / folder, settings).sae
    expected = load_file(golden / folder / "expected.safetensors")
    assert type(sae).__name__ == architecture
    assert (sae.width, sae.n_features) == (12, 32)
    output = sae(expected["x"])
    assert torch.equal(output.codes != 0, expected["codes"] != 0)
    assert (expected["codes"] != 0).any(1).all()
    torch.testing.assert_close(output.codes, expected["codes"], rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(output.reconstruction, expected["reconstruction"], rtol=1e-5, atol=1e-5)
    assert not any(parameter.requires_grad for parameter in sae.parameters())
    assert {tensor.dtype for tensor in sae.state_dict().values()} == {torch.float32}


@pytest.mark.parametrize(("folder", "file", "settings"), [case[:3] for case in CASES], ids=[case[0] for case in CASES])
def test_every_parameter_counts(golden: Path, folder: str, file: str, settings: dict[str, str]) -> None:
    """The fixtures are no special case in which a reader could forget a bias: none is zero, no gain is one."""
    sae = read(golden / folder / file if file else golden / folder, settings).sae
    if not folder.startswith("overcomplete"):  # has none
        assert sae.b_dec.abs().max() > 0.05
    assert sae.b_enc.abs().max() > 0.01
    if folder == "saelens/scaled":
        assert sae.scale == pytest.approx(0.4)


def test_thresholds_that_let_equal_values_through() -> None:
    threshold = torch.tensor([0.5, 1e-3, 0.0, -1.0])
    kept = inclusive(threshold)
    assert (threshold[:2] > kept[:2]).all()
    assert (torch.nextafter(threshold[:2], torch.zeros(2)) <= kept[:2]).all()
    assert kept[2:].tolist() == [0.0, 0.0]  # a rectified code of 0 is no code


# SAELens


def test_what_saelens_says_of_the_site_comes_along(copied: Callable[[str], Path]) -> None:
    folder = copied("saelens/standard")
    change(folder, metadata={"hook_name": "blocks.4", "model_name": "vit", "sae_lens_version": "6.1.0"})
    assert read(folder).site == "blocks.4"
    assert read(folder).about["model_name"] == "vit"
    change(folder, metadata={}, hook_point="blocks.5")  # version 3
    assert read(folder).site == "blocks.5"


def test_names_of_earlier_versions(copied: Callable[[str], Path], golden: Path) -> None:
    """Before version 6 a TopK SAE was a standard one with another activation function, and ones stood beside it."""
    folder = copied("saelens/topk")
    path = folder / saelens.CONFIG
    config = json.loads(path.read_text())
    for name in ("k", "metadata", "architecture", "apply_b_dec_to_input"):
        del config[name]
    activation = {"activation_fn_str": "topk", "activation_fn_kwargs": {"k": 5}, "normalize_activations": False}
    path.write_text(json.dumps(config | activation))
    weights = load_file(folder / saelens.WEIGHTS)
    save_file(weights | {"scaling_factor": torch.ones(32)}, folder / saelens.WEIGHTS)
    expected = load_file(golden / "saelens" / "topk" / "expected.safetensors")
    torch.testing.assert_close(read(folder).sae.encode(expected["x"]), expected["codes"])
    save_file(weights | {"scaling_factor": torch.full((32,), 2.0)}, folder / saelens.WEIGHTS)
    refused(folder, "scaling_factor other than 1")


def test_logarithms_of_thresholds(copied: Callable[[str], Path], golden: Path) -> None:
    folder = copied("saelens/jumprelu")
    weights = load_file(folder / saelens.WEIGHTS)
    weights["log_threshold"] = weights.pop("threshold").log()
    save_file(weights, folder / saelens.WEIGHTS)
    expected = load_file(golden / "saelens" / "jumprelu" / "expected.safetensors")
    torch.testing.assert_close(read(folder).sae.encode(expected["x"]), expected["codes"])


def test_a_factor_that_is_not_in_the_folder_is_asked_for(copied: Callable[[str], Path]) -> None:
    folder = copied("saelens/scaled")
    (folder / saelens.SCALER).unlink()
    refused(folder, "does not say scaling_factor.*Add --set scaling_factor=VALUE", error=ConfigError)
    assert read(folder, {"scaling_factor": "0.4"}).sae.scale == pytest.approx(0.4)
    refused(folder, "scaling_factor=much", {"scaling_factor": "much"}, ConfigError)
    refused(folder, "scaling_factor=nan", {"scaling_factor": "nan"}, ConfigError)


@pytest.mark.parametrize(
    ("entries", "said"),
    [
        ({"normalize_activations": "layer_norm"}, "normalize_activations=layer_norm cannot be taken over"),
        ({"normalize_activations": "constant_norm_rescale"}, "normalize_activations=constant_norm_rescale cannot"),
        ({"reshape_activations": "hook_z"}, "reshape_activations=hook_z"),
        ({"activation_fn": "tanh-relu"}, "activation_fn=tanh-relu cannot"),
        ({"architecture": "temporal"}, "architecture=temporal cannot be taken over. Those that can: standard, gated"),
        ({"architecture": "batchtopk"}, "architecture=batchtopk cannot.*save_inference_model"),
        ({"architecture": "gated"}, "no tensor r_mag; looked in b_enc"),
        ({"architecture": "jumprelu"}, "no tensor threshold"),
        ({"architecture": "topk"}, "k=None of a topk SAE of 32 features"),
        ({"architecture": "topk", "k": 33}, "k=33 of a topk SAE of 32 features"),
        ({"d_in": 13}, r"W_enc is of shape \(12, 32\), not 13×32"),
        ({"d_sae": "many"}, "d_sae=many is no size"),
    ],
)
def test_settings_of_saelens_that_cannot_be_followed(
    copied: Callable[[str], Path], entries: dict[str, Any], said: str
) -> None:
    folder = copied("saelens/standard")
    change(folder, **entries)
    refused(folder, said)


def test_another_architecture_under_the_name_of_one(copied: Callable[[str], Path]) -> None:
    folder = copied("saelens/jumprelu")
    change(folder, architecture="standard")
    refused(folder, "another architecture: nothing here uses its threshold")


def test_damaged_folders_of_saelens(copied: Callable[[str], Path], tmp_path: Path) -> None:
    refused(tmp_path / "saelens", "no SAE of SAELens in")
    folder = copied("saelens/standard")
    weights = folder / saelens.WEIGHTS
    weights.write_bytes(weights.read_bytes()[:-40])
    refused(folder, r"sae_weights\.safetensors is damaged")
    weights.unlink()
    refused(folder, r"no file .*sae_weights\.safetensors")
    (folder / saelens.CONFIG).write_text("[]")
    refused(folder, "holds no settings")
    (folder / saelens.CONFIG).write_text("{")
    refused(folder, "is not readable JSON")


# overcomplete


@pytest.mark.parametrize(
    ("settings", "said", "error"),
    [
        ({}, "does not say class, one of SAE.*Add --set class=VALUE", ConfigError),
        ({"class": "QSAE"}, "--set class=QSAE.*Use one of SAE", ConfigError),
        ({"class": "JumpSAE"}, "has no thresholds", ConfigError),
        ({"class": "TopKSAE"}, "does not say top_k, the number of codes kept.*Add --set top_k=VALUE", ConfigError),
        ({"class": "TopKSAE", "top_k": "0"}, "top_k=0: a positive whole number", ConfigError),
        ({"class": "TopKSAE", "top_k": "33"}, "top_k=33 is more than the 32 features", ConfigError),
        ({"class": "BatchTopKSAE"}, "does not say running_threshold", ConfigError),
        ({"class": "SAE", "normalization": "l3"}, "normalization=l3.*Use one of l2, max_l2", ConfigError),
        ({"class": "SAE", "k": "3"}, "overcomplete has no setting k. It has class, top_k", ConfigError),
    ],
)
def test_settings_of_overcomplete(golden: Path, settings: dict[str, str], said: str, error: type[MisLabError]) -> None:
    refused(golden / "overcomplete" / "topk" / "sae.pt", said, settings, error)


def test_a_dictionary_that_is_not_normalised_as_taken(golden: Path) -> None:
    refused(
        golden / "overcomplete/sae/sae.pt",
        "norms of .* to .*, not 1.*normalization=NAME",
        {"class": "SAE"},
        ConfigError,
    )


@pytest.mark.parametrize("name", ["encoder.mlp_blocks.0.0.weight", "encoder.final_block.1.running_mean"])
def test_encoders_that_are_not_linear(golden: Path, tmp_path: Path, name: str) -> None:
    state = torch.load(golden / "overcomplete" / "topk" / "sae.pt", weights_only=True)
    path = tmp_path / "overcomplete" / "sae.pt"
    path.parent.mkdir()
    torch.save(state | {name: torch.zeros(32)}, path)
    refused(path, f"hidden or norm layers.*{name}", {"class": "SAE"})


def test_an_archetypal_dictionary_and_an_encoder_of_ones_own(golden: Path, tmp_path: Path) -> None:
    state = torch.load(golden / "overcomplete" / "topk" / "sae.pt", weights_only=True)
    path = tmp_path / "overcomplete" / "sae.pt"
    path.parent.mkdir()
    torch.save({"dictionary.C": torch.zeros(3, 3)}, path)
    refused(path, "is no SAE of overcomplete; looked in dictionary.C")
    torch.save(
        {name: tensor for name, tensor in state.items() if name.startswith("dict")}
        | {"encoder.mine": state["dictionary.multiplier"]},
        path,
    )
    refused(path, "has no linear encoder; looked in encoder.mine", {"class": "SAE"})
    torch.save(state | {"gate": torch.zeros(2)}, path)
    refused(path, "another architecture: nothing here uses its gate", {"class": "SAE"})


def test_a_whole_module_is_not_unpickled(tmp_path: Path) -> None:
    path = tmp_path / "overcomplete" / "module.pt"
    path.parent.mkdir()
    torch.save(nn.Linear(2, 3), path)
    refused(path, r"holds Python objects or is damaged, and is not loaded. .*state_dict\(\) instead")


# The thesis


def test_checkpoints_say_how_far_they_are(golden: Path) -> None:
    found = read(golden / "thesis" / "sae_mlp" / "checkpoint.pth")
    assert found.about == {"epoch": 3, "training_step": 120}
    assert found.site == ""


def test_bare_state_dicts_are_taken_too(golden: Path, tmp_path: Path) -> None:
    whole = golden / "thesis" / "sae_mlp" / "checkpoint.pth"
    path = tmp_path / "thesis" / "bare.pth"
    path.parent.mkdir()
    torch.save(torch.load(whole, weights_only=True)[thesis.MODEL], path)
    assert torch.equal(read(path).sae.W_dec, read(whole).sae.W_dec)


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"model_state_dict": {"conv.weight": torch.zeros(2, 2)}}, "is no SAE of the thesis; looked in conv.weight"),
        ({"model_state_dict": {"encoder.weight": torch.zeros(4, 2)}}, "no tensor encoder.bias"),
        ({"encoder.weight": torch.zeros(4, 2, 3, 3)}, r"encoder.weight is of shape \(4, 2, 3, 3\), not any×any"),
        ({"encoder.weight": torch.full((4, 2), torch.nan)}, "encoder.weight contains NaN"),
        ({"epoch": 3}, "is no state dict: epoch is a int"),
        ([torch.zeros(2)], "holds a list, not a state dict"),
    ],
)
def test_checkpoints_of_something_else(tmp_path: Path, held: Any, said: str) -> None:
    path = tmp_path / "thesis" / "checkpoint.pth"
    path.parent.mkdir()
    torch.save(held, path)
    refused(path, said)


def test_damaged_checkpoints(copied: Callable[[str], Path]) -> None:
    path = copied("thesis/sae_mlp") / "checkpoint.pth"
    whole = path.read_bytes()
    for cut in (whole[: len(whole) // 2], whole[:10], b""):
        path.write_bytes(cut)
        refused(path, "is no readable tensor file|is damaged")
    path.unlink()
    refused(path, r"no file .*checkpoint\.pth")
    refused(path, "format thesis has no setting k. It has none", {"k": "3"}, ConfigError)
