"""What scoring costs: the margins of MIS tasks against merely reading the embeddings that they are made of.

    python benchmarks/mis/scoring.py [--images 20000] [--tasks 4096] [--rounds 30] [--threads 1] [--device cpu]

A task needs 2(K+1) rows of d float32 numbers. The limit is the time to gather those rows (torch.index_select into a
buffer that is used again), measured in the same process on the same ids, turn about with the margins and in alternating
order. Printed are the median ratio of a round and its quartiles; 1.5 is what scoring may cost. A gather also writes;
`sum` only reads the rows and adds them up, and is printed as well. Margins and scores are compared with the definition
written out in float64, the ids of tasks with a draw of each by itself. Default: d = 1792 (DreamSim's ensemble), K = 9.
"""

# n images  d width  T tasks  K explanations a side

from __future__ import annotations

import argparse
import statistics
import sys
import time
from collections.abc import Callable

import torch
from torch import Tensor
from torch.nn.functional import embedding_bag

from mis_lab.activations.pools import PoolGatherer
from mis_lab.core.seeding import generator
from mis_lab.metric.base import Embedding
from mis_lab.mis.config import MisConfig, Negatives
from mis_lab.mis.score import margins, random_tasks, score
from mis_lab.mis.tasks import Tasks, draw_tasks, pool_needs

LIMIT, TOLERANCE = 1.5, 1e-6
WARM_UP = 3
ROWS_AT_ONCE = 512  # of the gather: its buffer stays in the cache, as sums of the margins do


def gatherer(rows_nd: Tensor, ids: Tensor) -> Callable[[], object]:
    """Reads the rows `ids`, one after the other."""
    n_at_once = ROWS_AT_ONCE if rows_nd.device.type == "cpu" else len(ids)
    buffer = rows_nd.new_empty(n_at_once, rows_nd.shape[1])

    def run() -> object:
        for some in ids.split(n_at_once):
            torch.index_select(rows_nd, 0, some, out=buffer[: len(some)])
        return buffer

    return run


