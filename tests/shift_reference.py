"""The shift policy in plain Python, rule by rule, on the tensors of an `ops.ShiftState`."""

from __future__ import annotations

import math
import operator
from collections.abc import Iterable
from functools import reduce

import torch
from torch import Tensor

from pydstp.ops import (
    Action,
    Applies,
    Mode,
    Outcome,
    Phase,
    PolicyFloat,
    PolicyWord,
    Retrigger,
    ShiftState,
    StateWord,
    Swap,
    Trigger,
)

MASK = (1 << 64) - 1


def fp32(x: float) -> float:
    return torch.tensor(x, dtype=torch.float64).float().item()


def add_up(numbers: Iterable[float]) -> float:
    """One after the other; the built-in `sum` is more exact from Python 3.12 on."""
    return reduce(operator.add, numbers, 0.0)


def listed(indices: Tensor, length: Tensor, seq: int) -> list[int]:
    """The slots of a list, without entries that name none."""
    entries = indices[seq, : max(0, int(length[seq]))].tolist()
    return [slot for slot in entries if 0 <= slot < indices.shape[1]]


def cosine(a: list[float], b: list[float]) -> float:
    dot = add_up(x * y for x, y in zip(a, b, strict=True))
    norms = math.sqrt(add_up(x * x for x in a)) * math.sqrt(add_up(y * y for y in b))
    if math.isnan(dot) or math.isnan(norms) or norms == 0:
        return 1.0
    return fp32(min(1.0, max(0.0, dot / norms)))


def uniform(low: int, high: int, step: int) -> float:
    """Number `step` of the stream of a seed that is given in two signed halves."""
    x = ((high & 0xFFFFFFFF) << 32 | low & 0xFFFFFFFF) + 0x9E3779B97F4A7C15 * (step + 1) & MASK
    x = (x ^ x >> 30) * 0xBF58476D1CE4E5B9 & MASK
    x = (x ^ x >> 27) * 0x94D049BB133111EB & MASK
    return ((x ^ x >> 31) >> 40) / 2**24


class Row:
    """One sequence's part of a `ShiftState`, under the names of its words."""

    def __init__(self, state: ShiftState, seq: int) -> None:
        self.__dict__.update(tensors=state, seq=seq, mine=state.state[seq])

    def __getattr__(self, name: str) -> int | float:
        state, upper = self.tensors, name.upper()
        if upper in StateWord.__members__:
            return int(self.mine[StateWord[upper]])
        if upper in PolicyWord.__members__:
            return int(state.policy[self.seq, PolicyWord[upper]])
        return float(state.policy_float[self.seq, PolicyFloat[upper]])

    def __setattr__(self, name: str, value: int) -> None:
        self.mine[StateWord[name.upper()]] = int(value)

    def observe(self) -> None:
        state, s = self.tensors, self.seq
        slots = listed(state.base_indices, state.base_len, s)
        anchor, probs = state.anchor[s, slots].tolist(), state.probs[s, slots].tolist()
        state.similarity[s] = cosine(anchor, probs)

    def fires(self) -> bool:
        similarity = float(self.tensors.similarity[self.seq])
        if self.trigger == Trigger.RISD:
            return similarity < self.threshold
        if self.trigger == Trigger.RANDOM:
            return uniform(self.seed_low, self.seed_high, self.steps) < self.trigger_rate
        if self.trigger == Trigger.AVG:
            total = float(self.tensors.similarity_sum[self.seq])
            return self.steps > 0 and similarity < total / self.steps
        return self.trigger == Trigger.EVERY

    @property
    def watched(self) -> bool:
        return self.mode == Mode.BASE or self.retrigger != Retrigger.OFF

    def start(self, outcome: Outcome) -> bool:
        """Select now if the reserve is there, else say what is missing."""
        if not self.reserve_ready and int(self.tensors.reserve_len[self.seq]) > 0:
            self.outcome = Outcome.PENDING
            return False
        self.action, self.outcome, self.mode = Action.SELECT, outcome, Mode.EXPANDED
        self.remaining, self.triggers = self.expand_steps, self.triggers + 1
        return True

    def set_remaining(self, remaining: int) -> None:
        self.remaining = remaining
        if remaining == 0:
            self.mode, self.action = Mode.BASE, Action.RESTORE

    def commit(self) -> None:
        self.steps = self.steps + 1
        self.tensors.similarity_sum[self.seq] += self.tensors.similarity[self.seq].double()

    def mid(self) -> None:
        if self.applies != Applies.EARLY:
            return
        self.observe()
        if not (self.watched and self.fires()):
            return
        if self.mode == Mode.EXPANDED and self.retrigger == Retrigger.EXTEND:
            self.remaining, self.triggers = self.expand_steps, self.triggers + 1
        else:
            self.start(Outcome.COMMIT)

    def end(self) -> None:
        is_expanded, redo = self.mode == Mode.EXPANDED, self.applies == Applies.REDO
        if self.applies == Applies.EARLY:
            if is_expanded:
                self.set_remaining(self.remaining - 1)
            return self.commit()
        self.observe()
        fired = self.watched and self.fires()
        if fired and (not is_expanded or self.retrigger == Retrigger.RESELECT):
            if not self.start(Outcome.REDO if redo else Outcome.COMMIT):
                return None
        elif fired:
            self.triggers = self.triggers + 1
            self.set_remaining(self.expand_steps - int(redo))
        elif is_expanded:
            self.set_remaining(self.remaining - 1)
        return self.commit()


