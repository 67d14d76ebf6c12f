"""Ops on the KV cache of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import (
    address,
    check_batch,
    check_index_range,
    check_rank,
    dtype_code,
    op,
    optional_address,
    row_address,
)
from pydstp.ops.runtime import ThreadPool, call

_INT32 = torch.int32


@op
def store_kv(k: Tensor, v: Tensor, visual: Tensor, text: Tensor, seq_idx: Tensor,
             slot_idx: Tensor, *, pool: ThreadPool, status: Tensor | None = None,
             check_indices: bool = False) -> None:
    """Write each token's K and V into its slot of one layer's arenas.

    Slots [0, visual_capacity) lie in the visual arena, the next text_capacity ones in the text
    arena. A token with seq_idx or slot_idx -1 is skipped. No slot may come twice in one call.

    Args:
        k, v: [num_tokens, num_kv_heads, head_dim]; the stride of dimension 0 is free.
        visual: [max_batch, visual_capacity, 2, num_kv_heads, head_dim].
        text: [max_batch, text_capacity, 2, num_kv_heads, head_dim].
        seq_idx, slot_idx: [num_tokens] int32.
    """
    arena = describe_arenas(visual, text)
    check_rank(k, "k", ("num_tokens", "num_kv_heads", "head_dim"))
    num_tokens = k.shape[0]
    shape, dtype = (num_tokens, *visual.shape[3:]), visual.dtype
    sources = (row_address(k, "k", dtype, shape), row_address(v, "v", dtype, shape))
    places = (address(seq_idx, "seq_idx", _INT32, (num_tokens,)),
              address(slot_idx, "slot_idx", _INT32, (num_tokens,)))
    if check_indices:
        check_index_range(seq_idx, "seq_idx", -1, visual.shape[0])
        check_index_range(slot_idx, "slot_idx", -1, visual.shape[1] + text.shape[1])
    call(_C.store_kv, pool, *sources, arena, *places,
         optional_address(status, "status", _INT32, (1,)), num_tokens, k.stride(0), v.stride(0))


@op
def gather_kv(visual: Tensor, text: Tensor, seq_idx: int, slots: Tensor, *, pool: ThreadPool,
              status: Tensor | None = None, out: Tensor | None = None,
              check_indices: bool = False) -> Tensor:
    """Rows of one sequence in the order of `slots`, numbered as in `store_kv`.

    A slot that names no row gives zeros.

    Args:
        visual, text: as in `store_kv`.
        seq_idx: 0 <= seq_idx < max_batch.
        slots: [num_slots] int32.
        out: [num_slots, 2, num_kv_heads, head_dim].

    Returns:
        [num_slots, 2, num_kv_heads, head_dim], K then V.
    """
    arena = describe_arenas(visual, text)
    check_rank(slots, "slots", ("num_slots",))
    num_slots, max_batch = slots.shape[0], visual.shape[0]
    if not isinstance(seq_idx, int) or not 0 <= seq_idx < max_batch:
        raise OptionError(f"seq_idx: expected an int in [0, {max_batch}), got {seq_idx!r}")
    slots_address = address(slots, "slots", _INT32, (num_slots,))
    if check_indices:
        check_index_range(slots, "slots", -1, visual.shape[1] + text.shape[1])
    shape = (num_slots, *visual.shape[2:])
    if out is None:
        out = visual.new_empty(shape)
    call(_C.gather_kv, pool, arena, slots_address, address(out, "out", visual.dtype, shape),
         optional_address(status, "status", _INT32, (1,)), seq_idx, num_slots)
    return out


@op
def mean_kv(visual: Tensor, *, seq_idx: Tensor, indices: Tensor, index_len: Tensor,
            dst_slot: Tensor, pool: ThreadPool, status: Tensor | None = None,
            check_indices: bool = False) -> None:
    """Make one visual row of each sequence the mean of the rows in its list, K and V alike.

    Sums are fp32, in the order of the list. A sequence with an empty list, or with dst_slot -1,
    keeps its row.

    Args:
        visual: [max_batch, visual_capacity, 2, num_kv_heads, head_dim], this layer's.
        seq_idx: [batch] int32, batch <= max_batch, no sequence twice; -1 skips the row.
        indices: [max_batch, list_capacity] int32 visual slots.
        index_len: [max_batch] int32.
        dst_slot: [max_batch] int32, by sequence.
    """
    arena = describe_arenas(visual, visual[:, :0])
    check_rank(indices, "indices", ("max_batch", "list_capacity"))
    (max_batch, capacity), list_capacity = arena[2:4], indices.shape[1]
    batch = check_batch(seq_idx, max_batch)
    lists = (address(seq_idx, "seq_idx", _INT32, (batch,)),
             address(indices, "indices", _INT32, (max_batch, list_capacity)),
             address(index_len, "index_len", _INT32, (max_batch,)),
             address(dst_slot, "dst_slot", _INT32, (max_batch,)))
    if check_indices:
        check_index_range(seq_idx, "seq_idx", -1, max_batch)
        seqs = seq_idx[seq_idx >= 0].long()
        check_index_range(dst_slot[seqs], "dst_slot", -1, capacity)
        check_index_range(index_len[seqs], "index_len", 0, list_capacity + 1)
        places = torch.arange(list_capacity, device=indices.device)
        is_listed = places < index_len[seqs].unsqueeze(1)
        check_index_range(indices[seqs][is_listed], "indices", 0, capacity)
    call(_C.mean_kv, pool, arena, *lists, optional_address(status, "status", _INT32, (1,)), batch,
         list_capacity)


def describe_arenas(visual: Tensor, text: Tensor) -> tuple[int, ...]:
    """Check both arenas and describe them to the native side."""
    code = dtype_code(visual, "visual")
    check_rank(visual, "visual", ("max_batch", "visual_capacity", "2", "num_kv_heads", "head_dim"))
    check_rank(text, "text", ("max_batch", "text_capacity", "2", "num_kv_heads", "head_dim"))
    max_batch, visual_capacity, pair, num_kv_heads, head_dim = shape = visual.shape
    if pair != 2 or not num_kv_heads or not head_dim:
        raise OptionError("visual: expected shape [max_batch, visual_capacity, 2, num_kv_heads, "
                          f"head_dim], none of the last two 0, got {list(shape)}")
    text_capacity = text.shape[1]
    text_shape = (max_batch, text_capacity, 2, num_kv_heads, head_dim)
    return (address(visual, "visual", visual.dtype, shape),
            address(text, "text", visual.dtype, text_shape),
            max_batch, visual_capacity, text_capacity, num_kv_heads, head_dim, code)
