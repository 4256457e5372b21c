"""Do SAEs find the features that made the data? Every architecture of ours, and other libraries, on a known dictionary.

The data are those of synthetic.py: 1.28 million vectors, seen once. Ours take their presets, at the data's sizes; other
libraries their own defaults and, with --peers, also the learning rate (and penalty) tuned for them on seeds 10 and 11,
which `--tune` looks for and writes into tuned.json. Seeds 10 and 11 are for tuning, others for reporting.

Protocols:
  standard  as many latents as features, k = the true 6.
  unequal   twice as many latents as features; k = 3 and k = 12 (for architectures without k: the preset's penalty
            doubled and halved); the most frequent feature fires 2,650 times as often as the rarest, not 26.5 times:
            rates proportional to (i + 10)^-2.405 instead of (i + 10)^-1, again 6 a vector.

    python benchmarks/sae/recovery.py [--seeds 0 1 2] [--offsets 0 3] [--only topk] [--peers] [--protocol unequal]
    python benchmarks/sae/recovery.py --tune [--only dictionary_learning] --out benchmarks/sae/tuned.json
"""

# N vectors  D width  F features

from __future__ import annotations

import argparse
import json
import statistics
import tempfile
import time
from collections.abc import Iterable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import measure
import ours
import peer
import peers
import synthetic
import torch
from measure import Gate
from synthetic import BATCH, N_STEPS, N_TRUE, WIDTH, Quality, Synthetic

from mis_lab.core.build import build
from mis_lab.sae.train import train

TUNING_SEEDS = (10, 11)
TUNED = Path(__file__).parent / "tuned.json"
RATES = (None, 1e-3, 3e-3, 1e-2)
# Weights of the penalty tried beside the library's own; the losses differ, so do the ranges.
PENALTIES: dict[str, tuple[float, ...]] = {
    "overcomplete/relu": (0.01, 0.03, 0.1),
    "dictionary_learning/relu": (0.3, 1.0),
    "dictionary_learning/gated": (0.3, 1.0),
    "dictionary_learning/jump_relu": (0.1,),
    "sae_lens/relu": (0.3, 3.0),
    "sae_lens/gated": (0.3, 3.0),
    "sae_lens/jump_relu": (0.05, 0.15),
}


class Setting(NamedTuple):
    """What of the protocol an SAE is told.

    Attributes:
        label: in tables.
        n_features, k: of the SAE.
        penalty: factor of the preset's penalty, for architectures without k.
        exponent: of the firing rates.
    """

    label: str = "standard"
    n_features: int = N_TRUE
    k: int = 6
    penalty: float = 1.0
    exponent: float = 1.0


PROTOCOLS = {
    "standard": [Setting()],
    "unequal": [
        Setting("unequal, k/2", 2 * N_TRUE, 3, 2.0, synthetic.UNEQUAL),
        Setting("unequal, 2k", 2 * N_TRUE, 12, 0.5, synthetic.UNEQUAL),
    ],
}


class Limits(NamedTuple):
    """Gates of an architecture: mean MCC at least, its goal, and the most of the others; None where there is none."""

    mcc: float
    goal: float
    fvu: float | None = None
    l0: float | None = None
    dead: float | None = None


LIMITS = {
    "topk": Limits(0.95, 0.98, fvu=0.175, dead=0.02),
    "batch_topk": Limits(0.95, 0.985, fvu=0.145),
    "jump_relu": Limits(0.95, 0.98, fvu=0.14, l0=6.8),
    "matryoshka": Limits(0.95, 0.975),
    "gated": Limits(0.93, 0.95, l0=7.2),
    "relu": Limits(0.94, 0.96, l0=9.5),
}
MOST_OFFSET = 0.01


class Run(NamedTuple):
    sae: str
    setting: str
    offset: float
    seed: int
    seconds: float
    quality: Quality


