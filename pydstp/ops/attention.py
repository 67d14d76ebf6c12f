"""Attention of single tokens over the KV cache of one layer, and how much of it each row gets."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.cache import describe_arenas
from pydstp.ops.checks import (
    address,
    check_index_range,
    check_rank,
    op,
    optional_address,
    row_address,
)
from pydstp.ops.recording import new_result
from pydstp.ops.runtime import ThreadPool, call

_CHUNK = 64  # kAttentionChunk of csrc/kernels/decode_attention.h
_INT32, _FLOAT32 = torch.int32, torch.float32
_NO_MONITOR = (0,) * 7


@dataclass(frozen=True)
class Monitor:
    """Where attention gathers how much of it each visual row gets.

    A row of the batch with sequence s and w = layer_weights[s, layer_idx] != 0 adds to probs[s, t],
    for every visible slot t that counts, w * the sum over heads of head_weights[s, h] times the
    head's softmax at t. Heads of weight 0 are not looked at. No sequence may come twice in a call,
    no slot twice in a list.

    Attributes:
        probs: [max_batch, visual_capacity] float32, added to.
        base_mask: [max_batch, visual_capacity] uint8, nonzero for slots that count; None: all do.
        head_weights: [max_batch, num_heads] float32; 1 / num_heads gives the mean.
        layer_weights: [max_batch, num_layers] float32.
        norm: [max_batch] int32: 0, softmax over the slots that count; 1, over all that is attended
            to, text included.
        logits: what `monitor_workspace` gives for this batch or a larger one, or None.
        mass: [max_batch, num_heads] float32 or None: written with the head's softmax summed over
            the slots that count, weights left aside; heads of weight 0 are not written.
    """

    probs: Tensor
    base_mask: Tensor | None
    head_weights: Tensor
    layer_weights: Tensor
    norm: Tensor
    logits: Tensor | None = None
    mass: Tensor | None = None


def attention_workspace(batch: int, num_heads: int, visible_indices: Tensor, text: Tensor,
                        return_capacity: int = 0) -> Tensor:
    """A float32 workspace for attention ops of up to `batch` rows, whatever their lengths.

    return_capacity: entries of a list of returned slots, for `attention_with_return`.
    """
    size = _workspace_size(batch, num_heads, visible_indices, text, return_capacity)
    return text.new_empty(size, dtype=_FLOAT32)


def monitor_workspace(batch: int, num_heads: int, visible_indices: Tensor) -> Tensor:
    """A float32 `Monitor.logits` for calls of up to `batch` rows, whatever their lengths."""
    size = batch * num_heads * visible_indices.shape[2]
    return visible_indices.new_empty(size, dtype=_FLOAT32)


@op
def decode_attention(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
    pool: ThreadPool, workspace: Tensor | None = None, monitor: Monitor | None = None,
    status: Tensor | None = None, out: Tensor | None = None, check_indices: bool = False,
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
        monitor: gathers attention by slot, or None; the result is the same, bit for bit.
        out: [batch, num_heads, head_dim].

    Returns:
        [batch, num_heads, head_dim].
    """
    lists = (seq_idx, visible_indices, visible_len, layer_to_group, layer_idx, text_len)
    shape, arguments = check_reads(q, visual, text, lists, check_indices)
    out = new_result(q, shape) if out is None else out
    attend(q, text, lists, arguments, address(out, "out", visual.dtype, shape), scale, pool,
           workspace, monitor, status)
    return out


@op
def attention_probs(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
    pool: ThreadPool, monitor: Monitor, workspace: Tensor | None = None,
    status: Tensor | None = None, check_indices: bool = False,
) -> None:
    """What `decode_attention` with this monitor adds to `monitor.probs`, and nothing else.

    V is not read, rows of weight 0 are not read at all, and text only where norm is 1.

    Args:
        q, visual, text, seq_idx, visible_indices, visible_len, layer_to_group, layer_idx, text_len,
            scale, workspace: as in `decode_attention`.
        monitor: as in `decode_attention`; not None.
    """
    if monitor is None:
        raise OptionError("monitor: expected a Monitor, got NoneType")
    lists = (seq_idx, visible_indices, visible_len, layer_to_group, layer_idx, text_len)
    _, arguments = check_reads(q, visual, text, lists, check_indices)
    attend(q, text, lists, arguments, 0, scale, pool, workspace, monitor, status)


# seq_idx, visible_indices, visible_len, layer_to_group, layer_idx, text_len
Lists = tuple[Tensor, Tensor, Tensor, Tensor, int, Tensor]


def check_reads(
    q: Tensor, visual: Tensor, text: Tensor, lists: Lists, check_indices: bool
) -> tuple[tuple[int, ...], tuple[object, ...]]:
    """Check what attention reads: the shape of its result, and (q, arena, lists) for a call."""
    arena = describe_arenas(visual, text)
    check_rank(q, "q", ("batch", "num_heads", "head_dim"))
    batch, num_heads = q.shape[:2]
    max_batch, num_kv_heads = visual.shape[0], visual.shape[3]
    if not num_heads or num_heads % num_kv_heads:
        raise OptionError(f"q: expected a multiple of {num_kv_heads} heads, got {num_heads}")
    shape = (batch, num_heads, visual.shape[4])
    addresses = _lists(max_batch, batch, *lists)
    q_address = row_address(q, "q", visual.dtype, shape)
    if check_indices:
        _check_indices(visual, text, *lists)
    return shape, (q_address, arena, *addresses)


