"""What `pydstp calibrate` and `pydstp analyze` do.

Tables go to stdout, progress to stderr, records into files. Everything that the flags can say
wrongly is said before a model is loaded.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import TYPE_CHECKING, Any

from pydstp.cli_selection import pruning_of, shift_of
from pydstp.console import cancelled_by_ctrl_c, loading_bar, say, write
from pydstp.errors import OptionError

if TYPE_CHECKING:
    from pydstp.experiments.runs import Asker
    from pydstp.pruning import PruningConfig
    from pydstp.shift import DSTP

EXIT_OK = 0


def run_calibrate(options: argparse.Namespace) -> int:
    """`pydstp calibrate`."""
    from pydstp.experiments import calibration, candidates
    from pydstp.experiments.record import markdown_table

    questions = _questions_to_calibrate_on(options)
    pruning, shift, num_layers = _base_and_policy(options)
    target = candidates.Target(options.target_visible, options.target_expanded)
    layer_sets = None
    if options.layers is not None:
        layer_sets = [candidates.parse_layers("--layers", text)
                      for text in options.layers.split(",")]
        for layers in layer_sets:
            replace(shift, monitor_layers=layers).watched_layers(
                num_layers, pruning.pruner.stages(num_layers)[-1])
    record = _start_record(options, "--output", options.output)
    with _asker(options, None) as asker:
        job = calibration.Calibration(asker, questions, pruning, shift, target, num_layers,
                                      options.reserve, options.finalists)
        found = job.run(layer_sets)
    policy = job.policy(found[0])
    if options.output is not None:
        policy.save(options.output, **record, questions=_described(options), target=vars(target),
                    pruning=pruning.to_dict(), reserve=options.reserve,
                    candidates=[candidate.to_dict() for candidate in found])
    write(iter([markdown_table(candidates.HEADER, [candidate.cells() for candidate in found])]))
    say(f"chosen: layers {candidates.describe_layers(policy.monitor_layers)}, "
        f"threshold {policy.threshold:g}")
    return EXIT_OK


def _questions_to_calibrate_on(options: argparse.Namespace) -> Any:
    """Questions of a task, from its validation split, or the user's own."""
    from pydstp.experiments.runs import Questions, from_files

    if (options.task is None) == (not options.images):
        raise OptionError("--task: expected either a task, or --images with --prompts")
    if options.task is None:
        return from_files(options.images, options.prompts)
    return Questions(options.task, options.n, options.seed, "validation")


def _described(options: argparse.Namespace) -> dict[str, Any]:
    """What a calibration rests on, for its record."""
    if options.task is None:
        return {"images": options.images, "prompts": options.prompts}
    return {"task": options.task, "split": "validation", "n": options.n, "seed": options.seed}


def run_analyze(options: argparse.Namespace) -> int:
    """`pydstp analyze`."""
    from pydstp.experiments import analysis, report
    from pydstp.experiments.candidates import parse_layers
    from pydstp.experiments.plots import require_matplotlib
    from pydstp.experiments.record import require_folder
    from pydstp.shift import DSTP

    groups = _groups_to_analyze(options)
    counting = analysis.Counting(options.below, options.min_gap, options.window)
    pruning, shift, num_layers = _base_and_policy(options)
    watch = parse_layers("--watch-layers", options.watch_layers)
    DSTP(monitor_layers=watch).watched_layers(num_layers, 0)
    require_matplotlib()
    folder = require_folder("--output", options.output)
    record = _start_record(options, "--output", folder / report.RECORD)
    with _asker(options, 3 * sum(map(len, groups.values()))) as asker:
        job = analysis.Analysis(asker, pruning, shift, watch, counting, options.reserve,
                                options.overlays)
        found = {name: job.run(questions, keep_shown=name != report.CONTROL)
                 for name, questions in groups.items()}
        text = report.write_report(folder, record, found, job, asker.engine.tokenizer)
    write(iter([text]))
    return EXIT_OK


def _groups_to_analyze(options: argparse.Namespace) -> dict[str, Any]:
    """Questions by task, and the control for the length of answers."""
    from pydstp.config import require_int
    from pydstp.experiments.control import Control
    from pydstp.experiments.report import CONTROL
    from pydstp.experiments.runs import Questions
    from pydstp.experiments.settings import parse_names
    from pydstp.tasks import TASKS

    groups: dict[str, Any] = {name: Questions(name, options.n, options.seed)
                              for name in parse_names("--task", options.task, TASKS)}
    require_int("--overlays", options.overlays, 0)
    per_count = max(1, options.n // 6) if options.control is None else options.control
    require_int("--control", per_count, 0)
    return {**groups, CONTROL: Control(per_count)} if per_count else groups


def _base_and_policy(options: argparse.Namespace) -> tuple[PruningConfig, DSTP, int]:
    """The base method (FastV at one third by default), the policy on it, layers of the model."""
    from pydstp.experiments.startup import count_layers, default_method
    from pydstp.shift import DSTP

    pruning, shift = pruning_of(options), shift_of(options)
    if options.bypass != "never":
        raise OptionError(f"--bypass: expected 'never' where methods are compared, "
                          f"got {options.bypass!r}")
    if not isinstance(shift, DSTP):
        raise OptionError("--shift: expected dstp, recommended or a file, got "
                          f"{options.shift or 'none'!r}")
    num_layers = count_layers(options.model)
    return pruning or default_method(num_layers), shift, num_layers


@contextmanager
def _asker(options: argparse.Namespace, total: int | None) -> Iterator[Asker]:
    """An engine that is asked, with a bar, until Ctrl-C."""
    from tqdm import tqdm

    from pydstp.experiments.runs import Asker
    from pydstp.experiments.startup import open_engine

    engine = open_engine(options.model, options.dtype, options.batch, options.max_new_tokens,
                         options.max_visual_tokens, loading_bar(), options.weights)
    with engine, cancelled_by_ctrl_c() as cancel, tqdm(
            total=total, unit=" questions", leave=False, disable=None) as bar:
        yield Asker(engine, options.batch, options.max_new_tokens, cancel, bar.update)


def _start_record(options: argparse.Namespace, flag: str, path: Any) -> dict[str, Any]:
    """The head of a record, once it is sure that it can be written."""
    from pydstp.experiments.record import require_writable
    from pydstp.experiments.startup import start_record

    if path is not None:
        require_writable(flag, path)
    return start_record(options.model)