def train_ours(name: str, setting: Setting, offset: float, seed: int) -> Run:
    overrides = ours.sizes(name, setting.n_features, setting.k)
    overrides += [f"trainer.n_vectors={BATCH * N_STEPS}", f"trainer.batch_size={BATCH}"]
    overrides += [f"trainer.dead_after={10 * BATCH}", "trainer.checkpoint_steps=0", "trainer.log_steps=500"]
    run = ours.recipe(name, *overrides, *ours.ARCHITECTURES[name].options)
    penalty = ours.ARCHITECTURES[name].penalty
    if penalty:
        setattr(run.sae, penalty, getattr(run.sae, penalty) * setting.penalty)
    source = Synthetic(seed, offset, setting.exponent)
    sae = build(run.sae, width=WIDTH)
    started = time.thread_time()
    with tempfile.TemporaryDirectory() as folder:
        train(sae, source, run.trainer, seed, Path(folder), lambda numbers, step: None)
    seconds = time.thread_time() - started
    quality = synthetic.judge(source, sae.dictionary.detach(), sae.encode, sae.decode)
    return Run(f"mis_lab/{name}", setting.label, offset, seed, seconds, quality)


def train_peer(
    name: str,
    setting: Setting,
    offset: float,
    seed: int,
    lr: float | None = None,
    sparsity: float | None = None,
    label: str = "",
) -> Run:
    source = Synthetic(seed, offset, setting.exponent)
    job = peer.Job(WIDTH, setting.n_features, setting.k, N_STEPS, BATCH, seed, lr, sparsity)
    sae = peers.PEERS[name](job)
    started = time.thread_time()
    for step in range(N_STEPS):
        sae.step(source.batch(step))
    seconds = time.thread_time() - started
    quality = synthetic.judge(source, sae.dictionary(), sae.encode, sae.decode)
    return Run(name + label, setting.label, offset, seed, seconds, quality)


def tune(names: Iterable[str]) -> dict[str, dict[str, float | None]]:
    """Learning rate, and weight of the penalty, with the largest mean MCC over the tuning seeds, without an offset."""
    best: dict[str, dict[str, float | None]] = {}
    for name in names:
        tried: dict[tuple[float | None, float | None], float] = {}
        for sparsity in (None, *PENALTIES.get(name, ())):
            for lr in RATES:
                runs = [train_peer(name, Setting(), 0.0, seed, lr, sparsity) for seed in TUNING_SEEDS]
                tried[lr, sparsity] = statistics.fmean(run.quality.mcc for run in runs)
                l0 = statistics.fmean(run.quality.l0 for run in runs)
                measure.progress(f"{name} lr {lr} penalty {sparsity}: MCC {tried[lr, sparsity]:.3f}, L0 {l0:.1f}")
        lr, sparsity = max(tried, key=lambda options: tried[options])
        best[name] = {"lr": lr, "sparsity": sparsity, "mcc": round(tried[lr, sparsity], 4)}
    return best


def mean(runs: Sequence[Run], number: str) -> float:
    return statistics.fmean(getattr(run.quality, number) for run in runs)


def gates(runs: Sequence[Run]) -> list[Gate]:
    """Each architecture's worst offset against its limits, and how far the offset moves its MCC."""
    found: list[Gate] = []
    for name, limits in LIMITS.items():
        by_offset: dict[float, list[Run]] = {}
        for run in runs:
            if run.sae == f"mis_lab/{name}" and run.setting == "standard":
                by_offset.setdefault(run.offset, []).append(run)
        groups = list(by_offset.values())
        mcc = [mean(group, "mcc") for group in groups]
        found.append(Gate(f"{name} MCC", min(mcc, default=None), ">=", limits.mcc, limits.goal))
        for number in ("fvu", "l0", "dead"):
            limit = getattr(limits, number)
            if limit is not None:
                worst = max((mean(group, number) for group in groups), default=None)
                found.append(Gate(f"{name} {number}", worst, "<=", limit))
        moved = max(mcc) - min(mcc) if len(mcc) > 1 else None
        found.append(Gate(f"{name} MCC moved by the offset", moved, "<=", MOST_OFFSET))
    return found


