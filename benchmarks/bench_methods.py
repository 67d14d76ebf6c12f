"""What a pruning method adds to a prompt, over what the rows of its layers take by themselves.

    python -m benchmarks.bench_methods [--shape small] [--tokens 1024] [--methods fastv divprune]

Random rows, attention and keys stand in for the vision tower, so that only the decoder's prefill
and the selection are timed; what observing the tower costs is measured apart, on a picture of
noise. All methods take turns in one process. The result lands in benchmarks/results/.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

from benchmarks import common
from benchmarks.bench_shift import find_checkpoint

if TYPE_CHECKING:
    from pydstp import Engine, Generation, PruningConfig
    from pydstp.models.visual_tokens import VisionOutput

PROMPT = "Describe this picture in detail: what is shown, where it is, and which colours it has."
LEFT_OUT = ("none", "random", "resize")


def parse_arguments(arguments: list[str] | None = None) -> argparse.Namespace:
    """The options."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--shape", default="small", help="of the random checkpoint")
    parser.add_argument("--checkpoint", type=Path, help="default build/random-SHAPE")
    parser.add_argument("--tokens", type=int, default=1024)
    parser.add_argument("--methods", nargs="+", help="default all that select tokens")
    parser.add_argument("--retention", type=float, default=1 / 3)
    parser.add_argument("--dtype", choices=("bfloat16", "float32"), default="bfloat16")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--vision-size", default="512x512", help="of the picture, width x height")
    parser.add_argument("--threads", type=int, default=common.num_processors())
    parser.add_argument("--name", help="of the result files")
    return parser.parse_args(arguments)


class RandomTower:
    """In place of the vision tower: rows, and attention and keys where a method wants them."""

    def __init__(self, engine: Engine) -> None:
        from benchmarks.shift_harness import RandomRows

        self._rows, self._vision = RandomRows(engine), engine.model_config.vision

    def __call__(self, *arguments: Any, observe: int | None = None,
                 **options: Any) -> VisionOutput:
        import torch

        output = self._rows(*arguments, **options)
        if observe is not None:
            generator, num_visual = torch.Generator().manual_seed(1), len(output.rows)
            head_dim = self._vision.hidden_size // self._vision.num_heads
            output = replace(
                output, attention=torch.rand(num_visual, generator=generator) / num_visual,
                keys=torch.randn(num_visual, head_dim, generator=generator))
        return output


def prefill(engine: Engine, pruning: PruningConfig, num_visual: int, _: int) -> Generation:
    """One token behind a prompt of so many random visual tokens."""
    from benchmarks.shift_harness import random_picture, vision_hook
    from pydstp import SamplingParams

    sampling = SamplingParams(temperature=0.0, max_new_tokens=1)
    with vision_hook(engine, RandomTower(engine)):
        return engine.generate(random_picture(num_visual), PROMPT, sampling, pruning=pruning)


def configs_of(options: argparse.Namespace) -> dict[str, PruningConfig]:
    """Every method that the project brings and that selects tokens."""
    from pydstp import PruningConfig
    from pydstp.pruning import available_pruners
    from pydstp.pruning.registry import pruner_class

    names = options.methods or [
        name for name in available_pruners() if name not in LEFT_OUT
        and pruner_class(name).__module__.startswith("pydstp.")]  # not somebody's plug-in
    return {name: PruningConfig(name, options.retention) for name in names}


def prefill_rows(engine: Engine, options: argparse.Namespace) -> list[dict[str, Any]]:
    """One row per method: its prompt against the ideal one, turn by turn.

    The ideal: every layer takes its share of a prompt with as many random rows in all layers.
    """
    from benchmarks.shift_harness import Rates, cost_model, interleave, ratios
    from pydstp import PruningConfig
    from pydstp.break_even import selection_cost

    rates, configs = Rates(engine, options.threads, 64 << 20), configs_of(options)
    rows_of = {name: prefill(engine, config, options.tokens, -1).shift.visual_rows
               for name, config in configs.items()}
    plain = {count: PruningConfig("random", num_kept=count)
             for count in sorted({count for rows in rows_of.values() for count in rows})}
    found = interleave({name: partial(prefill, engine, config, options.tokens)
                        for name, config in {**plain, **configs}.items()},
                       options.repeats, rates, warm_up=True)
    times = {name: [answer.timings.prefill_ms for answer in answers]
             for name, answers in found.items()}
    rows = []
    for name, config in configs.items():
        kept = found[name][0].shift.kept
        ideal = [statistics.mean(turn) for turn in zip(*(times[count] for count in rows_of[name]),
                                                       strict=True)]
        stated = selection_cost(config.pruner, cost_model(engine), options.tokens, kept)
        stated_ms = rates.predict_ms(stated)
        rows.append({
            "method": name, "rows": rows_of[name], "kept": kept, "stated_ms": stated_ms,
            "prefill_ms": common.spread(times[name]), "ideal_ms": common.spread(ideal),
            "selection_ms": common.spread([answer.shift.selection_ms for answer in found[name]]),
            "against_rows": ratios(times[name], ideal),
            "against_ideal": ratios(times[name], [ms + stated_ms for ms in ideal])})
    return rows


