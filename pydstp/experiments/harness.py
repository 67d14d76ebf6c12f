"""Runs an evaluation: one row after another, kept as soon as it is known, and a report at the end.

>>> for row in evaluate(EvalPlan("read", methods="none,fastv", ratios=[0.5], n=20)):
...     row["method"], row["accuracy"], row["ci95"]
"""

from __future__ import annotations

import hashlib
import subprocess
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from pydstp import __version__
from pydstp.experiments import eval_report
from pydstp.experiments.evaluation import Evaluation
from pydstp.experiments.journal import EvalLog
from pydstp.experiments.plan import EvalPlan
from pydstp.experiments.plots import has_matplotlib, require_matplotlib
from pydstp.experiments.record import ROOT, commit, require_folder, require_writable, write_json
from pydstp.experiments.runs import Asker, Tick
from pydstp.experiments.startup import open_engine, start_record
from pydstp.generation import CancelToken

__all__ = ["EvalPlan", "evaluate", "identity"]


def evaluate(plan: EvalPlan, *, cancel: CancelToken | None = None,
             tick: Tick = lambda count: None,
             loading: Callable[[int, int], None] | None = None) -> Iterator[dict[str, Any]]:
    """Measure what a plan asks for.

    Args:
        plan: what to measure, and where to keep it.
        cancel: stops everything; what was measured stays.
        tick: called with the number of questions that have been answered since the last call,
            those of earlier runs included.
        loading: progress of reading the checkpoint, as for `Engine`.

    Yields:
        One row per task and setting, as docs/experiments.md describes it.

    Raises:
        OptionError, CheckpointError: the plan cannot run; nothing has been loaded.
        CancelledError: `cancel` was set.
    """
    settings = plan.settings()
    if plan.pareto is not None:
        require_matplotlib()
        require_writable("--pareto", plan.pareto)
    if plan.json is not None:
        require_writable("--json", plan.json)
    record = {**start_record(plan.model), "rows": []}
    with ExitStack() as stack:
        log = _open_log(plan, record["checkpoint_sha256"])
        if log is not None:
            stack.enter_context(log)
            stack.callback(write_report, Path(plan.output), log, record)
        engine = stack.enter_context(open_engine(
            plan.model, plan.dtype, plan.batch, plan.max_new_tokens, plan.max_visual_tokens,
            loading, plan.weights))
        asker = Asker(engine, plan.batch, plan.max_new_tokens, cancel, tick)
        for questions in plan.questions():
            job = Evaluation(questions, asker, plan.timed, plan.reserve,
                             record["checkpoint_sha256"], log)
            for row in job.rows(settings):
                record["rows"].append(row)
                if plan.json is not None:
                    write_json("--json", Path(plan.json), record)
                yield row


def _open_log(plan: EvalPlan, checkpoint_sha256: str) -> EvalLog | None:
    if plan.output is None:
        return None
    return EvalLog("--output", require_folder("--output", plan.output),
                   identity(plan, checkpoint_sha256), fresh=plan.fresh)


def identity(plan: EvalPlan, checkpoint_sha256: str) -> dict[str, Any]:
    """What every row of a plan depends on beside its own setting: weights, precision, code."""
    return {"version": __version__, "commit": source_state(), "dtype": plan.dtype,
            "checkpoint_sha256": checkpoint_sha256, "weights": plan.weights,
            "max_visual_tokens": plan.max_visual_tokens}


def source_state() -> str:
    """The commit; where tracked files differ from it, with a digest of the differences."""
    state = commit()
    if not state.endswith("+"):
        return state
    changes = subprocess.run(["git", "diff", "HEAD"], cwd=ROOT, capture_output=True, check=False)
    return state + hashlib.sha256(changes.stdout).hexdigest()[:8]


def write_report(folder: Path, log: EvalLog, record: dict[str, Any]) -> None:
    """The rows of a log as Markdown, and a figure per task where figures can be drawn."""
    rows = log.rows()
    if not rows:
        return
    figures = {}
    if has_matplotlib():
        from pydstp.experiments.eval_plots import plot_tasks

        figures = plot_tasks(rows, folder)
    eval_report.write(folder, rows, record, figures, log.num_others)
