"""Build the kernels for the GPU of this machine, test them there, look for errors of memory,
and measure.

    python -m benchmarks.gpu                   all parts, in order
    python -m benchmarks.gpu --part sanitize   one of them

A part that cannot run says why, and the status is 2; it is 1 where one ran and failed. `bench4b`
and `bench8b` measure decode steps (`benchmarks/gpu_decode.py`), `peers` sets them beside those of
transformers (`benchmarks/gpu_peers.py`), each below nine minutes.
"""

from __future__ import annotations

import argparse
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

import torch

from pydstp import ops
from pydstp.errors import DeviceError

ROOT = Path(__file__).resolve().parents[1]
SMALL_TESTS = ("tests/ops/test_argmax.py", "tests/ops/test_linear.py",
               "tests/ops/test_decode_attention.py")  # under a tool that slows them a hundredfold


def run(command: Sequence[str], **environment: str) -> int:
    """The status of a command, run in the root of the repository."""
    done = subprocess.run(command, cwd=ROOT, env={**os.environ, **environment}, check=False)
    return done.returncode


def build() -> int:
    """The extension, in place, for the architecture of this GPU alone, if torch sees one."""
    if shutil.which("nvcc") is None:
        raise DeviceError("build: expected nvcc on PATH, found none")
    options = "-DPYDSTP_CUDA=ON"
    if torch.cuda.is_available():
        major, minor = torch.cuda.get_device_capability()
        exact = "a" if (major, minor) == (9, 0) else ""
        options += f" -DCMAKE_CUDA_ARCHITECTURES={major}{minor}{exact}-real"
    return run([sys.executable, "setup.py", "--quiet", "build_ext", "--inplace"],
               CMAKE_ARGS=options)


def pytest(*arguments: str) -> list[str]:
    return [sys.executable, "-m", "pytest", "-q", *arguments]


def test() -> int:
    """Every op test on the GPU."""
    ops.find_gpu()
    return run(pytest("tests/ops", "-k", "cuda"))


def sanitize() -> int:
    """Some of the same under compute-sanitizer: reads and writes out of range, and races."""
    ops.find_gpu()
    if shutil.which("compute-sanitizer") is None:
        raise DeviceError("sanitize: expected compute-sanitizer on PATH, found none")
    for tool in ("memcheck", "racecheck"):
        checked = ["compute-sanitizer", "--tool", tool, "--error-exitcode", "1"]
        status = run([*checked, *pytest(*SMALL_TESTS, "-k", "cuda")])
        if status != 0:
            return status
    return 0


def engine() -> int:
    """Whole answers: the tests of the engine that have a device to choose."""
    ops.find_gpu()
    return run(pytest("tests/engine", "-k", "cuda"))


def bench(module: str, shape: str) -> int:
    """Decode steps of a shape, written to benchmarks/results/."""
    ops.find_gpu()
    return run([sys.executable, "-m", f"benchmarks.{module}", "--shape", shape])


PARTS: dict[str, Callable[[], int]] = {
    "build": build, "test": test, "engine": engine, "sanitize": sanitize,
    "bench4b": partial(bench, "gpu_decode", "4b"), "bench8b": partial(bench, "gpu_decode", "8b"),
    "peers": partial(bench, "gpu_peers", "4b")}


def main(arguments: Sequence[str] | None = None) -> int:
    """The status of the process."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks.gpu", description=__doc__,
                                     formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--part", choices=list(PARTS), help="all parts if it is not given")
    part = parser.parse_args(arguments).part
    if part is None:  # a process each: what is built by the first is imported by the others
        each = ([sys.executable, "-m", "benchmarks.gpu", "--part", name] for name in PARTS)
        return next(filter(None, map(run, each)), 0)
    try:
        status = PARTS[part]()
    except DeviceError as error:
        print(f"{part}: {error}", file=sys.stderr)
        return 2
    if status != 0:
        print(f"{part}: failed with status {status}", file=sys.stderr)
    return int(status != 0)


if __name__ == "__main__":
    sys.exit(main())
