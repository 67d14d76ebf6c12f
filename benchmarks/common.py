"""What every benchmark shares: where it ran, medians with their spread, and how it is recorded."""

from __future__ import annotations

import json
import os
import resource
import statistics
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydstp.bench.spreads import ratios, show, spread
from pydstp.experiments.record import environment, markdown_table, num_processors

if TYPE_CHECKING:
    from torch import Tensor

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"

__all__ = ["environment", "markdown_table", "num_processors", "peak_rss_bytes", "ratios",
           "read_bandwidth_gb_s", "read_gb_s", "read_probe", "show", "spread", "start_again",
           "thread_environment", "write_result"]


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


def peak_rss_bytes() -> int:
    """The largest resident size of this process so far, mapped files included."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def read_bandwidth_gb_s(num_threads: int, size_bytes: int = 1 << 30, passes: int = 5) -> float:
    """Bytes per second that `num_threads` threads read from memory, in GB/s (median of passes)."""
    data = read_probe(size_bytes)
    return statistics.median(read_gb_s(data, num_threads) for _ in range(passes))


def read_probe(size_bytes: int) -> Tensor:
    """Memory for `read_gb_s`, far larger than the last cache and in the same pages as weights."""
    import torch

    from pydstp import ops

    return ops.empty_in_huge_pages(size_bytes // 4, dtype=torch.float32).fill_(1)


def read_gb_s(data: Tensor, num_threads: int) -> float:
    """GB/s of one pass: the sum of so many numbers is limited by nothing but the memory."""
    import torch

    before = torch.get_num_threads()
    torch.set_num_threads(num_threads)
    started = time.perf_counter()
    data.sum()
    seconds = time.perf_counter() - started
    torch.set_num_threads(before)
    return data.nbytes / seconds / 1e9


def write_result(name: str, record: dict[str, Any], markdown: str) -> Path:
    """Write `results/NAME.json` and `results/NAME.md`; an older result of that name is replaced."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    path = RESULTS / f"{name}.md"
    path.write_text(markdown)
    return path
