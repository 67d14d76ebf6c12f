"""What same-step return costs on the clock: decode steps beside the base method and all tokens.

    python -m benchmarks.bench_return [--shape 2b] [--cases 1x1024 1x4096 8x4096 8x6144]

The cache is filled with random keys and values, a third of the visual tokens are kept at random,
and every layer returns the best pruned ones by its key sketch. All settings of a case take turns in
one process; beside each number stands what the bytes say, from the bandwidth measured in between.
"""

from __future__ import annotations

import argparse
import statistics
import sys
import time
from functools import partial
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.bench_shift import find_checkpoint

if TYPE_CHECKING:
    from benchmarks.shift_harness import FilledCache, Rates
    from pydstp import Engine, SelectionParams

TEXT_TOKENS = 256
FULL, BASE = "all tokens", "pruned"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="2b", help="of the random checkpoint: 2b, small, tiny")
    parser.add_argument("--cases", nargs="+", default=["1x1024", "1x4096", "8x4096", "8x6144"],
                        help="sequences x visual tokens of each")
    parser.add_argument("--retention", type=float, default=1 / 3)
    parser.add_argument("--bits", nargs="+", type=int, default=[4, 8])
    parser.add_argument("--max-returned", nargs="+", type=int, default=[1, 8])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--steps", type=int, default=4, help="of each run, after one to warm up")
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--probe-mib", type=int, default=512, help="to read the bandwidth from")
    parser.add_argument("--name", help="of the result files")
    parser.set_defaults(checkpoint=None)
    options = parser.parse_args(arguments)
    options.cases = [tuple(map(int, case.split("x"))) for case in options.cases]
    return options


def settings(options: argparse.Namespace) -> dict[str, SelectionParams]:
    """What is compared."""
    from benchmarks.shift_parts import pruned
    from pydstp import SelectionParams, SketchReturn

    policies = {f"{bits} bits, {count} returned": SketchReturn(max_returned=count, bits=bits)
                for bits in options.bits for count in options.max_returned}
    return {FULL: SelectionParams(), BASE: pruned(options.retention),
            **{name: pruned(options.retention, policy) for name, policy in policies.items()}}


def open_engine(options: argparse.Namespace) -> Engine:
    """Room for the largest case."""
    from pydstp import Engine, EngineConfig

    batch, tokens = (max(sizes) for sizes in zip(*options.cases, strict=True))
    config = EngineConfig(max_batch=batch, max_visual_tokens=tokens, max_text_tokens=TEXT_TOKENS,
                          num_threads=options.threads)
    return Engine(find_checkpoint(options), dtype=options.dtype, config=config)


def run_steps(cache: FilledCache, batch: int, num_visual: int, params: SelectionParams,
              count: int, _: int) -> dict[str, float]:
    """The median step of a batch: milliseconds, bytes, and visual tokens that a layer reads."""
    sequences = [cache.start(num_visual, params) for _ in range(batch)]
    try:
        times = []
        for _ in range(1 + count):
            started = time.perf_counter()
            cache.decode(sequences)
            times.append(1e3 * (time.perf_counter() - started))
        reports = [seq.progress.report(0.0) for seq in sequences]
        shared = (batch - 1) * cache.weight_bytes
        return {"ms": statistics.median(times[1:]), "visible": reports[0].mean_visible * num_visual,
                "bytes": sum(report.bytes_per_token for report in reports) - shared}
    finally:
        for seq in sequences:
            cache.release(seq)


