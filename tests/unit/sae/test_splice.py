"""Splicing SAEs into a network, and what it costs, against direct computation."""

# B images  P positions  D width  K classes

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor, nn

from mis_lab.activations.config import Precision
from mis_lab.activations.shards import ActivationWriter, StoredActivations
from mis_lab.core.errors import ConfigError, DataError
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.loading import batches
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.model.capture import Capture, predictions
from mis_lab.model.config import ModelConfig
from mis_lab.model.load import LoadedModel, load_model
from mis_lab.model.sites import Site, resolve_sites
from mis_lab.sae.ablation import ablate, outputs
from mis_lab.sae.architectures.transcoder import TranscoderSae
from mis_lab.sae.further_config import TranscoderConfig
from mis_lab.sae.splice import Reference, Splice, SpliceQuality, evaluate_splice, evaluate_splices, spliced

N_IMAGES, SIZE, N_CLASSES = 23, 6, 5


class Noise(ImageDataset):
    """Random grey images."""

    def __init__(self, labels: Sequence[int] | None = None, class_names: Sequence[str] = ()) -> None:
        super().__init__("noise", "score", [f"n{n}" for n in range(N_IMAGES)], labels=labels, class_names=class_names)
        pixels = np.random.default_rng(0).integers(0, 256, (N_IMAGES, SIZE, SIZE), dtype=np.uint8)
        self.images = [Image.fromarray(one) for one in pixels]

    def image(self, index: int) -> Image.Image:
        return self.images[index]


@pytest.fixture(scope="module")
def model() -> LoadedModel:
    config = ModelConfig(
        name="tiny",
        network={"_target_": "mis_lab.model.mlp.Mlp", "widths": [SIZE * SIZE, 12, 9, N_CLASSES]},
        sites=["act1", "act2"],
        input=TransformConfig(size=SIZE, channels=1, mean=[0.5], std=[0.1]),
    )
    loaded = load_model(config)
    for parameter in loaded.module.parameters():  # random initial weights say next to nothing about the classes
        parameter.data.mul_(2)
    return loaded


@pytest.fixture(scope="module")
def sites(model: LoadedModel) -> tuple[Site, ...]:
    return resolve_sites(model, ["act1", "act2"])


@pytest.fixture(scope="module")
def images_bchw(model: LoadedModel) -> Tensor:
    return next(iter(batches(Noise(), model.transform, N_IMAGES))).images_bchw


@pytest.fixture(scope="module")
def means(model: LoadedModel, sites: tuple[Site, ...], images_bchw: Tensor) -> dict[Site, Tensor]:
    with Capture(model, sites) as capture:
        found = capture.run(images_bchw)
    return {site: found[site.path].clone().double().mean((0, 1)) for site in sites}


def test_a_perfect_sae_changes_nothing(
    model: LoadedModel, sites: tuple[Site, ...], images_bchw: Tensor, affine: type
) -> None:
    plain = predictions(model, images_bchw)
    with spliced(model, {site: affine(site.width) for site in sites}):
        torch.testing.assert_close(predictions(model, images_bchw), plain, rtol=0, atol=1e-6)
    with spliced(model, {sites[0]: affine(sites[0].width, 0.5)}):
        assert not torch.allclose(predictions(model, images_bchw), plain, atol=1e-3)
    assert torch.equal(predictions(model, images_bchw), plain)


def test_reconstructions_replace_activations(
    model: LoadedModel, sites: tuple[Site, ...], images_bchw: Tensor, affine: type
) -> None:
    with Capture(model, sites) as capture:
        x_bpd = capture.run(images_bchw)["act1"].clone()
    module = model.module
    with torch.no_grad():
        rest = module.get_submodule("fc3")(
            module.get_submodule("act2")(module.get_submodule("fc2")(0.5 * x_bpd[:, 0] + 0.1))
        )
    with spliced(model, {sites[0]: affine(sites[0].width, 0.5, 0.1)}):
        torch.testing.assert_close(predictions(model, images_bchw), rest, rtol=1e-5, atol=1e-5)


def probabilities(logits: Tensor) -> np.ndarray:
    exponentials = np.exp(logits.double().numpy())
    return exponentials / exponentials.sum(1, keepdims=True)


