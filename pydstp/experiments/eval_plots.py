"""Figures of an evaluation: accuracy against tokens, bytes and time, and the length of answers."""

from __future__ import annotations

import json
from itertools import product
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydstp.errors import OptionError, show
from pydstp.experiments.plots import new_figure, save

if TYPE_CHECKING:
    from matplotlib.axes import Axes

# Colours tell policies apart and markers methods; where there are more, they come round again with
# another line.
COLOURS = ("tab:red", "tab:orange", "tab:blue", "tab:green", "tab:purple", "tab:brown", "tab:pink",
           "tab:olive", "tab:cyan")
MARKERS = ("o", "s", "^", "D", "v", "P", "X", "*", "<", ">", "p", "h", "d", "8", "H")
LINES = ("-", "--", ":", "-.")
PANELS = (
    ("mean_visible_all_layers", "visual tokens read per step and layer, mean share", "accuracy"),
    ("bytes_per_token", "bytes read per step, {unit}", "accuracy"),
    ("ms_per_token", "ms per token, measured", "accuracy"),
    ("retention_achieved", "visual tokens kept, share of all", "new_tokens"),
)
LABELS = {"accuracy": "accuracy", "new_tokens": "tokens of the answer"}


def read_rows(path: Path) -> list[dict[str, Any]]:
    """The rows in a record of `--json`, or in JSON lines of `--output`.

    Raises:
        OptionError: neither of the two.
    """
    try:
        text = path.read_text("utf-8")
        rows = ([json.loads(line) for line in text.splitlines()] if path.suffix == ".jsonl"
                else json.loads(text)["rows"])
        if not all("task" in row and "accuracy" in row for row in rows):
            raise KeyError("task")
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise OptionError(f"{path}: expected a record of `pydstp eval`, "
                          f"got {show(error)}") from None
    return rows


def plot_tasks(rows: list[dict[str, Any]], folder: Path) -> dict[str, str]:
    """One figure per task, `TASK.png` in a folder; returns their names by task."""
    tasks = dict.fromkeys(row["task"] for row in rows)
    for task in tasks:
        plot_rows([row for row in rows if row["task"] == task], folder / f"{task}.png")
    return {task: f"{task}.png" for task in tasks}


def plot_rows(rows: list[dict[str, Any]], path: Path) -> None:
    """Four panels of the rows of one task; a line joins the ratios of a method and a policy.

    Args:
        rows: at least one; any method and any policy, as often as they come.
        path: the PNG.

    Raises:
        OptionError: the file cannot be written.
    """
    figure, panels = new_figure(2, 2)
    full = next((row["bytes_per_token"] for row in rows if row["method"] == row["shift"] == "none"),
                None)
    rows = [{**row, "bytes_per_token": row["bytes_per_token"] / (full or 2**20)} for row in rows]
    for axes, (x, label, y) in zip(panels, PANELS, strict=True):
        _draw(axes, rows, x, y)
        unit = "all tokens = 1" if full else "MiB"
        axes.set(xlabel=label.format(unit=unit), ylabel=LABELS[y])
        axes.set_ylim(*((-0.03, 1.03) if y == "accuracy" else (0, 1.1 * max(r[y] for r in rows))))
        axes.grid(alpha=0.3)
    handles, names = panels[0].get_legend_handles_labels()
    columns = min(5, max(1, len(names)))
    figure.legend(handles, names, loc="outside lower center", ncols=columns, fontsize=7)
    figure.set_figheight(8.4 + 0.18 * -(-len(names) // columns))
    figure.suptitle(f"{rows[0]['task']}, {rows[0]['n']} questions per row", fontsize=10)
    save(figure, path)


def _draw(axes: Axes, rows: list[dict[str, Any]], x: str, y: str) -> None:
    """Every method and policy as a line over its ratios, with the intervals of the accuracy."""
    methods = list(dict.fromkeys(row["method"] for row in rows))
    policies = list(dict.fromkeys(row["shift"] for row in rows))
    for (m, method), (p, policy) in product(enumerate(methods), enumerate(policies)):
        chosen = sorted((row for row in rows if (row["method"], row["shift"]) == (method, policy)),
                        key=lambda row: row["retention_ratio"])
        if not chosen:
            continue
        chosen = [row for row in chosen if row.get(x) is not None]  # rows may not be timed
        values = [row[y] for row in chosen]
        line, = axes.plot(
            [row[x] for row in chosen], values, marker=MARKERS[m % len(MARKERS)], ms=5, lw=1,
            color=COLOURS[p % len(COLOURS)], alpha=0.8, label=_name(method, policy),
            ls=LINES[(m // len(MARKERS) + 2 * (p // len(COLOURS))) % len(LINES)])
        if y == "accuracy":
            axes.errorbar([row[x] for row in chosen], values, yerr=_errors(chosen), fmt="none",
                          ecolor=line.get_color(), elinewidth=0.8, alpha=0.5)


def _errors(rows: list[dict[str, Any]]) -> list[list[float]]:
    """How far the intervals reach below and above."""
    return [[max(0.0, row["accuracy"] - row["ci95"][0]) for row in rows],
            [max(0.0, row["ci95"][1] - row["accuracy"]) for row in rows]]


def _name(method: str, policy: str) -> str:
    if policy == "none":
        return "all tokens" if method == "none" else method
    return f"{method}, {policy}"
