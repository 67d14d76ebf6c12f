"""shift_select with Swap.TOP: as many of the base set's best slots as the largest mass asks for."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from torch import Tensor

from pydstp import ops
from pydstp.errors import OptionError
from pydstp.ops import Action, PolicyWord, ShiftState, Swap
from tests.ops.shift_cases import first_sequence, set_base, shown_after

NAN, INF = float("nan"), float("inf")


def one_top(num_base: int, low: int, high: int, mass: list[float], num_reserve: int = 0,
            pseudo: int = 0) -> ShiftState:
    """S0 is slots [0, num_base), its last `pseudo` pseudo tokens; the first slots are the best."""
    capacity = num_base + num_reserve + 1
    state = ops.ShiftState.allocate(1, capacity, 1, len(mass))
    set_base(state, 0, torch.arange(num_base + num_reserve) < num_base)
    state.base_mask[0, num_base - pseudo : num_base] = 2
    state.policy[0, PolicyWord.SWAP] = Swap.TOP
    state.policy[0, PolicyWord.MIN_BUDGET], state.policy[0, PolicyWord.BUDGET] = low, high
    state.probs[0] = torch.arange(capacity, 0, -1) / 100
    state.mass[0] = torch.tensor(mass)
    return state


@pytest.mark.parametrize("mass, wanted", [
    ([0.0], 2), ([0.1], 2), ([0.2], 2), ([0.21], 3), ([0.3], 3), ([0.5, 0.31], 5), ([0.8], 7),
    ([1.0], 7), ([NAN, 0.4], 4), ([0.4, NAN, 0.1], 4), ([NAN], 2), ([INF], 7), ([-INF], 2)],
    ids=str)
def test_the_neediest_head_decides_between_the_bounds(isa, mass, wanted, pool):
    state = one_top(10, 2, 7, mass)
    assert shown_after(state, pool) == list(range(wanted))


@pytest.mark.parametrize("num_base", [1, 3, 7, 97, 500])
def test_shares_that_are_whole_numbers_are_not_rounded_up(isa, num_base, pool):
    """Masses as they come from uniform logits: N of n_ctx, in fp32."""
    for context in {num_base, num_base + 1, 2 * num_base, 3 * num_base, num_base * num_base}:
        mass = torch.tensor(float(num_base)) / torch.tensor(float(context))
        for rounded in (mass, torch.nextafter(mass, torch.tensor(2.0)),
                        torch.nextafter(mass, torch.tensor(0.0))):
            state = one_top(num_base, 1, num_base, [float(rounded)])
            assert len(shown_after(state, pool)) == -(-num_base * num_base // context)


@pytest.mark.parametrize("low, high, wanted", [
    (3, 3, 3), (1, 1, 1), (8, 8, 8), (9, 99, 8), (0, 0, 0), (-5, -1, 0), (6, 4, 4)])
def test_equal_bounds_fix_the_budget_and_wrong_ones_are_clamped(isa, low, high, wanted, pool):
    assert len(shown_after(one_top(8, low, high, [0.5]), pool)) == wanted


def test_the_reserve_stays_hidden_and_pseudo_tokens_compete(isa, pool):
    state = one_top(5, 3, 3, [0.0], num_reserve=4, pseudo=2)
    state.scores.fill_(1.0)
    assert shown_after(state, pool) == [0, 1, 2]
    state.probs[0, :5] = torch.tensor([0.1, 0.2, 0.3, 0.4, 0.5])
    assert shown_after(state, pool) == [2, 3, 4]
    assert shown_after(state, pool, Action.RESTORE) == [0, 1, 2, 3, 4]


def test_scores_decide_where_joint_is_set_and_ties_go_to_the_lowest(isa, pool):
    state = one_top(6, 3, 3, [0.0])
    state.probs[0, :6] = torch.tensor([0.0, 0.2, 0.1, 0.2, NAN, 0.2])
    assert shown_after(state, pool) == [1, 3, 5]
    state.probs[0, :6] = 0.25
    assert shown_after(state, pool) == [0, 1, 2]
    state.policy[0, PolicyWord.JOINT] = 1
    state.scores[0, :6] = torch.tensor([1e-30, 0.0, 2e-30, -0.0, 3e-30, 0.0])
    assert shown_after(state, pool) == [0, 2, 4]
    state.policy[0, PolicyWord.BUDGET] = 4
    assert shown_after(state, pool) == [0, 2, 4]  # the mass asks for none, and 3 is the least
    state.policy[0, PolicyWord.MIN_BUDGET] = 4
    assert shown_after(state, pool) == [0, 1, 2, 4]


def test_neighbouring_floats_are_told_apart(isa, pool):
    state = one_top(4, 1, 1, [0.0])
    low = torch.tensor(0.3)
    state.probs[0, :4] = torch.stack([low, low, torch.nextafter(low, torch.tensor(1.0)), low])
    assert shown_after(state, pool) == [2]


def uniform_mass(num_visual: int, num_text: int, pool: ops.ThreadPool) -> Tensor:
    """What attention with a zero query says of `num_visual` rows beside `num_text`."""
    visual, text = torch.ones(1, num_visual, 2, 1, 8), torch.ones(1, num_text, 2, 1, 8)
    listed = torch.arange(num_visual, dtype=torch.int32).view(1, 1, -1)
    mass = torch.zeros(1, 1)
    ops.attention_probs(
        torch.zeros(1, 1, 8), visual, text, seq_idx=first_sequence(), visible_indices=listed,
        visible_len=torch.full((1, 1), num_visual).int(), layer_to_group=torch.zeros(1, 1).int(),
        layer_idx=0, text_len=torch.full((1,), num_text).int(), scale=1.0, pool=pool,
        monitor=ops.Monitor(torch.zeros(1, num_visual), None, torch.ones(1, 1), torch.ones(1, 1),
                            torch.ones(1).int(), mass=mass))
    return mass


@pytest.mark.parametrize("num_visual, num_text", [(1, 1), (6, 3), (7, 14), (97, 31), (64, 64),
                                                  (100, 300), (333, 5)])
def test_one_head_with_uniform_logits(isa, num_visual, num_text, pool):
    """The budget is N times N of n_ctx, rounded up, whatever path the numbers took."""
    mass = uniform_mass(num_visual, num_text, pool)
    state = replace(one_top(num_visual, 1, num_visual, [0.0]), mass=mass)
    expected = math.ceil(num_visual * num_visual / (num_visual + num_text))
    assert len(shown_after(state, pool)) == expected


@pytest.mark.parametrize("bad", ["dtype", "shape", "rank", "list", "device"])
def test_a_bad_mass_is_named(bad, pool):
    state = one_top(3, 1, 2, [0.5])
    value = {"dtype": state.mass.half, "shape": lambda: state.mass.repeat(2, 1),
             "rank": lambda: state.mass[0], "list": state.mass.tolist,
             "device": lambda: state.mass.to("meta")}[bad]()
    with pytest.raises(OptionError, match=r"^state\.mass: expected .*, got "):
        shown_after(replace(state, mass=value), pool)
