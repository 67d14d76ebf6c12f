"""Accuracy and cost of pruning methods and shift policies on a built-in task."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

from pydstp.config import require_int
from pydstp.cost_model import CostModel
from pydstp.experiments.costs import COUNTED, cost_model, count, reductions
from pydstp.experiments.journal import EvalLog
from pydstp.experiments.record import environment
from pydstp.experiments.runs import Asker, Questions, is_right
from pydstp.experiments.settings import Setting
from pydstp.experiments.statistics import mean, median, wilson
from pydstp.generation import Generation
from pydstp.shift import DSTP, DyCoke, Shift, SketchReturn
from pydstp.tasks import Example

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
        log: holds what was measured before, which is not measured again, and takes what is new.

    Raises:
        OptionError: `num_timed` below 0.
    """

    questions: Questions
    asker: Asker
    num_timed: int = 8
    reserve: str = "auto"
    checkpoint_sha256: str | None = None
    log: EvalLog | None = None

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
            found = self._found(setting)
            row = found or self.measure(setting)
            rates[setting.pruning, setting.shift] = row["trigger_rate"]
            if setting.pruning is None and setting.shift is None:
                full_accuracy = row["accuracy"]
            row["accuracy_of_full"] = row["accuracy"] / full_accuracy if full_accuracy else None
            if self.log is not None and found is None:
                self.log.add_row(row)
            yield row

    def _found(self, setting: Setting) -> dict[str, Any] | None:
        """The row as it was measured before, under the names it has now."""
        row = self.log.row(self._key(setting)) if self.log is not None else None
        if row is None:
            return None
        self.asker.tick(self.questions.n)
        return {**row, "table": setting.table, "shift": setting.policy}

    def _key(self, setting: Setting) -> str:
        return self.log.key({"task": self.questions.task, "n": self.questions.n,
                             "timed": self.num_timed, **self._options(setting)})

    def measure(self, setting: Setting) -> dict[str, Any]:
        """One row: what was asked, how often the answer was right, and what it cost."""
        selection = {"pruning": setting.pruning, "shift": setting.shift, "reserve": self.reserve}
        model = cost_model(self.asker.engine)
        answers = self._answers(setting, selection, model)
        right, n = sum(answer["right"] for answer in answers), len(answers)
        row = {
            "task": self.questions.task, "table": setting.table, "method": setting.method,
            "retention_ratio": setting.ratio, "shift": setting.policy,
            "accuracy": right / n, "right": right, "n": n, "ci95": wilson(right, n),
            **averages(answers), **self._times(selection),
            "options": self._options(setting), "checkpoint_sha256": self.checkpoint_sha256,
            "right_by_question": "".join(str(int(answer["right"])) for answer in answers),
        }
        if model is not None:
            row |= reductions(row, model)
        if self.log is not None:
            row |= {"key": self._key(setting), "identity": self.log.identity,
                    "environment": environment()}
        return row

    def _answers(self, setting: Setting, selection: dict[str, Any],
                 model: CostModel | None) -> list[dict[str, Any]]:
        """What every question gave; those that the log knows are not asked again."""
        key = self._key(setting) if self.log is not None else ""
        answers = self.log.answers(key) if self.log is not None else []
        if answers:
            self.asker.tick(len(answers))
        missing = self.questions.after(len(answers))
        block: list[dict[str, Any]] = []
        for number, (example, answer) in enumerate(self.asker.ask(missing, **selection), 1):
            block.append(observe(example, answer, setting, model))
            if number % self.asker.batch == 0 or number == len(missing):
                if self.log is not None:
                    self.log.add_answers(key, len(answers), block)
                answers, block = answers + block, []
        return answers

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


def observe(example: Example, answer: Generation, setting: Setting,
            model: CostModel | None) -> dict[str, Any]:
    """What one answer adds to its row, as plain values; costs where a model is known."""
    report = answer.shift
    costs = {} if model is None else count(answer, setting.pruning, model)
    return {"seed": example.seed, "right": bool(is_right(example, answer)), "text": answer.text,
            **{name: getattr(report, name) for name in AVERAGED},
            "num_visual": report.num_visual, "kept": report.kept,
            "resident": answer.resident_tokens, "new_tokens": len(answer.token_ids),
            "watched": watched_steps(answer, setting.shift), **costs}


def averages(answers: list[dict[str, Any]]) -> dict[str, Any]:
    """Means over what `observe` saw, and how often a step that was watched triggered."""
    names = [*AVERAGED, "num_visual", "kept", "resident", "new_tokens", *COUNTED]
    watched = sum(answer["watched"] for answer in answers)
    triggers = sum(answer["triggers"] for answer in answers)
    return {**{name: mean(answer[name] for answer in answers)
               for name in names if name in answers[0]},
            "trigger_rate": triggers / watched if watched else 0.0}


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
