"""A low-bit copy of the visual keys of one layer, by which pruned tokens are found again."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.cache import describe_arenas
from pydstp.ops.checks import address, check_index_range, check_rank, op, optional_address
from pydstp.ops.runtime import ThreadPool, call

_INT32, _FLOAT32 = torch.int32, torch.float32
_STATISTICS = {"max": 0, "rms": 1}  # SketchStatistic of csrc/kernels/key_sketch.h
BITS = (2, 4, 8, 16)
_BLOCK = 16  # keys; kSketchBlock


@dataclass(frozen=True, eq=False)
class KeySketch:
    """The keys of one layer in few bits; allocated once, then only written to.

    A key is divided by `channel_scale` and stored with 2, 4 or 8 bits per channel and one scale; q
    is multiplied by `channel_scale` instead. With 16 bits there is no copy: the exact keys are read
    from the arena.

    Entries lie in the order of the reserve, whatever their slots, so that all of it is read from
    end to end; the words (4 bytes) of 16 entries stand side by side. Any number of them can be
    written, in any order, and the others stay as they are.

    Attributes:
        codes: [max_batch, ceil(visual_capacity / 16), num_kv_heads, words, 16, 4] uint8, with
            ceil(head_dim * bits / 32) words.
        scales: [max_batch, ceil(visual_capacity / 16), num_kv_heads, 16] float32.
        channel_scale: [max_batch, num_kv_heads, head_dim / 2] float32, one per RoPE pair, positive.
        bits: 2, 4, 8 or 16.
    """

    codes: Tensor
    scales: Tensor
    channel_scale: Tensor
    bits: int

    @classmethod
    def allocate(cls, max_batch: int, visual_capacity: int, num_kv_heads: int, head_dim: int,
                 bits: int = 4, device: torch.device | str = "cpu") -> KeySketch:
        """As many entries as there are visual slots; all channel scales are 1.

        Raises:
            OptionError: another number of bits, or an odd head_dim.
        """
        if bits not in BITS:
            raise OptionError(f"bits: expected one of {BITS}, got {bits!r}")
        if head_dim % 2:
            raise OptionError(f"head_dim: expected an even number, got {head_dim}")
        shapes = _shapes(max_batch, visual_capacity, num_kv_heads, head_dim, bits)
        place = {"dtype": torch.float32, "device": device}
        return cls(torch.zeros(shapes[0], dtype=torch.uint8, device=device),
                   torch.zeros(shapes[1], **place), torch.ones(shapes[2], **place), bits)

    @property
    def nbytes(self) -> int:
        """Bytes of all three tensors."""
        return self.codes.nbytes + self.scales.nbytes + self.channel_scale.nbytes

    @property
    def slot_bytes(self) -> int:
        """Bytes that scoring one entry reads: codes and scales of all KV heads; 0 with 16 bits."""
        _, _, num_kv_heads, words, _, _ = self.codes.shape
        return num_kv_heads * (4 * words + 4) if self.bits < 16 else 0

    def addresses(self, arena: tuple[int, ...]) -> tuple[int, int, int, int]:
        """What the native side takes; `arena` is what `describe_arenas` gave.

        Raises:
            OptionError: a tensor of another dtype or shape than `allocate` gives for this arena.
        """
        max_batch, visual_capacity, _, num_kv_heads, head_dim = arena[2:7]
        if self.bits not in BITS or head_dim % 2:
            raise OptionError(f"sketch: expected bits in {BITS} and an even head_dim, got "
                              f"{self.bits!r} and {head_dim}")
        shapes = _shapes(max_batch, visual_capacity, num_kv_heads, head_dim, self.bits)
        return (address(self.codes, "sketch.codes", torch.uint8, shapes[0]),
                address(self.scales, "sketch.scales", _FLOAT32, shapes[1]),
                address(self.channel_scale, "sketch.channel_scale", _FLOAT32, shapes[2]),
                self.bits)


def _shapes(max_batch: int, visual_capacity: int, num_kv_heads: int, head_dim: int,
            bits: int) -> tuple[tuple[int, ...], tuple[int, ...], tuple[int, ...]]:
    """Of codes, scales and channel_scale; no codes and scales with 16 bits."""
    blocks = -(-visual_capacity // _BLOCK) if bits < 16 else 0
    by_head = (max_batch, blocks, num_kv_heads)
    return ((*by_head, -(-head_dim * bits // 32), _BLOCK, 4), (*by_head, _BLOCK),
            (max_batch, num_kv_heads, head_dim // 2))


@op
def sketch_scale(visual: Tensor, sketch: KeySketch, seq_idx: int, slots: Tensor, *,
                 pool: ThreadPool, statistic: str = "max", status: Tensor | None = None,
                 check_indices: bool = False) -> None:
    """Set a sequence's channel scales from the keys in some slots: those of the prompt.

    Keys that were sketched with other scales have to be sketched again.

    Args:
        visual: [max_batch, visual_capacity, 2, num_kv_heads, head_dim], this layer's.
        sketch: what `KeySketch.allocate` gave for this arena.
        seq_idx: 0 <= seq_idx < max_batch.
        slots: [num_slots] int32 visual slots; -1 is skipped.
        statistic: "max" or "rms" of both channels of a RoPE pair over all slots. Where it is zero
            or not finite the scale is 1.
    """
    arena, places = _places(visual, sketch, seq_idx, slots, check_indices)
    if statistic not in _STATISTICS:
        raise OptionError(f"statistic: expected one of {list(_STATISTICS)}, got {statistic!r}")
    call(_C.sketch_scale, pool, arena, *places, optional_address(status, "status", _INT32, (1,)),
         seq_idx, slots.shape[0], _STATISTICS[statistic])


@op
def sketch_keys(visual: Tensor, sketch: KeySketch, seq_idx: int, slots: Tensor, *,
                pool: ThreadPool, first_entry: int = 0, status: Tensor | None = None,
                check_indices: bool = False) -> None:
    """Write the sketch of the keys in some slots, with the sequence's channel scales as they are.

    Args:
        visual, sketch, seq_idx, slots: as in `sketch_scale`; an entry whose slot is -1 stays.
        first_entry: of the reserve: slots[i] becomes entry first_entry + i.
    """
    arena, places = _places(visual, sketch, seq_idx, slots, check_indices)
    status_address = optional_address(status, "status", _INT32, (1,))
    most = arena[3] - slots.shape[0]
    if not isinstance(first_entry, int) or not 0 <= first_entry <= most:
        raise OptionError(f"first_entry: expected an int in [0, {most}] for {slots.shape[0]} "
                          f"slots, got {first_entry!r}")
    if sketch.bits < 16:
        call(_C.sketch_keys, pool, arena, *places, status_address, seq_idx, slots.shape[0],
             first_entry)


def _places(visual: Tensor, sketch: KeySketch, seq_idx: int, slots: Tensor,
            check_indices: bool) -> tuple[tuple[int, ...], tuple[object, ...]]:
    """Check where the keys of a sequence lie: (arena, (sketch, slots)) for a call."""
    arena = describe_arenas(visual, visual[:, :0])
    sketched = checked_sketch(sketch, arena)
    check_rank(slots, "slots", ("num_slots",))
    if not isinstance(seq_idx, int) or not 0 <= seq_idx < arena[2]:
        raise OptionError(f"seq_idx: expected an int in [0, {arena[2]}), got {seq_idx!r}")
    slots_address = address(slots, "slots", _INT32, (slots.shape[0],))
    if check_indices:
        check_index_range(slots, "slots", -1, arena[3])
    return arena, (sketched, slots_address)


def checked_sketch(sketch: KeySketch, arena: tuple[int, ...]) -> tuple[int, int, int, int]:
    """`KeySketch.addresses`, for an argument that may be anything."""
    if not isinstance(sketch, KeySketch):
        raise OptionError(f"sketch: expected a KeySketch, got {type(sketch).__name__}")
    return sketch.addresses(arena)
