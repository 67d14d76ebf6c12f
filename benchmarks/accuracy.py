"""How often the embedded checkpoint is right: python -m benchmarks.accuracy [--n 1000].

Whole answers, compared exactly, greedy, on the held-out split of every built-in task, through the
engine as users call it. Writes results/NAME.json and .md, with Wilson's 95 % intervals.
"""

from __future__ import annotations

import argparse
import time
from typing import Any

from tqdm import tqdm

from benchmarks.common import environment, markdown_table, write_result
from pydstp import Engine, EngineConfig, SamplingParams, demo_checkpoint
from pydstp.experiments.record import checkpoint_sha256
from pydstp.experiments.statistics import wilson
from pydstp.tasks import TASKS, is_correct, make_example

GREEDY = SamplingParams(temperature=0.0, max_new_tokens=128)


def evaluate(engine: Engine, task: str, count: int, batch: int) -> dict[str, Any]:
    """One row of the table: `count` held-out examples of a task, `batch` at a time."""
    right = tokens = 0
    started = time.perf_counter()
    for first in tqdm(range(0, count, batch), desc=task, unit="batch"):
        examples = [make_example(task, seed) for seed in range(first, min(first + batch, count))]
        answers = engine.generate([example.images for example in examples],
                                  [example.prompt for example in examples], GREEDY)
        right += sum(is_correct(example, answer.text)
                     for example, answer in zip(examples, answers, strict=True))
        tokens += sum(len(answer.token_ids) for answer in answers)
    return {"task": task, "count": count, "right": right, "accuracy": right / count,
            "ci95": wilson(right, count), "new_tokens": tokens / count,
            "seconds": round(time.perf_counter() - started, 1)}


def to_markdown(record: dict[str, Any]) -> str:
    """The table, with where it was measured."""
    rows = [[row["dtype"], row["task"], f"{row['right']} / {row['count']}",
             f"{100 * row['accuracy']:.1f} %",
             "{:.1f} - {:.1f} %".format(*(100 * bound for bound in row["ci95"])),
             f"{row['new_tokens']:.1f}"] for row in record["rows"]]
    table = markdown_table(["dtype", "task", "right", "accuracy", "95 % interval",
                            "tokens per answer"], rows)
    where = record["environment"]
    return (f"# Accuracy of the embedded checkpoint\n\nWhole answers, exact, greedy, all visual "
            f"tokens, held-out split.\n\n{table}\nWeights SHA-256 `{record['checkpoint_sha256']}`, "
            f"commit {where['commit']}, {where['date']}, {where['cpu']}.\n")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--n", type=int, default=1000, help="examples per task")
    parser.add_argument("--batch", type=int, default=32)
    parser.add_argument("--dtype", action="append", choices=("float32", "bfloat16"))
    parser.add_argument("--weights", default="float", help="float or int8")
    parser.add_argument("--tasks", nargs="+", default=list(TASKS), choices=TASKS)
    parser.add_argument("--name", default="accuracy")
    options = parser.parse_args()
    path = demo_checkpoint()
    config = EngineConfig(max_batch=options.batch, max_visual_tokens=512, max_text_tokens=512,
                          weights=options.weights)
    rows = []
    for dtype in options.dtype or ["float32", "bfloat16"]:
        with Engine(path, dtype=dtype, config=config) as engine:
            numbers = dtype if options.weights == "float" else f"{dtype}, weights {options.weights}"
            rows += [{"dtype": numbers, **evaluate(engine, task, options.n, options.batch)}
                     for task in options.tasks]
    record = {"environment": environment(), "checkpoint_sha256": checkpoint_sha256(path),
              "rows": rows}
    print(write_result(options.name, record, to_markdown(record)).read_text())


if __name__ == "__main__":
    main()
