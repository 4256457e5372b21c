from __future__ import annotations

import math
import time

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import save_file
from torch import nn

from mis_lab.core.errors import ConfigError, DataError
from mis_lab.core.intervals import wilson
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import MnistConfig, TransformConfig
from mis_lab.dataset.mnist import Mnist
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model import train as train_module
from mis_lab.model.capture import predictions
from mis_lab.model.config import ClassifierTrainingConfig, Optimizer
from mis_lab.model.load import build_network, load_model
from mis_lab.model.train import evaluate_classifier, train_classifier

SIDE = 4
GREY = TransformConfig(size=SIDE, channels=1, mean=[0.5], std=[0.25], interpolation="nearest")
MLP = "mis_lab.model.mlp.Mlp"


class Stripes(ImageDataset):
    """Noisy tiles; the label says which quarter is bright."""

    def __init__(self, n: int, labels: list[int] | None = None) -> None:
        random = np.random.default_rng(n)
        self.quarter = random.integers(0, 4, n)
        self.pixels = random.integers(0, 120, (n, SIDE, SIDE))
        for image, quarter in zip(self.pixels, self.quarter, strict=True):
            image[quarter] += 120
        labels = self.quarter.tolist() if labels is None else labels
        super().__init__("stripes", "train", [f"{i}" for i in range(n)], labels=labels, class_names=list("abcd"))

    def image(self, index: int) -> Image.Image:
        return Image.fromarray(self.pixels[index].astype(np.uint8))


@pytest.fixture
def network(config_of):
    """A fresh module for tiles of four classes, with the widths of its hidden layers."""

    def make(*hidden: int, classes: int = 4) -> nn.Module:
        return build_network(config_of(MLP, SIDE, {"widths": [SIDE * SIDE, *hidden, classes]}, channels=1))

    return make


def train(module, dataset, seed=0, **options):
    options = {"epochs": 2, "batch_size": 16} | options
    return train_classifier(module, dataset, ImageTransform(GREY), ClassifierTrainingConfig(**options), seed)


def inputs(dataset):
    transform = ImageTransform(GREY)
    return torch.stack([transform(dataset.image(i)) for i in range(len(dataset))]).double(), torch.tensor(
        dataset.labels
    )


def test_digits_are_learnt_in_seconds(config_of):
    transform = TransformConfig(size=28, channels=1, mean=[0.1307], std=[0.3081], interpolation="nearest")
    config = config_of(MLP, 28, {"widths": [784, 256, 256, 10]}, weights="train", input=transform)
    started = time.monotonic()
    trained = train_classifier(
        build_network(config),
        Mnist(MnistConfig(), "train"),
        ImageTransform(transform),
        ClassifierTrainingConfig(epochs=10, batch_size=64, optimizer=Optimizer.sgd, lr=0.1, lr_step=8),
        seed=0,
    )
    assert time.monotonic() - started < 60
    quality = evaluate_classifier(load_model(config, state_dict=trained.state_dict), Mnist(MnistConfig(), "score"))
    assert quality.n_images == 1000
    assert quality.accuracy.estimate >= 0.93
    assert quality.cross_entropy < 0.3
    assert len(trained.losses) == 10
    assert trained.losses[-1] < 0.1 < trained.losses[0]


def gradient_steps(module, dataset, rates):
    """Weights after full-batch steps of gradient descent, in float64, by hand."""
    module = module.double()
    x, labels = inputs(dataset)
    losses = []
    for rate in rates:
        module.zero_grad()
        loss = -module(x).log_softmax(1)[torch.arange(len(labels)), labels].mean()
        loss.backward()
        losses.append(loss.item())
        with torch.no_grad():
            for parameter in module.parameters():
                parameter -= rate * parameter.grad
    return module.state_dict(), losses


@pytest.mark.parametrize(("options", "rates"), [({}, [0.1, 0.1, 0.1]), ({"lr_step": 2}, [0.1, 0.1, 0.01])])
def test_one_batch_an_epoch_is_gradient_descent(network, options, rates):
    dataset = Stripes(24)
    trained = train(network(7), dataset, epochs=3, batch_size=24, lr=0.1, **options)
    expected, losses = gradient_steps(network(7), dataset, rates)
    for name, tensor in trained.state_dict.items():
        torch.testing.assert_close(tensor.double(), expected[name], rtol=1e-4, atol=1e-6)
    np.testing.assert_allclose(trained.losses, losses, rtol=1e-5)


def test_momentum_goes_on_from_step_to_step(network):
    dataset = Stripes(24)
    trained = train(network(7), dataset, epochs=3, batch_size=24, lr=0.1, momentum=0.9)
    module = network(7).double()
    x, labels = inputs(dataset)
    velocities = [torch.zeros_like(parameter) for parameter in module.parameters()]
    for _ in range(3):
        module.zero_grad()
        nn.functional.cross_entropy(module(x), labels).backward()
        with torch.no_grad():
            for velocity, parameter in zip(velocities, module.parameters(), strict=True):
                velocity.mul_(0.9).add_(parameter.grad)
                parameter -= 0.1 * velocity
    for name, tensor in trained.state_dict.items():
        torch.testing.assert_close(tensor.double(), module.state_dict()[name], rtol=1e-4, atol=1e-6)