def adder(rows_nd: Tensor, ids_tk: Tensor) -> Callable[[], object]:
    """Reads the rows of each task and keeps their sum."""
    return lambda: [embedding_bag(some, rows_nd, mode="sum") for some in ids_tk.split(ROWS_AT_ONCE // 4)]


def defined(tasks: Tasks, rows_nd: Tensor) -> Tensor:
    """Margins (T,) from every pair's similarity, float64."""
    rows = rows_nd.double()
    e_p, q_p, e_n, q_n = (rows[part[0].long().to(rows.device)] for part in tasks[:4])

    def similarity(queries: Tensor, explanations: Tensor) -> Tensor:
        return torch.einsum("td,tkd->tk", queries, explanations).mean(1)

    return (similarity(q_p, e_p) - similarity(q_p, e_n)) - (similarity(q_n, e_p) - similarity(q_n, e_n))


def seconds(work: Callable[[], object], device: str) -> float:
    started = time.perf_counter()
    work()
    if device != "cpu":
        torch.cuda.synchronize()
    return time.perf_counter() - started


def scores_error(margins_n: Tensor, defined_n: Tensor, temperature: float) -> float:
    """Largest difference of the soft and hard score and the mean of Δ/τ from their definitions."""
    found = score(margins_n[None], torch.tensor([len(margins_n)]), temperature, 0.0, 1, 0)
    scaled_n = defined_n / temperature
    defined = ((1 / (1 + torch.exp(-scaled_n))).mean(), (defined_n > 0).double().mean(), scaled_n.mean())
    return max(abs(float(each.estimate[0]) - float(value)) for each, value in zip(found, defined, strict=True))


def same_ids(n_images: int, n_explanations: int, seed: int = 0) -> bool:
    """Whether tasks drawn for many units at once are those of each unit alone, of 2(K+1) images of its own pools."""
    units, config = 8, MisConfig(n_explanations=n_explanations)
    a_nu = torch.randn(n_images, units, generator=generator(seed, "units"))
    gatherer = PoolGatherer(
        units, pool_needs(config, n_images).size, [f"{image:06d}" for image in range(n_images)], seed
    )
    gatherer.update(a_nu, range(n_images))
    pools, keys = gatherer.result(), torch.arange(units)
    size, ascending_nu = pools.top.shape[1], a_nu.argsort(0)
    together = draw_tasks(pools, config, Negatives.bottom, seed, keys, None, n_images).tasks
    same = True
    for unit in range(units):
        some = slice(unit, unit + 1)
        alone = draw_tasks(pools.of_units(some), config, Negatives.bottom, seed, keys[some], None, n_images).tasks
        same &= all(torch.equal(one[some], other) for one, other in zip(together, alone, strict=True))
        # Every image of the extreme pools, found by sorting, is in one task.
        for side, pool in ((alone[:2], ascending_nu[-size:, unit]), (alone[2:4], ascending_nu[:size, unit])):
            images = torch.cat([side[0].flatten(), side[1].flatten()]).long()
            same &= torch.equal(images.sort().values, pool.sort().values)
    return same


def main(argv: list[str] | None = None) -> int:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("--images", type=int, default=20000)
    options.add_argument("--width", type=int, default=1792)
    options.add_argument("--explanations", type=int, default=9)
    options.add_argument("--tasks", type=int, default=4096)
    options.add_argument("--rounds", type=int, default=30)
    options.add_argument("--threads", type=int, default=1)
    options.add_argument("--device", default="cpu")
    chosen = options.parse_args(argv)

    torch.set_num_threads(chosen.threads)
    drawn = torch.randn(chosen.images, chosen.width, generator=generator(0, "benchmark"))
    rows_nd = (drawn / drawn.norm(dim=1, keepdim=True)).to(chosen.device)
    ids = [str(index) for index in range(chosen.images)]
    embedding = Embedding("benchmark", ids, "cosine", 1.0, "", rows=rows_nd)
    tasks = random_tasks(chosen.images, chosen.explanations, chosen.tasks, 0)
    parts = [tasks[0][0], tasks[2][0], tasks[1][0][:, None], tasks[3][0][:, None]]
    ids_tk = torch.cat(parts, 1).long().to(chosen.device)

    some = Tasks(*(part[:, :200] for part in tasks[:4]), tasks.n_tasks)
    margins_n, defined_n = margins(some, embedding)[0], defined(some, rows_nd).cpu()
    error = float((margins_n - defined_n).abs().max())
    of_scores, ids_same = scores_error(margins_n, defined_n, 0.16), same_ids(chosen.images, chosen.explanations)

    works = {
        "gather": gatherer(rows_nd, ids_tk.flatten()),
        "score": lambda: margins(tasks, embedding),
        "sum": adder(rows_nd, ids_tk),
    }
    times: dict[str, list[float]] = {name: [] for name in works}
    for number in range(chosen.rounds + WARM_UP):
        for name in sorted(works, reverse=bool(number % 2)):
            times[name].append(seconds(works[name], chosen.device))
    task_bytes = 2 * (chosen.explanations + 1) * chosen.width * 4
    for name in works:
        typical = statistics.median(times[name][WARM_UP:]) / chosen.tasks
        print(f"{name}: {typical * 1e6:.2f} us a task, {task_bytes / typical / 1e9:.1f} GB/s of rows")
    ratios = {}
    for name, limit in (("sum", "no limit"), ("gather", f"limit {LIMIT}")):
        rounds = zip(times["score"][WARM_UP:], times[name][WARM_UP:], strict=True)
        low, ratios[name], high = statistics.quantiles([score / other for score, other in rounds], n=4)
        print(f"score / {name}: median {ratios[name]:.2f}, quartiles {low:.2f} to {high:.2f} ({limit})")
    print(
        f"largest difference from the definition: margins {error:.1e}, scores {of_scores:.1e} (limit {TOLERANCE:.0e})"
    )
    print(f"ids as of sorting and of units one by one: {ids_same}")
    return int(ratios["gather"] > LIMIT or max(error, of_scores) > TOLERANCE or not ids_same)


if __name__ == "__main__":
    sys.exit(main())
