"""How long an answer takes, against transformers and OpenVINO: `pydstp bench` for several settings.

    python -m benchmarks.bench_peers --openvino-python PATH [--shape small] [--threads 1 2]

A run per number of threads and kind of weights, one after the other; each lands in
benchmarks/results/ as peers-SHAPE-WEIGHTS-THREADSt. What it does not know goes to `pydstp bench`.
"""

from __future__ import annotations

import argparse
import subprocess
import sys
from pathlib import Path

from benchmarks import common

BUILD = common.ROOT / "build"


def parse_arguments(arguments: list[str] | None = None) -> tuple[argparse.Namespace, list[str]]:
    """The options, and what is left for `pydstp bench`."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small")
    parser.add_argument("--threads", nargs="+", type=int, default=[1, 2])
    parser.add_argument("--weights", nargs="+", default=["bf16", "int8"])
    parser.add_argument("--against", nargs="*", default=["transformers", "openvino"])
    parser.add_argument("--openvino-python", help="of the environment with OpenVINO GenAI")
    parser.add_argument("--folder", type=Path, default=BUILD, help="for weights and exports")
    return parser.parse_known_args(arguments)


def bench_command(options: argparse.Namespace, more: list[str], weights: str, threads: int,
                  path: Path) -> list[str]:
    """`pydstp bench` for one setting, its record in `path`."""
    command = [sys.executable, "-m", "pydstp", "bench", "--shape", options.shape,
               "--folder", str(options.folder), "--threads", str(threads), "--weights", weights,
               "--json", str(path)]
    for peer in options.against:
        command += ["--against", peer]
    if options.openvino_python is not None:
        command += ["--openvino-python", options.openvino_python]
    return command + more


def run(options: argparse.Namespace, more: list[str]) -> list[Path]:
    """Measure every setting; returns the pages."""
    options.folder.mkdir(parents=True, exist_ok=True)
    common.RESULTS.mkdir(parents=True, exist_ok=True)
    pages = []
    for threads in options.threads:
        for weights in options.weights:
            path = common.RESULTS / f"peers-{options.shape}-{weights}-{threads}t.json"
            command = bench_command(options, more, weights, threads, path)
            done = subprocess.run(command, cwd=common.ROOT, stdout=subprocess.PIPE, text=True,
                                  check=True)
            pages.append(path.with_suffix(".md"))
            pages[-1].write_text(done.stdout)
    return pages


def main() -> None:
    for page in run(*parse_arguments()):
        print(page.read_text())


if __name__ == "__main__":
    main()
