"""How much of a decode step is spent outside native kernels.

    python -m benchmarks.bench_overhead [--shape 2b] [--tokens 1024] [--threads 2]

Every function of the native module is wrapped with a clock, and decode steps run on a cache that is
filled with random keys and values; what the clocks do not see is Python's and torch's part. Two
readings of a clock per call, about 0.2 microseconds, count as outside. The result lands in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from benchmarks import common
from benchmarks.bench_shift import find_checkpoint

POLICIES = ("none", "dstp", "sketch")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2b", help="of the random checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="default build/random-SHAPE")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--batches", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--weights", nargs="+", choices=("float", "int8"), default=["float"])
    parser.add_argument("--steps", type=int, default=20)
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


class Clock:
    """Milliseconds that calls of wrapped functions took."""

    def __init__(self) -> None:
        self.ms, self.num_calls = 0.0, 0

    def wrap(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function with its time added here."""
        def timed(*arguments: Any) -> Any:
            started = time.perf_counter()
            try:
                return function(*arguments)
            finally:
                self.ms += 1e3 * (time.perf_counter() - started)
                self.num_calls += 1
        timed.__name__ = function.__name__
        return timed


@contextmanager
def native_calls() -> Iterator[Clock]:
    """Within it every call of a native function is timed."""
    from pydstp import _C

    clock, plain = Clock(), {}
    for name, value in vars(_C).items():
        if callable(value) and not isinstance(value, type) and not name.startswith("_"):
            plain[name] = value
    try:
        for name, function in plain.items():
            setattr(_C, name, clock.wrap(function))
        yield clock
    finally:
        for name, function in plain.items():
            setattr(_C, name, function)


def rows_of(options: argparse.Namespace, folder: Path, weights: str) -> list[dict[str, Any]]:
    """One row per batch and policy."""
    from benchmarks.shift_harness import FilledCache
    from pydstp import DSTP, Engine, EngineConfig, PruningConfig, SelectionParams, SketchReturn

    shifts = {"none": None, "dstp": DSTP(trigger="never"), "sketch": SketchReturn()}
    config = EngineConfig(max_batch=max(options.batches), max_visual_tokens=options.tokens,
                          max_text_tokens=512, num_threads=options.threads, weights=weights)
    rows = []
    with native_calls() as clock, Engine(folder, dtype="bfloat16", config=config) as engine:
        cache = FilledCache(engine)
        for batch in options.batches:
            for policy in POLICIES:
                selection = SelectionParams(PruningConfig("random", 1 / 3), shifts[policy], "side")
                steps = steps_of(cache, clock, options, batch, selection)
                rows.append({"weights": weights, "batch": batch, "policy": policy, **steps})
    return rows


def steps_of(cache: Any, clock: Clock, options: argparse.Namespace, batch: int,
             selection: Any) -> dict[str, Any]:
    """Times of some steps; the first ones, which record, are left out."""
    sequences = [cache.start(options.tokens, selection) for _ in range(batch)]
    found = []
    try:
        for step in range(3 + options.steps):
            before, calls = clock.ms, clock.num_calls
            started = time.perf_counter()
            cache.decode(sequences)
            total = 1e3 * (time.perf_counter() - started)
            if step >= 3:
                found.append((total, total - (clock.ms - before), clock.num_calls - calls))
    finally:
        for seq in sequences:
            cache.release(seq)
    return {"step_ms": common.spread([total for total, _, _ in found]),
            "outside_ms": common.spread([outside for _, outside, _ in found]),
            "outside_share": common.spread([outside / total for total, outside, _ in found]),
            "native_calls": statistics.median(calls for _, _, calls in found)}


def to_markdown(record: dict[str, Any]) -> str:
    """The result as a page."""
    env, setup = record["environment"], record["setup"]
    header = ["weights", "sequences", "policy", "ms per step", "outside kernels ms", "share",
              "native calls"]
    rows = [[row["weights"], str(row["batch"]), row["policy"], common.show(row["step_ms"], 1),
             common.show(row["outside_ms"], 2), common.show(row["outside_share"], 4),
             f"{row['native_calls']:.0f}"] for row in record["rows"]]
    return (f"# Decode steps outside kernels: {setup['checkpoint']}\n\n"
            f"{env['cpu']}, {setup['threads']} threads; commit {env['commit']}, {env['date']}.\n\n"
            f"{setup['tokens']:,} visual tokens per sequence, a third kept. Medians, smallest and "
            f"largest in brackets, of {setup['steps']} steps. *dstp* watches and never triggers.\n"
            "\n" + common.markdown_table(header, rows) + "\n")


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    environment, folder = common.environment(), find_checkpoint(options)
    rows = [row for weights in options.weights for row in rows_of(options, folder, weights)]
    record = {"environment": environment, "setup": {**vars(options), "checkpoint": folder.name},
              "rows": rows}
    return common.write_result(options.name or f"overhead-{folder.name}", record,
                               to_markdown(record))


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_overhead", options.threads)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