def detect(state: ShiftState, seq_idx: Tensor, phase: Phase) -> None:
    """`ops.shift_detect`."""
    for i, seq in enumerate(seq_idx.tolist()):
        state.score_idx[i] = -1
        if not 0 <= seq < len(state.state):
            continue
        row = Row(state, seq)
        row.action, row.outcome = Action.NONE, Outcome.COMMIT
        if phase == Phase.MID:
            row.mid()
        elif phase == Phase.END:
            row.end()
        elif row.mode == Mode.EXPANDED:
            row.set_remaining(row.remaining - 1)
        if row.action == Action.SELECT and row.swap != Swap.FULL:
            state.score_idx[i] = seq


def values(state: ShiftState, seq: int, base: list[int], reserve: list[int]) -> dict[int, float]:
    """What each slot is worth."""
    probs, scores = (x[seq].nan_to_num(0.0).tolist() for x in (state.probs, state.scores))
    worth = {slot: scores[slot] for slot in reserve}
    is_top = state.policy[seq, PolicyWord.SWAP] == Swap.TOP
    total = 1.0 if is_top else add_up(probs[slot] for slot in base)
    for slot in base:
        share = fp32(probs[slot] / total) if total > 0 else 0.0
        worth[slot] = scores[slot] if state.policy[seq, PolicyWord.JOINT] else share
    return worth


def best(worth: dict[int, float], slots: list[int], count: int) -> set[int]:
    """The `count` most valuable slots, the lowest of those that are worth the same."""
    return set(sorted(slots, key=lambda slot: (-worth[slot], slot))[: max(0, count)])


def mass_budget(state: ShiftState, row: Row, num_base: int) -> int:
    """How many slots of S0 the mass of the neediest head asks for."""
    largest = max(0.0, *state.mass[row.seq].nan_to_num(0.0).tolist())
    asked = math.ceil(min(largest, 1.0) * (1 - 1e-6) * num_base)
    return min(max(asked, row.min_budget), row.budget)


def choose(state: ShiftState, seq: int) -> list[int]:
    """The slots to show; writes what a merge leaves out."""
    row = Row(state, seq)
    base = listed(state.base_indices, state.base_len, seq)
    reserve = listed(state.reserve_indices, state.reserve_len, seq)
    worth, mask = values(state, seq, base, reserve), state.base_mask[seq].tolist()
    state.dropped_len[seq] = 0
    if row.swap == Swap.FULL:
        return sorted(base + reserve)
    if row.swap == Swap.TOP:
        return sorted(best(worth, base, mass_budget(state, row, len(base))))
    if row.swap == Swap.ADD:
        return sorted({*base, *best(worth, reserve, row.max_returned)})
    top = best(worth, base + reserve, row.budget)
    if row.swap == Swap.CPTS:
        return sorted({*base, *top})
    pseudo = {slot for slot in base if mask[slot] == 2}
    dropped = [slot for slot in base if slot not in top | pseudo]
    if row.swap == Swap.HARD or not dropped:
        return sorted(top | pseudo)
    state.dropped_indices[seq, : len(dropped)] = torch.tensor(dropped, dtype=torch.int32)
    state.dropped_len[seq] = len(dropped)
    return [*sorted(top | pseudo), *([row.merge_slot] if row.merge_slot >= 0 else [])]


def select(state: ShiftState, seq_idx: Tensor, visible_indices: Tensor, visible_len: Tensor,
           group_idx: int) -> None:
    """`ops.shift_select`."""
    for seq in seq_idx.tolist():
        action = state.state[seq, StateWord.ACTION] if 0 <= seq < len(state.state) else Action.NONE
        if action == Action.NONE:
            continue
        slots = listed(state.base_indices, state.base_len, seq)
        if action == Action.SELECT:
            slots = choose(state, seq)
        visible_indices[seq, group_idx, : len(slots)] = torch.tensor(slots, dtype=torch.int32)
        visible_len[seq, group_idx] = len(slots)
