"""How an image becomes a network's input: resize, crop, channels, scale.

The same numbers as torchvision's transforms of a PIL image; Pillow filters before it shrinks (antialiasing).
"""

# C channels  H = W side of the input

from __future__ import annotations

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from mis_lab.dataset.config import TransformConfig

RESAMPLING = {
    "nearest": Image.Resampling.NEAREST,
    "bilinear": Image.Resampling.BILINEAR,
    "bicubic": Image.Resampling.BICUBIC,
}


class ImageTransform:
    """PIL image of any size and mode → float32 tensor (C, H, W) of exactly `config.size`, normalised."""

    def __init__(self, config: TransformConfig) -> None:
        self.config = config
        self.mean_c11 = torch.tensor(config.mean, dtype=torch.float32).reshape(-1, 1, 1)
        self.std_c11 = torch.tensor(config.std, dtype=torch.float32).reshape(-1, 1, 1)

    def picture(self, image: Image.Image) -> Image.Image:
        """What the network sees, still as a picture: channels, size and crop applied, nothing normalised."""
        image = image.convert("L" if self.config.channels == 1 else "RGB")
        method, size = RESAMPLING[self.config.interpolation], self.config.size
        if self.config.resize == 0:
            return image if image.size == (size, size) else image.resize((size, size), method)
        width, height = image.size
        short = min(width, height)
        scaled = (int(self.config.resize * width / short), int(self.config.resize * height / short))
        if scaled != image.size:
            image = image.resize(scaled, method)
        left, top = (round((side - size) / 2) for side in scaled)
        return image.crop((left, top, left + size, top + size))

    def __call__(self, image: Image.Image) -> Tensor:
        size = self.config.size
        pixels_hwc = np.array(self.picture(image)).reshape(size, size, self.config.channels)
        x_chw = torch.from_numpy(pixels_hwc).permute(2, 0, 1).to(torch.float32).div(255)
        if self.config.scale != 1:
            x_chw = x_chw.mul(self.config.scale)
        return x_chw.sub(self.mean_c11).div(self.std_c11).contiguous()
