"""What the benchmarks of SAEs measure with: clocks, memory, gates and tables.

Thread CPU time is robust on a busy machine with one thread; wall time is for an idle one with several. Memory is
counted two ways: the peak of torch's CPU allocator (exact, the same every time, blind to scratch that a BLAS library
takes for itself) and, where asked for, the peak of the resident set. Gates read the first.
"""

from __future__ import annotations

import json
import operator
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, NamedTuple

from torch.autograd.profiler import profile

MIB = 2**20


class Seconds(NamedTuple):
    cpu: float
    wall: float


class Spread(NamedTuple):
    """Median and extremes of repeated measurements."""

    median: float
    low: float
    high: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Spread:
        return cls(statistics.median(values), min(values), max(values))

    def __str__(self) -> str:
        return f"{self.median:.2f} ({self.low:.2f} to {self.high:.2f})"


def timed(work: Callable[[], object]) -> Seconds:
    wall, cpu = time.perf_counter(), time.thread_time()
    work()
    return Seconds(time.thread_time() - cpu, time.perf_counter() - wall)


def allocator_peak(work: Callable[[], object]) -> float:
    """Most MiB of torch CPU memory alive at once during `work`, above what was alive before.

    Sums the allocator's own records, so what a kernel takes for itself counts as well.
    """
    with profile(use_kineto=False, profile_memory=True) as profiler:
        work()
    assert profiler.kineto_results is not None
    records = [event for event in profiler.kineto_results.events() if event.name() == "[memory]"]
    alive = peak = 0
    for record in sorted(records, key=lambda record: record.start_ns()):
        alive += record.nbytes()
        peak = max(peak, alive)
    return peak / MIB


def resident_peak(work: Callable[[], object]) -> float | None:
    """Peak MiB of the resident set during `work` above what it was before; None where the kernel does not tell.

    The smallest of some tries, as libraries keep scratch from the first. What the C library keeps of freed memory makes
    it too small or too large: start with MALLOC_MMAP_THRESHOLD_=65536, so that glibc gives it back at once (slower).
    """
    reset, status = Path("/proc/self/clear_refs"), Path("/proc/self/status")
    extra = []
    for _ in range(3):
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


class Gate(NamedTuple):
    """A number that must hold.

    Attributes:
        what: which number.
        value: measured; None when something it needs was missing.
        sign: ``>=`` or ``<=``.
        limit: the gate.
        goal: what we want in the end; None when there is none.
    """

    what: str
    value: float | None
    sign: str
    limit: float
    goal: float | None = None

    @property
    def verdict(self) -> str:
        if self.value is None:
            return "NOT MEASURED"
        holds = operator.ge if self.sign == ">=" else operator.le
        if self.goal is not None and holds(self.value, self.goal):
            return "PASS, goal reached"
        return "PASS" if holds(self.value, self.limit) else "FAIL"


def table(columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> str:
    """A markdown table."""
    lines = [columns, ["---"] * len(columns), *rows]
    return "\n".join("| " + " | ".join(str(cell) for cell in line) + " |" for line in lines)


def gate_table(gates: Sequence[Gate]) -> str:
    rows = [
        [
            gate.what,
            "" if gate.value is None else f"{gate.value:.3f}",
            f"{gate.sign} {gate.limit:g}",
            "" if gate.goal is None else f"{gate.goal:g}",
            gate.verdict,
        ]
        for gate in gates
    ]
    return table(["gate", "measured", "limit", "goal", ""], rows)


def tell(text: str) -> None:
    """Write a result, at once: runs are long."""
    sys.stdout.write(text + "\n")
    sys.stdout.flush()


def progress(text: str) -> None:
    sys.stderr.write(text + "\n")
    sys.stderr.flush()


def write_json(path: Path | None, content: dict[str, Any]) -> None:
    """Write `content` where `--out` says, tuples and gates as plain values."""
    if path is not None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(json.dumps(content, indent=1, ensure_ascii=False) + "\n", encoding="utf-8")


def gates_as_json(gates: Sequence[Gate]) -> list[dict[str, Any]]:
    return [gate._asdict() | {"verdict": gate.verdict} for gate in gates]
