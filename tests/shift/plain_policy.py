"""DSTP as sets, dictionaries and sorted lists: what a step decides, and nothing about how fast.

Vectors and scores are dictionaries from slot to number; a list of visible slots is sorted. One step
of a sequence is one call:

    policy = PlainPolicy(PlainDSTP(threshold=0.7), base, reserve, anchor)
    step = policy.step(vector, scores)     # vector over S0, scores over R (S0 and R when joint)
    step.similarity, step.outcome, step.fired, step.used.slots, policy.view.slots

or, phase by phase as an engine does it, `policy.middle(...)`, `policy.end(...)`, `policy.redone()`.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

Numbers = Mapping[int, float]  # slot -> value
_MASK64 = 2**64 - 1


@dataclass(frozen=True)
class PlainDSTP:
    """The options of DSTP under their public names."""

    threshold: float = 0.75
    expand_steps: int = 20
    monitor_layers: str | tuple[int, ...] = "mid"
    norm: str = "per_head_subset"
    anchor: str = "last"
    applies: str = "next"
    retrigger: str = "off"
    swap: str = "cpts"
    max_returned: int | None = None
    trigger: str = "risd"
    trigger_rate: float = 0.1
    scores: str = "separate"
    heads: str | tuple[int, ...] = "all"
    seed: int = 0

    def layers(self, num_layers: int, pruned_before: int) -> list[int]:
        """The monitored layers of a model."""
        named = {"mid": [num_layers // 2 - 1], "last": [num_layers - 1],
                 "all": list(range(num_layers)),
                 "post_prune": list(range(pruned_before, num_layers))}
        if isinstance(self.monitor_layers, str):
            return named[self.monitor_layers]
        return sorted(self.monitor_layers)


class View(NamedTuple):
    """What a row sees of the pictures from the pruning point on.

    Attributes:
        slots: sorted.
        dropped: where the merge slot is among `slots`, the slots whose mean it holds.
    """

    slots: tuple[int, ...]
    dropped: tuple[int, ...] = ()


@dataclass(frozen=True)
class PolicyStep:
    """One committed (or, with outcome "pending", refused) decode step.

    Attributes:
        before: the view the step began with; layers up to the last monitored one use it.
        used: the view the row is committed with, above the last monitored layer when `applies` is
            "early", in every layer (from the pruning point on) otherwise.
        after: the view the next step begins with.
        expanded: whether `used` is the view of an expanded state.
        fired: whether a trigger was counted.
        margin: distance of what was compared from its limit; infinite if nothing was compared.
        selection_gap: score of the last slot taken minus that of the first one not taken.
    """

    similarity: float
    outcome: str  # "commit", "redo" or "pending"
    before: View
    used: View
    after: View
    expanded: bool
    fired: bool
    margin: float
    selection_gap: float


def cosine(anchor: Numbers, vector: Numbers, base: Iterable[int]) -> float:
    """In [0, 1]; 1 if either is zero."""
    dot = sum(anchor.get(slot, 0.0) * vector.get(slot, 0.0) for slot in base)
    lengths = [math.sqrt(sum(v.get(slot, 0.0) ** 2 for slot in base)) for v in (anchor, vector)]
    if 0.0 in lengths:
        return 1.0
    return min(max(dot / (lengths[0] * lengths[1]), 0.0), 1.0)


def uniform(seed: int, step: int) -> float:
    """The random number of a step in [0, 1): splitmix64 of the seed, 24 bits of it."""
    x = (seed + 0x9E3779B97F4A7C15 * (step + 1)) & _MASK64
    x = ((x ^ (x >> 30)) * 0xBF58476D1CE4E5B9) & _MASK64
    x = ((x ^ (x >> 27)) * 0x94D049BB133111EB) & _MASK64
    return ((x ^ (x >> 31)) >> 40) / 2**24


def ranked(scores: Numbers) -> list[int]:
    """Slots, best first; equal scores: lowest slot first; NaN is 0."""
    def key(slot: int) -> tuple[float, int]:
        score = scores[slot]
        return (0.0 if math.isnan(score) else -score, slot)
    return sorted(scores, key=key)


def normalised(values: Numbers) -> dict[int, float]:
    total = sum(values.values())
    return {slot: value / total if total else 0.0 for slot, value in values.items()}


def count_local_minima(series: list[float], below: float = 0.7) -> int:
    """Shifts of the visual focus: local minima under `below`, a plateau once, no endpoints."""
    triples = zip(series, series[1:], series[2:], strict=False)
    return sum(left > middle <= right and middle < below for left, middle, right in triples)


class PlainPolicy:
    """One sequence.

    Args:
        base: S0, pseudo tokens included; pseudo: those of them that are pseudo tokens.
        reserve: R. anchor: over S0.
        merge_slot: the slot that swap "merge" fills.
        budget: how many a selection keeps; None: as many as S0 has.
        reserve_ready: whether the reserve has keys and values yet; may be set later.
    """

    def __init__(self, options: PlainDSTP, base: Iterable[int], reserve: Iterable[int],
                 anchor: Numbers, *, pseudo: Iterable[int] = (), merge_slot: int | None = None,
                 budget: int | None = None, reserve_ready: bool = True) -> None:
        self.options = options
        self.base, self.reserve, self.pseudo = set(base), set(reserve), set(pseudo)
        self.anchor, self.merge_slot, self.reserve_ready = anchor, merge_slot, reserve_ready
        self.budget = len(self.base) if budget is None else budget
        self.base_view = View(tuple(sorted(self.base)))
        self.view = self.base_view
        self.expanded = False
        self.remaining = self.triggers = self.steps = 0
        self.similarity, self.similarity_sum = 1.0, 0.0
        self.margin = self.selection_gap = math.inf

    # One step at once.

    def step(self, vector: Numbers, scores: Numbers) -> PolicyStep:
        """`vector` over S0 and `scores` are those of the step's first pass."""
        before, triggers = self.view, self.triggers
        self.selection_gap = math.inf
        if self.options.applies == "early":
            outcome = self.middle(vector, scores)
            used, expanded = self.view, self.expanded
            if outcome == "commit":
                self.end(vector, scores)
        else:
            used, expanded = before, self.expanded
            outcome = self.end(vector, scores)
            if outcome == "redo":
                used, expanded = self.view, True
                self.redone()
        return PolicyStep(self.similarity, outcome, before, used, self.view, expanded,
                          self.triggers > triggers, self.margin, self.selection_gap)

    # The phases of a step.

    def middle(self, vector: Numbers, scores: Numbers) -> str:
        """After the last monitored layer."""
        if self.options.applies != "early":
            return "commit"
        self.similarity = cosine(self.anchor, vector, sorted(self.base))
        if not self._fires():
            return "commit"
        if self.expanded and self.options.retrigger == "extend":
            self.triggers += 1
            self.remaining = self.options.expand_steps
            return "commit"
        return "commit" if self._start(vector, scores) else "pending"

    def end(self, vector: Numbers, scores: Numbers) -> str:
        """After the last layer."""
        if self.options.applies == "early":
            self._count_down()
            return self._committed("commit")
        self.similarity = cosine(self.anchor, vector, sorted(self.base))
        redo, fired = self.options.applies == "redo", self._fires()
        if fired and (not self.expanded or self.options.retrigger == "reselect"):
            if not self._start(vector, scores):
                return "pending"
            return self._committed("redo" if redo else "commit")
        if fired:  # extend
            self.triggers += 1
            # Under redo this step is the first of the new ones: it is counted down at once.
            self.remaining = self.options.expand_steps
            if redo:
                self._count_down()
        else:
            self._count_down()
        return self._committed("commit")

    def redone(self) -> None:
        """After the second pass of a step whose outcome was "redo"."""
        self._count_down()

    # What the phases are made of.

    def _committed(self, outcome: str) -> str:
        self.steps += 1
        self.similarity_sum += self.similarity
        return outcome

    def _count_down(self) -> None:
        if self.expanded:
            self.remaining -= 1
            if self.remaining == 0:
                self.expanded, self.view = False, self.base_view

    def _fires(self) -> bool:
        self.margin = math.inf
        if self.expanded and self.options.retrigger == "off":
            return False
        if self.options.trigger == "risd":
            self.margin = abs(self.similarity - self.options.threshold)
            return self.similarity < self.options.threshold
        if self.options.trigger == "avg":
            if self.steps == 0:
                return False
            mean = self.similarity_sum / self.steps
            self.margin = abs(self.similarity - mean)
            return self.similarity < mean
        if self.options.trigger == "random":
            return uniform(self.options.seed, self.steps) < self.options.trigger_rate
        return self.options.trigger == "every"

    def _start(self, vector: Numbers, scores: Numbers) -> bool:
        """False: the reserve has no keys and values yet, and nothing has changed."""
        if self.reserve and not self.reserve_ready:
            return False
        self.view = self._select(vector, scores)
        self.expanded, self.remaining = True, self.options.expand_steps
        self.triggers += 1
        return True

    def _select(self, vector: Numbers, scores: Numbers) -> View:
        everything, swap = self.base | self.reserve, self.options.swap
        if swap == "full":
            return View(tuple(sorted(everything)))
        if swap == "add":
            returned = self._best({slot: scores[slot] for slot in self.reserve},
                                  self.options.max_returned)
            return View(tuple(sorted(self.base | returned)))
        chosen = self._best(self._joined(vector, scores), min(self.budget, len(everything)))
        if swap == "cpts":
            return View(tuple(sorted(self.base | chosen)))
        kept = chosen | self.pseudo
        dropped = tuple(sorted(self.base - kept)) if swap == "merge" else ()
        merged = {self.merge_slot} if dropped else set()
        return View(tuple(sorted(kept | merged)), dropped)

    def _joined(self, vector: Numbers, scores: Numbers) -> dict[int, float]:
        """What S0 and R compete with."""
        if self.options.scores == "joint":
            return {slot: scores[slot] for slot in self.base | self.reserve}
        base = normalised({slot: vector.get(slot, 0.0) for slot in self.base})
        return base | {slot: scores[slot] for slot in self.reserve}

    def _best(self, scores: Numbers, count: int | None) -> set[int]:
        order = ranked(scores)
        count = len(order) if count is None else count
        if 0 < count < len(order):
            self.selection_gap = scores[order[count - 1]] - scores[order[count]]
        return set(order[:count])
