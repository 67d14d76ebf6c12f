"""The figure on position bias of arXiv 2502.11501: where the tokens lie that a method keeps.

Questions and needed cells are spread evenly over an 8 x 8 grid, so that a method without bias
keeps every cell equally often. Which tokens were kept is read from the watched attention of a run
that never swaps: it is 0 outside the base set.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np

from pydstp.errors import CancelledError, PydstpError
from pydstp.experiments.runs import is_right
from pydstp.experiments.settings import Setting
from pydstp.experiments.tables.bench import Bench, Column, Drawn
from pydstp.experiments.tables.layout import (
    NOT_BUILT,
    REFUSED,
    Cell,
    Table,
    absent,
    name,
    reasons,
    share,
)
from pydstp.generation import ShiftReport
from pydstp.shift import DSTP

SIDE = 8
RATIO = 1 / 4
GRID = (("rows", SIDE), ("cols", SIDE))
COLUMNS = (Column("locate", "locate", (*GRID, ("hits", 1))),
           Column("read", "read", (*GRID, ("kind", "cell"))))
METHODS = ("random", "window_fastv", "fastv", "fastv_vis", "reverse_fastv", "alpha", "sparsevlm",
           "dart", "divprune", "visionzip", "fastervlm", "vispruner", "cdpruner", "prumerge",
           "pyramiddrop")
OPTIONS = {"visionzip": {"prune_only": True}, "prumerge": {"prune_only": True}}
WATCH = DSTP(trigger="never", monitor_layers="last")


def table(bench: Bench) -> Table:
    """Where kept tokens lie, and how often the needed one is among them."""
    header, rows, maps = ["method"], [], {}
    for column in COLUMNS:
        header += [f"{column.title}: {what}" for what in
                   ("bottom half %", "right half %", "spread", "needed kept %", "right %")]
    for method in METHODS:
        row = [name(method)]
        for column in COLUMNS:
            setting = bench.setting(method, RATIO, **OPTIONS.get(method, {}))
            found = _measure(bench, setting, column)
            row += _cells(found, bench.seed)
            if "absent" not in found:
                maps[f"{column.title}, {method}"] = found["frequency"]
        rows.append(row)
    return Table(
        "Where kept tokens lie, a quarter of 8 x 8 kept",
        "arXiv 2502.11501, figure 2 (LLaVA-1.5: late tokens, those at the bottom, score higher)",
        header, rows,
        ["*bottom half*, *right half*: share of the kept tokens that lie there, mean over "
         "questions with its 95 % normal interval; 50 without bias. *spread*: standard deviation "
         "over mean of how often each of the 64 cells is kept; that of `random` is chance. "
         "*needed kept*: questions whose cell is among the kept tokens, 25 by chance. "
         "`visionzip` and `prumerge` merge nothing here (`prune_only`): merged tokens have no "
         "place.", *reasons(rows)], {"maps": maps})


def _measure(bench: Bench, setting: Setting | None, column: Column) -> dict[str, Any]:
    if setting is None:
        return {"absent": NOT_BUILT}
    asked = {"positions": setting.pruning.to_dict(), "task": column.task,
             "options": dict(column.options), "n": bench.n, "seed": bench.seed,
             "checkpoint": bench.checkpoint_sha256}
    try:
        return bench.once(asked, lambda: _ask(bench, setting, column),
                          lambda found: f"{column.title}: where {setting.method} keeps tokens")
    except CancelledError:
        raise
    except PydstpError as error:
        return {"absent": REFUSED, "why": str(error)}


def _ask(bench: Bench, setting: Setting, column: Column) -> dict[str, Any]:
    questions = Drawn(column.task, bench.n, bench.seed, options=column.options)
    counts, bottom, right, needed, correct = np.zeros((SIDE, SIDE)), [], [], 0, 0
    for example, answer in bench.asker.ask(questions, pruning=setting.pruning, shift=WATCH,
                                           log_steps="attention"):
        kept = kept_slots(answer.shift)
        rows, cols = np.divmod(kept, SIDE)
        np.add.at(counts, (rows, cols), 1)
        if len(kept):
            bottom.append(float((rows >= SIDE // 2).mean()))
            right.append(float((cols >= SIDE // 2).mean()))
        _, row, col = example.meta["cells"][0]
        needed += bool((kept == row * SIDE + col).any())
        correct += bool(is_right(example, answer))
    frequency = counts / bench.n
    return {"bottom": normal_interval(bottom), "right": normal_interval(right),
            "spread": float(frequency.std() / frequency.mean()) if counts.any() else 0.0,
            "needed": needed, "correct": correct, "n": bench.n,
            "frequency": frequency.round(4).tolist()}


def kept_slots(report: ShiftReport) -> np.ndarray:
    """[k] the visual tokens of the base set, merged ones left out, ascending.

    Args:
        report: of a run that was watched with log_steps="attention".
    """
    return np.flatnonzero(np.asarray(report.anchor[:report.num_visual]) > 0)


def normal_interval(values: Sequence[float]) -> dict[str, Any]:
    """The mean of values per question and its 95 % interval by the normal distribution."""
    values = np.asarray(values, dtype=np.float64)
    if not len(values):
        return {"value": 0.0, "ci95": [0.0, 0.0]}
    half = 1.96 * values.std(ddof=1) / math.sqrt(len(values)) if len(values) > 1 else 0.0
    return {"value": float(values.mean()),
            "ci95": [float(values.mean() - half), float(values.mean() + half)]}


def _cells(found: dict[str, Any], seed: int) -> list[Cell]:
    if "absent" in found:
        return [absent(found)] * 5
    halves = [_half(found[side], found["n"], seed) for side in ("bottom", "right")]
    spread = Cell(f"{found['spread']:.2f}", {"kind": "number", "value": found["spread"],
                                             "n": found["n"], "seed": seed})
    return [*halves, spread, share(found["needed"], found["n"], seed),
            share(found["correct"], found["n"], seed)]


def _half(found: dict[str, Any], count: int, seed: int) -> Cell:
    low, high = found["ci95"]
    return Cell(f"{100 * found['value']:.1f} ({100 * low:.1f}-{100 * high:.1f})",
                {"kind": "mean", **found, "n": count, "seed": seed})