def summary(runs: Sequence[Run]) -> str:
    """Mean over seeds (smallest and largest MCC beside it)."""
    groups: dict[tuple[str, str, float], list[Run]] = {}
    for run in runs:
        groups.setdefault((run.sae, run.setting, run.offset), []).append(run)
    rows = []
    for (sae, setting, offset), group in groups.items():
        mcc = [run.quality.mcc for run in group]
        rows.append(
            [
                sae,
                setting,
                f"{offset:g}",
                len(group),
                f"{statistics.fmean(mcc):.3f} ({min(mcc):.3f} to {max(mcc):.3f})",
                f"{mean(group, 'recovered'):.3f}",
                f"{mean(group, 'fvu'):.3f}",
                f"{mean(group, 'l0'):.2f}",
                f"{100 * mean(group, 'dead'):.1f}",
                f"{statistics.fmean(run.seconds for run in group):.0f}",
            ]
        )
    columns = ["SAE", "protocol", "offset", "seeds", "MCC", "recovered", "FVU", "L0", "dead %", "s"]
    return measure.table(columns, rows)


def tuned() -> dict[str, dict[str, float | None]]:
    """What `--tune` found; empty before."""
    return json.loads(TUNED.read_text(encoding="utf-8"))["tuned"] if TUNED.exists() else {}


def parse(argv: list[str] | None = None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--offsets", type=float, nargs="+", default=[0.0, 3.0])
    parser.add_argument("--protocol", choices=list(PROTOCOLS), default="standard")
    parser.add_argument("--only", nargs="+", help="only SAEs whose name contains one of these")
    parser.add_argument("--peers", action="store_true", help="other libraries too (README.md of this folder)")
    parser.add_argument("--tune", action="store_true", help="look for the other libraries' learning rates")
    parser.add_argument("--threads", type=int, default=1)
    parser.add_argument("--out", type=Path, help="write the numbers as JSON")
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> list[Gate]:
    arguments = parse(argv)
    torch.set_num_threads(arguments.threads)

    def wanted(name: str) -> bool:
        return not arguments.only or any(part in name for part in arguments.only)

    # A variant that only differs in what is written down learns the same.
    others = [name for name in peers.usable() if wanted(name) and not name.endswith(":monitored")]
    if arguments.peers or arguments.tune:
        measure.tell("".join(f"missing: {library} ({why})\n" for library, why in peer.missing().items()))
    if arguments.tune:
        best = tune(others)
        rows = [[name, found["lr"], found["sparsity"], found["mcc"]] for name, found in best.items()]
        measure.tell(measure.table(["SAE", "lr", "penalty", "MCC on the tuning seeds"], rows))
        measure.write_json(arguments.out, {"tuned": tuned() | best})
        return []

    jobs: list[Any] = []
    for setting in PROTOCOLS[arguments.protocol]:
        for name in ours.available():
            if wanted(f"mis_lab/{name}"):
                jobs.append(partial(train_ours, name, setting))
        for name in others if arguments.peers else []:
            jobs.append(partial(train_peer, name, setting))
            found = tuned().get(name, {})
            if found.get("lr") or found.get("sparsity"):
                jobs.append(
                    partial(train_peer, name, setting, lr=found["lr"], sparsity=found["sparsity"], label=", tuned")
                )
    runs = []
    for job in jobs:
        for offset in arguments.offsets:
            for seed in arguments.seeds:
                runs.append(job(offset=offset, seed=seed))
                measure.progress(f"{runs[-1].sae} offset {offset:g} seed {seed}: {runs[-1].quality}")
    measure.tell(summary(runs) + "\n")
    verdicts = gates(runs) if arguments.protocol == "standard" else []
    if verdicts:
        measure.tell(measure.gate_table(verdicts))
    content = {"runs": [run._asdict() | {"quality": run.quality._asdict()} for run in runs]}
    measure.write_json(arguments.out, content | {"gates": measure.gates_as_json(verdicts)})
    return verdicts


if __name__ == "__main__":
    main()