@pytest.mark.parametrize("labelled", [True, False])
def test_every_number_equals_its_definition(
    model: LoadedModel,
    sites: tuple[Site, ...],
    images_bchw: Tensor,
    means: dict[Site, Tensor],
    affine: type,
    labelled: bool,
) -> None:
    site, sae = sites[1], affine(sites[1].width, 0.6, 0.05)
    original = probabilities(predictions(model, images_bchw))
    outputs = {}
    replaced = {"spliced": sae, "zero": affine(site.width, 0.0), "mean": affine(site.width, 0.0, means[site].float())}
    for name, replacement in replaced.items():
        with spliced(model, {site: replacement}):
            outputs[name] = probabilities(predictions(model, images_bchw))
    # Labels near the network's opinion: ablation costs something.
    labels = original.argsort(1)[np.arange(N_IMAGES), -1 - (np.arange(N_IMAGES) % 5 == 0)]
    dataset = Noise(labels.tolist(), list("abcde")) if labelled else Noise()
    target = labels if labelled else original.argmax(1)

    quality = evaluate_splice(model, site, sae, dataset, means[site], batch_size=4)

    def loss(p: np.ndarray) -> float:
        return float(-np.log(p[np.arange(N_IMAGES), target]).mean())

    def kl(p: np.ndarray, q: np.ndarray) -> float:
        return float((p * np.log(p / q)).sum(1).mean())

    now = outputs["spliced"]
    expected = {
        "loss_original": loss(original),
        "loss_spliced": loss(now),
        "loss_zero": loss(outputs["zero"]),
        "loss_mean": loss(outputs["mean"]),
        "kl": kl(original, now),
        "kl_reversed": kl(now, original),
        "kl_zero": kl(original, outputs["zero"]),
        "kl_mean": kl(original, outputs["mean"]),
        "agreement": float((now.argmax(1) == original.argmax(1)).mean()),
        "recovered_zero": (loss(outputs["zero"]) - loss(now)) / (loss(outputs["zero"]) - loss(original)),
        "recovered_mean": (loss(outputs["mean"]) - loss(now)) / (loss(outputs["mean"]) - loss(original)),
    }
    assert 0 < expected["kl"] != expected["kl_reversed"]
    for name, value in expected.items():
        assert getattr(quality, name) == pytest.approx(value, rel=1e-5), name
    assert quality.target == ("label" if labelled else "prediction")
    assert (quality.n_images, quality.reason) == (N_IMAGES, "")


def test_recovery_is_one_for_a_perfect_sae_and_zero_for_the_ablation(
    model: LoadedModel, sites: tuple[Site, ...], means: dict[Site, Tensor], affine: type
) -> None:
    site = sites[1]

    def quality(gain: float, shift: Tensor | float) -> SpliceQuality:
        return evaluate_splice(model, site, affine(site.width, gain, shift), Noise(), means[site])

    perfect, zero, mean = quality(1.0, 0.0), quality(0.0, 0.0), quality(0.0, means[site].float())
    assert perfect.recovered_zero == pytest.approx(1, abs=1e-6)
    assert perfect.recovered_mean == pytest.approx(1, abs=1e-6)
    assert perfect.kl == pytest.approx(0, abs=1e-9)
    assert perfect.agreement == 1
    assert zero.recovered_zero == pytest.approx(0, abs=1e-6)
    assert mean.recovered_mean == pytest.approx(0, abs=1e-6)


def test_all_sites_in_one_pass_are_each_site_alone(
    model: LoadedModel, sites: tuple[Site, ...], means: dict[Site, Tensor], affine: type
) -> None:
    saes = {site: affine(site.width, 0.8) for site in sites}
    chosen = [3, 20, 7]
    original = outputs(model, Noise(), batch_size=5)
    reference = Reference(original, ablate(model, means, Noise(), original, batch_size=3))
    together = evaluate_splices(model, saes, Noise(), reference, chosen, batch_size=2)
    assert list(together) == ["act1", "act2"]
    for site, sae in saes.items():
        alone = evaluate_splice(model, site, sae, Noise(), means[site], chosen, batch_size=2)
        assert together[site.path].n_images == 3
        for name, value in vars(alone).items():
            expected = value if isinstance(value, str) else pytest.approx(value, rel=1e-5)
            assert getattr(together[site.path], name) == expected, name


class AroundTheSite(nn.Module):
    """A little of the answer passes by `site`."""

    def __init__(self, share: float) -> None:
        super().__init__()
        self.share, self.site, self.read = share, nn.Identity(), nn.Linear(SIZE * SIZE, N_CLASSES)

    def forward(self, x_bchw: Tensor) -> Tensor:
        past = self.site(x_bchw.flatten(1))
        return self.read(past) + self.share * self.read(x_bchw.flatten(1))


def stored_in(
    folder: Path, model: LoadedModel, site: Site, precision: Precision = Precision.float32
) -> StoredActivations:
    dataset = Noise()
    with (
        ActivationWriter(folder, site, dataset.ids, dataset.groups, dataset.labels, precision) as writer,
        Capture(model, [site]) as capture,
    ):
        for batch in batches(dataset, model.transform, 8):
            writer.append(capture.run(batch.images_bchw)[site.path].clone(), batch.indices)
    return StoredActivations(folder)


