"""Write a checkpoint of real shape with random weights: for speed and memory, not sense.

    python -m benchmarks.make_random_checkpoint FOLDER [--shape 2b|small|tiny|...] [--seed 0]
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path

import pydstp
from pydstp.bench import random_checkpoint
from pydstp.bench.shapes import SHAPES

SHORT = {"2b": "qwen3-vl-2b"}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("folder", type=Path)
    parser.add_argument("--shape", choices=(*SHORT, *SHAPES), default="2b")
    parser.add_argument("--seed", type=int, default=0)
    options = parser.parse_args()
    if (options.folder / "config.json").exists():
        print(f"{options.folder} is there already")
        return
    started = time.perf_counter()
    total_bytes = random_checkpoint.write_checkpoint(
        options.folder, SHORT.get(options.shape, options.shape), pydstp.demo_checkpoint(),
        options.seed)
    print(f"{options.folder}: {total_bytes / 1e9:.2f} GB in {time.perf_counter() - started:.0f} s")


if __name__ == "__main__":
    main()
