"""Accuracy and cost of pruning methods and shift policies on a built-in task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydstp.config import require_int
from pydstp.experiments.runs import Asker, Questions, is_right
from pydstp.experiments.settings import Setting
from pydstp.experiments.statistics import mean, median, wilson
from pydstp.generation import Generation
from pydstp.shift import DSTP, DyCoke, Shift, SketchReturn

HEADER = ("method", "kept", "shift", "accuracy", "95 %", "visible", "all layers", "triggers",
          "forwards", "tokens", "KiB/token", "ms/token")
# Means over the answers, by the name they have in a `ShiftReport`.
AVERAGED = ("retention_achieved", "mean_visible", "mean_visible_all_layers", "triggers",
            "forwards_per_token", "bytes_per_token", "selection_ms", "side_passes", "reserve_ms")


@dataclass(frozen=True)
class Evaluation:
    """Measures one row after another.

    Attributes:
        questions: asked under every setting.
        asker: how they are asked.
        num_timed: so many of them are asked again alone, for the times; 0 measures none.
        reserve: when pruned tokens get their keys and values, see `SelectionParams`.
        checkpoint_sha256: stands in every row.

    Raises:
        OptionError: `num_timed` below 0.
    """

    questions: Questions
    asker: Asker
    num_timed: int = 8
    reserve: str = "auto"
    checkpoint_sha256: str | None = None

    def __post_init__(self) -> None:
        require_int("timed", self.num_timed, 0)

    def rows(self, settings: list[Setting]) -> Iterator[dict[str, Any]]:
        """One row per setting, as soon as it is measured.

        A random trigger fires as often as that of the row it copies, which has to come before it.
        """
        rates: dict[tuple[Any, Any], float] = {}
        full_accuracy = None
        for setting in settings:
            if setting.same_rate_as is not None:
                rate = rates[setting.pruning, setting.same_rate_as]
                setting = replace(setting, shift=replace(setting.shift, trigger_rate=rate))
            row = self.measure(setting)
            rates[setting.pruning, setting.shift] = row["trigger_rate"]
            if setting.pruning is None and setting.shift is None:
                full_accuracy = row["accuracy"]
            row["accuracy_of_full"] = row["accuracy"] / full_accuracy if full_accuracy else None
            yield row

    def measure(self, setting: Setting) -> dict[str, Any]:
        """One row: what was asked, how often the answer was right, and what it cost."""
        selection = {"pruning": setting.pruning, "shift": setting.shift, "reserve": self.reserve}
        answers, flags = [], []
        for example, answer in self.asker.ask(self.questions, **selection):
            flags.append(bool(is_right(example, answer)))
            answers.append(answer)
        right, count = sum(flags), len(flags)
        return {
            "task": self.questions.task, "table": setting.table, "method": setting.method,
            "retention_ratio": setting.ratio, "shift": setting.policy,
            "accuracy": right / count, "right": right, "n": count, "ci95": wilson(right, count),
            **summary(answers, setting.shift), **self._times(selection),
            "options": self._options(setting), "checkpoint_sha256": self.checkpoint_sha256,
            "right_by_question": "".join(str(int(flag)) for flag in flags),
        }

    def _options(self, setting: Setting) -> dict[str, Any]:
        return {"pruning": setting.pruning and setting.pruning.to_dict(),
                "shift": setting.shift and setting.shift.to_dict(), "reserve": self.reserve,
                "split": self.questions.split, "seed": self.questions.seed,
                "batch": self.asker.batch,
                "max_new_tokens": self.asker.max_new_tokens}

    def _times(self, selection: dict[str, Any]) -> dict[str, Any]:
        """Medians over answers that are written alone; the first of them warms up."""
        chosen = list(replace(self.questions, n=min(self.num_timed, self.questions.n))
                      if self.num_timed else [])
        alone = [self.asker.ask_alone(example, **selection)
                 for example in [*chosen[:1], *chosen]][1:]
        return {
            "ms_per_token": median([answer.ms_per_token for answer in alone]),
            "time_to_first_token_ms": median([a.timings.time_to_first_token_ms for a in alone]),
            "prefill_ms": median([answer.timings.prefill_ms for answer in alone]),
            "longest_gap_ms": median([answer.timings.longest_gap_ms for answer in alone]),
            "num_timed": len(alone),
        }


def summary(answers: list[Generation], shift: Shift | None) -> dict[str, Any]:
    """Means over answers, and how often a step that was watched triggered."""
    reports = [answer.shift for answer in answers]
    watched = sum(watched_steps(answer, shift) for answer in answers)
    triggers = sum(report.triggers for report in reports)
    return {
        **{name: mean(getattr(report, name) for report in reports) for name in AVERAGED},
        "num_visual": mean(report.num_visual for report in reports),
        "kept": mean(report.kept for report in reports),
        "resident": mean(answer.resident_tokens for answer in answers),
        "new_tokens": mean(len(answer.token_ids) for answer in answers),
        "trigger_rate": triggers / watched if watched else 0.0,
    }


def watched_steps(answer: Generation, shift: Shift | None) -> int:
    """Decode steps at which the policy could trigger: while a swap lasts it may look away."""
    steps = max(0, len(answer.token_ids) - 1)
    if isinstance(shift, DyCoke) or (isinstance(shift, SketchReturn) and shift.gate is not None):
        return steps
    if not isinstance(shift, DSTP):
        return 0
    if shift.retrigger != "off":
        return steps
    blind = shift.expand_steps - (0 if shift.applies == "next" else 1)
    return steps - sum(min(blind, steps - step) for step in answer.shift.trigger_steps)


def cells(row: dict[str, Any]) -> list[str]:
    """A row as text, under `HEADER`."""
    low, high = (100 * bound for bound in row["ci95"])
    time = row["ms_per_token"]
    return [row["method"], f"{row['retention_ratio']:.3g}", row["shift"],
            f"{100 * row['accuracy']:.1f}", f"{low:.1f}-{high:.1f}",
            f"{row['mean_visible']:.3f}", f"{row['mean_visible_all_layers']:.3f}",
            f"{row['triggers']:.1f}", f"{row['forwards_per_token']:.2f}",
            f"{row['new_tokens']:.1f}", f"{row['bytes_per_token'] / 1024:.0f}",
            "-" if time is None else f"{time:.2f}"]


def one_line(row: dict[str, Any]) -> str:
    """A row for a progress line."""
    name = row["method"] if row["method"] == "none" else (
        f"{row['method']} {row['retention_ratio']:.3g}, {row['shift']}")
    return f"{name}: {100 * row['accuracy']:.1f} % right, {row['mean_visible']:.3f} visible"
