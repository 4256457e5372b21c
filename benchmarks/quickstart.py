"""What the quickstart costs: CPU seconds, wall seconds and peak memory, from nothing and with everything cached.

    python benchmarks/quickstart.py [mis-lab options ...]

Runs ``mis-lab experiment=quickstart`` twice in an empty folder with a store of its own, each in a process of its own.
Gates: 300 CPU seconds and 6 GB from nothing, 20 s (wall) when everything is there.
"""

from __future__ import annotations

import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import NamedTuple


class Cost(NamedTuple):
    """Of one process and its children: seconds, seconds, GB."""

    cpu: float
    wall: float
    peak_gb: float


def cost_of(options: list[str], folder: Path) -> Cost:
    """Run ``mis-lab`` with `options` in `folder`."""
    environment = os.environ | {"MIS_LAB_OUTPUT": str(folder / "runs"), "MIS_LAB_STORE": str(folder / "store")}
    started = time.monotonic()
    process = subprocess.Popen([sys.executable, "-m", "mis_lab", *options], cwd=folder, env=environment)
    _, status, usage = os.wait4(process.pid, 0)
    if status:
        sys.exit(f"mis-lab {' '.join(options)} failed")
    return Cost(usage.ru_utime + usage.ru_stime, time.monotonic() - started, usage.ru_maxrss / 2**20)


def main() -> None:
    options = ["experiment=quickstart", *sys.argv[1:]]
    with tempfile.TemporaryDirectory() as temporary:
        first, again = (cost_of(options, Path(temporary)) for _ in range(2))
        (page,) = Path(temporary).rglob("runs/**/report.html")
        page_mib = page.stat().st_size / 2**20
    print(f"{'':22}{'CPU s':>8}{'wall s':>8}{'peak GB':>9}")
    for name, cost in (("from nothing", first), ("everything cached", again)):
        print(f"{name:22}{cost.cpu:8.1f}{cost.wall:8.1f}{cost.peak_gb:9.2f}")
    print(f"report.html {page_mib:.2f} MiB")
    print(
        f"gates: CPU {'ok' if first.cpu <= 300 else 'MISSED'} (300 s), "
        f"memory {'ok' if first.peak_gb <= 6 else 'MISSED'} (6 GB), "
        f"again {'ok' if again.wall <= 20 else 'MISSED'} (20 s), page {'ok' if page_mib <= 10 else 'MISSED'} (10 MiB)"
    )


if __name__ == "__main__":
    main()
