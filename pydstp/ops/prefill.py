"""Attention of many rows at once: prompts and pictures."""

from __future__ import annotations

from collections.abc import Sequence

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
from pydstp.ops.cuda import no_gpu_version
from pydstp.ops.runtime import ThreadPool, call

_INT32 = torch.int32


@op
def prefill_attention(q: Tensor, k: Tensor, v: Tensor, *, scale: float, pool: ThreadPool,
                      segments: Sequence[int] | None = None, visible_len: Tensor | None = None,
                      out: Tensor | None = None) -> Tensor:
    """softmax(scale * q @ k.T) @ v for every row and head, over the keys that the row sees.

    Sums are fp32. Where the processor multiplies bfloat16, weights are rounded to it before they
    meet the values. Keys are taken in blocks from the first one on, with a running maximum, and no
    matrix of all scores exists. A row that sees no key is zero; what it does not see changes no bit
    of it, NaN included.

    Args:
        q: [num_queries, num_heads, head_dim], head_dim even; rows may lie apart, here and below.
        k, v: [num_keys, num_kv_heads, head_dim]; num_kv_heads divides num_heads, and query head h
            reads KV head h // (num_heads // num_kv_heads).
        segments: lengths of runs of rows that see each other and no others, of q as of k and v;
            their sum is num_queries = num_keys. None: one segment, and any number of keys.
        visible_len: [num_queries] int32: row i sees so many keys of its segment, the first ones.
            Causal rows behind a cached prefix see prefix + i + 1. None: all.
        out: [num_queries, num_heads, head_dim]; overlaps no other argument.

    Returns:
        [num_queries, num_heads, head_dim].
    """
    code, dtype = dtype_code(q, "q"), q.dtype
    check_rank(q, "q", ("num_queries", "num_heads", "head_dim"))
    check_rank(k, "k", ("num_keys", "num_kv_heads", "head_dim"))
    if q.is_cuda:
        raise no_gpu_version("prefill_attention", q.device)
    (num_queries, num_heads, head_dim), (num_keys, num_kv_heads, _) = q.shape, k.shape
    if head_dim < 2 or head_dim % 2:
        raise OptionError(f"q: expected an even head_dim, got {head_dim}")
    if num_kv_heads < 1 or num_heads < 1 or num_heads % num_kv_heads:
        raise OptionError(f"q: expected a multiple of {num_kv_heads} heads, got {num_heads}")
    starts = _starts(segments, num_queries, num_keys)
    if visible_len is not None:
        _check_visible(visible_len, starts, num_queries, num_keys)
    keys = (num_keys, num_kv_heads, head_dim)
    inputs = (row_address(q, "q", dtype, q.shape), row_address(k, "k", dtype, keys),
              row_address(v, "v", dtype, keys), _address_of(starts),
              optional_address(visible_len, "visible_len", _INT32, (num_queries,)))
    if out is None:
        out = q.new_empty(q.shape)
    result = address(out, "out", dtype, q.shape)
    room = q.new_empty(_room(pool, num_heads // num_kv_heads, head_dim), dtype=torch.float32)
    num_segments = 1 if starts is None else len(starts) - 1
    call(_C.prefill_attention, pool, *inputs, _address_of(room), result, num_queries, num_keys,
         num_heads, num_kv_heads, head_dim, num_segments, q.stride(0), k.stride(0), v.stride(0),
         scale, code)
    return out


def _address_of(own: Tensor | None) -> int:
    return 0 if own is None else address(own, "workspace", own.dtype, tuple(own.shape))


def _room(pool: ThreadPool, group: int, head_dim: int) -> int:
    """Floats of workspace for all threads of a pool."""
    threads = pool.num_threads if isinstance(pool, ThreadPool) else 0  # refused by the call
    return threads * _C.prefill_workspace_size(group, head_dim)


def _starts(segments: Sequence[int] | None, num_queries: int, num_keys: int) -> Tensor | None:
    """[num_segments + 1] int32: the first row of each segment, and the end."""
    if segments is None:
        return None
    lengths = list(segments)
    are_lengths = all(type(length) is int and length >= 0 for length in lengths)
    if not are_lengths or sum(lengths) != num_queries or num_keys != num_queries:
        raise OptionError(f"segments: expected lengths whose sum is num_queries = num_keys, got "
                          f"{lengths} for {num_queries} queries and {num_keys} keys")
    return torch.tensor([0, *lengths], device="cpu").cumsum(0).to(_INT32)


def _check_visible(visible_len: Tensor, starts: Tensor | None, num_queries: int,
                   num_keys: int) -> None:
    optional_address(visible_len, "visible_len", _INT32, (num_queries,))
    if starts is None:
        return check_index_range(visible_len, "visible_len", 0, num_keys + 1)
    lengths = starts.diff()
    room = lengths.repeat_interleave(lengths) - visible_len
    bad = (room < 0) | (visible_len < 0)
    if bad.any():
        row = int(bad.nonzero()[0])
        raise OptionError(f"visible_len: expected numbers from 0 to the length of the segment, got "
                          f"{int(visible_len[row])} at element {row}")
    return None