def quality_and_images(
    model: LoadedModel, site: Site, sae: nn.Module, stored: StoredActivations | None
) -> tuple[SpliceQuality, int]:
    """Quality on some images, and how many images the network's first module saw for it."""
    original = outputs(model, Noise())
    zeros = {site: torch.zeros(site.width)}
    reference = Reference(original, ablate(model, zeros, Noise(), original))
    n_seen = 0

    def count(_module: nn.Module, args: tuple[Tensor, ...]) -> None:
        nonlocal n_seen
        n_seen += len(args[0])

    handle = model.module.register_forward_pre_hook(count)
    stored_at = None if stored is None else {site: stored}
    try:
        found = evaluate_splices(model, {site: sae}, Noise(), reference, range(3, 23), batch_size=6, stored=stored_at)
    finally:
        handle.remove()
    return found[site.path], n_seen


@pytest.mark.parametrize("number", [0, 1])
def test_with_stored_vectors_passes_start_at_the_site(
    model: LoadedModel, sites: tuple[Site, ...], affine: type, tmp_path: Path, number: int
) -> None:
    site, sae = sites[number], affine(sites[number].width, 0.7, 0.1)
    whole, n_whole = quality_and_images(model, site, sae, None)
    part, n_part = quality_and_images(model, site, sae, stored_in(tmp_path, model, site))
    assert (n_whole, n_part) == (20, 6), "two images to try, one for each of four batches"
    for name, value in vars(whole).items():
        assert getattr(part, name) == (value if isinstance(value, str) else pytest.approx(value, rel=1e-5)), name


@pytest.mark.parametrize(("share", "precision"), [(0.01, Precision.float32), (0.0, Precision.float16)])
def test_where_they_do_not_decide_the_answer_whole_images_are_run(
    affine: type, tmp_path: Path, share: float, precision: Precision
) -> None:
    transform = ImageTransform(TransformConfig(size=SIZE, channels=1, mean=[0.5], std=[0.1]))
    module = AroundTheSite(share).eval().requires_grad_(False)
    model = LoadedModel("around", module, "0" * 64, transform, (1, SIZE, SIZE), False, N_CLASSES, torch.device("cpu"))
    (site,) = resolve_sites(model, ["site"])
    sae = affine(site.width, 0.7)
    whole, n_whole = quality_and_images(model, site, sae, None)
    found, n_seen = quality_and_images(model, site, sae, stored_in(tmp_path, model, site, precision))
    assert n_seen == n_whole + 2 * (precision is Precision.float32), "two more to try"
    assert found == whole


