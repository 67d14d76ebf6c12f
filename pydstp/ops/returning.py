"""Attention in which pruned tokens may join in the step, and the layer, that needs them."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import _C
from pydstp.errors import OptionError
from pydstp.ops.attention import Monitor, attend, check_reads, check_room
from pydstp.ops.checks import address, check_index_range, check_rank, op, optional_address
from pydstp.ops.recording import new_result
from pydstp.ops.runtime import ThreadPool
from pydstp.ops.sketch import KeySketch, checked_sketch

_INT32, _FLOAT32 = torch.int32, torch.float32


def return_workspace(batch: int, num_heads: int, sketch: KeySketch, reserve_indices: Tensor,
                     head_dim: int) -> Tensor:
    """A float32 `return_workspace` for calls of up to `batch` rows, whatever their lengths."""
    num_kv_heads = sketch.channel_scale.shape[1]
    row = _C.return_row_bytes(num_heads, num_kv_heads, head_dim, sketch.bits,
                              reserve_indices.shape[1])
    return reserve_indices.new_empty(batch * row // 4, dtype=_FLOAT32)


@op
def attention_with_return(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
    sketch: KeySketch, reserve_indices: Tensor, reserve_len: Tensor, max_returned: Tensor,
    returned_indices: Tensor, returned_len: Tensor, pool: ThreadPool,
    per_head: Tensor | None = None, mass: Tensor | None = None, reserve_group: int | None = None,
    workspace: Tensor | None = None, return_workspace: Tensor | None = None,
    monitor: Monitor | None = None, status: Tensor | None = None, out: Tensor | None = None,
    check_indices: bool = False,
) -> Tensor:
    """`decode_attention` to which the best tokens of a reserve are added, in the same call.

    Every query head h gives each slot t of its sequence's reserve a logit, `scale` times q times
    the sketch of its key, and its share of all that h attends to: exp(logit) / Z, Z being the sum
    of exp over list and text, with exact keys, and over the reserve, with sketched ones. Slots are
    ranked by the mean of the shares over all heads (ties: the lowest slot), and the best
    max_returned of them join list and text with their exact keys and values.

    A row whose max_returned is 0, or whose reserve is empty, costs and gives what
    `decode_attention` does, bit for bit. NaN in a sketch never wins. The monitor sees list and text
    as ever; returned rows count where its norm is 1, and get no probabilities.

    Args:
        q, visual, text, seq_idx, visible_indices, visible_len, layer_to_group, layer_idx, text_len,
            scale, monitor, out: as in `decode_attention`.
        sketch: this layer's; its entry i is the key of reserve_indices[i], by `sketch_keys`.
        reserve_indices: [max_batch, reserve_capacity] int32 visual slots, none of them in the list,
            none twice, in any order.
        reserve_len: [max_batch] int32, at most visual_capacity.
        max_returned: [max_batch] int32, at most return_capacity.
        returned_indices: [batch, num_kv_heads, return_capacity] int32, written: by row of the batch
            what came back, ascending. Without per_head all KV heads have the same list.
        returned_len: [batch, num_kv_heads] int32, written.
        per_head: [max_batch] int32; where it is nonzero, the query heads of each KV head rank and
            get back their own. None: all 0.
        mass: [max_batch] float32; where it is positive, tokens come back in order of rank only
            until the shares of those that stay away add up to less. None: all 0.
        reserve_group: layers of other groups return nothing; None: every layer returns.
        workspace: what `attention_workspace` gives with this return_capacity, or None.
        return_workspace: what `return_workspace` gives for this batch or a larger one, or None.

    Returns:
        [batch, num_heads, head_dim].
    """
    lists = (seq_idx, visible_indices, visible_len, layer_to_group, layer_idx, text_len)
    shape, arguments = check_reads(q, visual, text, lists, check_indices)
    out = new_result(q, shape) if out is None else out
    out_address = address(out, "out", visual.dtype, shape)
    arena = arguments[1]
    sketched = checked_sketch(sketch, arena)
    returned = _returned(returned_indices, returned_len, shape[0], arena[5])
    reserve = _reserve(arena[2], reserve_indices, reserve_len, max_returned, per_head, mass,
                       reserve_group, visible_indices.shape[1])
    if check_indices:
        _check_indices(seq_idx, reserve_indices, reserve_len, max_returned, returned[2], arena[3])
    row = _C.return_row_bytes(shape[1], arena[5], shape[2], sketch.bits, reserve_indices.shape[1])
    needed = shape[0] * row // 4
    if return_workspace is None:
        return_workspace = q.new_empty(needed, dtype=_FLOAT32)
    room = check_room("return_workspace", return_workspace, needed)
    attend(q, text, lists, arguments, out_address, scale, pool, workspace, monitor, status,
           native=_C.attention_return, return_capacity=returned[2],
           more=(sketched, reserve, returned, room))
    return out


def _reserve(
    max_batch: int, indices: Tensor, length: Tensor, max_returned: Tensor, per_head: Tensor | None,
    mass: Tensor | None, group: int | None, num_groups: int,
) -> tuple[int, ...]:
    """What the native side takes of the reserve and of how much of it may return."""
    check_rank(indices, "reserve_indices", ("max_batch", "reserve_capacity"))
    capacity, by_seq = indices.shape[1], (max_batch,)
    if group is not None and (not isinstance(group, int) or not 0 <= group < num_groups):
        raise OptionError(f"reserve_group: expected None or an int in [0, {num_groups}), "
                          f"got {group!r}")
    return (address(indices, "reserve_indices", _INT32, (max_batch, capacity)),
            address(length, "reserve_len", _INT32, by_seq),
            address(max_returned, "max_returned", _INT32, by_seq),
            optional_address(per_head, "per_head", _INT32, by_seq),
            optional_address(mass, "mass", _FLOAT32, by_seq),
            capacity, -1 if group is None else group)


def _returned(indices: Tensor, length: Tensor, batch: int,
              num_kv_heads: int) -> tuple[int, int, int]:
    check_rank(indices, "returned_indices", ("batch", "num_kv_heads", "return_capacity"))
    capacity = indices.shape[2]
    return (address(indices, "returned_indices", _INT32, (batch, num_kv_heads, capacity)),
            address(length, "returned_len", _INT32, (batch, num_kv_heads)), capacity)


def _check_indices(seq_idx: Tensor, indices: Tensor, length: Tensor, max_returned: Tensor,
                   return_capacity: int, visual_capacity: int) -> None:
    seqs = seq_idx[seq_idx >= 0].long()
    capacity = indices.shape[1]
    check_index_range(length[seqs], "reserve_len", 0, min(capacity, visual_capacity) + 1)
    check_index_range(max_returned[seqs], "max_returned", 0, return_capacity + 1)
    places = torch.arange(capacity, device=indices.device)
    is_listed = places < length[seqs].unsqueeze(1)
    check_index_range(indices[seqs][is_listed], "reserve_indices", 0, visual_capacity)
