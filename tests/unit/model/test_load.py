from __future__ import annotations

import pickle

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.core.tensors import hash_tensors
from mis_lab.dataset.config import TransformConfig
from mis_lab.model.capture import predictions
from mis_lab.model.load import build_network, load_model, read_state_dict, wrap_module

TIMM = "timm.create_model"
RESNET = {"model_name": "test_resnet"}
MLP = "mis_lab.model.mlp.Mlp"
WIDTHS = {"widths": [12, 6, 4]}


@pytest.fixture
def mlp(config_of):
    """Configuration of a small MLP on 2 by 2 pixels, with options of the model."""
    return lambda **options: config_of(MLP, 2, WIDTHS, **options)


@pytest.fixture
def state(mlp):
    return build_network(mlp(init_seed=5)).state_dict()


def test_a_loaded_network_is_frozen_in_eval_mode_and_known_by_its_weights(config_of):
    model = load_model(config_of(TIMM, 48, RESNET | {"num_classes": 7}, name="small"))
    assert (model.name, model.n_classes, model.input_shape) == ("small", 7, (3, 48, 48))
    assert not any(module.training for module in model.module.modules())
    assert not any(parameter.requires_grad for parameter in model.module.parameters())
    assert model.fingerprint == hash_tensors(model.module.state_dict())
    assert model.transform.config.size == 48


def test_the_same_seed_gives_the_same_weights_and_another_seed_others(mlp):
    assert load_model(mlp(init_seed=1)).fingerprint == load_model(mlp(init_seed=1)).fingerprint
    assert load_model(mlp(init_seed=1)).fingerprint != load_model(mlp(init_seed=2)).fingerprint


def test_building_leaves_the_global_generator_alone_and_does_not_depend_on_it(mlp):
    before = torch.random.get_rng_state()
    first = load_model(mlp()).fingerprint
    assert torch.equal(torch.random.get_rng_state(), before)
    torch.rand(3)
    assert load_model(mlp()).fingerprint == first


def test_memory_order_changes_neither_weights_nor_results(config_of, images_for):
    models = [load_model(config_of(TIMM, 48, RESNET, channels_last=wanted)) for wanted in (True, False)]
    images = images_for(models[0])
    ordered = torch.channels_last
    assert models[0].channels_last
    assert not models[1].channels_last
    assert models[0].to_input(images).is_contiguous(memory_format=ordered)
    assert not models[1].to_input(images).is_contiguous(memory_format=ordered)
    assert models[0].module.conv1[0].weight.is_contiguous(memory_format=ordered)
    assert models[0].fingerprint == models[1].fingerprint
    torch.testing.assert_close(predictions(models[0], images), predictions(models[1], images), rtol=1e-4, atol=1e-5)


def test_a_network_without_convolutions_keeps_its_memory_order(mlp):
    assert not load_model(mlp()).channels_last


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt", "checkpoint.pth"])
def test_weights_come_back_from_a_file(name, mlp, state, tmp_path):
    path = tmp_path / name
    if name == "w.safetensors":
        save_file(state, path)
    else:
        torch.save(state if name == "w.pt" else {"epoch": 3, "state_dict": state}, path)
    model = load_model(mlp(weights=f"file:{path}", init_seed=0))
    assert model.fingerprint == hash_tensors(state)


def test_weights_that_do_not_fit_name_the_first_keys_in_one_line(mlp, state, tmp_path):
    wrong = {key: value for key, value in state.items() if not key.startswith("fc2")}
    wrong |= {"fc1.weight": torch.zeros(6, 11), **{f"head.{i}": torch.zeros(1) for i in range(5)}}
    save_file(wrong, tmp_path / "w.safetensors")
    with pytest.raises(ConfigError) as caught:
        load_model(mlp(weights=f"file:{tmp_path / 'w.safetensors'}"))
    line = str(caught.value)
    assert "2 missing: fc2.weight, fc2.bias" in line
    assert "5 unexpected: head.0, head.1, head.2;" in line
    assert "1 of another shape: fc1.weight (6, 11) for (6, 12)" in line
    assert "\n" not in line


def test_a_weight_file_that_is_not_there(mlp, tmp_path):
    with pytest.raises(MissingFileError, match=r"weight file is not there.*absent.pt"):
        load_model(mlp(weights=f"file:{tmp_path / 'absent.pt'}"))


@pytest.mark.parametrize("name", ["cut.safetensors", "cut.pt", "garbage.pt", "empty.pt", "code.pt", "numbers.pt"])
def test_files_that_hold_no_readable_state_dict(name, state, tmp_path):
    path = tmp_path / name
    if name.startswith("cut"):
        save_file(state, path) if name.endswith("safetensors") else torch.save(state, path)
        path.write_bytes(path.read_bytes()[:-200])
    elif name == "code.pt":
        torch.save(nn.Linear(2, 2), path)  # a pickled module: loading it would run code
    elif name == "numbers.pt":
        torch.save({"accuracy": 0.5}, path)
    else:
        path.write_bytes(b"" if name == "empty.pt" else pickle.dumps(object(), protocol=2))
    with pytest.raises(DataError, match=f"{name} (cannot be read as weights|holds no state dict)"):
        read_state_dict(path)


def test_weights_trained_here_are_put_in_place(mlp, state):
    assert load_model(mlp(weights="train"), state_dict=state).fingerprint == hash_tensors(state)


def test_weights_train_needs_them_and_nothing_else_takes_them(mlp, state):
    with pytest.raises(ConfigError, match=r"model.weights=train and no trained weights given.*Train the network first"):
        load_model(mlp(weights="train"))
    with pytest.raises(ConfigError, match=r"model.weights=none and trained weights given"):
        load_model(mlp(), state_dict=state)


@pytest.mark.parametrize(
    ("target", "keywords", "size"),
    [(TIMM, {"model_name": "vit_tiny_patch16_224", "img_size": 64, "depth": 1}, 48), (MLP, WIDTHS, 3)],
)
def test_an_input_the_network_does_not_take(config_of, target, keywords, size):
    with pytest.raises(ConfigError, match=rf"does not take an input of 3×{size}×{size}.*Set model\.input\.size"):
        load_model(config_of(target, size, keywords))


def test_what_is_built_must_be_a_module(config_of):
    with pytest.raises(ConfigError, match=r"model\.network gave SGD, not a torch\.nn\.Module"):
        build_network(config_of("torch.optim.SGD", keywords={"params": [torch.zeros(1)]}))


def test_options_the_network_does_not_have(config_of):
    with pytest.raises(ConfigError, match=r"unexpected keyword argument 'depths'"):
        build_network(config_of(TIMM, 48, RESNET | {"depths": 3}))


def test_a_network_without_a_classifier_has_no_classes(config_of):
    assert (
        load_model(config_of("torch.nn.Conv2d", 8, {"in_channels": 3, "out_channels": 2, "kernel_size": 3})).n_classes
        == 0
    )


def test_a_module_of_your_own_is_the_same_as_one_from_a_configuration(mlp, state):
    module = build_network(mlp(init_seed=5))
    model = wrap_module(module, "mine", TransformConfig(size=2))
    assert (model.name, model.n_classes, model.module) == ("mine", 4, module)
    assert model.fingerprint == load_model(mlp(init_seed=5)).fingerprint == hash_tensors(state)
    assert not any(parameter.requires_grad for parameter in module.parameters())
    with pytest.raises(ConfigError, match=r"model mine does not take an input of 3×5×5"):
        wrap_module(module, "mine", TransformConfig(size=5))
