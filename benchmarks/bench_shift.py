"""What it costs to let visual tokens go and come back: steps, the first token, milliseconds.

    python -m benchmarks.bench_shift [--shape 2b] [--part decode|ttft|replay] [--threads 2]
    python -m benchmarks.bench_shift --part replay --trace eval.json --row 3
    python -m benchmarks.bench_shift --part replay --triggers 0.1 --forwards 1.1

Decode steps run on a cache that is filled with random keys and values. All settings of a table run
in one process, in turns; each number stands beside what the cost model expects of it, from rates
measured in between. The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common

if TYPE_CHECKING:
    from benchmarks.shift_harness import Rates
    from benchmarks.shift_replay import Trace
    from pydstp import Engine

PARTS = ("decode", "ttft", "replay")
MAX_TEXT_TOKENS = 512


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2b", help="of the random checkpoint: 2b, small, tiny")
    parser.add_argument("--checkpoint", type=Path,
                        help="a folder; default build/random-SHAPE, made if it is not there")
    parser.add_argument("--part", nargs="+", choices=PARTS, default=list(PARTS))
    parser.add_argument("--tokens", nargs="+", type=int, default=[1024, 4096, 16384],
                        help="visual tokens in the cache, for decode and replay")
    parser.add_argument("--retention", type=float, default=1 / 3)
    parser.add_argument("--repeats", type=int, default=5, help="of decode and replay")
    parser.add_argument("--steps", type=int, default=6, help="of each decode run")
    parser.add_argument("--replay-steps", type=int, default=12, help="of each replayed run")
    parser.add_argument("--ttft-repeats", type=int, default=5)
    parser.add_argument("--size", nargs="*", default=["1024x1024"],
                        help="of the pictures for the first token, width x height")
    parser.add_argument("--rows", nargs="*", type=int, default=[4096],
                        help="visual tokens that are random rows, for the first token")
    parser.add_argument("--method", default="divprune", choices=("divprune", "random"),
                        help="that prunes before the first token")
    parser.add_argument("--reserve", nargs="+", choices=("lazy", "side"), default=["lazy", "side"],
                        help="for the first token")
    parser.add_argument("--trace", type=Path, help="what `pydstp eval --json` wrote")
    parser.add_argument("--row", type=int, help="of the trace; default the first that triggered")
    parser.add_argument("--triggers", type=float, default=0.1, help="per decode step")
    parser.add_argument("--forwards", type=float, help="per decode step; default 1 + triggers")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--probe-mib", type=int, default=512, help="to read the bandwidth from")
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


def find_checkpoint(options: argparse.Namespace) -> Path:
    """The folder, filled if need be."""
    folder = options.checkpoint or common.ROOT / "build" / f"random-{options.shape}"
    if not (folder / "config.json").exists():
        subprocess.run([sys.executable, "-m", "benchmarks.make_random_checkpoint", str(folder),
                        "--shape", options.shape], cwd=common.ROOT, check=True)
    return folder


def open_engine(folder: Path, options: argparse.Namespace) -> Engine:
    """One sequence, as long as the longest that is measured."""
    from pydstp import Engine, EngineConfig

    pixels = [width * height for width, height in
              (map(int, size.split("x")) for size in options.size)]
    longest = max([*options.tokens, *options.rows, *(area // 1024 for area in pixels)])
    config = EngineConfig(max_batch=1, max_visual_tokens=longest, max_pixels="checkpoint",
                          max_text_tokens=MAX_TEXT_TOKENS, num_threads=options.threads)
    return Engine(folder, dtype=options.dtype, config=config)


def trace_of(options: argparse.Namespace) -> Trace:
    """What is replayed."""
    from benchmarks.shift_replay import Trace

    if options.trace is not None:
        return Trace.from_record(options.trace, options.row)
    forwards = 1 + options.triggers if options.forwards is None else options.forwards
    return Trace(options.triggers, forwards, options.retention)


def measure(engine: Engine, options: argparse.Namespace,
            trace: Trace) -> dict[str, list[dict[str, Any]]]:
    """The rows that were asked for, by part."""
    from benchmarks.shift_harness import FilledCache
    from benchmarks.shift_parts import decode_rows
    from benchmarks.shift_replay import replay_rows

    found = {}
    cache = FilledCache(engine) if {"decode", "replay"} & set(options.part) else None
    if "decode" in options.part:
        found["decode"] = _cases(engine, options, options.tokens, lambda tokens, rates: decode_rows(
            cache, rates, tokens, options.retention, options.repeats, options.steps))
    if "replay" in options.part:
        found["replay"] = _cases(engine, options, options.tokens, lambda tokens, rates: replay_rows(
            cache, rates, tokens, trace, options.repeats, options.replay_steps))
    if "ttft" in options.part:
        found["ttft"] = first_tokens(engine, options)
    return found


def first_tokens(engine: Engine, options: argparse.Namespace) -> list[dict[str, Any]]:
    """Pictures through the whole path, then random rows in place of the vision tower's."""
    from benchmarks.shift_parts import first_token_rows
    from pydstp import PruningConfig
    from pydstp.bench.settings import parse_size
    from pydstp.bench.turns import draw_picture

    with tempfile.TemporaryDirectory() as folder:
        pictures: list[Path | int] = [Path(folder) / f"{size}.png" for size in options.size]
        for path, size in zip(pictures, options.size, strict=True):
            draw_picture(path, parse_size(size))
        return _cases(engine, options, [*pictures, *options.rows],
                      lambda picture, rates: first_token_rows(
                          engine, rates, picture,
                          PruningConfig(options.method, options.retention), options.reserve,
                          options.ttft_repeats))


def _cases(engine: Engine, options: argparse.Namespace, cases: list[Any],
           rows_of: Callable[[Any, Rates], list[dict[str, Any]]]) -> list[dict[str, Any]]:
    """The rows of all cases, each case with rates of its own."""
    from benchmarks.shift_harness import Rates
    from benchmarks.shift_report import with_predictions

    rows = []
    for case in cases:
        started = time.perf_counter()
        rates = Rates(engine, options.threads, options.probe_mib << 20)
        rows += with_predictions(rows_of(case, rates), rates)
        print(f"{getattr(case, 'name', case)}: {time.perf_counter() - started:.0f} s",
              file=sys.stderr, flush=True)
    return rows


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    from benchmarks.shift_report import to_markdown

    started, environment = time.perf_counter(), common.environment()
    folder, trace = find_checkpoint(options), trace_of(options)
    with open_engine(folder, options) as engine:
        found = measure(engine, options, trace)
    setup = {**{key: str(value) if isinstance(value, Path) else value
                for key, value in vars(options).items()}, "checkpoint": folder.name}
    record = {"environment": environment, "setup": setup, "trace": trace.to_dict(),
              "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
              "peak_rss_bytes": common.peak_rss_bytes(),
              "seconds": round(time.perf_counter() - started), **found}
    parts = "" if set(options.part) == set(PARTS) else "-" + "-".join(sorted(options.part))
    return common.write_result(options.name or f"shift-{folder.name}{parts}", record,
                               to_markdown(record))


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_shift", options.threads)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
