"""The flags of `pydstp calibrate` and `pydstp analyze`; those of `eval` are in `cli_eval`."""

from __future__ import annotations

import argparse

from pydstp.cli_eval import add_eval
from pydstp.cli_experiment_runs import run_analyze, run_calibrate
from pydstp.cli_selection import add_selection_flags
from pydstp.cli_tables import run_tables


def add_experiment_commands(commands: argparse._SubParsersAction) -> None:
    """Add the commands; each stores the function that runs it as `run`."""
    add_eval(commands)
    _add_calibrate(commands)
    _add_analyze(commands)
    _add_tables(commands)


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


def _add_tables(commands: argparse._SubParsersAction) -> None:
    command = commands.add_parser(
        "tables", help="the tables of the papers, measured here, beside their numbers")
    command.add_argument("name", metavar="NAME", help="dstp-main, dstp-ablation, right-problem-1 "
                         "to -6, right-problem-position, visionpulse-main, visionpulse-ablation "
                         "or visionpulse-correlation")
    command.add_argument("--output", metavar="FILE", help="FILE.json or FILE.md: both are written, "
                         "and FILE.png where the table has a figure")
    command.add_argument("--resume", action="store_true", help="keep what FILE.json holds already "
                         "of the same questions, settings and weights")
    _add_common_flags(command, n=200)
    command.set_defaults(run=run_tables)


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
