"""How near to the memory decode comes with weights in bfloat16 and in 8 bits.

    python -m benchmarks.bench_gemv [--checkpoint build/random-2b]

Products of few rows with the matrices of the 2B shape, and with --checkpoint whole decode steps.
Plain reads and both kinds of weights take turns in one process; the weights of a product rotate
through far more memory than the last cache holds. The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common

if TYPE_CHECKING:
    from pydstp import Engine

# out_features, in_features of Qwen3-VL-2B, as the decoder fuses them
MATRICES = {"qkv": (4096, 2048), "o": (2048, 2048), "gate_up": (12288, 2048),
            "down": (2048, 6144), "head": (151936, 2048)}
READ, BF16, INT8 = "read", "bfloat16", "int8"
Turn = Callable[[], float]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--matrices", nargs="*", choices=MATRICES, default=list(MATRICES))
    parser.add_argument("--rows", nargs="+", type=int, default=[1, 4, 8])
    parser.add_argument("--pool-mib", type=int, default=768, help="of weights that rotate")
    parser.add_argument("--checkpoint", type=Path, help="a folder, for whole decode steps")
    parser.add_argument("--visual-tokens", type=int, default=1024, help="in the cache of a step")
    parser.add_argument("--steps", type=int, default=8, help="of each turn")
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--name", default="gemv", help="of the result files")
    return parser.parse_args(arguments)


def take_turns(turns: dict[str, Turn], repeats: int) -> dict[str, list[float]]:
    """What each turn returns, in an order that rotates; the first round warms up."""
    names, found = list(turns), {name: [] for name in turns}
    for repeat in range(repeats + 1):
        first = repeat % len(names)
        for name in names[first:] + names[:first]:
            value = turns[name]()
            if repeat:
                found[name].append(value)
    return found


def product_turns(options: argparse.Namespace, matrix: str, num_rows: int) -> dict[str, Turn]:
    """GB/s of plain reads and of the products of one matrix with `num_rows` rows."""
    import torch

    from pydstp import ops

    out_features, in_features = MATRICES[matrix]
    pool, size = ops.ThreadPool(options.threads), options.pool_mib << 20
    x = torch.randn(num_rows, in_features).bfloat16()
    weights: dict[str, list[Any]] = {BF16: [], INT8: []}
    while sum(weight.nbytes for weight in weights[INT8]) < size:
        numbers = ops.empty_in_huge_pages(out_features, in_features, dtype=torch.bfloat16)
        numbers.normal_()
        held = ops.QuantisedMatrix.allocate(out_features, in_features)
        ops.quantise_rows(numbers, held, pool=pool)
        weights[INT8].append(held)
        if sum(weight.nbytes for weight in weights[BF16]) < size:
            weights[BF16].append(numbers)

    def run(kind: str) -> float:
        product = ops.linear if kind == BF16 else ops.quantised_linear
        started = time.perf_counter()
        for weight in weights[kind]:
            product(x, weight, pool=pool)
        seconds = time.perf_counter() - started
        return sum(weight.nbytes for weight in weights[kind]) / seconds / 1e9

    probe = common.read_probe(size)
    return {READ: lambda: common.read_gb_s(probe, options.threads),
            BF16: lambda: run(BF16), INT8: lambda: run(INT8)}


def product_row(options: argparse.Namespace, matrix: str, num_rows: int) -> dict[str, Any]:
    """One matrix and number of rows."""
    from pydstp import ops

    found = take_turns(product_turns(options, matrix, num_rows), options.repeats)
    num_bytes = {BF16: 2 * MATRICES[matrix][0] * MATRICES[matrix][1],
                 INT8: ops.QuantisedMatrix.bytes_of(*MATRICES[matrix])}
    ms = {kind: [num_bytes[kind] / speed / 1e6 for speed in found[kind]] for kind in num_bytes}
    return {"matrix": matrix, "rows": num_rows, "num_bytes": num_bytes,
            "gb_s": {kind: common.spread(speeds) for kind, speeds in found.items()},
            "of_the_read_bandwidth": {kind: _ratios(found[kind], found[READ]) for kind in ms},
            "int8_over_bfloat16_ms": _ratios(ms[INT8], ms[BF16])}


def step_row(options: argparse.Namespace) -> dict[str, Any]:
    """Whole decode steps of one sequence with random keys and values."""
    from pydstp import Engine, EngineConfig

    config = EngineConfig(max_batch=1, max_visual_tokens=options.visual_tokens,
                          max_text_tokens=512, num_threads=options.threads)
    with (Engine(options.checkpoint, dtype=BF16, config=config) as in_bf16,
          Engine(options.checkpoint, dtype=BF16, config=config, weights=INT8) as in_int8):
        num_bytes: dict[str, int] = {}
        turns = {kind: _steps(engine, options, kind, num_bytes)
                 for kind, engine in ((BF16, in_bf16), (INT8, in_int8))}
        probe = common.read_probe(options.pool_mib << 20)
        turns[READ] = lambda: common.read_gb_s(probe, options.threads)
        found = take_turns(turns, options.repeats)
    reads = found.pop(READ)
    speeds = {kind: [num_bytes[kind] / ms / 1e6 for ms in found[kind]] for kind in found}
    return {"checkpoint": options.checkpoint.name, "visual_tokens": options.visual_tokens,
            "num_bytes": num_bytes, "read_gb_s": common.spread(reads),
            "ms": {kind: common.spread(ms) for kind, ms in found.items()},
            "of_the_read_bandwidth": {kind: _ratios(speeds[kind], reads) for kind in speeds},
            "int8_over_bfloat16_ms": _ratios(found[INT8], found[BF16])}


def _steps(engine: Engine, options: argparse.Namespace, kind: str,
           num_bytes: dict[str, int]) -> Turn:
    """The median step of a run, in ms; what it reads lands in num_bytes[kind]."""
    from benchmarks.shift_harness import FilledCache
    from pydstp import SelectionParams

    cache = FilledCache(engine)

    def run() -> float:
        steps = cache.run(options.visual_tokens, SelectionParams(), options.steps)[1:]
        num_bytes[kind] = steps[0].bytes_read
        return statistics.median(step.ms for step in steps)

    return run


def _ratios(values: list[float], others: list[float]) -> dict[str, float]:
    """values / others, turn by turn."""
    return common.spread([a / b for a, b in zip(values, others, strict=True)])


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a page that can be read."""
    setup, place = record["setup"], record["environment"]
    lines = [
        "# Decode products in bfloat16 and in 8 bits", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {setup['threads']} threads, "
        f"{record['isa']}; commit {place['commit']}, {place['date']}. Load before and after: "
        f"{' '.join(map(str, place['load_average']))}, "
        f"{' '.join(map(str, record['load_average_at_the_end']))}.", "",
        f"Medians, smallest and largest in brackets, of {setup['repeats']} turns; ratios are taken "
        "turn by turn. *int8 / bf16* is a ratio of times: the bytes alone would give 0.508.", ""]
    if record["products"]:
        lines += [common.markdown_table(
            ["matrix", "rows", "read GB/s", "bf16 GB/s", "int8 GB/s", "bf16 of reads",
             "int8 of reads", "int8 / bf16"],
            [[row["matrix"], str(row["rows"]), *(common.show(row["gb_s"][k], 1)
                                            for k in (READ, BF16, INT8)), *_shares(row)]
             for row in record["products"]]), ""]
    if row := record["steps"]:
        lines += [f"Whole decode steps of {row['checkpoint']}, one sequence with "
                  f"{row['visual_tokens']:,} visual tokens:", "", common.markdown_table(
            ["read GB/s", "bf16 ms", "int8 ms", "bf16 of reads", "int8 of reads", "int8 / bf16",
             "bytes int8 / bf16"],
            [[common.show(row["read_gb_s"], 1), *(common.show(row["ms"][k], 1)
                                                  for k in (BF16, INT8)), *_shares(row),
              f"{row['num_bytes'][INT8] / row['num_bytes'][BF16]:.3f}"]])]
    return "\n".join(lines)


def _shares(row: dict[str, Any]) -> list[str]:
    shares = [common.show(row["of_the_read_bandwidth"][kind], 2) for kind in (BF16, INT8)]
    return [*shares, common.show(row["int8_over_bfloat16_ms"], 3)]


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    from pydstp import ops

    environment = common.environment()
    products = [product_row(options, matrix, num_rows) for matrix in options.matrices
                for num_rows in options.rows]
    steps = step_row(options) if options.checkpoint else None
    setup = {key: str(value) if isinstance(value, Path) else value
             for key, value in vars(options).items()}
    record = {"environment": environment, "isa": ops.current_isa(), "setup": setup,
              "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
              "products": products, "steps": steps}
    return common.write_result(options.name, record, to_markdown(record))


def main() -> None:
    options = parse_arguments()
    wanted = common.thread_environment(options.threads)
    if any(os.environ.get(key) != value for key, value in wanted.items()):  # before torch is there
        os.execve(sys.executable, [sys.executable, "-m", "benchmarks.bench_gemv", *sys.argv[1:]],
                  wanted)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
