"""Ops on the KV cache of one layer."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.checks import (
    address,
    check_index_range,
    check_rank,
    dtype_code,
    optional_address,
    row_address,
)
from pydstp.ops.runtime import ThreadPool, call

_CHUNK = 64  # kAttentionChunk of csrc/kernels/decode_attention.h
_INT32 = torch.int32


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
    arena = _arena(visual, text)
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
    arena = _arena(visual, text)
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


def attention_workspace(batch: int, num_heads: int, visible_indices: Tensor,
                        text: Tensor) -> Tensor:
    """A float32 workspace for `decode_attention` of up to `batch` rows, whatever their lengths."""
    size = _workspace_size(batch, num_heads, visible_indices, text)
    return torch.empty(size, dtype=torch.float32)  # whatever the process has for a default


def decode_attention(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
    pool: ThreadPool, workspace: Tensor | None = None, status: Tensor | None = None,
    out: Tensor | None = None, check_indices: bool = False,
) -> Tensor:
    """softmax(scale * q k) v over the visible visual rows and all text rows of each sequence.

    Row i reads sequence seq_idx[i]: the list visible_indices[seq, g, :visible_len[seq, g]] of its
    group g = layer_to_group[seq, layer_idx] in the visual arena, and text rows [0, text_len[seq]).
    A row with seq_idx -1, or with nothing to read, gives zeros.

    Args:
        q: [batch, num_heads, head_dim]; the stride of dimension 0 is free. Head h reads KV head
            h // (num_heads // num_kv_heads).
        visual: [max_batch, visual_capacity, 2, num_kv_heads, head_dim], this layer's.
        text: [max_batch, text_capacity, 2, num_kv_heads, head_dim], this layer's.
        seq_idx: [batch] int32.
        visible_indices: [max_batch, num_groups, list_capacity] int32.
        visible_len: [max_batch, num_groups] int32.
        layer_to_group: [max_batch, num_layers] int32.
        text_len: [max_batch] int32.
        workspace: what `attention_workspace` gives for this batch or a larger one, or None.
        out: [batch, num_heads, head_dim].

    Returns:
        [batch, num_heads, head_dim].
    """
    arena = _arena(visual, text)
    check_rank(q, "q", ("batch", "num_heads", "head_dim"))
    batch, num_heads = q.shape[:2]
    if not num_heads or num_heads % visual.shape[3]:
        raise OptionError(f"q: expected a multiple of {visual.shape[3]} heads, got {num_heads}")
    lists, sizes = _lists(visual.shape[0], layer_idx, visible_indices, visible_len, layer_to_group,
                          text_len)
    dtype, shape = visual.dtype, (batch, num_heads, visual.shape[4])
    rows = (row_address(q, "q", dtype, shape), arena, address(seq_idx, "seq_idx", _INT32, (batch,)))
    if check_indices:
        check_index_range(seq_idx, "seq_idx", -1, visual.shape[0])
        seqs = seq_idx[seq_idx >= 0].long()
        check_index_range(text_len[seqs], "text_len", 0, text.shape[1] + 1)
        groups = layer_to_group[seqs, layer_idx]
        check_index_range(groups, "layer_to_group", 0, sizes[0])
        _check_lists(visible_indices[seqs, groups], visible_len[seqs, groups], visual.shape[1])
    if workspace is None:
        workspace = attention_workspace(batch, num_heads, visible_indices, text)
    out = q.new_empty(shape) if out is None else out
    call(_C.decode_attention, pool, *rows, *lists,
         _workspace(workspace, batch, num_heads, visible_indices, text),
         optional_address(status, "status", _INT32, (1,)), address(out, "out", dtype, shape),
         batch, num_heads, *sizes, layer_idx, q.stride(0), scale)
    return out


def _arena(visual: Tensor, text: Tensor) -> tuple[int, ...]:
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


def _lists(
    max_batch: int, layer_idx: int, visible_indices: Tensor, visible_len: Tensor,
    layer_to_group: Tensor, text_len: Tensor,
) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Addresses of what each sequence shows, and (num_groups, list_capacity, num_layers)."""
    check_rank(visible_indices, "visible_indices", ("max_batch", "num_groups", "list_capacity"))
    check_rank(layer_to_group, "layer_to_group", ("max_batch", "num_layers"))
    _, num_groups, list_capacity = visible_indices.shape
    num_layers = layer_to_group.shape[1]
    if not isinstance(layer_idx, int) or not 0 <= layer_idx < num_layers:
        raise OptionError(f"layer_idx: expected an int in [0, {num_layers}), got {layer_idx!r}")
    shape = (max_batch, num_groups, list_capacity)
    addresses = (address(visible_indices, "visible_indices", _INT32, shape),
                 address(visible_len, "visible_len", _INT32, (max_batch, num_groups)),
                 address(layer_to_group, "layer_to_group", _INT32, (max_batch, num_layers)),
                 address(text_len, "text_len", _INT32, (max_batch,)))
    return addresses, (num_groups, list_capacity, num_layers)


def _workspace_size(batch: int, num_heads: int, visible_indices: Tensor, text: Tensor) -> int:
    chunks = -(-visible_indices.shape[2] // _CHUNK) - (-text.shape[1] // _CHUNK)
    return batch * chunks * num_heads * (text.shape[4] + 2)


def _workspace(workspace: Tensor, batch: int, num_heads: int, visible_indices: Tensor,
               text: Tensor) -> int:
    needed = _workspace_size(batch, num_heads, visible_indices, text)
    size = workspace.numel() if isinstance(workspace, Tensor) else needed
    if size < needed:
        raise OptionError(f"workspace: expected at least {needed} elements, got {size}")
    return address(workspace, "workspace", torch.float32, (size,))


def _check_lists(indices: Tensor, length: Tensor, capacity: int) -> None:
    """indices [rows, list_capacity], of which each row shows its first `length` entries."""
    check_index_range(length, "visible_len", 0, indices.shape[1] + 1)
    is_listed = torch.arange(indices.shape[1]) < length.unsqueeze(1)
    check_index_range(indices[is_listed], "visible_indices", 0, capacity)
