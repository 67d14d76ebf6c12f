"""shift_detect and shift_select: random cases of every option against plain Python."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.ops import Outcome, Phase, ShiftState, StateWord
from tests import shift_reference as reference
from tests.compare import assert_bitwise
from tests.ops.shift_cases import (
    COMBINATIONS,
    MAX_BATCH,
    assert_same_lists,
    assert_same_state,
    copy_of,
    integer,
    make_state,
    new_values,
)


class Pair:
    """The same state twice: one for the ops, one for the reference."""

    def __init__(self, state: ShiftState, is_exact: bool, pool: ops.ThreadPool) -> None:
        self.state, self.expected, self.is_exact, self.pool = state, copy_of(state), is_exact, pool
        lists = torch.zeros(MAX_BATCH, 2, state.probs.shape[1], dtype=torch.int32)
        lengths = torch.zeros(MAX_BATCH, 2, dtype=torch.int32)
        self.shown = lists, lengths
        self.expected_shown = lists.clone(), lengths.clone()

    def observe(self, random: torch.Generator) -> None:
        new_values(self.state, random)
        for name in ("probs", "anchor", "scores", "mass"):
            getattr(self.expected, name).copy_(getattr(self.state, name))

    def run(self, rows: Tensor, phase: Phase) -> Tensor:
        """Detect and select; returns the outcome of each sequence."""
        ops.shift_detect(self.state, rows, phase, pool=self.pool)
        reference.detect(self.expected, rows, phase)
        assert_same_state(self.state, self.expected, self.is_exact)
        ops.shift_select(self.state, rows, *self.shown, 1, pool=self.pool)
        reference.select(self.expected, rows, *self.expected_shown, 1)
        assert_same_state(self.state, self.expected, self.is_exact)
        assert_bitwise(self.shown[1], self.expected_shown[1])
        assert_same_lists(self.shown[0], self.expected_shown[0], self.shown[1])
        return self.state.state[:, StateWord.OUTCOME]

    def get_ready(self, outcome: Tensor) -> Tensor:
        """Give a reserve to those that wait for it."""
        waits = outcome == Outcome.PENDING
        for state in (self.state, self.expected):
            state.state[waits, StateWord.RESERVE_READY] = 1
        return waits


def only(rows: Tensor, is_meant: Tensor) -> Tensor:
    """rows with -1 for the sequences that are not meant."""
    return torch.where((rows >= 0) & is_meant[rows.clamp(min=0).long()], rows, -1)


def check_case(isa: str, capacity: int, case: int, pool: ops.ThreadPool) -> None:
    """Three steps as an engine takes them."""
    random = torch.Generator().manual_seed(case)
    pair = Pair(make_state(capacity, case), isa != "simt", pool)
    for _ in range(3):
        rows = torch.randperm(MAX_BATCH, generator=random).int()
        rows[integer(random, MAX_BATCH)] = -1
        pair.observe(random)
        for phase in (Phase.MID, Phase.END):
            waits = pair.get_ready(pair.run(rows, phase))
            pair.run(only(rows, waits), phase)
        redo = pair.state.state[:, StateWord.OUTCOME] == Outcome.REDO
        pair.run(only(rows, redo), Phase.REDONE)


# The best tier meets every combination of options with every capacity; simt, which is slow, meets
# every combination.
CASES = {ops.available_isas()[0]: len(COMBINATIONS)}
CASES_OF_SIMT = -(-len(COMBINATIONS) // MAX_BATCH)


@pytest.mark.parametrize("tenth", range(10))
def test_random_cases_agree_with_the_rules(isa, tenth, pool):
    for case in range(tenth, CASES.get(isa, CASES_OF_SIMT), 10):
        check_case(isa, (97, 33, 3, 1)[case % 4], case, pool)


@pytest.mark.parametrize("capacity", [257, 769])
def test_large_cases_agree_with_the_rules(isa, capacity, pool):
    for case in range(12):
        check_case(isa, capacity, case, pool)


def test_threads_and_neighbours_change_nothing(isa, pools):
    for case in range(8):
        alone, together = make_state(97, case), make_state(97, case)
        for step in range(3):
            for state in (alone, together):
                new_values(state, torch.Generator().manual_seed(step))
            lists = [torch.zeros(MAX_BATCH, 1, 97, dtype=torch.int32) for _ in range(2)]
            lengths = [torch.zeros(MAX_BATCH, 1, dtype=torch.int32) for _ in range(2)]
            rows = torch.arange(MAX_BATCH, dtype=torch.int32)
            for seq in range(MAX_BATCH):
                ops.shift_detect(alone, rows[seq : seq + 1], Phase.END, pool=pools[0])
                ops.shift_select(alone, rows[seq : seq + 1], lists[0], lengths[0], 0, pool=pools[0])
            order = rows[torch.randperm(MAX_BATCH)]
            ops.shift_detect(together, order, Phase.END, pool=pools[-1])
            ops.shift_select(together, order, lists[1], lengths[1], 0, pool=pools[-1])
            together.score_idx.copy_(alone.score_idx)
            assert_same_state(together, alone)
            assert_bitwise(lengths[1], lengths[0])
            assert_same_lists(lists[1], lists[0], lengths[0])
