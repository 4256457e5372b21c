from __future__ import annotations

import warnings
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

from mis_lab.core.errors import ConfigError, DataError, MissingFileError
from mis_lab.core.keys import hash_file
from mis_lab.dataset.base import ImageDataset
from mis_lab.metric import base
from mis_lab.metric.base import embed_dataset
from mis_lab.metric.config import SMALLEST_SIDES, LpipsConfig
from mis_lab.metric.load import load_metric
from mis_lab.metric.lpips import SOURCES, Lpips
from mis_lab.mis.score import margins, random_tasks

NETS = ["alex", "squeeze", pytest.param("vgg", marks=pytest.mark.slow)]
OFFICIAL = {
    "alex": "alexnet-owt-7be5be79.pth",
    "vgg": "vgg16-397923af.pth",
    "squeeze": "squeezenet1_1-b8a52dc0.pth",
}


class Photos(ImageDataset):
    """Smooth coloured noise, drawn from a seed; sizes can be given."""

    def __init__(self, n: int, sizes: dict[int, tuple[int, int]] | None = None) -> None:
        super().__init__("photos", "score", [f"photos/{index}" for index in range(n)])
        self.sizes = sizes or {}

    def image(self, index: int) -> Image.Image:
        rng = np.random.default_rng(index)
        coarse = Image.fromarray(rng.integers(0, 256, (int(rng.integers(2, 20)), 7, 3), dtype=np.uint8))
        return coarse.resize(self.sizes.get(index, (64, 64)), Image.Resampling.BICUBIC)


def photos(n: int) -> list[Image.Image]:
    return [Photos(n).image(index) for index in range(n)]


