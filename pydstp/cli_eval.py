"""`pydstp eval`: its flags, and what it does.

Tables go to stdout, progress to stderr, records into files. A flag that is not given leaves its
option to the file of --config, and what neither says to `EvalPlan`.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

from pydstp.console import cancelled_by_ctrl_c, loading_bar, say, write

EXIT_OK = 0

# Defaults are those of `EvalPlan`; the help repeats them, because argparse does not know them.
FLAGS: tuple[tuple[str, dict[str, Any]], ...] = (
    ("--config", {"metavar": "FILE", "help": "a JSON object with options by their names here, "
                  "\"tasks\" among them; flags win"}),
    ("--methods", {"metavar": "NAMES", "help": "separated by commas (default: none, random, fastv, "
                   "divprune, visionzip)"}),
    ("--ratios", {"metavar": "R,R", "help": "shares to keep, as decimals or fractions (default: "
                  "0.666, 0.333, 0.2, 0.1)"}),
    ("--shift", {"metavar": "NAMES", "help": "none, dstp, recommended, sketch, visionpulse, "
                 "dycoke, or files that `pydstp calibrate` wrote (default: none, dstp, "
                 "recommended)"}),
    ("--ablation", {"action": "store_const", "const": True, "help": "also the paper's rows: "
                    "triggers and swaps, at 0.333 kept"}),
    ("--sketch-sweep", {"action": "store_const", "const": True, "help": "instead of the grid: "
                        "SketchReturn with one option changed at a time"}),
    ("--pareto", {"metavar": "PNG", "help": "instead of the grid: sweep the options of DSTP for "
                  "one method and ratio, and plot accuracy against cost"}),
    ("--fastv-layer", {"type": int, "metavar": "K", "help": "fastv and other methods inside the "
                       "decoder prune before layer K; default: 1 in models under ten layers, "
                       "else 2"}),
    ("--reserve", {"choices": ("auto", "full", "side", "lazy", "deferred"), "help": "when pruned "
                   "tokens get keys and values (default: auto)"}),
    ("--timed", {"type": int, "metavar": "N", "help": "answers that are timed alone per row "
                 "(default: 8)"}),
    ("--output", {"metavar": "FOLDER", "help": "rows and answers as JSON lines, a report, figures; "
                  "what is there is not measured again"}),
    ("--fresh", {"action": "store_const", "const": True, "help": "with --output: throw away what "
                 "is there"}),
    ("--json", {"metavar": "FILE", "help": "the record as one JSON object, written after every "
                "row"}),
    ("--model", {"metavar": "PATH", "help": "checkpoint folder; default: the small one that is "
                 "embedded"}),
    ("--n", {"type": int, "help": "questions per task (default: 1000)"}),
    ("--seed", {"type": int, "help": "of the first (default: 0)"}),
    ("--batch", {"type": int, "help": "questions at once (default: 32)"}),
    ("--max-new-tokens", {"type": int, "metavar": "N", "help": "the longest answer "
                          "(default: 128)"}),
    ("--max-visual-tokens", {"type": int, "metavar": "N", "help": "of one question "
                             "(default: 512)"}),
    ("--dtype", {"help": "auto, bfloat16 or float32"}),
    ("--weights", {"metavar": "KIND", "help": "float or int8"}),
)


def add_eval(commands: argparse._SubParsersAction) -> None:
    """Add the command; it stores the function that runs it as `run`."""
    command = commands.add_parser(
        "eval", help="accuracy and cost of pruning methods and shift policies on tasks")
    command.add_argument("tasks", metavar="TASKS", nargs="?",
                         help="read, trail, locate, haystack: one, or several with commas")
    for name, options in FLAGS:
        command.add_argument(name, default=None, **options)
    command.set_defaults(run=run_eval)


def run_eval(options: argparse.Namespace) -> int:
    """`pydstp eval`."""
    from tqdm import tqdm

    from pydstp.experiments import evaluation
    from pydstp.experiments.harness import evaluate
    from pydstp.experiments.plots import has_matplotlib, plot_pareto

    plan, total = _plan(options)
    if plan.output is not None and not has_matplotlib():
        say("no figures without matplotlib; pip install 'pydstp[plots]' brings it")
    rows: list[dict[str, Any]] = []
    try:
        with cancelled_by_ctrl_c() as cancel, tqdm(
                total=total * plan.n, unit=" questions", leave=False, disable=None) as bar:
            for row in evaluate(plan, cancel=cancel, tick=bar.update, loading=loading_bar()):
                rows.append(row)
                tqdm.write(f"{len(rows)} of {total}: {row['task']}: {evaluation.one_line(row)}",
                           file=sys.stderr)
    finally:  # what was measured is shown, whatever ends it
        print_rows(rows)
    if plan.pareto is not None:
        say("the front of accuracy against visible tokens:")
        print_rows(plot_pareto(rows, Path(plan.pareto)))
    return EXIT_OK


def _plan(options: argparse.Namespace) -> tuple[Any, int]:
    """The plan of the flags and the number of its rows."""
    from pydstp.experiments.plan import EvalPlan

    names = ["tasks", *(name.removeprefix("--").replace("-", "_") for name, _ in FLAGS)]
    given = {name: getattr(options, name) for name in names if name != "config"}
    plan = EvalPlan.from_file(options.config, **{
        name: value for name, value in given.items() if value is not None})
    return plan, len(plan.settings()) * len(plan.questions())


def print_rows(rows: list[dict[str, Any]]) -> None:
    """The rows as Markdown on stdout; a heading per task where there are several."""
    from pydstp.experiments.evaluation import HEADER, cells
    from pydstp.experiments.record import markdown_table

    tasks = list(dict.fromkeys(row["task"] for row in rows))
    for task in tasks:
        table = markdown_table(HEADER, [cells(row) for row in rows if row["task"] == task])
        write(iter([f"{task}\n\n{table}" if len(tasks) > 1 else table]))
