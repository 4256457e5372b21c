"""The `lpips` package's uncalibrated baseline (Zhang et al. 2018, arXiv 1801.03924) on a packaged SqueezeNet 1.1.

It is not LPIPS: no calibrated heads, and a trunk of another training run. Its distance is exactly a squared Euclidean
distance between fixed embeddings, so that one forward pass an image serves all pairs.
"""

# B images  C channels  H, W size of a layer's map  d width of the embedding

from __future__ import annotations

import warnings
from collections.abc import Sequence
from types import ModuleType

import torch
from PIL import Image
from torch import Tensor, nn

from mis_lab.core.keys import content_key, plain
from mis_lab.core.tensors import hash_tensors
from mis_lab.dataset.config import TransformConfig
from mis_lab.dataset.transforms import ImageTransform
from mis_lab.metric.base import Metric
from mis_lab.metric.config import LpipsBaselineSqueezeConfig
from mis_lab.model.packaged import packaged_state_dict

WEIGHTS = "squeezenet1_1_ndf"


class LpipsBaselineSqueeze(Metric):
    """Distance = Σ over seven layers of the mean over positions of ‖a/‖a‖ − b/‖b‖‖².

    Embedding: each layer's map, of length 1 at every position, times 1/√(H·W); all layers side by side (d = 118,976
    at 64 pixels).
    """

    similarity = "squared_euclidean"

    def __init__(self, config: LpipsBaselineSqueezeConfig, device: torch.device | str = "cpu") -> None:
        super().__init__(config, device)
        self.package, network = _baseline_network()
        network.to(memory_format=torch.channels_last).to(self.device)
        self.scaling, self.trunk = network.get_submodule("scaling_layer"), network.get_submodule("net")
        # The package expects values in [-1, 1].
        self.transform = ImageTransform(TransformConfig(config.size, mean=[0.5] * 3, std=[0.5] * 3))
        self.fingerprint = content_key(
            {
                "metric": "lpips_baseline_squeeze",
                "weights": hash_tensors(self.trunk.state_dict()),
                "input": plain(self.transform.config),
            }
        )

    def embed(self, images: Sequence[Image.Image]) -> Tensor:
        """Embeddings (B, d); the squared distance of two is what the package's forward pass gives for the pair."""
        x_bchw = torch.stack([self.transform(image) for image in images])
        x_bchw = x_bchw.to(self.device, memory_format=torch.channels_last)
        with torch.inference_mode():
            layers = [self._flat(map_bchw) for map_bchw in self.trunk(self.scaling(x_bchw))]
            return torch.cat(layers, dim=1)

    def _flat(self, map_bchw: Tensor) -> Tensor:
        height, width = map_bchw.shape[2:]
        unit_bchw = self.package.normalize_tensor(map_bchw)
        # channels last, as it lies in memory: any order of the columns serves
        return unit_bchw.permute(0, 2, 3, 1).flatten(1) * (height * width) ** -0.5


def _baseline_network() -> tuple[ModuleType, nn.Module]:
    """The package (slow to import, so only where it is used) and its network with our trunk."""
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):  # its constructor draws random weights
        warnings.simplefilter("ignore")  # it asks torchvision for weights in a deprecated way
        import lpips

        network: nn.Module = lpips.LPIPS(net="squeeze", pnet_rand=True, lpips=False, verbose=False)
    packaged = packaged_state_dict(WEIGHTS)
    # The package cuts torchvision's "features.N.*" into slices "sliceM.N.*".
    trunk = network.get_submodule("net")
    trunk.load_state_dict({key: packaged["features." + key.partition(".")[2]] for key in trunk.state_dict()})
    return lpips, network.eval().requires_grad_(False)
