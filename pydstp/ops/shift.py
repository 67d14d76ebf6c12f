"""Ops of the decoding-stage shift policy: when attention has turned, and what is shown then."""

from __future__ import annotations

from dataclasses import dataclass, fields
from enum import IntEnum

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import address, check_batch, check_rank, op, optional_address
from pydstp.ops.runtime import ThreadPool, call

_INT32 = torch.int32


class Mode(IntEnum):
    """What a sequence shows: the base set, or a selection for some steps."""

    BASE = 0
    EXPANDED = 1


class Outcome(IntEnum):
    """What becomes of the step: it stands, waits for the reserve, or is run again."""

    COMMIT = 0
    PENDING = 1
    REDO = 2


class Action(IntEnum):
    """What `shift_select` has to do."""

    NONE = 0
    SELECT = 1
    RESTORE = 2


class Trigger(IntEnum):
    """What makes a step trigger."""

    NEVER = 0
    RISD = 1
    RANDOM = 2
    AVG = 3
    EVERY = 4


class Swap(IntEnum):
    """What is shown after a trigger."""

    CPTS = 0
    HARD = 1
    MERGE = 2
    FULL = 3
    ADD = 4
    TOP = 5


class Retrigger(IntEnum):
    """What a trigger does while a selection is shown."""

    OFF = 0
    EXTEND = 1
    RESELECT = 2


class Applies(IntEnum):
    """The first step that reads a selection: the next, this one repeated, or the rest of this."""

    NEXT = 0
    REDO = 1
    EARLY = 2


class Phase(IntEnum):
    """Where in a step `shift_detect` is called."""

    MID = 0
    END = 1
    REDONE = 2


class StateWord(IntEnum):
    """Columns of `ShiftState.state`."""

    MODE = 0
    REMAINING = 1
    OUTCOME = 2
    TRIGGERS = 3
    STEPS = 4
    RESERVE_READY = 5
    ACTION = 6


class PolicyWord(IntEnum):
    """Columns of `ShiftState.policy`."""

    TRIGGER = 0
    SWAP = 1
    RETRIGGER = 2
    APPLIES = 3
    EXPAND_STEPS = 4
    MAX_RETURNED = 5
    BUDGET = 6
    MERGE_SLOT = 7
    JOINT = 8
    SEED_LOW = 9
    SEED_HIGH = 10
    MIN_BUDGET = 11


class PolicyFloat(IntEnum):
    """Columns of `ShiftState.policy_float`."""

    THRESHOLD = 0
    TRIGGER_RATE = 1