def test_images_that_are_alike_do_not_hide_what_passes_by(
    affine: type, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    transform = ImageTransform(TransformConfig(size=SIZE, channels=1, mean=[0.5], std=[0.1]))
    module = AroundTheSite(1.0).eval().requires_grad_(False)
    model = LoadedModel("around", module, "0" * 64, transform, (1, SIZE, SIZE), False, N_CLASSES, torch.device("cpu"))
    (site,) = resolve_sites(model, ["site"])
    plain = Noise.image
    for n_alike in (N_IMAGES - 1, N_IMAGES):
        monkeypatch.setattr(Noise, "image", lambda self, index, n=n_alike: plain(self, index if index >= n else 0))
        folder = tmp_path / str(n_alike)
        whole, _ = quality_and_images(model, site, affine(site.width, 0.7), None)
        found, _ = quality_and_images(model, site, affine(site.width, 0.7), stored_in(folder, model, site))
        assert found == whole


@pytest.mark.parametrize(
    ("labels", "class_names"),
    [([0] * N_IMAGES, ["one"]), ([-1, *[0] * (N_IMAGES - 1)], list("abcde"))],
    ids=["other classes than the network's", "an image without a label"],
)
def test_labels_that_cannot_be_targets_are_not_used(
    model: LoadedModel,
    sites: tuple[Site, ...],
    means: dict[Site, Tensor],
    affine: type,
    labels: list[int],
    class_names: list[str],
) -> None:
    site = sites[0]
    quality = evaluate_splice(model, site, affine(site.width), Noise(labels, class_names), means[site])
    assert quality.target == "prediction"


def test_an_ablation_without_cost_recovers_nothing_to_speak_of(
    model: LoadedModel, sites: tuple[Site, ...], means: dict[Site, Tensor], affine: type
) -> None:
    site = sites[1]
    weight = model.module.get_submodule("fc3").weight
    kept = weight.clone()
    try:
        weight.data.mul_(1e-6)  # the site hardly matters
        quality = evaluate_splice(model, site, affine(site.width, 0.5), Noise(), means[site])
    finally:
        weight.data.copy_(kept)
    assert quality.recovered_zero is None
    assert quality.recovered_mean is None
    assert "zero ablation costs" in quality.reason
    assert "mean ablation costs" in quality.reason


def test_an_sae_of_another_width_is_refused(model: LoadedModel, sites: tuple[Site, ...], affine: type) -> None:
    with (
        pytest.raises(ConfigError, match="SAE of act1 has width 9, the site 12"),
        spliced(model, {sites[0]: affine(9)}),
    ):
        pass


def test_no_images(model: LoadedModel, sites: tuple[Site, ...], means: dict[Site, Tensor], affine: type) -> None:
    with pytest.raises(DataError, match="no images to evaluate a spliced SAE on"):
        evaluate_splice(model, sites[0], affine(sites[0].width), Noise(), means[sites[0]], [])


def transcoder(source: Site, target: Site, skip: bool = True) -> TranscoderSae:
    """With random weights."""
    sae = TranscoderSae(TranscoderConfig(n_features=20, k=5, skip=skip), source.width, target.width)
    with torch.no_grad():
        for number, parameter in enumerate(sae.parameters()):
            parameter.copy_(0.5 * torch.randn(parameter.shape, generator=torch.Generator().manual_seed(number)))
        sae.target_scale.fill_(0.3)
    return sae


@pytest.mark.parametrize("skip", [False, True])
def test_a_transcoder_writes_its_target_from_its_source(
    model: LoadedModel, sites: tuple[Site, ...], images_bchw: Tensor, skip: bool
) -> None:
    first, second = sites
    sae = transcoder(first, second, skip)
    plain = predictions(model, images_bchw)
    with Capture(model, sites) as capture:
        x_bpd = capture.run(images_bchw)["act1"].clone()
    with torch.no_grad():
        expected = model.module.get_submodule("fc3")(sae(x_bpd[:, 0]).reconstruction)
    for _ in range(2):
        with spliced(model, {second: Splice(sae, first)}):
            torch.testing.assert_close(predictions(model, images_bchw), expected, rtol=1e-5, atol=1e-5)
    assert torch.equal(predictions(model, images_bchw), plain)


def test_a_transcoder_reads_what_another_sae_has_made_of_its_source(
    model: LoadedModel, sites: tuple[Site, ...], images_bchw: Tensor, affine: type
) -> None:
    first, second = sites
    sae, earlier = transcoder(first, second), affine(first.width, 0.4, 0.2)
    with Capture(model, sites) as capture:
        x_bpd = capture.run(images_bchw)["act1"].clone()
    with torch.no_grad():
        expected = model.module.get_submodule("fc3")(sae(0.4 * x_bpd[:, 0] + 0.2).reconstruction)
    for saes in ({first: earlier, second: Splice(sae, first)}, {second: Splice(sae, first), first: earlier}):
        with spliced(model, saes):
            torch.testing.assert_close(predictions(model, images_bchw), expected, rtol=1e-5, atol=1e-5)


def test_a_transcoder_is_evaluated_at_the_site_that_it_writes(
    model: LoadedModel, sites: tuple[Site, ...], means: dict[Site, Tensor], affine: type
) -> None:
    first, second = sites
    quality = evaluate_splice(model, second, Splice(transcoder(first, second), first), Noise(), means[second])
    other = evaluate_splice(model, second, affine(second.width, 0.5), Noise(), means[second])
    assert (quality.loss_original, quality.loss_zero, quality.loss_mean) == (
        other.loss_original,
        other.loss_zero,
        other.loss_mean,
    )
    assert quality.loss_spliced != other.loss_spliced


def test_transcoders_that_do_not_fit_are_refused(
    model: LoadedModel, sites: tuple[Site, ...], images_bchw: Tensor
) -> None:
    first, second = sites
    backwards = transcoder(second, first)
    cases = {
        "SAE of act1 has width 9, the site 12": {second: Splice(backwards, first)},
        "SAE of act2 writes width 12, the site 9": {second: Splice(backwards, second)},
        "act1 has 4 positions, act2 1": {second: Splice(transcoder(first, second), replace(first, n_positions=4))},
    }
    for told, saes in cases.items():
        with pytest.raises(ConfigError, match=told), spliced(model, saes):
            pass
    with (
        pytest.raises(ConfigError, match="act2, which the transcoder of act1 reads, is computed after it"),
        spliced(model, {first: Splice(backwards, second)}),
    ):
        predictions(model, images_bchw)
