"""Networks of the `lpips` package (Zhang et al. 2018, arXiv 1801.03924) as embeddings of single images.

The package's distance of two images is Σ over layers of the mean over positions of Σ_c w_c (a_c − b_c)², where a and b
are the layer's maps, made unit vectors at every position. With φ(a) = √(w / HW) · a, all layers side by side, it is
‖φ(a) − φ(b)‖² exactly, so one forward pass an image serves all pairs.
"""

# B images  C channels  H, W size of a layer's map  d width of the embedding

from __future__ import annotations

import copy
import warnings
from collections.abc import Mapping, Sequence
from types import ModuleType
from typing import Any

import torch
from PIL import Image
from torch import Tensor, nn

from mis_lab.core.errors import DataError
from mis_lab.core.keys import content_key, plain
from mis_lab.core.tensors import hash_tensors
from mis_lab.dataset.base import ImageDataset
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.metric.base import Metric
from mis_lab.metric.config import SMALLEST_SIDES, LpipsMapsConfig
from mis_lab.metric.sketch import CountSketch


class LpipsMaps(Metric):
    """φ of a network of the package; subclasses bring the trunk's weights.

    Args:
        config: ``size`` 0 takes images as they are.
        net: ``alex``, ``vgg`` or ``squeeze``.
        trunk: weights with the names of torchvision's network.
        calibrated: with the package's heads w, else w = 1.
        told: what else decides the embedding, for the fingerprint.

    Raises:
        DataError: when the weights are those of another network.
    """

    similarity = "squared_euclidean"

    def __init__(
        self,
        config: LpipsMapsConfig,
        net: str,
        trunk: Mapping[str, Tensor],
        calibrated: bool,
        told: Mapping[str, Any],
        device: torch.device | str = "cpu",
    ) -> None:
        super().__init__(config, device)
        self.net = net
        self.package, network = _network(net, trunk, calibrated)
        network.to(memory_format=torch.channels_last).to(self.device)
        self.scaling, self.trunk = network.get_submodule("scaling_layer"), network.get_submodule("net")
        # A head is a convolution of size 1 to one channel, after a dropout that evaluation leaves out.
        heads = [head.model[-1].weight for head in network.lins] if calibrated else []
        self.roots = [weight_1c11.sqrt() for weight_1c11 in heads]
        # The package expects values in [-1, 1].
        self.size = config.size
        self.transform = ImageTransform(TransformConfig(config.size or 1, mean=[0.5] * 3, std=[0.5] * 3))
        self.sketch: CountSketch | None = None
        self.sketched, self.sketch_seed = config.sketch, config.sketch_seed
        if self.sketched:
            self.exact = copy.copy(self)
            self.exact.sketched = 0
        decides = dict(told) | {"weights": hash_tensors(self.trunk.state_dict()), "input": plain(self.transform.config)}
        if calibrated:
            decides["heads"] = hash_tensors({str(number): head for number, head in enumerate(heads)})
        if self.size == 0:
            decides["input"] = "as they are"
        if self.sketched:
            decides["sketch"] = [self.sketched, self.sketch_seed]
        self.fingerprint = content_key(decides)

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings (B, d) or their sketches; the squared distance of two is what the package gives for the pair.

        Raises:
            DataError: for images taken as they are, when one is too small or of another size than the first.
        """
        self._check(images, [f"number {number}" for number in range(len(images))], images[0].size)
        return self._embed(images)

    def embed_images(self, dataset: ImageDataset, indices: Sequence[int]) -> Tensor:
        """As :meth:`embed`; all images have the size of the data set's first one."""
        images = [dataset.image(index) for index in indices]
        if self.size == 0:
            self._check(images, [dataset.ids[index] for index in indices], dataset.image(0).size)
        return self._embed(images)

    def _check(self, images: Sequence[Image.Image], names: Sequence[str], expected: tuple[int, int]) -> None:
        smallest = SMALLEST_SIDES[self.net]
        for image, name in zip(images, names, strict=True):
            size, first = (f"{width}×{height}" for width, height in (image.size, expected))
            if self.size == 0 and min(image.size) < smallest:
                raise DataError(
                    f"image {name} is {size} pixels, too small for the trunk {self.net} of metric {self.name}",
                    fix=f"It takes {smallest}×{smallest} and more; set metric.size to resize all images.",
                )
            if self.size == 0 and image.size != expected:
                raise DataError(
                    f"image {name} is {size} pixels, the first one {first}",
                    fix="LPIPS compares images of one size: set metric.size.",
                )

    def _embed(self, images: Sequence[Image.Image]) -> Tensor:
        x_bchw = torch.stack([self._transformed(image) for image in images])
        x_bchw = x_bchw.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            maps = self.trunk(self.scaling(x_bchw))
            rows_bd = torch.cat([self._flat(map_bchw, layer) for layer, map_bchw in enumerate(maps)], dim=1)
            if not self.sketched:
                return rows_bd
            if self.sketch is None or self.sketch.width != rows_bd.shape[1]:
                self.sketch = CountSketch(rows_bd.shape[1], self.sketched, self.sketch_seed, self.device)
            return self.sketch(rows_bd)

    def _transformed(self, image: Image.Image) -> Tensor:
        if self.size:
            return self.transform(image)
        pixels_hwc = torch.frombuffer(bytearray(image.convert("RGB").tobytes()), dtype=torch.uint8)
        x_chw = pixels_hwc.view(image.height, image.width, 3).permute(2, 0, 1).float()
        return x_chw.div(255).sub(0.5).div(0.5)

    def _flat(self, map_bchw: Tensor, layer: int) -> Tensor:
        height, width = map_bchw.shape[2:]
        unit_bchw = self.package.normalize_tensor(map_bchw)
        if self.roots:
            unit_bchw = unit_bchw * self.roots[layer]
        # channels last, as it lies in memory: any order of the columns serves
        return unit_bchw.permute(0, 2, 3, 1).flatten(1) * (height * width) ** -0.5


def _network(net: str, trunk: Mapping[str, Tensor], calibrated: bool) -> tuple[ModuleType, Any]:
    """The package (slow to import, so only where it is used) and its network with our trunk."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # its constructor draws random weights
        warnings.simplefilter("ignore")  # it asks torchvision for weights in a deprecated way
        import lpips

        network: nn.Module = lpips.LPIPS(net=net, pnet_rand=True, lpips=calibrated, verbose=False)
    into = network.get_submodule("net")
    # The package cuts torchvision's "features.N.*" into slices "sliceM.N.*".
    names = {key: "features." + key.partition(".")[2] for key in into.state_dict()}
    for key, weight in into.state_dict().items():
        if names[key] not in trunk or trunk[names[key]].shape != weight.shape:
            raise DataError(f"these are not the weights of torchvision's trunk for {net}: {names[key]} does not fit")
    into.load_state_dict({key: trunk[name] for key, name in names.items()})
    return lpips, network.eval().requires_grad_(False)