@dataclass(frozen=True, eq=False)
class ShiftState:
    """Everything the policy knows, one row per sequence; allocated once, then only written to.

    S0 is the base set, R the reserve: the visual slots outside it. Lists are sorted int32.

    Attributes:
        probs: [max_batch, visual_capacity] float32, this step's attention by slot, 0 outside S0.
        anchor: [max_batch, visual_capacity] float32, the attention that steps are compared with.
        scores: [max_batch, visual_capacity] float32, attention over what was scored on a trigger.
        base_mask: [max_batch, visual_capacity] uint8: 0 not in S0, 1 in it, 2 a pseudo token in it.
        base_indices, base_len: [max_batch, visual_capacity] and [max_batch] int32: S0.
        reserve_indices, reserve_len: the same: R.
        score_indices: [max_batch, 1, visual_capacity] int32, what a trigger scores: R, or S0 and R
            if they are normalised together.
        score_len: [max_batch, 1] int32.
        dropped_indices, dropped_len: as `base_indices`: what the last selection of a merge left out
            of S0.
        head_weights: [max_batch, num_heads] float32, as `Monitor.head_weights`.
        layer_weights: [max_batch, num_layers] float32, as `Monitor.layer_weights`.
        norm: [max_batch] int32, as `Monitor.norm`.
        mass: [max_batch, num_heads] float32, as `Monitor.mass`.
        similarity: [max_batch] float32, of the last step.
        similarity_sum: [max_batch] float64, over all steps.
        state: [max_batch, 8] int32, see `StateWord`.
        policy: [max_batch, 12] int32, see `PolicyWord`.
        policy_float: [max_batch, 2] float32, see `PolicyFloat`.
        score_idx: [max_batch] int32, by row of the batch: the sequence to score after
            `shift_detect`, or -1.
        select_workspace: [max_batch, 2, visual_capacity] int32.
    """

    probs: Tensor
    anchor: Tensor
    scores: Tensor
    base_mask: Tensor
    base_indices: Tensor
    base_len: Tensor
    reserve_indices: Tensor
    reserve_len: Tensor
    score_indices: Tensor
    score_len: Tensor
    dropped_indices: Tensor
    dropped_len: Tensor
    head_weights: Tensor
    layer_weights: Tensor
    norm: Tensor
    mass: Tensor
    similarity: Tensor
    similarity_sum: Tensor
    state: Tensor
    policy: Tensor
    policy_float: Tensor
    score_idx: Tensor
    select_workspace: Tensor

    @classmethod
    def allocate(cls, max_batch: int, visual_capacity: int, num_layers: int, num_heads: int,
                 device: torch.device | str = "cpu") -> ShiftState:
        """All zeros: empty sets, no monitored layer, a policy that never triggers."""
        sizes = {"visual_capacity": visual_capacity, "num_layers": num_layers,
                 "num_heads": num_heads}
        layout = _layout(max_batch, **sizes)
        return cls(**{name: torch.zeros(shape, dtype=dtype, device=device)
                      for name, (dtype, shape) in layout.items()})

    def addresses(self) -> tuple[tuple[int, ...], int, int]:
        """The arrays in the order of the native struct, max_batch and visual_capacity.

        Raises:
            OptionError: a tensor of another dtype or shape than `allocate` gives.
        """
        check_rank(self.probs, "state.probs", ("max_batch", "visual_capacity"))
        max_batch, capacity = self.probs.shape
        layout = _layout(max_batch, capacity)
        found = (address(getattr(self, name), f"state.{name}", *layout[name]) for name in _NATIVE)
        return tuple(found), max_batch, capacity


def _layout(
    max_batch: int, visual_capacity: int, num_layers: int = 0, num_heads: int = 0
) -> dict[str, tuple[torch.dtype, tuple[int, ...]]]:
    """The dtype and the shape of every tensor of a `ShiftState`."""
    by_slot = (max_batch, visual_capacity)
    shapes = {
        _INT32: {
            "base_indices": by_slot, "base_len": (max_batch,), "reserve_indices": by_slot,
            "reserve_len": (max_batch,), "score_indices": (max_batch, 1, visual_capacity),
            "score_len": (max_batch, 1), "dropped_indices": by_slot, "dropped_len": (max_batch,),
            "norm": (max_batch,), "state": (max_batch, 8), "policy": (max_batch, 12),
            "score_idx": (max_batch,), "select_workspace": (max_batch, 2, visual_capacity)},
        torch.float32: {
            "probs": by_slot, "anchor": by_slot, "scores": by_slot, "similarity": (max_batch,),
            "head_weights": (max_batch, num_heads), "layer_weights": (max_batch, num_layers),
            "mass": (max_batch, num_heads), "policy_float": (max_batch, 2)},
        torch.float64: {"similarity_sum": (max_batch,)},
        torch.uint8: {"base_mask": by_slot},
    }
    return {name: (dtype, shape) for dtype, named in shapes.items()
            for name, shape in named.items()}


# What the native struct holds, in its order; the rest is for `Monitor` and `attention_probs`.
_NATIVE = tuple(field.name for field in fields(ShiftState) if field.name not in (
    "score_indices", "score_len", "head_weights", "layer_weights", "norm", "mass"))


