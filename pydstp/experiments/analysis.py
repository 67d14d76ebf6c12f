"""The diagnosis of DSTP (arXiv 2604.12358, section 3): where attention shifts, pruning fails.

Every question is answered three times: with all visual tokens and its attention watched, with the
base method, and with the shift policy on top of it. The first tells how often the relevant visual
information shifts (RVIS), the other two what that costs.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from pydstp.experiments.runs import Asker, is_right
from pydstp.experiments.rvis import BELOW, find_shifts
from pydstp.experiments.statistics import correlation, distribution, mean, success_by
from pydstp.generation import Generation
from pydstp.pruning import PruningConfig
from pydstp.shift import DSTP
from pydstp.tasks import Example

RUNS = ("full", "base", "shift")  # all tokens; the method alone; the method with the policy
RVIS_GROUPS = (0, 1, 2, 3, 4, 6, 8, 11, 14, 18, 23, 30)  # the fewest shifts of each group
LENGTH_STEP = 10  # answers are grouped by their length in so many tokens


@dataclass(frozen=True)
class Counting:
    """How shifts are counted, see `find_shifts`."""

    below: float = BELOW
    min_gap: int = 1
    window: int = 1

    def __post_init__(self) -> None:
        find_shifts([], self.below, self.min_gap, self.window)  # checks the options


@dataclass(frozen=True)
class Shown:
    """What a picture of an answer needs: the question, its answers and their logs."""

    example: Example
    answers: dict[str, Generation]


@dataclass
class Analysis:
    """Runs the three ways of answering and gathers what they say.

    Attributes:
        asker: how questions are asked.
        pruning: the base method.
        shift: the policy on top of it.
        watch: the layers whose attention counts as the model's, as for `DSTP.monitor_layers`.
        counting: what counts as a shift.
        reserve: see `SelectionParams`.
        num_shown: answers of every run whose logs are kept in `shown`, to be drawn.
    """

    asker: Asker
    pruning: PruningConfig
    shift: DSTP
    watch: Any = "mid"
    counting: Counting = field(default_factory=Counting)
    reserve: str = "auto"
    num_shown: int = 3
    shown: list[Shown] = field(default_factory=list)

    def run(self, questions: Iterable[Example], *, keep_shown: bool = True) -> list[dict[str, Any]]:
        """One record per question.

        Returns:
            Dictionaries with task, seed, kind, regions (different cells that the answer needs),
            tokens (of the answer with all tokens), similarity (one per decode step), shifts (steps
            of the minima), rvis (their number), and per run of `RUNS` whether it was right (None
            where nobody knows), its tokens, mean_visible and triggers.
        """
        selections = {
            "full": {"shift": DSTP(trigger="never", monitor_layers=self.watch),
                     "pruning": None, "log_steps": "attention"},
            "base": {"shift": None, "pruning": self.pruning, "reserve": self.reserve},
            "shift": {"shift": self.shift, "pruning": self.pruning, "reserve": self.reserve,
                      "log_steps": "attention"},
        }
        questions, records, last = iter(questions), [], len(self.shown) + self.num_shown
        while batch := list(islice(questions, self.asker.batch)):
            runs = {name: [answer for _, answer in self.asker.ask(batch, **selection)]
                    for name, selection in selections.items()}
            for row, example in enumerate(batch):
                answers = {name: runs[name][row] for name in RUNS}
                records.append(self._record(example, answers))
                if keep_shown and len(self.shown) < last:
                    self.shown.append(Shown(example, answers))
        return records

    def _record(self, example: Example, answers: dict[str, Generation]) -> dict[str, Any]:
        counting, full = self.counting, answers["full"]
        similarity = [step.similarity for step in full.shift.steps]
        shifts = find_shifts(similarity, counting.below, counting.min_gap, counting.window)
        return {
            "task": example.task, "seed": example.seed, "kind": example.meta.get("kind"),
            "regions": len(set(example.meta.get("cells", ()))), "tokens": len(full.token_ids),
            "num_visual": full.shift.num_visual,
            "similarity": [round(value, 4) for value in similarity],
            "shifts": shifts, "rvis": len(shifts),
            **{name: {"right": is_right(example, answer), "tokens": len(answer.token_ids),
                      "mean_visible": round(answer.shift.mean_visible, 4),
                      "triggers": answer.shift.triggers} for name, answer in answers.items()},
        }


def summarise(records: list[dict[str, Any]]) -> dict[str, Any]:
    """Distribution of the shifts, and success by their number, by length and by regions."""
    counts = [record["rvis"] for record in records]
    return {
        "n": len(records), "mean_rvis": mean(counts), "distribution": distribution(counts),
        "distribution_by_kind": _by(records, "kind"),
        "distribution_by_regions": _by(records, "regions"),
        "correlation_with_tokens": correlation(counts, [r["tokens"] for r in records]),
        "correlation_with_regions": correlation(counts, [r["regions"] for r in records]),
        "success": {name: success_by([(0, record[name]["right"]) for record in records])
                    for name in RUNS},
        "success_by_rvis": _success(
            records, lambda record: max(low for low in RVIS_GROUPS if low <= record["rvis"])),
        "success_by_tokens": _success(
            records, lambda record: record["tokens"] // LENGTH_STEP * LENGTH_STEP),
        "success_by_regions": _success(records, lambda record: record["regions"]),
        "mean_visible": {name: mean(record[name]["mean_visible"] for record in records)
                         for name in RUNS},
        "triggers": mean(record["shift"]["triggers"] for record in records),
    }


def _by(records: list[dict[str, Any]], key: str) -> dict[str, dict[int, int]]:
    """Distributions of the shifts by one property of the questions."""
    values = sorted({record[key] for record in records if record[key] is not None})
    return {str(value): distribution(record["rvis"] for record in records if record[key] == value)
            for value in values}


def _success(records: list[dict[str, Any]],
             key: Callable[[dict[str, Any]], int]) -> dict[str, list[dict[str, Any]]]:
    """Success of every run, by a key of the records; groups carry their mean number of shifts."""
    groups = {name: success_by((key(record), record[name]["right"]) for record in records)
              for name in RUNS}
    for group in (group for found in groups.values() for group in found):
        group["mean_rvis"] = mean(record["rvis"] for record in records
                                  if key(record) == group["key"])
    return groups
