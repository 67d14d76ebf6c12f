"""Choosing what DSTP watches, and its threshold, for a model and a budget of visible tokens.

Each candidate set of layers is watched in a run that never swaps. Its threshold is the one whose
predicted share of expanded steps meets the target. Single layers are ranked by the spread of their
similarities (standard deviation over mean): a similarity that hardly moves cannot tell a shift from
the steps around it. The first few, and every set of several layers (a mean spreads less, which says
nothing against it), are then run for real and their thresholds corrected by what that costs. The
most accurate one wins; where nobody knows the right answers, the one that agrees most with the
answers given with all tokens.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from typing import Any

from pydstp.config import require_int
from pydstp.errors import OptionError, PromptError
from pydstp.experiments.candidates import Candidate, Layers, Target, candidate_layers
from pydstp.experiments.runs import Asker, is_right
from pydstp.experiments.statistics import mean, wilson
from pydstp.experiments.thresholds import find_threshold
from pydstp.generation import Generation, ShiftReport
from pydstp.pruning import PruningConfig
from pydstp.shift import DSTP
from pydstp.tasks import Example

NUM_PROBED = 16  # answers that tell how long the list of an expanded step is
NUM_CORRECTIONS, TOLERANCE = 2, 0.005  # of the share that is aimed at


def _visible_expanded(report: ShiftReport) -> float:
    """The share of the visual tokens that the expanded steps of an answer read."""
    return mean(step.visible for step in report.steps
                if step.state == "expanded") / report.num_visual


def agreement(tokens: Sequence[int], full: Sequence[int]) -> float:
    """The share of an answer, from its beginning on, that another one repeats word for word."""
    same = next((place for place, (a, b) in enumerate(zip(tokens, full)) if a != b),
                min(len(tokens), len(full)))
    return same / max(1, len(tokens), len(full))


@dataclass(frozen=True)
class Calibration:
    """Finds layers and threshold for one pruning method.

    Attributes:
        asker: how questions are asked.
        questions: what the choice rests on.
        pruning: the method whose tokens shall return.
        shift: all options that are not chosen here; its trigger must be "risd".
        target: what the policy shall cost.
        num_layers: of the model.
        reserve: see `SelectionParams`.
        num_finalists: single layers that are run for real.

    Raises:
        OptionError: an option outside its range, or a trigger that knows no threshold.
    """

    asker: Asker
    questions: Sequence[Example] | Iterable[Example]
    pruning: PruningConfig
    shift: DSTP
    target: Target
    num_layers: int
    reserve: str = "auto"
    num_finalists: int = 3

    def __post_init__(self) -> None:
        require_int("finalists", self.num_finalists, 1)
        if self.shift.trigger != "risd":
            raise OptionError(f"trigger: expected 'risd', which has a threshold to calibrate, "
                              f"got {self.shift.trigger!r}")

    def run(self, layer_sets: Iterable[Layers] | None = None) -> list[Candidate]:
        """Calibrate every candidate, run the finalists.

        Returns:
            The candidates; the chosen one comes first, the other finalists behind it.

        Raises:
            OptionError: no threshold of any candidate can meet the target.
            PromptError: the questions leave nothing to calibrate on.
        """
        if layer_sets is None:
            last_stage = self.pruning.pruner.stages(self.num_layers)[-1]
            layer_sets = candidate_layers(self.num_layers, last_stage)
        candidates = [self.examine(layers) for layers in layer_sets]
        able = [found for found in candidates if found.threshold is not None]
        if not able:
            raise OptionError(self._out_of_reach(candidates))
        able.sort(key=lambda found: -found.spread)
        single = [found for found in able if len(found.layers) == 1]
        finalists = [found for found in able if found not in single[self.num_finalists:]]
        full = [answer.token_ids for _, answer in self.asker.ask(self.questions)]
        settled = [self.settle(found, full) for found in finalists]
        settled.sort(key=lambda found: (-found.measured.get("accuracy", 0.0),
                                        -found.measured["agreement"]))
        return [*settled, *(found for found in candidates if found not in finalists)]

    def policy(self, found: Candidate) -> DSTP:
        """The calibrated policy of a candidate."""
        return replace(self.shift, monitor_layers=found.layers, threshold=found.threshold)

    def examine(self, layers: Layers) -> Candidate:
        """Watch some layers without swaps, and find their threshold."""
        always = replace(self.shift, monitor_layers=layers, trigger="every")
        probe = list(self._reports(always, islice(iter(self.questions), NUM_PROBED)))
        series = [[step.similarity for step in report.steps]
                  for report in self._reports(replace(always, trigger="never"), self.questions)]
        if not any(series):
            raise PromptError("questions: expected answers of two tokens or more")
        found = Candidate(layers, series, mean(report.retention_achieved for report in probe),
                          mean(map(_visible_expanded, (r for r in probe if r.triggers))))
        share = self.target.expanded_share(found.visible_base, found.visible_expanded)
        return found if share is None else self._aim(found, share)

    def settle(self, found: Candidate, full: list[list[int]]) -> Candidate:
        """Run a candidate for real, and correct its threshold while that brings it closer.

        Args:
            found: with a threshold.
            full: the tokens of every answer given with all visual tokens.
        """
        found.measured = self.verify(found, full)
        for _ in range(NUM_CORRECTIONS):
            wanted, got = self._gain(found)
            if got <= 0 or abs(wanted - got) <= TOLERANCE:
                break
            other = self._aim(found, min(1.0, found.predicted_expanded * wanted / got))
            other.measured = self.verify(other, full)
            if abs(self._gain(other)[1] - wanted) >= abs(got - wanted):
                break
            found = other
        return found

    def verify(self, found: Candidate, full: list[list[int]]) -> dict[str, Any]:
        """Run a calibrated candidate for real: what it costs, and how good its answers are."""
        pairs = list(self._ask(self.policy(found), self.questions))
        reports = [answer.shift for _, answer in pairs]
        result = {
            "n": len(pairs),
            "mean_visible": mean(report.mean_visible for report in reports),
            "expanded": mean(mean(step.state == "expanded" for step in report.steps)
                             for report in reports),
            "triggers": mean(report.triggers for report in reports),
            "forwards_per_token": mean(report.forwards_per_token for report in reports),
            "agreement": mean(agreement(answer.token_ids, tokens)
                              for (_, answer), tokens in zip(pairs, full, strict=True)),
        }
        flags = [is_right(example, answer) for example, answer in pairs]
        if None not in flags:
            result |= {"accuracy": mean(flags), "ci95": wilson(sum(flags), len(flags))}
        return result

    def _aim(self, found: Candidate, share: float) -> Candidate:
        """The candidate with the threshold that should expand a share of the steps."""
        threshold, predicted = find_threshold(found.series, share, self.shift,
                                              self._first_share(found.layers))
        return Candidate(found.layers, found.series, found.visible_base, found.visible_expanded,
                         threshold, predicted)

    def _gain(self, found: Candidate) -> tuple[float, float]:
        """What the target asks for beyond the base method, and what was measured."""
        if self.target.expanded is not None:
            return self.target.expanded, found.measured["expanded"]
        return (self.target.visible - found.visible_base,
                found.measured["mean_visible"] - found.visible_base)

    def _ask(self, shift: DSTP,
             questions: Iterable[Example]) -> Iterator[tuple[Example, Generation]]:
        return self.asker.ask(questions, pruning=self.pruning, shift=shift, reserve=self.reserve,
                              log_steps=True)

    def _reports(self, shift: DSTP, questions: Iterable[Example]) -> Iterator[ShiftReport]:
        """Reports of the answers whose pictures were pruned."""
        for _, answer in self._ask(shift, questions):
            if answer.shift.reason is not None:
                raise PromptError(f"--pruning: expected a method and ratio that take tokens away, "
                                  f"nothing was pruned ({answer.shift.reason})")
            yield answer.shift

    def _first_share(self, layers: Layers) -> float | None:
        """Where a swap applies early, only the layers above the watched ones read the new list."""
        if self.shift.applies != "early":
            return None
        first = self.pruning.pruner.stages(self.num_layers)[-1]
        last = replace(self.shift, monitor_layers=layers).watched_layers(self.num_layers, first)[-1]
        return (self.num_layers - 1 - last) / (self.num_layers - first)

    def _out_of_reach(self, candidates: list[Candidate]) -> str:
        low = min(found.visible_base for found in candidates)
        high = max(found.visible_expanded for found in candidates)
        if high - low < 1e-6:
            return (f"--target-visible: expected a swap that lengthens the list, got "
                    f"swap={self.shift.swap!r}; use --target-expanded instead")
        return (f"--target-visible: expected a share in [{low:.3f}, {high:.3f}], which is what "
                f"swap={self.shift.swap!r} can reach, got {self.target.visible:g}")