@op
def shift_detect(state: ShiftState, seq_idx: Tensor, phase: Phase, *, pool: ThreadPool,
                 status: Tensor | None = None) -> None:
    """Compare this step's attention with the anchor and advance each sequence's state.

    Writes `similarity`, `similarity_sum`, `state` and, for every row of the batch, `score_idx`.
    OUTCOME and ACTION become COMMIT and NONE first, whatever the phase. OUTCOME PENDING asks for
    the reserve and for the same call again. ACTION SELECT asks for scores (where `score_idx` is not
    -1) and then for `shift_select`, RESTORE for `shift_select` alone.

    The similarity is the cosine of `anchor` and `probs` over S0, in [0, 1]; 1 where one of them is
    zero or not a number.

    Args:
        state: what `ShiftState.allocate` gave.
        seq_idx: [batch] int32, batch <= max_batch, no sequence twice; -1 skips the row.
        phase: END after a step; MID inside one, where policies with Applies.EARLY act; REDONE after
            the second run of a step whose OUTCOME was REDO, for those sequences alone.
    """
    addresses = _addresses(state)
    if not isinstance(phase, int) or phase not in (Phase.MID, Phase.END, Phase.REDONE):
        raise OptionError(f"phase: expected a Phase, got {phase!r}")
    batch = check_batch(seq_idx, addresses[1])
    call(_C.shift_detect, pool, *addresses, address(seq_idx, "seq_idx", _INT32, (batch,)),
         optional_address(status, "status", _INT32, (1,)), batch, int(phase))


@op
def shift_select(state: ShiftState, seq_idx: Tensor, visible_indices: Tensor, visible_len: Tensor,
                 group_idx: int, *, pool: ThreadPool, status: Tensor | None = None) -> None:
    """Write the list of one group for each sequence whose ACTION is SELECT or RESTORE.

    RESTORE shows S0. SELECT takes the BUDGET best of S0 and R (ties: the lowest slot) and shows, by
    SWAP: CPTS these and S0; HARD these and pseudo tokens; MERGE the same and MERGE_SLOT, with what
    it leaves of S0 in `dropped_indices` (if that is nothing, no MERGE_SLOT); ADD S0 and the
    MAX_RETURNED best of R; FULL everything; TOP the best of the n slots of S0 alone, n times the
    largest `mass` of them rounded up (1e-6 of it is taken for rounding), but from MIN_BUDGET to
    BUDGET. A slot of S0 counts its share of `probs` (its `probs` with TOP), one of R its score;
    both their score if JOINT is set. NaN counts as 0.

    Args:
        state: what `ShiftState.allocate` gave.
        seq_idx: [batch] int32, batch <= max_batch, no sequence twice; -1 skips the row.
        visible_indices: [max_batch, num_groups, list_capacity] int32; lists are written sorted.
        visible_len: [max_batch, num_groups] int32.
        group_idx: 0 <= group_idx < num_groups.
    """
    addresses = _addresses(state)
    check_rank(visible_indices, "visible_indices", ("max_batch", "num_groups", "list_capacity"))
    max_batch, (num_groups, list_capacity) = addresses[1], visible_indices.shape[1:]
    if not isinstance(group_idx, int) or not 0 <= group_idx < num_groups:
        raise OptionError(f"group_idx: expected an int in [0, {num_groups}), got {group_idx!r}")
    batch, shape = check_batch(seq_idx, max_batch), (max_batch, num_groups, list_capacity)
    check_rank(state.mass, "state.mass", ("max_batch", "num_heads"))
    num_heads = state.mass.shape[1]
    call(_C.shift_select, pool, *addresses, address(seq_idx, "seq_idx", _INT32, (batch,)),
         address(visible_indices, "visible_indices", _INT32, shape),
         address(visible_len, "visible_len", _INT32, shape[:2]),
         optional_address(status, "status", _INT32, (1,)), batch, *shape[1:], group_idx,
         address(state.mass, "state.mass", torch.float32, (max_batch, num_heads)), num_heads)


def _addresses(state: ShiftState) -> tuple[tuple[int, ...], int, int]:
    """`ShiftState.addresses`, for an argument that may be anything."""
    if not isinstance(state, ShiftState):
        raise OptionError(f"state: expected a ShiftState, got {type(state).__name__}")
    return state.addresses()
