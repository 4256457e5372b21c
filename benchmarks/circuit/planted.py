"""Planted circuits: whether effects find the features that an objective is known to depend on.

    python benchmarks/circuit/planted.py [--small] [--out FILE]

A network is built by hand: its site's vectors at nine positions are sparse sums of 49 known unit atoms in 32
dimensions, and what follows reads three to five of them: for each, the part of the vectors along its dual direction
(which the other atoms of the circuit do not touch) above a threshold, squared, with weights of both signs. Effects by
`ig_inputs` rank all features, first of the true dictionary, whose codes are known, then of a TopK SAE trained on the
vectors, whose features are matched to atoms by cosine. The measure is the AUROC of |effect| for planted against other
features; of the trained SAE, for features whose atom is planted (cosine .9 at least) against all others.

Gates print PASS or FAIL, and a failure exits with 1.
"""

# B images  P positions  D site width  F features

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from scipy.stats import rankdata
from torch import Tensor, nn
from torch.nn import functional as F

from mis_lab.circuit.attribution import InputPath
from mis_lab.circuit.baselines import SiteNodes, mean_image, zero
from mis_lab.circuit.config import EffectMethod
from mis_lab.circuit.dictionaries import NodeDictionary, SaeFeatures
from mis_lab.circuit.effects import node_effects
from mis_lab.circuit.objectives import Problem, logit
from mis_lab.circuit.quadrature import midpoint
from mis_lab.core.seeding import generator
from mis_lab.dataset.config import TransformConfig
from mis_lab.model.capture import Capture
from mis_lab.model.load import wrap_module
from mis_lab.model.sites import resolve_sites

sys.path.insert(0, str(Path(__file__).parent))
sys.path.insert(0, str(Path(__file__).parent.parent / "sae"))
from digits import train_sae
from measure import Gate, gate_table, gates_as_json, progress, table, tell, write_json

BLOCK, WIDTH, SIDE, RATE, K = 7, 32, 3, 0.06, 4
N_ATOMS = BLOCK**2
PLANTED, SEEDS = (3, 4, 5), (0, 1, 2)
LEAST_COSINE, LEAST_TRUE, LEAST_TRAINED = 0.9, 1.0, 0.95


class Planted(nn.Module):
    """Images (B, 1, 21, 21), each pixel a code → vectors at the site → two logits, the first reads a few atoms."""

    def __init__(self, atoms_fd: Tensor, planted: Tensor, weights: Tensor) -> None:
        super().__init__()
        self.mix, self.site = nn.Conv2d(N_ATOMS, WIDTH, 1, bias=False), nn.Identity()
        self.mix.weight.copy_(atoms_fd.T[:, :, None, None])
        # Dual directions: 1 on their own atom, 0 on the others of the circuit.
        self.register_buffer("dual_dk", torch.linalg.pinv(atoms_fd[planted]))
        self.register_buffer("weights", weights)

    def forward(self, images_bchw: Tensor) -> Tensor:
        x_bpd = self.site(self.mix(F.pixel_unshuffle(images_bchw, BLOCK))).flatten(2).transpose(1, 2)
        read_bk = (x_bpd @ self.dual_dk - 0.5).relu().square().sum(1)
        total_b = read_bk @ self.weights
        return torch.stack([total_b, torch.zeros_like(total_b)], dim=1)


class TrueFeatures(NamedTuple):
    """The known dictionary as nodes: the network's input holds the codes, handed on in the order of the images."""

    atoms: Tensor
    codes_bpf: Tensor
    vectors_bpd: Tensor
    kind: str = "feature"
    has_error: bool = True

    @property
    def n_features(self) -> int:
        return N_ATOMS

    @property
    def offset(self) -> Tensor:
        return torch.zeros(WIDTH)

    def encode(self, x_bpd: Tensor) -> Tensor:
        distance = torch.cdist(x_bpd.flatten(1), self.vectors_bpd.flatten(1))
        return self.codes_bpf[distance.argmin(1)]

    def combine(self, f_bpf: Tensor, which_k: Tensor | None = None) -> Tensor:
        return f_bpf @ (self.atoms if which_k is None else self.atoms[which_k])

    def project(self, g_bpd: Tensor) -> Tensor:
        return g_bpd @ self.atoms.T


class Found(NamedTuple):
    """Of one planted circuit: AUROCs, and how many planted atoms the trained SAE has."""

    true: float
    trained: float
    n_matched: int


def images_of(n: int, random: torch.Generator) -> Tensor:
    """Sparse positive codes as pixels, (n, 1, 21, 21)."""
    shape = (n, N_ATOMS, SIDE, SIDE)
    active = torch.rand(shape, generator=random) < RATE
    return F.pixel_shuffle(active * (0.5 + torch.rand(shape, generator=random)), BLOCK)


