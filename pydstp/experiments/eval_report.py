"""The report of an evaluation: accuracy and cost of every row as Markdown."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from pydstp.errors import OptionError
from pydstp.experiments.record import markdown_table

REPORT = "report.md"
ACCURACY = ("method", "kept", "shift", "accuracy", "95 %", "of full", "TRR", "visible", "tokens",
            "triggers")
COST = ("method", "kept", "shift", "prefill", "reserve", "decode", "answer", "MiB/step", "resident",
        "visible", "KV MiB", "first token", "per token")
LEGEND = """\
*accuracy*: whole answers right, in per cent, with Wilson's 95 % interval; *of full*: over the
accuracy with all tokens. *TRR*: patches of the pictures per visual token that was kept (arXiv
2502.11501, equations 7 and 8). *visible*: visual tokens that a decode step reads, mean over steps
and layers; in the first table as a share. *tokens*: of the answer.

*prefill*, *reserve*, *decode*, *answer*: operations in GFLOP, of the prompt (vision tower left
out), of pruned tokens that got keys and values beside it or later, of one decode step, and of the
answer in all, vision tower included. *MiB/step*: weights, keys and values that a decode step reads.
*resident*: visual tokens with keys and values in memory, mean over layers; *KV MiB*: all keys and
values at the end of the answer. Counted from the model's shape, not measured.

*first token*, *per token*: measured milliseconds, medians of answers that were written alone."""


def write(folder: Path, rows: list[dict[str, Any]], head: dict[str, Any],
          figures: dict[str, str], num_others: int) -> None:
    """Write the report into a folder.

    Args:
        rows: of one version and checkpoint, at least one.
        head: `model`, `checkpoint_sha256` and `environment` of the run.
        figures: file names by task.
        num_others: rows in the folder that are not shown.

    Raises:
        OptionError: the file cannot be written.
    """
    try:
        (folder / REPORT).write_text(to_markdown(rows, head, figures, num_others), "utf-8")
    except OSError as error:
        raise OptionError(f"--output: expected a folder that can be written to, got "
                          f"{str(folder)!r}: {error.strerror}") from None


def to_markdown(rows: list[dict[str, Any]], head: dict[str, Any],
                figures: dict[str, str] | None = None, num_others: int = 0) -> str:
    """The report as text; arguments as for `write`."""
    environment = head["environment"]
    parts = ["# Evaluation", f"Checkpoint {head['model']} (SHA-256 "
             f"{head['checkpoint_sha256'][:12]}), pydstp at commit {environment['commit']}, "
             f"{environment['date']}, {environment['cpu']} with {environment['processors']} "
             f"processors."]
    for task in dict.fromkeys(row["task"] for row in rows):
        of_task = [row for row in rows if row["task"] == task]
        counts = " or ".join(map(str, sorted({row["n"] for row in of_task})))
        parts += [f"## {task}", f"{counts} questions per row.",
                  markdown_table(ACCURACY, [accuracy_cells(row) for row in of_task]).rstrip(),
                  markdown_table(COST, [cost_cells(row) for row in of_task]).rstrip()]
        if figures and task in figures:
            parts.append(f"![accuracy and cost of {task}]({figures[task]})")
    parts.append(LEGEND)
    if num_others:
        parts.append(f"{num_others} rows of another version, checkpoint or precision are in the "
                     "folder and not shown.")
    return "\n\n".join(parts) + "\n"


def accuracy_cells(row: dict[str, Any]) -> list[str]:
    """A row under `ACCURACY`; what it does not hold is a dash."""
    low, high = (100 * bound for bound in row["ci95"])
    return [*_name(row), f"{100 * row['accuracy']:.1f}", f"{low:.1f}-{high:.1f}",
            _show(row, "accuracy_of_full", 3), _show(row, "trr", 1),
            _show(row, "mean_visible_all_layers", 3), _show(row, "new_tokens", 1),
            _show(row, "triggers", 1)]


def cost_cells(row: dict[str, Any]) -> list[str]:
    """A row under `COST`; what it does not hold is a dash."""
    return [*_name(row), *(_show(row, name) for name in (
                "prefill_gflops", "reserve_gflops", "decode_gflops_per_token", "answer_gflops")),
            _show(row, "bytes_per_token", None, 2**20), _show(row, "resident_all_layers", 1),
            _show(row, "visible_tokens", 1), _show(row, "kv_bytes", None, 2**20),
            _show(row, "time_to_first_token_ms", 1), _show(row, "ms_per_token", 2)]


def _name(row: dict[str, Any]) -> list[str]:
    return [row["method"], f"{row['retention_ratio']:.3g}", row["shift"]]


def _show(row: dict[str, Any], name: str, digits: int | None = None, unit: float = 1.0) -> str:
    """A number with so many decimals; None takes three digits that count."""
    value = row.get(name)
    if value is None:
        return "-"
    if digits is not None:
        return f"{value / unit:.{digits}f}"
    return f"{value / unit:.3g}" if value < 1000 * unit else f"{value / unit:.0f}"
