"""What a sketch of LPIPS' embedding costs in accuracy and time, beside a Gaussian projection of the same width.

    python benchmarks/sketch.py [--images 256] [--size 64] [--widths 1024,4096,8192] [--seeds 3] [--trunk FILE]

On tiles of the packaged photographs: the uncalibrated baseline, and LPIPS on AlexNet, with random weights unless
--trunk names torchvision's file. Errors are those that every run stores: of squared distances (relative), of margins
over their standard deviation, and the share of random tasks whose margin keeps its sign. Gaussian projections only up
to 4,096.
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from tempfile import TemporaryDirectory

import torch
from torch import Tensor
from torchvision.models import alexnet

from mis_lab.core.keys import hash_file
from mis_lab.core.seeding import generator
from mis_lab.dataset.config import PhotoPatchesConfig, SplitConfig
from mis_lab.dataset.load import load_dataset
from mis_lab.metric.config import LpipsBaselineSqueezeConfig, LpipsConfig
from mis_lab.metric.lpips import Lpips
from mis_lab.metric.lpips_baseline_squeeze import LpipsBaselineSqueeze
from mis_lab.metric.lpips_maps import LpipsMaps
from mis_lab.metric.sketch import CountSketch, sketch_error

BATCH, COLUMNS, WIDEST_GAUSSIAN = 32, 4096, 4096


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=256)
    options.add_argument("--size", type=int, default=64)
    options.add_argument("--widths", default="1024,4096,8192")
    options.add_argument("--seeds", type=int, default=3)
    options.add_argument("--trunk", help="torchvision's alexnet-owt-7be5be79.pth")
    chosen = options.parse_args()

    dataset = load_dataset(PhotoPatchesConfig(split=SplitConfig(limit=chosen.images)), "score")
    images = [dataset.image(index) for index in range(len(dataset))]
    for metric in (LpipsBaselineSqueeze(LpipsBaselineSqueezeConfig(size=chosen.size)), calibrated(chosen)):
        begun = time.process_time()
        rows_nd = torch.cat([metric.embed(images[start : start + BATCH]) for start in range(0, len(images), BATCH)])
        passed = (time.process_time() - begun) / len(images)
        print(f"{metric.name}, d = {rows_nd.shape[1]:,}, {len(rows_nd)} images: {1000 * passed:.2f} CPU ms an image")
        gram_nn = rows_nd @ rows_nd.T
        for width in map(int, chosen.widths.split(",")):
            for seed in range(chosen.seeds):
                sketch = CountSketch(rows_nd.shape[1], width, seed)
                begun = time.process_time()
                sketched_nm = torch.cat([sketch(rows_bd) for rows_bd in rows_nd.split(BATCH)])
                took = (time.process_time() - begun) / len(images)
                report(f"m = {width:,}, seed {seed}, {1000 * took:.2f} CPU ms an image", gram_nn, sketched_nm)
            if width <= WIDEST_GAUSSIAN:
                report(f"m = {width:,}, Gaussian", gram_nn, gaussian(rows_nd, width))


def calibrated(chosen: argparse.Namespace) -> LpipsMaps:
    """LPIPS on AlexNet."""
    if chosen.trunk:
        return Lpips(LpipsConfig(size=chosen.size, trunk=chosen.trunk))
    with TemporaryDirectory() as folder, torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        path = Path(folder) / "random.pth"
        torch.save(alexnet().state_dict(), path)
        config = LpipsConfig(name="lpips (random weights)", size=chosen.size, trunk=str(path), sha256=hash_file(path))
        return Lpips(config)


def gaussian(rows_nd: Tensor, width: int) -> Tensor:
    """The projection that a sketch stands in for, a few columns at a time."""
    numbers, projected_nm = generator(0, "gaussian"), torch.zeros(len(rows_nd), width)
    for columns_nk in rows_nd.split(COLUMNS, dim=1):
        projected_nm += columns_nk @ torch.randn(columns_nk.shape[1], width, generator=numbers) / width**0.5
    return projected_nm


def report(what: str, gram_nn: Tensor, sketched_nm: Tensor) -> None:
    """Print one line of errors."""
    error = sketch_error(gram_nn, sketched_nm @ sketched_nm.T)
    names = ("distance_error", "margin_error", "sign_agreement")
    print(f"  {what}: " + ", ".join(f"{name.replace('_', ' ')} {error[f'sketch_{name}']:.3f}" for name in names))


if __name__ == "__main__":
    main()