def case_rows(cache: FilledCache, rates: Rates, case: tuple[int, int],
              options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per setting."""
    from benchmarks.shift_harness import interleave, ratios
    from pydstp.cost import Cost

    found = interleave({name: partial(run_steps, cache, *case, params, options.steps)
                        for name, params in settings(options).items()},
                       options.repeats, rates, warm_up=True)
    times = {name: [run["ms"] for run in runs] for name, runs in found.items()}
    predicted = {name: rates.predict_ms(Cost(runs[0]["bytes"])) for name, runs in found.items()}
    return [{"batch": case[0], "num_visual": case[1], "setting": name, "bytes": runs[0]["bytes"],
             "visible": runs[0]["visible"], "ms": common.spread(times[name]),
             "predicted_ms": predicted[name], "rates": rates.to_dict(),
             **{f"against_{key}": ratios(times[name], times[other])
                for key, other in (("pruned", BASE), ("full", FULL))},
             **{f"predicted_against_{key}": predicted[name] / predicted[other]
                for key, other in (("pruned", BASE), ("full", FULL))}}
            for name, runs in found.items()]


def measure(options: argparse.Namespace) -> list[dict[str, Any]]:
    """All cases."""
    from benchmarks.shift_harness import FilledCache, Rates

    rows = []
    with open_engine(options) as engine:
        cache = FilledCache(engine)
        for case in options.cases:
            started = time.perf_counter()
            rates = Rates(engine, options.threads, options.probe_mib << 20)
            rows += case_rows(cache, rates, case, options)
            print(f"{case[0]} x {case[1]}: {time.perf_counter() - started:.0f} s", file=sys.stderr,
                  flush=True)
    return rows


def to_markdown(record: dict[str, Any]) -> str:
    """The record as a page that can be read."""
    setup, place, rows = record["setup"], record["environment"], record["rows"]
    table = [[f"{row['batch']} x {row['num_visual']:,}", row["setting"], f"{row['visible']:,.0f}",
              common.show(row["ms"], 1), common.show(row["against_pruned"], 3),
              f"{row['predicted_against_pruned']:.3f}", common.show(row["against_full"], 3),
              f"{row['predicted_against_full']:.3f}", f"{row['bytes'] / 1e9:.2f}",
              f"{row['predicted_ms']:.1f}", f"{row['ms']['median'] / row['predicted_ms']:.2f}"]
             for row in rows]
    header = ["sequences x tokens", "setting", "visible", "ms per step", "against pruned",
              "predicted", "against all tokens", "predicted", "GB read", "predicted ms",
              "measured / predicted"]
    rates = {row["batch"] * 10**6 + row["num_visual"]: row for row in rows}.values()
    bandwidths = "; ".join(f"{row['batch']} x {row['num_visual']:,}: "
                           f"{common.show(row['rates']['read_gb_s'], 1)} GB/s" for row in rates)
    return "\n".join([
        f"# Same-step return on the clock: {setup['checkpoint']}", "",
        f"{place['cpu']} ({', '.join(place['cpu_flags'])}), {setup['threads']} threads, "
        f"{place['memory_gib']} GiB; {setup['dtype']}; commit {place['commit']}, {place['date']}. "
        f"{record['seconds']} s in all, peak RSS {record['peak_rss_bytes'] / 2**30:.1f} GiB.", "",
        f"Decode steps on random keys and values, {setup['retention']:.1%} kept at random. Medians "
        f"of {setup['repeats']} turns, smallest and largest in brackets; ratios are taken turn by "
        "turn. *Predicted*: bytes read (weights once per step, keys and values, key sketches) over "
        "the plain read bandwidth measured between the turns.", "",
        common.markdown_table(header, table), f"Read bandwidth: {bandwidths}.", ""])


def run(options: argparse.Namespace) -> str:
    """Measure and write the result; returns the page."""
    started, environment = time.perf_counter(), common.environment()
    rows = measure(options)
    setup = {**vars(options), "checkpoint": find_checkpoint(options).name}
    record = {"environment": environment, "setup": setup, "rows": rows,
              "peak_rss_bytes": common.peak_rss_bytes(),
              "seconds": round(time.perf_counter() - started)}
    name = options.name or f"return-{setup['checkpoint']}"
    return common.write_result(name, record, to_markdown(record)).read_text()


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_return", options.threads)
    print(run(options))


if __name__ == "__main__":
    main()
