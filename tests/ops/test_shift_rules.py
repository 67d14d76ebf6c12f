"""shift_detect and shift_select: the cases that are easy to get wrong, one by one."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from pydstp import ops
from pydstp.errors import OptionError
from pydstp.ops import Action, Applies, Outcome, Phase, PolicyWord, StateWord, Swap
from tests.generators import INT_MAX, INT_MIN, Guarded, hostile_indices
from tests.ops.shift_cases import (
    MAX_BATCH,
    assert_same_state,
    copy_of,
    fill_list,
    first_sequence,
    make_state,
    one_sequence,
    shown_after,
)


@pytest.mark.parametrize("applies, first", [(Applies.NEXT, 1), (Applies.REDO, 0),
                                            (Applies.EARLY, 0)])
@pytest.mark.parametrize("window", [1, 2, 5])
def test_a_window_has_exactly_its_steps(isa, applies, first, window, pool):
    state = one_sequence(2, 2, EXPAND_STEPS=window, APPLIES=applies, TRIGGER=ops.Trigger.RISD)
    state.policy_float[0, 0] = 0.75
    state.anchor[0, 0] = 1
    indices, length = state.base_indices.clone().unsqueeze(1), torch.full((1, 1), 2).int()
    expanded = []
    for step in range(window + 4):
        state.probs[0, :2] = torch.tensor([0.0, 1.0] if step == 0 else [1.0, 0.0])
        for phase in Phase:
            if phase == Phase.REDONE and state.state[0, StateWord.OUTCOME] != Outcome.REDO:
                continue
            if phase != Phase.MID:
                expanded.append((step, int(length) > 2))
            ops.shift_detect(state, first_sequence(), phase, pool=pool)
            state.scores[0, 2:4] = 0.9
            ops.shift_select(state, first_sequence(), indices, length, 0, pool=pool)
    steps = [step for step, is_expanded in dict(expanded).items() if is_expanded]
    assert steps == list(range(first, first + window))
    assert state.state[0, :5].tolist() == [0, 0, Outcome.COMMIT, 1, window + 4]


def test_a_missing_reserve_repeats_the_step_and_counts_it_once(isa, pool):
    state = one_sequence(2, 2)
    state.state[0, StateWord.RESERVE_READY] = 0
    for _ in range(2):
        ops.shift_detect(state, first_sequence(), Phase.END, pool=pool)
        assert state.state[0].tolist() == [0, 0, Outcome.PENDING, 0, 0, 0, Action.NONE, 0]
        assert state.score_idx.tolist() == [-1]
    state.state[0, StateWord.RESERVE_READY] = 1
    ops.shift_detect(state, first_sequence(), Phase.END, pool=pool)
    assert state.state[0].tolist() == [1, 2, Outcome.COMMIT, 1, 1, 1, Action.SELECT, 0]
    assert state.score_idx.tolist() == [0]


def test_an_empty_reserve_is_ready_and_selects_the_base_set(isa, pool):
    state = one_sequence(3, 0)
    state.state[0, StateWord.RESERVE_READY] = 0
    ops.shift_detect(state, first_sequence(), Phase.END, pool=pool)
    assert state.state[0, :4].tolist() == [1, 2, Outcome.COMMIT, 1]
    for swap in Swap:
        state.policy[0, PolicyWord.SWAP] = swap
        assert shown_after(state, pool) == [0, 1, 2]


def test_an_empty_base_set_has_similarity_one(isa, pool):
    state = one_sequence(0, 3)
    ops.shift_detect(state, first_sequence(), Phase.END, pool=pool)
    assert state.similarity.item() == 1.0
    assert shown_after(state, pool) == []


@pytest.mark.parametrize("anchor, probs, similarity", [
    ([1, 0], [1, 0], 1), ([1, 0], [0, 1], 0), ([3, 4], [4, 3], 0.96), ([0, 0], [1, 0], 1),
    ([1, 0], [0, 0], 1), ([1, float("nan")], [1, 1], 1), ([1e-30, 0], [1e30, 0], 1)])
def test_similarity(isa, anchor, probs, similarity, pool):
    state = one_sequence(2, 1)
    state.anchor[0] = torch.tensor([*anchor, 7.0, 7.0])  # what lies outside S0 is not looked at
    state.probs[0] = torch.tensor([*probs, float("nan"), 0.0])
    ops.shift_detect(state, first_sequence(), Phase.END, pool=pool)
    assert state.similarity.item() == pytest.approx(similarity, abs=1e-7)


def test_ties_go_to_the_lowest_slots(isa, pool):
    state = one_sequence(3, 5, BUDGET=4, SWAP=Swap.HARD)
    state.probs[0, :3] = 1.0
    state.scores[0, 3:8] = torch.tensor([1 / 3, 1 / 3, 0.5, 1 / 3, 0.25])
    assert shown_after(state, pool) == [0, 1, 2, 5]
    state.policy[0, PolicyWord.BUDGET] = 6
    assert shown_after(state, pool) == [0, 1, 2, 3, 4, 5]
    state.scores[0, 3:8] = 0.0
    state.probs[0, :3] = -0.0
    assert shown_after(state, pool) == [0, 1, 2, 3, 4, 5]
    state.policy[0, PolicyWord.SWAP], state.policy[0, PolicyWord.MAX_RETURNED] = Swap.ADD, 2
    assert shown_after(state, pool) == [0, 1, 2, 3, 4]


@pytest.mark.parametrize("budget, count", [(-5, 0), (0, 0), (8, 8), (9, 8), (INT_MAX, 8)])
def test_a_budget_is_clamped_to_what_there_is(isa, budget, count, pool):
    state = one_sequence(3, 5, BUDGET=budget, SWAP=Swap.HARD)
    state.scores.fill_(0.5)
    assert len(shown_after(state, pool)) == count


def test_scores_that_are_no_numbers_count_as_zero(isa, pool):
    state = one_sequence(2, 3, BUDGET=2, SWAP=Swap.HARD)
    state.probs[0, :2] = torch.tensor([float("nan"), 0.5])
    state.scores[0, 2:5] = torch.tensor([float("nan"), 0.1, float("nan")])
    assert shown_after(state, pool) == [1, 3]


def test_a_merge_leaves_a_list_of_what_it_merges(isa, pool):
    state = one_sequence(3, 3, BUDGET=2, SWAP=Swap.MERGE)
    state.base_mask[0, 2] = 2
    state.scores[0, 3:6] = 0.9
    assert shown_after(state, pool) == [2, 3, 4, 6]
    assert state.dropped_indices[0, : int(state.dropped_len)].tolist() == [0, 1]
    state.scores[0, 3:6] = 0.0
    state.probs[0, :2] = 1.0
    assert shown_after(state, pool) == [0, 1, 2]
    assert state.dropped_len.item() == 0


def test_rows_without_an_action_keep_their_lists(isa, pool):
    state = one_sequence(2, 2)
    assert shown_after(state, pool, Action.NONE) == []
    assert shown_after(state, pool, Action.RESTORE) == [0, 1]


def test_lists_that_name_no_slot_are_survived_and_reported(isa, pool):
    state = one_sequence(7, 12, SWAP=Swap.FULL)
    bad = torch.tensor([*hostile_indices(20), 4, 4], dtype=torch.int32)
    fill_list(state.base_indices[0], state.base_len[0], bad)
    fill_list(state.reserve_indices[0], state.reserve_len[0], bad.flip(0) + (bad.flip(0) == 4))
    status = torch.zeros(1, dtype=torch.int32)
    assert shown_after(state, pool, status=status) == [4, 5]
    assert status.item() == 2
    status.zero_()
    ops.shift_detect(state, first_sequence(), Phase.END, pool=pool, status=status)
    assert status.item() == 2
    state = one_sequence(3, 3, BUDGET=0, SWAP=Swap.MERGE, MERGE_SLOT=7)
    assert shown_after(state, pool, status=status.zero_()) == []
    assert status.item() == 2


@pytest.mark.parametrize("length", [INT_MIN, -1, 8, INT_MAX])
def test_lengths_out_of_range_are_survived_and_reported(isa, length, pool):
    state = one_sequence(3, 3)
    state.base_indices.copy_(torch.tensor([0, 1, 2, -1, -1, -1, -1]))
    state.base_len.fill_(length)
    for action in (Action.SELECT, Action.RESTORE):
        status = torch.zeros(1, dtype=torch.int32)
        shown_after(state, pool, action, status)
        assert status.item() == (8 | 2 if length > 0 else 8)
    ops.shift_detect(state, first_sequence(), Phase.END, pool=pool, status=status.zero_())
    assert status.item() == (8 | 2 if length > 0 else 8)


def test_a_list_that_is_too_short_is_filled_and_reported(isa, pool):
    for action, swap, expected in ((Action.SELECT, Swap.FULL, [0, 1, 2, 3]),
                                   (Action.RESTORE, Swap.FULL, [0, 1, 2, 3])):
        state = one_sequence(5, 3, SWAP=swap)
        state.state[0, StateWord.ACTION] = action
        indices, status = Guarded(1, 1, 4, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        row, length = first_sequence(), torch.zeros(1, 1, dtype=torch.int32)
        ops.shift_select(state, row, indices.tensor, length, 0, pool=pool, status=status)
        indices.check()
        assert indices.tensor.flatten().tolist() == expected
        assert status.item() == 8


def test_sequences_out_of_range_are_skipped_and_reported(isa, pool):
    state = make_state(33, 0)
    expected = copy_of(state)
    indices, length = torch.zeros(MAX_BATCH, 1, 33).int(), torch.zeros(MAX_BATCH, 1).int()
    for rows, bit in (([-1, -1], 0), (hostile_indices(MAX_BATCH)[1:], 1)):
        rows, status = torch.tensor(rows, dtype=torch.int32), torch.zeros(1, dtype=torch.int32)
        ops.shift_detect(state, rows, Phase.END, pool=pool, status=status)
        assert status.item() == bit
        ops.shift_select(state, rows, indices, length, 0, pool=pool, status=status)
        assert status.item() == bit
        expected.score_idx[: len(rows)] = -1
        assert_same_state(state, expected)


@pytest.mark.parametrize("bad", ["dtype", "shape", "list", "device"])
def test_a_bad_tensor_of_the_state_is_named(bad, pool):
    state = one_sequence(3, 3)
    unused = ("score_indices", "score_len", "head_weights", "layer_weights", "norm", "mass")
    for name, good in vars(state).items():
        if name in unused:
            continue
        value = {"dtype": good.half, "shape": lambda x=good: x[:0], "list": good.tolist,
                 "device": lambda x=good: x.to("meta")}[bad]()
        with pytest.raises(OptionError, match=r"^state\.\w+: expected .*, got ") as caught:
            changed = replace(state, **{name: value})
            ops.shift_detect(changed, first_sequence(), Phase.END, pool=pool)
        assert name == "probs" or str(caught.value).startswith(f"state.{name}: ")
