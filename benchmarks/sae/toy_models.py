"""Toy models of superposition (Elhage et al. 2022), and what each SAE finds of the features that they squeeze.

Toy models of several densities are trained here in seconds: the sparser the features, the more of them share the hidden
dimensions. Each architecture is then trained on the hidden vectors of one of them; MCC is the mean |cosine| of the best
one-to-one match between its dictionary and the columns of W.

    python benchmarks/sae/toy_models.py [--figure FILE] [--seeds 0 1 2]
"""

# F features of the toy world  D hidden dimensions

from __future__ import annotations

import argparse
import statistics
import sys
import tempfile
from pathlib import Path

import torch

from mis_lab.core.build import build
from mis_lab.sae.geometry import geometry, overlaps
from mis_lab.sae.toy_models import Recovery, ToyModel, ToyVectors, recovery_table, train_toy_model
from mis_lab.sae.train import train

sys.path.insert(0, str(Path(__file__).parent))
from ours import ARCHITECTURES, recipe, sizes

N_FEATURES, N_HIDDEN = 64, 20
DENSITIES = (0.5, 0.2, 0.1, 0.05, 0.03)  # the last is the one that SAEs are trained on
BATCH, N_STEPS = 512, 1500
SAES = ("relu", "gated", "topk", "batch_topk", "jump_relu", "matryoshka")


def recoveries(toy: ToyModel, seed: int) -> list[Recovery]:
    """What every architecture finds of a toy model, at the presets' recipes and the true number of active features."""
    k = max(1, round(N_FEATURES * toy.density))
    saes = {}
    for name in SAES:
        options = [f"trainer.batch_size={BATCH}", f"trainer.n_vectors={BATCH * N_STEPS}", "trainer.lr_features=0"]
        config = recipe(name, *sizes(name, N_FEATURES, k), *ARCHITECTURES[name].options, *options)
        saes[name] = build(config.sae, width=N_HIDDEN)
        vectors = ToyVectors(toy, BATCH * N_STEPS, BATCH, seed)
        with tempfile.TemporaryDirectory() as folder:
            train(saes[name], vectors, config.trainer, seed, Path(folder), lambda numbers, step: None)
    return recovery_table({name: sae.eval().requires_grad_(False) for name, sae in saes.items()}, vectors)


def draw(path: Path, toys: dict[float, ToyModel], found: dict[str, list[Recovery]]) -> None:
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    figure, axes = plt.subplots(1, 3, figsize=(13, 4), layout="constrained")
    for density, toy in toys.items():
        spread = geometry(toy.directions_fd).dimensionality_f.sort(descending=True).values
        axes[0].plot(range(N_FEATURES), spread, label=f"{density:g}")
    axes[0].set(xlabel="features, sorted", ylabel="dimensions of a feature", title="Sparser features share dimensions")
    axes[0].legend(title="density")
    toy = toys[DENSITIES[-1]]
    drawn = axes[1].imshow(overlaps(toy.directions_fd), cmap="RdBu_r", vmin=-1, vmax=1)
    axes[1].set(title=f"Overlaps of the directions at density {DENSITIES[-1]:g}", xlabel="feature", ylabel="feature")
    figure.colorbar(drawn, ax=axes[1], label="cosine")
    for place, rows in enumerate(found.values()):
        axes[2].scatter([place] * len(rows), [row.mcc for row in rows], color="C0")
        axes[2].text(place, 0.02, f"L0 {statistics.mean(row.l0 for row in rows):.1f}", ha="center", fontsize=8)
    axes[2].set(ylim=(0, 1.02), ylabel="MCC", title="What each SAE finds of them")
    axes[2].set_xticks(range(len(found)), list(found), rotation=30, ha="right")
    figure.savefig(path, dpi=120)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--figure", type=Path, help="draw into this file (.png, .svg)")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args()
    torch.set_num_threads(a.threads)
    toys = {
        density: train_toy_model(N_FEATURES, N_HIDDEN, a.seeds[0], density=density, n_restarts=1)
        for density in DENSITIES
    }
    out = [f"{N_FEATURES} features in {N_HIDDEN} dimensions", "", "| density | represented | dimensions a feature |"]
    out += ["|---|---|---|"]
    for density, toy in toys.items():
        shape = geometry(toy.directions_fd)
        out.append(f"| {density:g} | {int(toy.represented_f.sum())} | {shape.dimensions_per_feature:.2f} |")
    found: dict[str, list[Recovery]] = {}
    for seed in a.seeds:
        toy = train_toy_model(N_FEATURES, N_HIDDEN, seed, density=DENSITIES[-1], n_restarts=1)
        for row in recoveries(toy, seed):
            found.setdefault(row.name, []).append(row)
    out += ["", f"| SAE | MCC ({len(a.seeds)} seeds) | recovered | FVU | L0 |", "|---|---|---|---|---|"]
    for name, rows in found.items():
        mcc = [row.mcc for row in rows]
        means = [statistics.mean(getattr(row, field) for row in rows) for field in ("recovered", "fvu", "l0")]
        spread = f"{statistics.mean(mcc):.3f} ({min(mcc):.3f} to {max(mcc):.3f})"
        out.append(f"| {name} | {spread} | {means[0]:.2f} | {means[1]:.3f} | {means[2]:.2f} |")
    sys.stdout.write("\n".join(out) + "\n")
    if a.figure:
        draw(a.figure, toys, found)


if __name__ == "__main__":
    main()