def test_trained_weights_kept_in_a_file_give_the_same_outputs(network, config_of, tmp_path):
    module = network(7)
    save_file(train(module, Stripes(40)).state_dict, tmp_path / "weights.safetensors")
    options = {"channels": 1, "weights": f"file:{tmp_path / 'weights.safetensors'}", "init_seed": 5}
    again = load_model(config_of(MLP, SIDE, {"widths": [SIDE * SIDE, 7, 4]}, **options))
    x, _ = inputs(Stripes(12))
    assert torch.equal(predictions(again, x.float()), module(x.float()))


def test_the_same_seed_gives_the_same_weights_another_seed_others(network):
    dataset = Stripes(40)
    first, again, other = (train(network(7), dataset, seed).state_dict for seed in (3, 3, 4))
    assert all(torch.equal(first[name], again[name]) for name in first)
    assert not torch.equal(first["fc1.weight"], other["fc1.weight"])


def test_dropout_is_seeded_and_the_global_generator_left_alone(network):
    dataset = Stripes(40)
    results = []
    for _ in range(2):
        torch.rand(1)
        before = torch.random.get_rng_state()
        module = nn.Sequential(network(), nn.Dropout(0.5))
        results.append(train(module, dataset).state_dict["0.fc1.weight"])
        assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(*results)


def test_images_kept_in_memory_and_images_read_anew_train_alike(network, monkeypatch):
    dataset = Stripes(40)
    kept = train(network(7), dataset)
    monkeypatch.setattr(train_module, "KEEP_MIB", 0)
    read = train(network(7), dataset)
    assert read.losses == kept.losses
    assert all(torch.equal(kept.state_dict[name], read.state_dict[name]) for name in kept.state_dict)


@pytest.mark.parametrize("optimizer", list(Optimizer))
def test_both_optimisers_learn(network, optimizer):
    trained = train(
        network(16), Stripes(200), epochs=10, optimizer=optimizer, lr=0.01 if optimizer is Optimizer.adam else 0.1
    )
    assert trained.losses[-1] < 0.2 * trained.losses[0]


def test_a_last_batch_of_one_image_does_not_stop_batch_normalisation(network):
    module = nn.Sequential(nn.Flatten(), nn.Linear(SIDE * SIDE, 6), nn.BatchNorm1d(6), nn.Linear(6, 4))
    assert len(train(module, Stripes(33)).losses) == 2


def test_training_ends_in_eval_mode_with_weights_that_are_copies(network):
    module = network(7)
    trained = train(module, Stripes(20))
    assert not module.training
    with torch.no_grad():
        module.fc1.weight.zero_()
    assert trained.state_dict["fc1.weight"].abs().sum() > 0


def test_quality_is_counted_over_all_batches(config_of):
    dataset = Stripes(37)
    config = config_of(MLP, SIDE, {"widths": [SIDE * SIDE, 4]}, channels=1, input=GREY)
    model = load_model(config)
    quality = evaluate_classifier(model, dataset, batch_size=10)
    x, labels = inputs(dataset)
    logits = x.flatten(1) @ model.module.fc1.weight.double().T + model.module.fc1.bias.double()
    right = (logits.argmax(1) == labels).double().mean().item()
    assert quality.accuracy == wilson(right, 37)
    expected = (logits.logsumexp(1) - logits[torch.arange(37), labels]).mean().item()
    assert math.isclose(quality.cross_entropy, expected, rel_tol=1e-6)


def test_images_without_a_label(network, config_of):
    unlabelled = Stripes(3, labels=[0, -1, -1])
    with pytest.raises(DataError, match=r"stripes/train has 2 images without a label, 1 for one"):
        train(network(), unlabelled)
    with pytest.raises(DataError, match=r"2 images without a label"):
        evaluate_classifier(load_model(config_of(MLP, SIDE, {"widths": [SIDE * SIDE, 4]}, channels=1)), unlabelled)


def test_fewer_outputs_than_classes(network, config_of):
    with pytest.raises(ConfigError, match=r"the network has 3 outputs for 4 classes"):
        train(network(classes=3), Stripes(20))
    with pytest.raises(ConfigError, match=r"the network has 3 outputs for 4 classes"):
        evaluate_classifier(load_model(config_of(MLP, SIDE, {"widths": [16, 3]}, channels=1)), Stripes(20))


def test_training_that_diverges(network):
    with pytest.raises(ConfigError, match=r"training diverged.*Lower model\.training\.lr"):
        train(network(7), Stripes(40), lr=1e30)
