"""First tokens and decode steps with all tokens, pruned as told, and with bypass="auto" deciding.

    python -m benchmarks.bench_bypass [--checkpoint build/random-small] [--tokens 64 256]

Three answers about the same picture run side by side in one engine, token by token, in an order
that is drawn anew for every token: what disturbs the machine for longer than a step disturbs all
three. The vision tower does the same for all, so random rows stand in its place and its time is
left out; with it the ratios of first tokens would lie nearer to 1. The result lands in
benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import random
import time
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.bench_shift import find_checkpoint

if TYPE_CHECKING:
    from pydstp import Engine

PROMPT = "Describe this picture in detail: what is shown, where it is, and which colours it has."
POLICIES = ("none", "dstp", "recommended", "sketch")
FULL, TOLD, AUTO = "all tokens", "never", "auto"
RESAMPLES = 2000
Times = dict[str, list[float]]


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", help="of the random checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="default build/random-SHAPE")
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256])
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--retention", type=float, default=1 / 3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--new-tokens", type=int, default=17, help="of each answer")
    parser.add_argument("--answers", type=int, default=5, help="of each setting")
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


def selections(options: argparse.Namespace, policy: str) -> dict[str, Any]:
    """What the three answers ask for."""
    from pydstp import DSTP, PruningConfig, SelectionParams, SketchReturn

    shifts = {"none": None, "dstp": DSTP(trigger="every"), "recommended": DSTP.recommended(),
              "sketch": SketchReturn()}
    pruning = PruningConfig(options.method, options.retention)
    return {FULL: SelectionParams()} | {
        bypass: SelectionParams(pruning, shifts[policy], bypass=bypass)
        for bypass in (TOLD, AUTO)}


def answer_together(engine: Engine, options: argparse.Namespace, num_visual: int,
                    asked: dict[str, Any], order: random.Random) -> tuple[list[Times], bool]:
    """One answer of each, side by side: the milliseconds of every token, and whether "auto" chose
    all tokens."""
    from benchmarks.shift_harness import RandomRows, random_picture, vision_hook
    from pydstp import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_new_tokens=options.new_tokens, ignore_eos=True)
    sequences = {name: engine._preparation.request(PROMPT, random_picture(num_visual), sampling,
                                                   None, selection)
                 for name, selection in asked.items()}
    runs = {name: engine._scheduler.run([seq]) for name, seq in sequences.items()}
    with vision_hook(engine, RandomRows(engine)):
        tokens = [_token_of_each(runs, order) for _ in range(options.new_tokens)]
    for name, seq in sequences.items():  # the tower belongs to none of them
        tokens[0][name][0] -= seq.timings.vision_ms
        for _ in runs[name]:
            raise RuntimeError(f"{name}: expected {options.new_tokens} tokens, got more")
    return tokens, sequences[AUTO].result().shift.reason == "below_break_even"


def _token_of_each(runs: dict[str, Iterator[Any]], order: random.Random) -> Times:
    found = {}
    for name in order.sample(list(runs), len(runs)):
        started = time.perf_counter()
        next(runs[name])
        found[name] = [1e3 * (time.perf_counter() - started)]
    return found


def interval(values: list[float], others: list[float]) -> dict[str, float]:
    """The median of values / others, pair by pair, and its 95 % interval by bootstrap."""
    import numpy as np

    found = np.array(values) / np.array(others)
    draws = np.random.default_rng(0).choice(found, (RESAMPLES, len(found)))
    low, high = np.percentile(np.median(draws, axis=1), [2.5, 97.5])
    return {"median": float(np.median(found)), "min": float(low), "max": float(high),
            "count": len(found)}


def row_of(engine: Engine, options: argparse.Namespace, num_visual: int,
           policy: str) -> dict[str, Any]:
    """First tokens and steps of a policy against all tokens; the first answers warm up."""
    order, asked = random.Random(0), selections(options, policy)
    first: Times = {name: [] for name in asked}
    steps: Times = {name: [] for name in asked}
    for answer in range(1 + options.answers):
        tokens, bypassed = answer_together(engine, options, num_visual, asked, order)
        for index, times in enumerate(tokens if answer else []):
            for name, found in times.items():
                (steps if index else first)[name] += found
    return {"num_visual": num_visual, "policy": policy, "bypassed": bypassed,
            **{f"{kind}_ms": common.spread(times[FULL])
               for kind, times in (("first", first), ("step", steps))},
            **{f"{kind}_{name}": interval(times[name], times[FULL])
               for kind, times in (("first", first), ("step", steps)) for name in (TOLD, AUTO)}}


def to_markdown(record: dict[str, Any]) -> str:
    """The result as a page."""
    env, setup = record["environment"], record["setup"]
    header = ["visual tokens", "policy", "auto decides", "first token ms", "pruned / all tokens",
              "auto / all tokens", "step ms", "pruned / all tokens", "auto / all tokens"]
    rows = [[f"{row['num_visual']:,}", row["policy"],
             "all tokens" if row["bypassed"] else "pruned",
             *(cell for kind in ("first", "step") for cell in (
                 common.show(row[f"{kind}_ms"], 1),
                 *(common.show(row[f"{kind}_{name}"], 3) for name in (TOLD, AUTO))))]
            for row in record["rows"]]
    return (f"# bypass=\"auto\": {setup['checkpoint']}\n\n"
            f"{env['cpu']}, {setup['threads']} threads; commit {env['commit']}, {env['date']}. "
            f"{record['seconds']} s in all.\n\n"
            f"{setup['dtype']}, {setup['method']} at {setup['retention']:.1%}, the vision tower "
            f"left out; *dstp* triggers whenever it can. {setup['answers']} answers of "
            f"{setup['new_tokens']} tokens of each setting, side by side, token by token in random "
            "order. Times: medians, smallest and largest in brackets. Ratios: medians of the "
            "ratios of tokens that ran next to each other, with their 95 % bootstrap interval."
            "\n\n" + common.markdown_table(header, rows) + "\n")


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    from pydstp import Engine, EngineConfig

    started, environment = time.perf_counter(), common.environment()
    folder = find_checkpoint(options)
    config = EngineConfig(max_batch=3, max_visual_tokens=max(options.tokens),
                          max_text_tokens=512, num_threads=options.threads)
    with Engine(folder, dtype=options.dtype, config=config) as engine:
        rows = [row_of(engine, options, num_visual, policy) for num_visual in options.tokens
                for policy in options.policies]
        rates = engine._runner._break_even._rates
    setup = {**vars(options), "checkpoint": folder.name}
    record = {"environment": environment, "setup": setup, "rates": vars(rates),
              "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
              "seconds": round(time.perf_counter() - started), "rows": rows}
    return common.write_result(options.name or f"bypass-{folder.name}", record,
                               to_markdown(record))


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_bypass", options.threads)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
