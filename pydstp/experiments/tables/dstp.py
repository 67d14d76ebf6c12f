"""The tables of DSTP (arXiv 2604.12358): the policy on three base methods, and its ablation."""

from __future__ import annotations

from typing import Any

from pydstp.experiments import settings
from pydstp.experiments.tables.bench import FULL, Bench, Column
from pydstp.experiments.tables.layout import (
    Cell,
    Table,
    accuracy,
    name,
    number,
    published,
    reasons,
    relative_mean,
)
from pydstp.experiments.tables.published import DSTP_ABLATION, DSTP_BENCHMARKS, DSTP_MAIN
from pydstp.shift import DSTP, SketchReturn

BASES = (("fastv", 1 / 3), ("divprune", 1 / 3), ("visionzip", 1 / 3), ("fastv", 2 / 3))
POLICIES = {"none": None, "dstp": DSTP(), "recommended": DSTP.recommended(),
            "sketch": SketchReturn()}
COLUMNS = tuple(Column(task, task) for task in ("trail", "read", "locate", "haystack"))
ABLATION_COLUMNS = COLUMNS[:2]


def main(bench: Bench) -> Table:
    """Base methods, alone and with tokens that return."""
    full = bench.row(FULL, COLUMNS)
    header = ["method", "kept", "policy", *(column.title for column in COLUMNS),
              "% of all tokens", "visible", *(f"paper: {title}" for title in DSTP_BENCHMARKS)]
    rows = [_row("none", 1.0, "none", full, full)]
    for method, ratio in BASES:
        for policy, shift in POLICIES.items():
            runs = bench.row(bench.setting(method, ratio, policy, shift), COLUMNS)
            rows.append(_row(method, ratio, policy, runs, full))
    return Table(
        "DSTP on base methods", "arXiv 2604.12358, main table (Qwen3-VL-4B, 33.3 % kept)", header,
        rows, ["*visible*: mean share of the visual tokens that a decode step reads from the "
               "pruning point on, on trail. `recommended` and `sketch` are ours. The paper also "
               "has FastV at 66.6 %; its numbers are not in our notes.", *reasons(rows)])


def _row(method: str, ratio: float, policy: str, runs: list[dict[str, Any]],
         full: list[dict[str, Any]]) -> list[Cell]:
    known = DSTP_MAIN.get((method, policy)) if ratio != 2 / 3 else None
    return [name(method), name(f"{ratio:.3g}"), name(policy), *map(accuracy, runs),
            relative_mean(runs, full), number(runs[0], "mean_visible", "{:.2f}"),
            *map(published, known or (None,) * len(DSTP_BENCHMARKS))]


def ablation(bench: Bench) -> Table:
    """Triggers and swaps on FastV at one third, for the paper's timing and for ours."""
    chosen = settings.ablation(("fastv",), (settings.ABLATION_RATIO,), bench.fastv_layer)
    runs = {column: list(bench.evaluation(column).rows(chosen)) for column in ABLATION_COLUMNS}
    header = ["policy", *(column.title for column in ABLATION_COLUMNS), "visible", "triggers",
              "forwards", "paper: MathVerse", "paper: MMMU-Pro", "paper: visible %"]
    rows = [_ablation_row(setting, [runs[column][place] for column in ABLATION_COLUMNS])
            for place, setting in enumerate(chosen)]
    return Table(
        "Ablation of triggers and swaps, FastV, one third kept",
        "arXiv 2604.12358, ablation (Qwen3-VL-4B)", header, rows,
        ["*visible*, *triggers* per answer and *forwards* per token are of trail. Rows named "
         "`paper:` have the paper's timing, a swap from the next step on for 20 steps; rows named "
         "`recommended:` run the step again with the swap, and the paper has none such."])


def _ablation_row(setting: settings.Setting, runs: list[dict[str, Any]]) -> list[Cell]:
    timing, _, row = setting.policy.rpartition(": ")
    known = DSTP_ABLATION.get(row) if timing != "recommended" and setting.method != "none" else None
    label = "all tokens" if setting.method == "none" else setting.policy
    return [name("fastv alone" if label == "none" else label), *map(accuracy, runs),
            number(runs[0], "mean_visible", "{:.3f}"), number(runs[0], "triggers"),
            number(runs[0], "forwards_per_token", "{:.2f}"),
            *map(published, known or (None,) * 3)]
