"""What every benchmark shares: where it ran, medians with their spread, and how it is recorded."""

from __future__ import annotations

import json
import os
import platform
import resource
import statistics
import subprocess
import time
from collections.abc import Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
RESULTS = ROOT / "benchmarks" / "results"
CPU_FLAGS = ("avx2", "f16c", "avx512f", "avx512_bf16", "avx512_vnni", "amx_bf16")
PACKAGES = ("pydstp", "torch", "transformers", "tokenizers", "safetensors", "numpy")


def environment() -> dict[str, Any]:
    """Hardware, software and commit: without these a number means nothing."""
    info = Path("/proc/cpuinfo").read_text() if Path("/proc/cpuinfo").exists() else ""
    fields = dict(line.split(":", 1) for line in info.splitlines() if ":" in line)
    fields = {key.strip(): value.strip() for key, value in fields.items()}
    flags = fields.get("flags", "").split()
    return {
        "cpu": fields.get("model name", platform.processor() or platform.machine()),
        "cpu_flags": [flag for flag in CPU_FLAGS if flag in flags],
        "processors": num_processors(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "load_average": [round(load, 2) for load in os.getloadavg()],
        "system": f"{platform.system()} {platform.machine()}",
        "python": platform.python_version(),
        "packages": {name: package_version(name) for name in PACKAGES},
        "commit": commit(),
        "date": time.strftime("%Y-%m-%d", time.gmtime()),
    }


def num_processors() -> int:
    """Processors that this process may run on."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def package_version(name: str) -> str | None:
    """The installed version of a package, or None."""
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def commit() -> str:
    """The commit of the working tree; `+` says that tracked files differ from it."""
    def git(*arguments: str) -> str:
        done = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True,
                              check=False)
        return done.stdout.strip()
    changed = git("status", "--porcelain", "--untracked-files=no")
    return (git("rev-parse", "--short=12", "HEAD") or "unknown") + ("+" if changed else "")


def thread_environment(num_threads: int) -> dict[str, str]:
    """The environment of a measured process: so many threads, and none that spins as it waits."""
    return {**os.environ, "OMP_NUM_THREADS": str(num_threads), "OMP_WAIT_POLICY": "passive",
            "TOKENIZERS_PARALLELISM": "false", "HF_HUB_OFFLINE": "1"}


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


def markdown_table(header: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    """A Markdown table."""
    lines = [header, ["---"] * len(header), *rows]
    return "\n".join("| " + " | ".join(line) + " |" for line in lines) + "\n"


def write_result(name: str, record: dict[str, Any], markdown: str) -> Path:
    """Write `results/NAME.json` and `results/NAME.md`; an older result of that name is replaced."""
    RESULTS.mkdir(parents=True, exist_ok=True)
    (RESULTS / f"{name}.json").write_text(json.dumps(record, indent=2) + "\n")
    path = RESULTS / f"{name}.md"
    path.write_text(markdown)
    return path
