"""How much attention keys get from many rows, with no matrix of all scores."""

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
    op,
    optional_address,
    row_address,
)
from pydstp.ops.runtime import ThreadPool, call

_PART_ROWS, _MOST_PARTS = 32, 8  # rows are cut into runs with sums of their own, on the CPU
_BLOCK_ROWS = 64  # whose scores exist at a time, on a GPU


@op
def attention_sums(q: Tensor, k: Tensor, *, scale: float, pool: ThreadPool,
                   visible_len: Tensor | None = None, per_row: bool = False,
                   without_last: bool = False, out: Tensor | None = None) -> Tensor:
    """The attention that keys get: softmax(scale * q @ k.T) over the keys that a row sees, mean
    over the query heads of a KV head, summed over rows.

    All sums are fp32. Scores exist for a few rows at a time. A row that sees no key adds nothing;
    what a row does not see changes no bit of what it adds.

    Args:
        q: [num_queries, num_heads, head_dim], head_dim even; rows may lie apart, here and below.
        k: [num_keys, num_kv_heads, head_dim]; num_kv_heads divides num_heads, and query head h
            reads KV head h // (num_heads // num_kv_heads).
        visible_len: [num_queries] int32: row i sees so many keys, the first ones. Causal rows
            behind a cached prefix see prefix + i + 1. None: all.
        per_row: do not sum over rows.
        without_last: leave out what a row gives to the last key that it sees, which of causal rows
            is their own. It takes part in the softmax.
        out: the result's memory.

    Returns:
        [num_kv_heads, num_keys] float32; with per_row [num_kv_heads, num_queries, num_keys].
    """
    code, (num_queries, num_heads, head_dim) = dtype_code(q, "q"), _checked_shape(q, k)
    num_keys, num_kv_heads, _ = k.shape
    inputs = (row_address(q, "q", q.dtype, q.shape),
              row_address(k, "k", q.dtype, (num_keys, num_kv_heads, head_dim)),
              optional_address(visible_len, "visible_len", torch.int32, (num_queries,)))
    if visible_len is not None:
        check_index_range(visible_len, "visible_len", 0, num_keys + 1)
    shape = (num_kv_heads, num_queries, num_keys) if per_row else (num_kv_heads, num_keys)
    out = q.new_empty(shape, dtype=torch.float32) if out is None else out
    address(out, "out", torch.float32, shape)
    out.zero_()
    if q.is_cuda:
        return _compose(q, k, scale, visible_len, per_row, without_last, out)
    num_parts = max(1, min(_MOST_PARTS, num_queries // _PART_ROWS))
    parts = out if per_row else out.new_zeros(num_parts, *shape)
    threads = pool.num_threads if isinstance(pool, ThreadPool) else 0  # refused by the call
    room = out.new_empty(threads * _C.attention_sums_workspace_size(num_keys, head_dim))
    call(_C.attention_sums, pool, *inputs, address(room, "workspace", room.dtype, room.shape),
         address(parts, "out", parts.dtype, parts.shape), num_queries, num_keys, num_heads,
         num_kv_heads, head_dim, num_parts, q.stride(0), k.stride(0), scale, code, per_row,
         without_last)
    for part in () if per_row else parts:  # in order, so that equal columns stay equal
        out += part
    return out


def _checked_shape(q: Tensor, k: Tensor) -> torch.Size:
    """Of q, whose heads and those of k go together."""
    check_rank(q, "q", ("num_queries", "num_heads", "head_dim"))
    check_rank(k, "k", ("num_keys", "num_kv_heads", "head_dim"))
    (_, num_heads, head_dim), num_kv_heads = q.shape, k.shape[1]
    if head_dim < 2 or head_dim % 2:
        raise OptionError(f"q: expected an even head_dim, got {head_dim}")
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise OptionError(f"q: expected a multiple of {num_kv_heads} heads, got {num_heads}")
    return q.shape


def _compose(q: Tensor, k: Tensor, scale: float, visible_len: Tensor | None, per_row: bool,
             without_last: bool, out: Tensor) -> Tensor:
    """The same of the library's operations, a block of rows at a time; out is all zeros."""
    keys = k.float().transpose(0, 1).unsqueeze(1)  # [num_kv_heads, 1, num_keys, head_dim]
    place = torch.arange(len(k), device=k.device)
    for first in range(0, len(q), _BLOCK_ROWS):
        rows = slice(first, first + _BLOCK_ROWS)
        queries = q[rows].float().unflatten(1, (k.shape[1], -1)).permute(1, 2, 0, 3)
        seen = place.new_full((queries.shape[2], 1), len(k))
        if visible_len is not None:
            seen = visible_len[rows].unsqueeze(1)
        scores = (scale * (queries @ keys.transpose(2, 3))).masked_fill(place >= seen, -torch.inf)
        is_counted = (place < seen - 1) if without_last else (place < seen)
        weights = scores.softmax(dim=-1).mean(dim=1).masked_fill(~is_counted, 0.0)
        if per_row:
            out[:, rows] = weights
        else:
            out += weights.sum(dim=1)
    return out
