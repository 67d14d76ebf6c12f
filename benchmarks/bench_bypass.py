"""Whole answers with all tokens, pruned as told, and with bypass="auto" deciding.

    python -m benchmarks.bench_bypass [--checkpoint build/random-small] [--tokens 64 256 1024]

The vision tower does the same for all three, so random rows stand in its place and its time is
left out; with it the ratios would lie nearer to 1. All settings take turns in one process. The
result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import time
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.bench_shift import find_checkpoint

if TYPE_CHECKING:
    from pydstp import Engine, Generation

PROMPT = "Describe this picture in detail: what is shown, where it is, and which colours it has."
POLICIES = ("none", "dstp", "recommended", "sketch")
FULL, TOLD, AUTO = "all tokens", "never", "auto"


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", help="of the random checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="default build/random-SHAPE")
    parser.add_argument("--tokens", nargs="+", type=int, default=[64, 256, 1024])
    parser.add_argument("--method", default="divprune")
    parser.add_argument("--policies", nargs="+", choices=POLICIES, default=list(POLICIES))
    parser.add_argument("--retention", type=float, default=1 / 3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--new-tokens", nargs="+", type=int, default=[2, 32])
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


def answer_of(engine: Engine, num_visual: int, num_new: int, selection: dict[str, Any],
              _: int) -> Generation:
    """One answer of exactly `num_new` tokens."""
    from benchmarks.shift_harness import RandomRows, random_picture, vision_hook
    from pydstp import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_new_tokens=num_new, ignore_eos=True)
    with vision_hook(engine, RandomRows(engine)):
        return engine.generate(random_picture(num_visual), PROMPT, sampling, **selection)


def settings_of(options: argparse.Namespace) -> dict[tuple[str, str], dict[str, Any]]:
    """What `Engine.generate` takes, by (policy, bypass)."""
    from pydstp import DSTP, PruningConfig, SketchReturn

    shifts = {"none": None, "dstp": DSTP(trigger="every"), "recommended": DSTP.recommended(),
              "sketch": SketchReturn()}
    pruning = PruningConfig(options.method, options.retention)
    return {("", FULL): {}} | {
        (policy, bypass): {"pruning": pruning, "shift": shifts[policy], "bypass": bypass}
        for policy in options.policies for bypass in (TOLD, AUTO)}


def rows_of(engine: Engine, options: argparse.Namespace, num_visual: int,
            num_new: int) -> list[dict[str, Any]]:
    """One row per policy: both settings against all tokens, turn by turn."""
    from benchmarks.shift_harness import Rates, interleave, ratios

    settings = settings_of(options)
    found = interleave({key: partial(answer_of, engine, num_visual, num_new, selection)
                        for key, selection in settings.items()}, options.repeats,
                       Rates(engine, options.threads, 64 << 20), warm_up=True)
    times = {key: [answer.timings.total_ms - answer.timings.vision_ms for answer in answers]
             for key, answers in found.items()}
    full = times["", FULL]
    return [{"num_visual": num_visual, "num_new": num_new, "policy": policy,
             "full_ms": common.spread(full),
             "told_ratio": ratios(times[policy, TOLD], full),
             "auto_ratio": ratios(times[policy, AUTO], full),
             "bypassed": found[policy, AUTO][0].shift.reason == "below_break_even"}
            for policy in options.policies]


def to_markdown(record: dict[str, Any]) -> str:
    """The result as a page."""
    env, setup = record["environment"], record["setup"]
    header = ["visual tokens", "new tokens", "policy", "all tokens ms", "pruned / all tokens",
              "auto / all tokens", "auto decides"]
    rows = [[f"{row['num_visual']:,}", str(row["num_new"]), row["policy"],
             common.show(row["full_ms"], 1), common.show(row["told_ratio"], 3),
             common.show(row["auto_ratio"], 3), "all tokens" if row["bypassed"] else "pruned"]
            for row in record["rows"]]
    return (f"# bypass=\"auto\": {setup['checkpoint']}\n\n"
            f"{env['cpu']}, {setup['threads']} threads; commit {env['commit']}, {env['date']}. "
            f"{record['seconds']} s in all.\n\n"
            f"Whole answers in {setup['dtype']} without the vision tower, {setup['method']} at "
            f"{setup['retention']:.1%}; *dstp* triggers whenever it can. Medians, smallest and "
            f"largest in brackets, of {setup['repeats']} turns; ratios of times are taken turn by "
            "turn.\n\n" + common.markdown_table(header, rows) + "\n")


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    from pydstp import Engine, EngineConfig

    started, environment = time.perf_counter(), common.environment()
    folder = find_checkpoint(options)
    config = EngineConfig(max_batch=1, max_visual_tokens=max(options.tokens),
                          max_text_tokens=512, num_threads=options.threads)
    with Engine(folder, dtype=options.dtype, config=config) as engine:
        rows = [row for num_visual in options.tokens for num_new in options.new_tokens
                for row in rows_of(engine, options, num_visual, num_new)]
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
