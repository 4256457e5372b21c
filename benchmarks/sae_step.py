"""What a training step costs: TopK through the sparse step against the same step through dense products, and ReLU.

All variants do the whole step (loss, AuxK bookkeeping, clip, projection, Adam, renormalisation, dead count) from the
same start on the same batches, in one process, in interleaved rounds; report ratios, not milliseconds. Thread CPU time
is robust on a busy machine with one thread; wall time is for an idle one. The measured matrix product gives the limit:
1 for sparse TopK, 5 for a dense architecture. Memory is the peak of the resident set above its size before the step.

    python benchmarks/sae_step.py [--width 384] [--features 3072] [--batch 4096] [--k 32] [--threads 1] [--dead 0]
"""

# B vectors  D width  F features

from __future__ import annotations

import argparse
import ctypes
import statistics
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from mis_lab.core.build import build
from mis_lab.core.seeding import generator
from mis_lab.sae.config import ReluConfig, SaeConfig, TopKConfig, TrainerConfig
from mis_lab.sae.train import Training

N_BATCHES = 8


class Seconds(NamedTuple):
    cpu: float
    wall: float


def timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return Seconds(time.thread_time() - cpu, time.perf_counter() - wall)


def peak_extra_mib(work: Callable[[], object]) -> float | None:
    """Peak resident set during `work` above what it was before, the smallest of some tries, as libraries keep scratch
    from the first; None where the kernel does not tell."""
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    libc = ctypes.CDLL(None)
    extra = []
    for _ in range(4):
        if hasattr(libc, "malloc_trim"):
            libc.malloc_trim(0)  # memory that earlier steps freed would be used again, unseen
        try:
            reset.write_text("5")
        except OSError:
            return None
        before = _kib(status, "VmRSS")
        work()
        extra.append((_kib(status, "VmHWM") - before) / 1024)
    return min(extra)


def _kib(status: Path, name: str) -> int:
    return next(int(line.split()[1]) for line in status.read_text().splitlines() if line.startswith(name + ":"))


def structured(width: int, batch: int) -> list[Tensor]:
    """Batches of sparse mixtures of random directions with a mean, as activations are."""
    random = generator(0, "benchmark")
    atoms_fd = torch.nn.functional.normalize(torch.randn(4 * width, width, generator=random), dim=1)
    mean_d = torch.randn(width, generator=random)
    batches = []
    for _ in range(N_BATCHES):
        fires = torch.rand(batch, 4 * width, generator=random) < 8 / (4 * width)
        batches.append((fires * torch.rand(batch, 4 * width, generator=random)) @ atoms_fd + mean_d)
    return batches


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("width", 384), ("features", 3072), ("batch", 4096), ("k", 32), ("threads", 1)):
        parser.add_argument(f"--{name}", type=int, default=default)
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--dead", type=float, default=0.0, help="share of the features counted dead, for AuxK's cost")
    a = parser.parse_args()
    torch.set_num_threads(a.threads)

    batches = structured(a.width, a.batch)
    config = TrainerConfig(n_vectors=a.batch * 10_000, batch_size=a.batch, dead_after=10**9, log_steps=1)
    saes: dict[str, SaeConfig] = {
        "topk sparse": TopKConfig(n_features=a.features, k=a.k),
        "topk dense": TopKConfig(n_features=a.features, k=a.k, sparse=False),
        "relu": ReluConfig(n_features=a.features),
    }
    training: dict[str, Training] = {}
    for name, sae_config in saes.items():
        sae = build(sae_config, width=a.width)
        sae.initialise(torch.cat(batches), generator(0, "atoms"))
        training[name] = Training(sae, config)

    def step(name: str, number: int) -> None:
        now = training[name]
        now.silent_f[: int(a.dead * a.features)] = (
            config.dead_after
        )  # the same features dead in every variant and round
        now.advance(batches[number % N_BATCHES])

    weight_fd = training["topk sparse"].sae.W_enc.detach()
    times: dict[str, list[Seconds]] = {name: [] for name in ("matrix product", *training)}
    for number in range(a.rounds + 2):
        times["matrix product"].append(timed(lambda: batches[0] @ weight_fd.T))
        for name in training:
            times[name].append(timed(partial(step, name, number)))
    times = {name: rounds[2:] for name, rounds in times.items()}  # two rounds to warm up
    extra = {name: peak_extra_mib(partial(step, name, 0)) for name in training}

    out = [f"D={a.width} F={a.features} B={a.batch} k={a.k} threads={a.threads} dead={a.dead:g} rounds={a.rounds}"]
    out += ["| step | CPU ms | wall ms | × sparse, CPU (min–max) | × product | peak extra MiB (÷ dense B×F) |"]
    out += ["|---|---|---|---|---|---|"]
    dense_mib = a.batch * a.features * 4 / 2**20
    product = statistics.median(seconds.cpu for seconds in times["matrix product"])
    for name, rounds in times.items():
        cpu, wall = (statistics.median(getattr(seconds, clock) for seconds in rounds) for clock in ("cpu", "wall"))
        ratios = [one.cpu / sparse.cpu for one, sparse in zip(rounds, times["topk sparse"], strict=True)]
        mib = extra.get(name)
        memory = "" if mib is None else f"{mib:.0f} ({mib / dense_mib:.2f})"
        spread = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}–{max(ratios):.2f})"
        out.append(f"| {name} | {1e3 * cpu:.0f} | {1e3 * wall:.0f} | {spread} | {cpu / product:.2f} | {memory} |")
    sparse, dense = (training[name].history["loss"] for name in ("topk sparse", "topk dense"))
    worst = max(abs(one - other) / abs(other) for one, other in zip(sparse, dense, strict=True))
    out.append(f"largest relative difference of the two loss curves over {len(sparse)} steps: {worst:.1e}")
    sys.stdout.write("\n".join(out) + "\n")


if __name__ == "__main__":
    main()
