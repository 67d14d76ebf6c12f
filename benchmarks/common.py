"""What every benchmark shares: where it ran, medians with their spread, and how it is recorded."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pydstp.experiments.record import environment, markdown_table, num_processors

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

__all__ = ["environment", "markdown_table", "num_processors", "peak_rss_bytes",
           "read_bandwidth_gb_s", "show", "spread", "start_again", "thread_environment",
           "write_result"]


def thread_environment(num_threads: int) -> dict[str, str]:
    """The environment of a measured process: so many threads, and none that spins as it waits."""
    return {**os.environ, "OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


def start_again(module: str, num_threads: int) -> None:
    """Go on in that environment: the same command anew, unless it runs in it already. Call it
    before torch is loaded."""
    wanted = thread_environment(num_threads)
    if any(os.environ.get(key) != value for key, value in wanted.items()):
        os.execve(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]], wanted)


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "count": len(values)}


def show(numbers: dict[str, float] | None, digits: int = 0) -> str:
    """`59 (57-63)`: a median with the smallest and the largest value, for a table."""
    if numbers is None:
        return "-"
    low, high = (f"{numbers[key]:,.{digits}f}" for key in ("min", "max"))
    return f"{numbers['median']:,.{digits}f}" + (f" ({low}-{high})" if low != high else "")


def peak_rss_bytes() -> int:
    """The largest resident size of this process so far, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_bandwidth_gb_s(num_threads: int, size_bytes: int = 1 << 30, passes: int = 5) -> float:
    """Bytes per second that `num_threads` threads read from memory, in GB/s (median of passes).

    The sum of a tensor far larger than the last cache is limited by nothing else.
    """
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    data = torch.ones(size_bytes // 4)
    times = []
    for _ in range(passes + 1):
        started = time.perf_counter()
        data.sum()
        times.append(time.perf_counter() - started)
    torch.set_num_threads(before)
    return size_bytes / statistics.median(times[1:]) / 1e9


def write_result(name: str, record: dict[str, Any], markdown: str) -> Path:
    """Write `results/NAME.json` and `results/NAME.md`; an older result of that name is replaced."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    path = RESULTS / f"{name}.md"
    path.write_text(markdown)
    return path
