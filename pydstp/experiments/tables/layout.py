"""How a table of a paper is reprinted: measured cells, published ones, and those that are neither.

A cell knows its text and, for the record, its numbers. Shares carry Wilson's 95 % interval, the
number of questions and the seed of the first one.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from pydstp.experiments.record import markdown_table
from pydstp.experiments.statistics import wilson

UNKNOWN = "-"
NOT_BUILT = "not yet built"
REFUSED = "refused"
LEGEND = ("Measured shares are in percent with Wilson's 95 % interval in brackets. Columns marked "
          "*paper* are published numbers, of other models on other questions, for reference: "
          f"compare orders and ratios, not values. `{UNKNOWN}`: not given in our notes on the "
          f"paper. `{NOT_BUILT}`: the method is not registered.")


@dataclass(frozen=True)
class Cell:
    """One cell.

    Attributes:
        text: as it is printed.
        data: for the record; `kind` is "name", "share", "mean", "number", "published", "unknown",
            or "absent".
    """

    text: str
    data: dict[str, Any]

    def to_dict(self) -> dict[str, Any]:
        """Text and numbers together."""
        return {"text": self.text, **self.data}


@dataclass(frozen=True)
class Table:
    """A table that was measured.

    Attributes:
        title: what it shows.
        source: the paper, and which of its tables.
        header: one name per column.
        rows: cells under the header.
        notes: what a reader must know, a sentence or more each.
        figure: what a figure is drawn from, if there is one.
    """

    title: str
    source: str
    header: list[str]
    rows: list[list[Cell]]
    notes: list[str] = field(default_factory=list)
    figure: dict[str, Any] | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values that `json.dumps` takes; what a figure shows is among the results."""
        return {"title": self.title, "source": self.source, "header": self.header,
                "rows": [[cell.to_dict() for cell in row] for row in self.rows],
                "notes": self.notes}

    def to_markdown(self) -> str:
        """The table alone."""
        return markdown_table(self.header, [[cell.text for cell in row] for row in self.rows])


def name(text: str) -> Cell:
    """What a row is called, or how it was set."""
    return Cell(text, {"kind": "name"})


def share(right: int, count: int, seed: int) -> Cell:
    """`97.4 (94.0-98.9)`: a proportion."""
    low, high = wilson(right, count)
    return Cell(f"{100 * right / count:.1f} ({100 * low:.1f}-{100 * high:.1f})",
                {"kind": "share", "value": right / count, "ci95": [low, high], "right": right,
                 "n": count, "seed": seed})


def accuracy(run: dict[str, Any]) -> Cell:
    """The share of right answers of a row of `Evaluation`."""
    return (share(run["right"], run["n"], run["options"]["seed"]) if "absent" not in run
            else absent(run))


def number(run: dict[str, Any], key: str, pattern: str = "{:.1f}", scale: float = 1.0) -> Cell:
    """A mean over answers, or a median, of a row of `Evaluation`."""
    if "absent" in run:
        return absent(run)
    if run[key] is None:
        return Cell(UNKNOWN, {"kind": "unknown"})
    return Cell(pattern.format(scale * run[key]),
                {"kind": "number", "value": scale * run[key], "n": run["n"],
                 "seed": run["options"]["seed"]})


def absent(run: dict[str, Any]) -> Cell:
    """A run that could not be made."""
    return Cell(run["absent"], {"kind": "absent", "why": run.get("why", run["absent"])})


def published(value: float | None, pattern: str = "{:g}") -> Cell:
    """A number of the paper."""
    if value is None:
        return Cell(UNKNOWN, {"kind": "unknown"})
    return Cell(pattern.format(value), {"kind": "published", "value": value})


def relative_mean(runs: Sequence[dict[str, Any]], full: Sequence[dict[str, Any]]) -> Cell:
    """Mean over tasks of accuracy over that with all tokens, in percent.

    The interval combines Wilson's of every task (the method of variance estimates recovery, Zou
    and Donner 2008); the accuracy with all tokens counts as known.
    """
    missing = next((run for run in (*runs, *full) if "absent" in run), None)
    if missing is not None:
        return absent(missing)
    weights = [100 / len(runs) / whole["accuracy"] if whole["accuracy"] else 0.0 for whole in full]
    value = sum(w * run["accuracy"] for w, run in zip(weights, runs, strict=True))
    low, high = (math.sqrt(sum((w * (run["accuracy"] - run["ci95"][side])) ** 2
                               for w, run in zip(weights, runs, strict=True))) for side in (0, 1))
    low, high = max(0.0, value - low), value + high
    return Cell(f"{value:.1f} ({low:.1f}-{high:.1f})",
                {"kind": "mean", "value": value / 100, "ci95": [low / 100, high / 100],
                 "n": sum(run["n"] for run in runs), "seed": runs[0]["options"]["seed"]})


def reasons(rows: Sequence[Sequence[Cell]]) -> list[str]:
    """A note for every different reason of refused cells."""
    found = {(row[0].text, cell.data["why"]) for row in rows for cell in row
             if cell.data["kind"] == "absent" and cell.text == REFUSED}
    return [f"`{method}` {REFUSED}: {why}" for method, why in sorted(found)]
