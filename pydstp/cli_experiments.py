"""The flags of `pydstp eval`, `pydstp calibrate` and `pydstp analyze`."""

from __future__ import annotations

import argparse

from pydstp.cli_experiment_runs import run_analyze, run_calibrate, run_eval
from pydstp.cli_selection import add_selection_flags


def add_experiment_commands(commands: argparse._SubParsersAction) -> None:
    """Add the three commands; each stores the function that runs it as `run`."""
    _add_eval(commands)
    _add_calibrate(commands)
    _add_analyze(commands)


def _add_eval(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "eval", help="accuracy and cost of pruning methods and shift policies on a task")
    command.add_argument("task", metavar="TASK", help="read, trail, locate or haystack")
    command.add_argument("--methods", default="none,random,fastv,divprune,visionzip",
                         metavar="NAMES", help="separated by commas (default: %(default)s)")
    command.add_argument("--ratios", default="0.666,0.333,0.2,0.1", metavar="R,R",
                         help="shares to keep, as decimals or fractions (default: %(default)s)")
    command.add_argument("--shift", default="none,dstp,recommended", metavar="NAMES",
                         help="none, dstp, recommended, sketch, visionpulse, dycoke, or files that "
                         "`pydstp calibrate` wrote (default: %(default)s)")
    command.add_argument("--ablation", action="store_true",
                         help="also the paper's rows: triggers and swaps, at 0.333 kept")
    command.add_argument("--sketch-sweep", action="store_true", help="instead of the grid: "
                         "SketchReturn with one option changed at a time")
    command.add_argument("--pareto", metavar="PNG", help="instead of the grid: sweep the options "
                         "of DSTP for one method and ratio, and plot accuracy against cost")
    command.add_argument("--fastv-layer", type=int, metavar="K", help="fastv and other methods "
                         "inside the decoder prune before layer K; default: 1 in models under "
                         "ten layers, else 2")
    command.add_argument("--reserve", default="auto",
                         choices=("auto", "full", "side", "lazy", "deferred"),
                         help="when pruned tokens get keys and values (default: %(default)s)")
    command.add_argument("--timed", type=int, default=8, metavar="N",
                         help="answers that are timed alone per row (default: %(default)s)")
    command.add_argument("--json", metavar="FILE", help="the record, written after every row")
    _add_common_flags(command, n=1000)
    command.set_defaults(run=run_eval)


def _add_calibrate(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "calibrate", help="choose the layers DSTP watches and its threshold, for a budget")
    command.add_argument("--task", help="questions of a built-in task; or give your own with:")
    command.add_argument("--images", nargs="+", default=[], metavar="FILE")
    command.add_argument("--prompts", nargs="+", default=[], metavar="TEXT",
                         help="one per picture, or one for all")
    command.add_argument("--target-visible", type=float, default=0.40, metavar="F",
                         help="mean share of the visual tokens to read (default: %(default)s)")
    command.add_argument("--target-expanded", type=float, metavar="F", help="instead: the share of "
                         "steps to read an expanded list, for swaps of constant size")
    command.add_argument("--layers", metavar="SETS", help="candidates, separated by commas, such "
                         "as post_prune,1+2,3; default: every layer, post_prune, all")
    command.add_argument("--finalists", type=int, default=3, metavar="N", help="single layers "
                         "to judge by their answers (default: %(default)s)")
    command.add_argument("--output", metavar="FILE", help="where the policy is saved")
    _add_common_flags(command, n=64)
    add_selection_flags(command)
    command.set_defaults(run=run_calibrate, shift="dstp")


def _add_analyze(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "analyze", help="how often attention shifts, and what a method loses where it does")
    command.add_argument("--task", required=True, help="tasks, separated by commas")
    command.add_argument("--output", required=True, metavar="FOLDER",
                         help="for analysis.json and the figures")
    command.add_argument("--watch-layers", default="mid", metavar="SET", help="whose attention "
                         "counts: mid, all, last, or numbers like 1+2 (default: %(default)s)")
    command.add_argument("--below", type=float, default=0.7, metavar="S",
                         help="similarity under which a minimum is a shift (default: %(default)s)")
    command.add_argument("--min-gap", type=int, default=1, metavar="STEPS")
    command.add_argument("--window", type=int, default=1, metavar="STEPS", help="smoothing")
    command.add_argument("--control", type=int, metavar="N", help="questions per number of cells "
                         "in the control for answer length; default: a sixth of --n")
    command.add_argument("--overlays", type=int, default=3, metavar="N",
                         help="answers drawn step by step (default: %(default)s)")
    _add_common_flags(command, n=276)
    add_selection_flags(command)
    command.set_defaults(run=run_analyze, shift="dstp")


def _add_common_flags(command: argparse.ArgumentParser, n: int) -> None:
    command.add_argument("--model", metavar="PATH",
                         help="checkpoint folder; default: the small one that is embedded")
    command.add_argument("--n", type=int, default=n, help="questions (default: %(default)s)")
    command.add_argument("--seed", type=int, default=0, help="of the first (default: %(default)s)")
    command.add_argument("--batch", type=int, default=32,
                         help="questions at once (default: %(default)s)")
    command.add_argument("--max-new-tokens", type=int, default=128, metavar="N",
                         help="the longest answer (default: %(default)s)")
    command.add_argument("--max-visual-tokens", type=int, default=512, metavar="N",
                         help="of one question (default: %(default)s)")
    command.add_argument("--dtype", default="auto", help="auto, bfloat16 or float32")
    command.add_argument("--weights", default="float", metavar="KIND", help="float or int8")
