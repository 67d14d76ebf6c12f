"""An engine that needs no model: its answers are right, or not, by a rule of the test."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from pydstp.errors import CancelledError
from pydstp.generation import Generation, ImageInfo, ShiftReport, StepLog, Timings
from pydstp.tasks import Example

NUM_VISUAL = 30
Rule = Callable[[Example, Any, Any], bool]


def report(visible: float = 0.4, triggers: tuple[int, ...] = (), kept: int = 10,
           **changes: Any) -> ShiftReport:
    """A report of an answer that triggered at some steps."""
    values = dict(
        method="random", policy="dstp", reason=None, retention_asked=1 / 3,
        retention_achieved=kept / NUM_VISUAL, num_visual=NUM_VISUAL, kept=kept,
        mean_visible=visible, mean_visible_all_layers=visible, triggers=len(triggers),
        trigger_steps=triggers, forwards_per_token=1.0, bytes_per_token=2048.0, selection_ms=0.1,
        reserve="lazy", side_passes=1, reserve_ms=1.0, longest_gap_ms=2.0)
    return ShiftReport(**{**values, **changes})


def generation(text: str, shift: ShiftReport, tokens: int = 6) -> Generation:
    """An answer of so many tokens."""
    return Generation(text=text, token_ids=list(range(tokens)), finish_reason="stop", shift=shift,
                      visual_tokens=NUM_VISUAL, resident_tokens=NUM_VISUAL,
                      images=(ImageInfo((192, 160), (192, 160), NUM_VISUAL, False),),
                      timings=Timings(decode_ms=10.0, prefill_ms=3.0, time_to_first_token_ms=4.0))


class FakeEngine:
    """Answers the questions it was made with.

    Args:
        questions: whose pictures it knows.
        rule: (example, pruning, shift) -> whether the answer is right.
        series: (example, shift) -> similarities of its decode steps.
        cancel_after: calls after which the request is cancelled.
    """

    def __init__(self, questions: Iterable[Example], rule: Rule = lambda *_: True,
                 series: Callable[[Example, Any], list[float]] | None = None,
                 cancel_after: int | None = None) -> None:
        self.known = {example.images[0].tobytes(): example for example in questions}
        self.rule, self.series, self.cancel_after = rule, series, cancel_after
        self.calls: list[dict[str, Any]] = []

    def generate(self, images: list, prompts: list[str], sampling: Any = None,
                 **selection: Any) -> list[Generation]:
        assert sampling.temperature == 0
        self.calls.append({"images": images, "prompts": prompts, **selection})
        if self.cancel_after is not None and len(self.calls) > self.cancel_after:
            raise CancelledError("stop")
        rows = [selection.get(name) or [None] * len(images) for name in ("pruning", "shift")]
        return [self._answer(self.known[pictures[0].tobytes()], pruning, shift)
                for pictures, pruning, shift in zip(images, *rows, strict=True)]

    def _answer(self, example: Example, pruning: Any, shift: Any) -> Generation:
        text = example.answer if self.rule(example, pruning, shift) else "wrong"
        if shift is None:
            return generation(text, report(visible=1.0 if pruning is None else 1 / 3))
        series = self.series(example, shift) if self.series else [0.9, 0.5, 0.8, 0.4, 0.9]
        return generation(text, _played(series, shift, pruning), len(series) + 1)


def _played(series: list[float], shift: Any, pruning: Any) -> ShiftReport:
    """A report in which every step below the threshold is expanded, alone, to 16 tokens."""
    fires = [shift.trigger == "every" or (shift.trigger == "risd" and value < shift.threshold)
             for value in series]
    kept = NUM_VISUAL if pruning is None else 10
    visible = [16 if fired else kept for fired in fires]
    attention = tuple(1 / kept if slot < kept else 0.0 for slot in range(NUM_VISUAL))
    steps = [StepLog(value, "expanded" if fired else "base", shown, NUM_VISUAL,
                     (20,) if fired else (), (), fired, attention)
             for value, fired, shown in zip(series, fires, visible, strict=True)]
    return report(sum(visible) / max(1, len(visible)) / NUM_VISUAL,
                  tuple(place + 1 for place, fired in enumerate(fires) if fired), kept,
                  steps=steps, anchor=attention)