def package(net: str) -> torch.nn.Module:
    """The package's own LPIPS: its heads, a random trunk."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        import lpips

        return lpips.LPIPS(net=net, pnet_rand=True, verbose=False)


@pytest.fixture(scope="module")
def theirs(tmp_path_factory) -> dict[str, tuple[torch.nn.Module, Path]]:
    """Net → the package's network, and its trunk saved under torchvision's names in a file of the official name."""
    made: dict[str, tuple[torch.nn.Module, Path]] = {}

    def get(net: str) -> tuple[torch.nn.Module, Path]:
        if net not in made:
            network = package(net)
            weights = {f"features.{key.partition('.')[2]}": value for key, value in network.net.state_dict().items()}
            path = tmp_path_factory.mktemp("trunks") / OFFICIAL[net]
            torch.save(weights, path)
            made[net] = network, path
        return made[net]

    return get


@pytest.fixture(scope="module")
def config_of(theirs):
    def config(net: str, **options) -> LpipsConfig:
        path = theirs(net)[1]
        return LpipsConfig(**({"net": net, "trunk": str(path), "sha256": hash_file(path)} | options))

    return config


def distances(network: torch.nn.Module, a: list[Image.Image], b: list[Image.Image]) -> torch.Tensor:
    def inputs(images):
        return torch.from_numpy(np.stack([np.asarray(image) for image in images])).permute(0, 3, 1, 2) / 127.5 - 1

    with torch.no_grad():
        return network(inputs(a), inputs(b)).flatten().double()


@pytest.mark.parametrize("net", NETS)
def test_squared_distances_of_embeddings_are_the_packages_distances(theirs, config_of, net):
    images = photos(10)
    a, b = images[:5], images[5:]
    metric = Lpips(config_of(net))
    ours = (metric.embed(a).double() - metric.embed(b).double()).square().sum(1)
    expected = distances(theirs(net)[0], a, b)
    assert expected.min() > 1e-4
    torch.testing.assert_close(ours, expected, rtol=1e-5, atol=1e-6)


def test_all_pairs_of_a_data_set_come_from_one_pass_an_image(theirs, config_of):
    dataset, n = Photos(9), 9
    gram = embed_dataset(load_metric(config_of("alex", batch_size=4)), dataset).gram.double()
    squared = gram.diagonal()[:, None] + gram.diagonal() - 2 * gram
    images = photos(n)
    for i in range(n):
        expected = distances(theirs("alex")[0], [images[i]] * n, images)
        assert (squared[i] - expected).abs().max() < 1e-6


def test_the_width_is_the_one_that_is_documented(config_of):
    assert Lpips(config_of("alex")).embed(photos(1)).shape == (1, 31_872)


@pytest.mark.parametrize("net", ["alex", "squeeze", "vgg"])
def test_no_head_of_the_package_is_negative(net):
    import lpips

    heads = torch.load(Path(lpips.__file__).parent / f"weights/v0.1/{net}.pth", "cpu", weights_only=True)
    assert len(heads) == (7 if net == "squeeze" else 5)
    assert all((weight >= 0).all() for weight in heads.values())


@pytest.mark.parametrize("net", NETS)
def test_the_smallest_side_is_the_smallest_that_works(theirs, config_of, net):
    smallest = SMALLEST_SIDES[net]
    image = photos(1)[0].resize((smallest, smallest + 3))
    metric = Lpips(config_of(net, size=0))
    assert metric.embed([image, image]).isfinite().all()
    with pytest.raises(RuntimeError):
        theirs(net)[0].net(torch.zeros(1, 3, smallest - 1, smallest + 3))
    with pytest.raises(DataError, match=f"image number 0 is {smallest - 1}×{smallest} pixels, too small.*{net}"):
        metric.embed([image.resize((smallest - 1, smallest))])
    with pytest.raises(ConfigError, match=rf"metric\.size={smallest - 1}: images are too small for the trunk {net}"):
        LpipsConfig(net=net, size=smallest - 1)


def test_images_as_they_are_have_the_packages_distances_at_their_size(theirs, config_of):
    a, b = (image.resize((57, 40)) for image in photos(2))
    metric = Lpips(config_of("squeeze", size=0))
    ours = (metric.embed([a]).double() - metric.embed([b]).double()).square().sum()
    assert float(ours) == pytest.approx(float(distances(theirs("squeeze")[0], [a], [b])), rel=1e-5)


@pytest.mark.parametrize("batch_size", [1, 4])
@pytest.mark.parametrize(
    ("size", "words"),
    [
        ((20, 64), "image photos/5 is 20×64 pixels, too small"),
        ((65, 64), "photos/5 is 65×64 pixels, the first one 64×64"),
    ],
)
def test_an_image_that_does_not_fit_is_named_with_its_size(config_of, size, words, batch_size):
    metric = load_metric(config_of("alex", size=0, batch_size=batch_size))
    with pytest.raises(DataError, match=words) as raised:
        embed_dataset(metric, Photos(7, {5: size}))
    assert "\n" not in str(raised.value)
    assert "metric.size" in str(raised.value)
    resized = load_metric(config_of("alex", size=64))
    assert embed_dataset(resized, Photos(7, {5: size})).gram.isfinite().all()


# Trunk files -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("net", SOURCES)
def test_a_missing_trunk_is_told_with_file_place_and_source(tmp_path, monkeypatch, net):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path / "hub"))
    for trunk, place in (("", tmp_path / "hub" / "checkpoints"), (str(tmp_path / "mine"), tmp_path / "mine")):
        with pytest.raises(MissingFileError) as raised:
            load_metric(LpipsConfig(net=net, trunk=trunk))
        line = str(raised.value)
        assert OFFICIAL[net] in line
        assert f"looked in {place};" in line.replace(". Put", ";")
        assert f"https://download.pytorch.org/models/{OFFICIAL[net]}" in line
        assert "\n" not in line


def test_the_checkpoint_folder_of_torch_hub_is_the_default(tmp_path, monkeypatch, theirs, config_of):
    monkeypatch.setattr(torch.hub, "_hub_dir", str(tmp_path))
    (tmp_path / "checkpoints").mkdir()
    official = tmp_path / "checkpoints" / OFFICIAL["squeeze"]
    official.write_bytes(theirs("squeeze")[1].read_bytes())
    here = Lpips(config_of("squeeze", trunk=""))
    folder = Lpips(config_of("squeeze", trunk=str(official.parent)))
    file = Lpips(config_of("squeeze"))
    assert here.fingerprint == folder.fingerprint == file.fingerprint


def test_another_file_under_the_official_name_is_refused(config_of):
    with pytest.raises(MissingFileError, match=r"is not the file expected \(sha256 [0-9a-f]{12}, not b8a52dc0\)"):
        Lpips(config_of("squeeze", sha256=""))
    with pytest.raises(MissingFileError, match="not 0123456789ab"):
        Lpips(config_of("squeeze", sha256="0123456789abcdef"))


def test_a_file_of_another_network_or_of_none_is_refused(tmp_path, theirs, config_of):
    squeeze = config_of("squeeze")
    with pytest.raises(DataError, match=r"not the weights of torchvision's trunk for alex: features\.0\.weight"):
        Lpips(replace(squeeze, net="alex"))
    broken = tmp_path / "broken.pth"
    broken.write_bytes(theirs("squeeze")[1].read_bytes()[:500])
    with pytest.raises(DataError, match="cannot be read as weights"):
        Lpips(replace(squeeze, trunk=str(broken), sha256=hash_file(broken)))


def test_options_that_cannot_work_are_refused():
    with pytest.raises(ConfigError, match=r"metric\.net=resnet is no trunk of LPIPS\. Use alex, vgg, squeeze"):
        LpipsConfig(net="resnet")
    with pytest.raises(ConfigError, match=r"metric\.sketch=-1 is negative"):
        LpipsConfig(sketch=-1)
    with pytest.raises(ConfigError, match=r"metric\.sha256=b8a5 is no beginning of a sha256"):
        LpipsConfig(sha256="b8a5")


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_gpu_that_is_not_there_is_told(config_of):
    with pytest.raises(ConfigError, match="device=cuda is not available"):
        Lpips(config_of("squeeze"), "cuda")


@pytest.mark.usefixtures("untouched_rng")
def test_loading_draws_no_random_number_and_prints_nothing(config_of, capfd):
    Lpips(config_of("squeeze", sketch=64)).embed(photos(1))
    assert capfd.readouterr() == ("", "")


def test_the_fingerprint_follows_what_changes_the_embedding_and_nothing_else(config_of):
    squeeze = config_of("squeeze")
    different = [
        squeeze,
        config_of("alex"),
        replace(squeeze, size=32),
        replace(squeeze, size=0),
        replace(squeeze, sketch=64),
        replace(squeeze, sketch=65),
        replace(squeeze, sketch=64, sketch_seed=1),
    ]
    assert len({Lpips(config).fingerprint for config in different}) == len(different)
    same = replace(squeeze, name="other", temperature=1.0, batch_size=2, sketch_seed=5)
    assert Lpips(same).fingerprint == Lpips(squeeze).fingerprint


# Sketch ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("gram_up_to", [0, 100])
def test_a_sketch_approximates_the_margins_and_tells_its_error(monkeypatch, config_of, gram_up_to, tmp_path):
    monkeypatch.setattr(base, "GRAM_UP_TO", gram_up_to)
    monkeypatch.setattr(base, "ERROR_SAMPLE", 30)
    dataset = Photos(36)
    embeddings = {m: embed_dataset(load_metric(config_of("alex", sketch=m)), dataset) for m in (0, 256, 4096)}
    everything = slice(0, 36)
    assert embeddings[0].quality == {}
    tasks = random_tasks(36, 9, 2000, seed=1)
    exact_un = margins(tasks, embeddings[0])
    found = []
    for m in (256, 4096):
        embedding = embeddings[m]
        if gram_up_to == 0:
            assert embedding.rows.shape == (36, m)
            assert torch.equal(embedding.inner_products(everything, everything), embedding.rows @ embedding.rows.T)
        off = (margins(tasks, embedding) - exact_un).square().mean().sqrt() / exact_un.std(correction=0)
        # told from other tasks, on 30 of the 36 images
        assert embedding.quality["sketch_margin_error"] == pytest.approx(float(off), rel=0.3)
        assert embedding.quality["sketch_n_images"] == 30
        found.append(embedding.quality["sketch_margin_error"])
    assert found[1] < found[0] / 2
    assert found[1] < 0.3
    embeddings[256].write(tmp_path)
    assert base.Embedding.read(tmp_path).quality == embeddings[256].quality


def test_a_sketch_as_wide_as_the_embedding_is_exact(config_of):
    images = photos(4)
    exact, sketched = (Lpips(config_of("squeeze", size=32, sketch=m)).embed(images) for m in (0, 40_000))
    assert sketched.shape == (4, 40_000)
    torch.testing.assert_close(sketched @ sketched.T, exact @ exact.T, rtol=1e-5, atol=1e-6)