def observing_rows(engine: Engine, options: argparse.Namespace) -> dict[str, Any]:
    """The vision tower on one picture, with one of its blocks observed and without."""
    import torch

    from benchmarks.shift_harness import Rates, interleave, ratios
    from pydstp.models.plans import Context

    width, height = map(int, options.vision_size.split("x"))
    vision, runner = engine.model_config.vision, engine._runner
    grid = height // 16, width // 16
    patches = torch.rand(grid[0] * grid[1], vision.patch_dim)
    ctx = Context(runner.pool, lambda: None)

    def encode(observe: int | None, _: int) -> float:
        started = time.perf_counter()
        runner.model.encode_images(patches, [grid], ctx, observe=observe)
        return 1e3 * (time.perf_counter() - started)

    found = interleave({"plain": partial(encode, None), "observed": partial(encode, -2)},
                       options.repeats, Rates(engine, options.threads, 64 << 20), warm_up=True)
    return {"size": options.vision_size,
            **{f"{name}_ms": common.spread(times) for name, times in found.items()},
            "ratio": ratios(found["observed"], found["plain"])}


def to_markdown(record: dict[str, Any]) -> str:
    """The result as a page."""
    env, setup, tower = record["environment"], record["setup"], record["tower"]
    header = ["method", "rows of layers, mean", "kept", "prefill ms", "its rows alone ms",
              "selection ms", "stated cost ms", "against its rows", "against rows + stated cost"]
    rows = [[row["method"], f"{statistics.mean(row['rows']):,.0f}", f"{row['kept']:,}",
             common.show(row["prefill_ms"]), common.show(row["ideal_ms"]),
             common.show(row["selection_ms"], 1), f"{row['stated_ms']:.1f}",
             common.show(row["against_rows"], 3), common.show(row["against_ideal"], 3)]
            for row in record["rows"]]
    return (f"# What a pruning method adds to a prompt: {setup['checkpoint']}\n\n"
            f"{env['cpu']}, {setup['threads']} threads; commit {env['commit']}, {env['date']}. "
            f"{record['seconds']} s in all.\n\n"
            f"{setup['tokens']:,} visual tokens, {setup['retention']:.1%} kept, "
            f"{setup['dtype']}. Medians, smallest "
            f"and largest in brackets, of {setup['repeats']} turns; ratios are taken turn by "
            "turn. *Its rows alone*: prompts with as many rows, drawn at random, in all layers, "
            "each layer's share of them. *Stated cost*: bytes and operations of the method over "
            "the rates measured between the turns; the vision tower's share of it is in no "
            "prefill time.\n\n"
            + common.markdown_table(header, rows)
            + f"\n\nObserving a block of the vision tower, {tower['size']} pixels: "
            f"{common.show(tower['observed_ms'])} ms against {common.show(tower['plain_ms'])} ms, "
            f"{common.show(tower['ratio'], 3)}.\n")


def run(options: argparse.Namespace) -> Path:
    """Measure and write the result."""
    from pydstp import Engine, EngineConfig

    started, environment = time.perf_counter(), common.environment()
    folder = find_checkpoint(options)
    config = EngineConfig(max_batch=1, max_visual_tokens=max(4096, options.tokens),
                          max_text_tokens=512, num_threads=options.threads)
    with Engine(folder, dtype=options.dtype, config=config) as engine:
        rows, tower = prefill_rows(engine, options), observing_rows(engine, options)
    record = {"environment": environment, "setup": {**vars(options), "checkpoint": folder.name},
              "load_average_at_the_end": [round(load, 2) for load in os.getloadavg()],
              "seconds": round(time.perf_counter() - started), "rows": rows, "tower": tower}
    return common.write_result(options.name or f"methods-{folder.name}", record,
                               to_markdown(record))


def main() -> None:
    options = parse_arguments()
    common.start_again("benchmarks.bench_methods", options.threads)
    print(run(options).read_text())


if __name__ == "__main__":
    main()