def attend(
    q: Tensor, text: Tensor, lists: Lists, arguments: tuple[object, ...], out: int, scale: float,
    pool: ThreadPool, workspace: Tensor | None, monitor: Monitor | None, status: Tensor | None, *,
    native: Callable[..., None] | None = None, return_capacity: int = 0,
    more: tuple[object, ...] = (),
) -> None:
    """Call an attention op; arguments are those of `check_reads`, `more` is for `native` alone."""
    batch, num_heads = q.shape[:2]
    indices, layer_to_group, layer_idx = lists[1], lists[3], lists[4]
    if workspace is None:
        workspace = attention_workspace(batch, num_heads, indices, text, return_capacity)
    size = _workspace_size(batch, num_heads, indices, text, return_capacity)
    room = check_room("workspace", workspace, size)
    monitored = _NO_MONITOR
    if monitor is not None:
        if not isinstance(monitor, Monitor):
            raise OptionError(f"monitor: expected a Monitor, got {type(monitor).__name__}")
        logits = monitor.logits  # held until the call returns
        logits = monitor_workspace(batch, num_heads, indices) if logits is None else logits
        monitored = _monitor(monitor, logits, arguments[1], num_heads, batch * indices.shape[2],
                             layer_to_group.shape[1])
    sizes = (batch, num_heads, *indices.shape[1:], layer_to_group.shape[1], layer_idx, q.stride(0))
    status_address = optional_address(status, "status", _INT32, (1,))
    call(native or _C.decode_attention, pool,
         (*arguments, room, status_address, out, sizes, scale), monitored, *more)


def _monitor(monitor: Monitor, logits: Tensor, arena: tuple[int, ...], num_heads: int,
             num_entries: int, num_layers: int) -> tuple[int, ...]:
    """The addresses of a monitor; num_entries of the lists of all rows."""
    max_batch, by_slot = arena[2], (arena[2], arena[3])
    return (
        address(monitor.probs, "monitor.probs", _FLOAT32, by_slot),
        check_room("monitor.logits", logits, num_heads * num_entries),
        optional_address(monitor.base_mask, "monitor.base_mask", torch.uint8, by_slot),
        address(monitor.head_weights, "monitor.head_weights", _FLOAT32, (max_batch, num_heads)),
        address(monitor.layer_weights, "monitor.layer_weights", _FLOAT32, (max_batch, num_layers)),
        address(monitor.norm, "monitor.norm", _INT32, (max_batch,)),
        optional_address(monitor.mass, "monitor.mass", _FLOAT32, (max_batch, num_heads)),
    )


def _lists(
    max_batch: int, batch: int, seq_idx: Tensor, visible_indices: Tensor, visible_len: Tensor,
    layer_to_group: Tensor, layer_idx: int, text_len: Tensor,
) -> tuple[int, ...]:
    """Addresses of seq_idx and of what each sequence shows."""
    check_rank(visible_indices, "visible_indices", ("max_batch", "num_groups", "list_capacity"))
    check_rank(layer_to_group, "layer_to_group", ("max_batch", "num_layers"))
    _, num_groups, list_capacity = visible_indices.shape
    num_layers = layer_to_group.shape[1]
    if not isinstance(layer_idx, int) or not 0 <= layer_idx < num_layers:
        raise OptionError(f"layer_idx: expected an int in [0, {num_layers}), got {layer_idx!r}")
    shape = (max_batch, num_groups, list_capacity)
    return (address(seq_idx, "seq_idx", _INT32, (batch,)),
            address(visible_indices, "visible_indices", _INT32, shape),
            address(visible_len, "visible_len", _INT32, (max_batch, num_groups)),
            address(layer_to_group, "layer_to_group", _INT32, (max_batch, num_layers)),
            address(text_len, "text_len", _INT32, (max_batch,)))


def _workspace_size(batch: int, num_heads: int, visible_indices: Tensor, text: Tensor,
                    return_capacity: int) -> int:
    capacities = (visible_indices.shape[2], text.shape[1], return_capacity)
    chunks = sum(-(-capacity // _CHUNK) for capacity in capacities)
    return batch * chunks * num_heads * (text.shape[4] + 2)


def check_room(name: str, workspace: Tensor, needed: int) -> int:
    """The address of a float32 vector with at least `needed` elements."""
    size = workspace.numel() if isinstance(workspace, Tensor) else needed
    if size < needed:
        raise OptionError(f"{name}: expected at least {needed} elements, got {size}")
    return address(workspace, name, _FLOAT32, (size,))


def _check_indices(
    visual: Tensor, text: Tensor, seq_idx: Tensor, visible_indices: Tensor, visible_len: Tensor,
    layer_to_group: Tensor, layer_idx: int, text_len: Tensor,
) -> None:
    check_index_range(seq_idx, "seq_idx", -1, visual.shape[0])
    seqs = seq_idx[seq_idx >= 0].long()
    check_index_range(text_len[seqs], "text_len", 0, text.shape[1] + 1)
    groups = layer_to_group[seqs, layer_idx]
    check_index_range(groups, "layer_to_group", 0, visible_indices.shape[1])
    indices, length = visible_indices[seqs, groups], visible_len[seqs, groups]
    check_index_range(length, "visible_len", 0, indices.shape[1] + 1)
    places = torch.arange(indices.shape[1], device=indices.device)
    is_listed = places < length.unsqueeze(1)
    check_index_range(indices[is_listed], "visible_indices", 0, visual.shape[1])
