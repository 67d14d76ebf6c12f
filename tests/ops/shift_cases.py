"""Random states of the shift policy: every combination of options, ties, and odd values."""

from __future__ import annotations

from dataclasses import fields, replace
from itertools import product

import torch
from torch import Tensor

from pydstp import ops
from pydstp.ops import Action, PolicyWord, ShiftState, StateWord
from tests.compare import assert_bitwise

MAX_BATCH = 4
COMBINATIONS = list(product(ops.Trigger, ops.Swap, ops.Retrigger, ops.Applies, (0, 1)))


def copy_of(state: ShiftState) -> ShiftState:
    return replace(state, **{f.name: getattr(state, f.name).clone() for f in fields(state)})


def assert_same_state(actual: ShiftState, expected: ShiftState, is_exact: bool = True) -> None:
    """Everything but the workspace and what lies past the end of a list."""
    for name in (field.name for field in fields(ShiftState)):
        got, wanted = getattr(actual, name), getattr(expected, name)
        if name in ("similarity", "similarity_sum") and not is_exact:
            torch.testing.assert_close(got, wanted, rtol=1e-6, atol=1e-6)
        elif name == "dropped_indices":
            assert_same_lists(got, wanted, expected.dropped_len)
        elif name != "select_workspace":
            assert_bitwise(got, wanted)


def assert_same_lists(actual: Tensor, expected: Tensor, lengths: Tensor) -> None:
    """[..., capacity] lists, compared up to their lengths."""
    is_listed = torch.arange(actual.shape[-1]) < lengths.unsqueeze(-1)
    assert_bitwise(actual * is_listed, expected * is_listed)


def fill_list(indices: Tensor, length: Tensor, slots: Tensor) -> None:
    indices[: len(slots)] = slots
    length.fill_(len(slots))


def set_base(state: ShiftState, seq: int, is_base: Tensor, pseudo: int = 0) -> None:
    """Slots of S0 by flag, the last `pseudo` of the flags being pseudo tokens."""
    first_pseudo = len(is_base) - pseudo
    is_base[first_pseudo:] = True
    state.base_mask[seq] = 0
    state.base_mask[seq, : len(is_base)] = is_base.to(torch.uint8)
    state.base_mask[seq, first_pseudo : len(is_base)] = 2
    fill_list(state.base_indices[seq], state.base_len[seq], is_base.nonzero()[:, 0].int())
    fill_list(state.reserve_indices[seq], state.reserve_len[seq], (~is_base).nonzero()[:, 0].int())


def make_state(capacity: int, case: int) -> ShiftState:
    """Sequence s of case c has combination MAX_BATCH * c + s of the options; the last slot is free
    for a merge. Lists end in entries that name no slot, and nothing may read those."""
    random = torch.Generator().manual_seed(case)
    state = ops.ShiftState.allocate(MAX_BATCH, capacity, 3, 2)
    for indices in (state.base_indices, state.reserve_indices, state.dropped_indices):
        indices.fill_(2**31 - 1)
    for seq in range(MAX_BATCH):
        size = max(1, capacity - 1 - integer(random, 3))
        share = (0.0, 0.3, 0.5, 1.0)[integer(random, 4)]
        is_base = torch.rand(size, generator=random) < share
        set_base(state, seq, is_base, pseudo=min(size - 1, integer(random, 3)))
        trigger, swap, retrigger, applies, joint = COMBINATIONS[
            (MAX_BATCH * case + seq) % len(COMBINATIONS)]
        budget = integer(random, size + 3)
        state.policy[seq] = torch.tensor([
            trigger, swap, retrigger, applies, integer(random, 4) + 1, integer(random, 5),
            budget, capacity - 1 if capacity > size else -1, joint,
            *torch.randint(-2**31, 2**31, (2,), generator=random).tolist(), budget // 2])
        state.policy_float[seq] = torch.rand(2, generator=random)
        state.state[seq, ops.StateWord.RESERVE_READY] = integer(random, 2)
    return state


def integer(random: torch.Generator, high: int) -> int:
    return int(torch.randint(high, (), generator=random))


def new_values(state: ShiftState, random: torch.Generator) -> None:
    """This step's attention: few different values, so that there are ties; some are no numbers."""
    for tensor in (state.probs, state.anchor, state.scores):
        levels = (2, 9, 1 << 20)[integer(random, 3)]
        drawn = torch.randint(levels, tensor.shape, generator=random)
        tensor.copy_(drawn / (levels - 1))
    state.mass.copy_(torch.rand(state.mass.shape, generator=random))
    if integer(random, 4) == 0:
        state.mass[integer(random, MAX_BATCH), 0] = float("nan")
        state.scores[torch.rand(state.scores.shape, generator=random) < 0.2] = float("nan")
    if integer(random, 8) == 0:
        state.probs[integer(random, MAX_BATCH)] = 0


def one_sequence(num_base: int, num_reserve: int, **policy: int) -> ShiftState:
    """S0 is slots [0, num_base), R the next ones; it triggers at every step and keeps num_base."""
    capacity = num_base + num_reserve + 1
    state = ops.ShiftState.allocate(1, capacity, 1, 1)
    set_base(state, 0, torch.arange(capacity - 1) < num_base)
    given = {"TRIGGER": ops.Trigger.EVERY, "EXPAND_STEPS": 2, "BUDGET": num_base,
             "MIN_BUDGET": num_base, "MERGE_SLOT": capacity - 1, **policy}
    for name, value in given.items():
        state.policy[0, PolicyWord[name]] = value
    state.state[0, StateWord.RESERVE_READY] = 1
    return state


def first_sequence() -> Tensor:
    """A batch of the first sequence alone."""
    return torch.zeros(1, dtype=torch.int32)


def shown_after(state: ShiftState, pool: ops.ThreadPool, action: Action = Action.SELECT,
                status: Tensor | None = None) -> list[int]:
    """The list after `action`."""
    state.state[0, StateWord.ACTION] = action
    indices = torch.full((1, 1, state.probs.shape[1]), -1, dtype=torch.int32)
    length = torch.full((1, 1), -1, dtype=torch.int32)
    ops.shift_select(state, first_sequence(), indices, length, 0, pool=pool, status=status)
    return indices[0, 0, : max(0, int(length))].tolist()