def auroc(scores: np.ndarray, positive: np.ndarray) -> float:
    """Chance that a positive has the larger score, ties one half; NaN without one of either."""
    n_positive, n_negative = int(positive.sum()), int((~positive).sum())
    if not n_positive or not n_negative:
        return float("nan")
    return float((rankdata(scores)[positive].sum() - n_positive * (n_positive + 1) / 2) / (n_positive * n_negative))


def measure(n_planted: int, seed: int, n_images: int, n_vectors: int) -> Found:
    random = generator(seed, "planted", n_planted)
    atoms_fd = F.normalize(torch.randn(N_ATOMS, WIDTH, generator=random), dim=1)
    planted = torch.randperm(N_ATOMS, generator=random)[:n_planted]
    signs = torch.ones(n_planted)
    signs[1::2] = -1
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        module = Planted(atoms_fd, planted, signs * (1 + torch.rand(n_planted, generator=random)))
    model = wrap_module(module, "planted", TransformConfig(size=SIDE * BLOCK, channels=1, mean=[0.0], std=[1.0]))
    problem = Problem(model, resolve_sites(model, ["site"]), logit)
    images = images_of(n_images, random)
    targets = torch.zeros(n_images, dtype=torch.int64)
    vectors = problem.observe(images, targets).vectors["site"].clone()
    train_images = images_of(n_vectors // SIDE**2, random)
    with Capture(model, problem.sites) as capture:
        train_vectors = capture.run(train_images)["site"].clone().flatten(0, 1)

    def sizes(dictionary: NodeDictionary) -> np.ndarray:
        """|effect| of every feature."""
        nodes: dict[str, SiteNodes] = zero(problem, {"feature": {"site": dictionary}}, [images])["feature"]
        path = InputPath(mean_image([torch.zeros_like(images)]), midpoint(10))
        found = node_effects(problem, {"feature": nodes}, [images], targets, EffectMethod.ig_inputs, path)
        return found["feature"]["site"].mean[:-1].abs().numpy()

    codes = F.pixel_unshuffle(images, BLOCK).flatten(2).transpose(1, 2)
    is_planted = np.isin(np.arange(N_ATOMS), planted.numpy())
    of_true = auroc(sizes(TrueFeatures(atoms_fd, codes, vectors)), is_planted)
    sae = train_sae(problem.sites[0], train_vectors, n_vectors, seed, n_features=N_ATOMS, k=K)
    cosine_ff = F.normalize(sae.dictionary, dim=1) @ atoms_fd.T
    matches = (cosine_ff.max(1).values >= LEAST_COSINE).numpy()
    is_own = matches & is_planted[cosine_ff.argmax(1).numpy()]
    n_matched = len(set(cosine_ff.argmax(1).numpy()[is_own].tolist()))
    return Found(of_true, auroc(sizes(SaeFeatures.at(problem.sites[0], sae)), is_own), n_matched)


def main(arguments: list[str] | None = None) -> list[Gate]:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--small", action="store_true", help="one circuit, an SAE trained for a shorter time")
    parser.add_argument("--out", type=Path, help="write the gates into this file")
    parser.add_argument("--threads", type=int, default=1)
    a = parser.parse_args(arguments)
    torch.set_num_threads(a.threads)
    n_images, n_vectors = (64, 100_000) if a.small else (256, 400_000)
    rows, found = [], []
    for n_planted in PLANTED[:1] if a.small else PLANTED:
        for seed in SEEDS[:1] if a.small else SEEDS:
            progress(f"{n_planted} planted features, seed {seed}")
            one = measure(n_planted, seed, n_images, n_vectors)
            rows.append([n_planted, seed, f"{one.true:.4f}", f"{one.n_matched} of {n_planted}", f"{one.trained:.4f}"])
            found.append(one)
    tell(f"\n{N_ATOMS} atoms in {WIDTH} dimensions, each active at {RATE:.0%} of positions; {n_images} images\n")
    columns = ["planted", "seed", "AUROC, true dictionary", "found by the SAE", "AUROC, trained SAE"]
    tell(table(columns, rows) + "\n")
    # An atom that the SAE does not have leaves the AUROC of the others as it is: it is told on its own.
    missing = sum(row[0] - one.n_matched for row, one in zip(rows, found, strict=True))
    tell(f"{missing} of {sum(row[0] for row in rows)} planted atoms have no feature of cosine {LEAST_COSINE}\n")
    gates = [
        Gate("least AUROC, true dictionary", min(one.true for one in found), ">=", LEAST_TRUE),
        Gate("least AUROC, trained SAE", min(one.trained for one in found), ">=", LEAST_TRAINED),
    ]
    tell(gate_table(gates))
    write_json(a.out, {"gates": gates_as_json(gates)})
    return gates


if __name__ == "__main__":
    sys.exit(any(gate.verdict == "FAIL" for gate in main()))
