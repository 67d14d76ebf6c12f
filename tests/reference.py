"""The ops in plain PyTorch: clarity over speed.

Given float32 tensors these are the truth; given bfloat16 tensors they are what plain PyTorch gives,
whose own error is the measure for ours.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor


def linear(x: Tensor, weight: Tensor, bias: Tensor | None = None) -> Tensor:
    """[num_tokens, out_features]"""
    return F.linear(x, weight, bias)


def argmax(x: Tensor) -> Tensor:
    """[num_rows] int32, as the sampler finds the best token, one number after the other."""
    places = []
    for row in x.tolist():
        is_good = all(value == value for value in row) and abs(max(row)) < float("inf")
        places.append(row.index(max(row)) if is_good else -1)
    return torch.tensor(places, dtype=torch.int32)


def rms_norm(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    """[..., hidden_size]"""
    wide = x.float()
    quotient = wide * torch.rsqrt(wide.pow(2).mean(-1, keepdim=True) + eps)
    return weight * quotient.to(x.dtype)


def silu_and_mul(gate_up: Tensor) -> Tensor:
    """[num_tokens, intermediate_size]"""
    gate, up = gate_up.chunk(2, dim=-1)
    return F.silu(gate) * up


def rotate(x: Tensor, cos_sin: Tensor, float_angles: bool = False) -> Tensor:
    """x [num_tokens, heads, head_dim] with cos_sin [num_tokens, head_dim]."""
    if float_angles:
        return rotate(x.float(), cos_sin).to(x.dtype)
    cosine, sine = (part.to(x.dtype).unsqueeze(1) for part in cos_sin.chunk(2, dim=-1))
    low, high = x.chunk(2, dim=-1)
    return torch.cat([low * cosine - high * sine, high * cosine + low * sine], dim=-1)


def qk_norm_rope(
    qkv: Tensor, q_weight: Tensor | None, k_weight: Tensor | None, cos_sin: Tensor, *,
    num_heads: int, num_kv_heads: int, eps: float, float_angles: bool = False,
) -> Tensor:
    """qkv after the op."""
    heads = qkv.unflatten(1, (num_heads + 2 * num_kv_heads, -1))
    q, k, v = heads.split([num_heads, num_kv_heads, num_kv_heads], dim=1)
    if q_weight is not None:
        q = rms_norm(q, q_weight, eps)
    if k_weight is not None:
        k = rms_norm(k, k_weight, eps)
    q, k = (rotate(heads, cos_sin, float_angles) for heads in (q, k))
    return torch.cat([q, k, v], dim=1).flatten(1)


def find_row(visual: Tensor, text: Tensor, seq: int, slot: int) -> Tensor | None:
    """The cache row [2, num_kv_heads, head_dim] of a slot, None if it names none."""
    visual_capacity, text_capacity = visual.shape[1], text.shape[1]
    if 0 <= slot < visual_capacity:
        return visual[seq, slot]
    if visual_capacity <= slot < visual_capacity + text_capacity:
        return text[seq, slot - visual_capacity]
    return None


def store_kv(k: Tensor, v: Tensor, visual: Tensor, text: Tensor, seq_idx: Tensor,
             slot_idx: Tensor) -> None:
    """Writes into visual and text."""
    for token, (seq, slot) in enumerate(zip(seq_idx.tolist(), slot_idx.tolist(), strict=True)):
        row = find_row(visual, text, seq, slot) if 0 <= seq < len(visual) else None
        if row is not None:
            row[0], row[1] = k[token], v[token]


def gather_kv(visual: Tensor, text: Tensor, seq_idx: int, slots: Tensor) -> Tensor:
    """[num_slots, 2, num_kv_heads, head_dim]"""
    rows = [find_row(visual, text, seq_idx, slot) for slot in slots.tolist()]
    zeros = torch.zeros(visual.shape[2:], dtype=visual.dtype)
    return torch.stack([zeros if row is None else row for row in rows])


def attend(q: Tensor, rows: Tensor, scale: float) -> Tensor:
    """One token: q [num_heads, head_dim] over rows [n, 2, num_kv_heads, head_dim]."""
    if len(rows) == 0:
        return torch.zeros_like(q)
    group = q.shape[0] // rows.shape[2]
    k, v = (part.repeat_interleave(group, dim=1).transpose(0, 1) for part in rows.unbind(1))
    scores = (q.unsqueeze(1) @ k.transpose(1, 2)) * scale  # [num_heads, 1, n]
    return (scores.softmax(-1, dtype=torch.float32).to(q.dtype) @ v).squeeze(1)


def decode_attention(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
) -> Tensor:
    """[batch, num_heads, head_dim]"""
    out = torch.zeros(q.shape, dtype=q.dtype)
    for i, seq in enumerate(seq_idx.tolist()):
        if not 0 <= seq < len(visual):
            continue
        group = int(layer_to_group[seq, layer_idx])
        listed = visible_indices[seq, group, : int(visible_len[seq, group])].long()
        listed = listed[(listed >= 0) & (listed < visual.shape[1])]
        rows = torch.cat([visual[seq, listed], text[seq, : int(text_len[seq])]])
        out[i] = attend(q[i], rows, scale)
    return out


def prefill_attention(
    q: Tensor, k: Tensor, v: Tensor, *, scale: float, segments: list[int] | None = None,
    visible_len: Tensor | None = None,
) -> Tensor:
    """[num_queries, num_heads, head_dim], row by row."""
    out, row = torch.zeros_like(q), 0
    lengths = [len(q)] if segments is None else segments
    for length in lengths:
        keys = slice(0, len(k)) if segments is None else slice(row, row + length)
        rows = torch.stack([k[keys], v[keys]], dim=1)
        for i in range(row, row + length):
            seen = len(rows) if visible_len is None else int(visible_len[i])
            out[i] = attend(q[i], rows[:seen], scale)
        row += length
    return out


def attention_sums(
    q: Tensor, k: Tensor, *, scale: float, visible_len: Tensor | None = None,
    per_row: bool = False, without_last: bool = False,
) -> Tensor:
    """[num_kv_heads, num_keys] fp32, or per_row [num_kv_heads, num_queries, num_keys]: head by head
    and row by row, in fp64."""
    num_kv_heads, group = k.shape[1], q.shape[1] // k.shape[1]
    sums = torch.zeros(num_kv_heads, len(q), len(k), dtype=torch.float64)
    for row in range(len(q)):
        seen = len(k) if visible_len is None else int(visible_len[row])
        counted = max(seen - 1, 0) if without_last else seen
        for head in range(q.shape[1]):
            scores = scale * (k[:seen, head // group].double() @ q[row, head].double())
            sums[head // group, row, :counted] += scores.softmax(0)[:counted] / group
    return (sums if per_row else sums.sum(dim=1)).float()


def attention_probs(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
    monitor: object,
) -> Tensor:
    """monitor.probs as an attention op leaves it; writes into monitor.mass, if there is one."""
    probs = monitor.probs.clone()
    for i, seq in enumerate(seq_idx.tolist()):
        weight = monitor.layer_weights[seq, layer_idx] if 0 <= seq < len(visual) else 0
        if weight == 0:
            continue
        group = int(layer_to_group[seq, layer_idx])
        listed = visible_indices[seq, group, : int(visible_len[seq, group])].long()
        listed = listed[(listed >= 0) & (listed < visual.shape[1])]
        counts = torch.ones(len(listed), dtype=torch.bool)
        if monitor.base_mask is not None:
            counts = monitor.base_mask[seq, listed] != 0
        in_context = text[seq, : int(text_len[seq])] if monitor.norm[seq] else text[seq, :0]
        seen = listed if monitor.norm[seq] else listed[counts]
        k = torch.cat([visual[seq, seen, 0], in_context[:, 0]]).transpose(0, 1)
        k = k.repeat_interleave(q.shape[1] // k.shape[0], dim=0)  # [num_heads, n, head_dim]
        shares = ((k @ q[i].unsqueeze(2)).squeeze(2) * scale).softmax(-1, dtype=torch.float32)
        shares = shares[:, : len(seen)][:, counts] if monitor.norm[seq] else shares
        used = monitor.head_weights[seq] != 0
        if monitor.mass is not None:
            monitor.mass[seq, used] = shares[used].sum(1)
        heads = monitor.head_weights[seq, used] @ shares[used]
        probs[seq, listed[counts]] += weight * heads
    return probs


def mean_kv(visual: Tensor, *, seq_idx: Tensor, indices: Tensor, index_len: Tensor,
            dst_slot: Tensor) -> None:
    """Writes into visual."""
    for seq in seq_idx.tolist():
        if not 0 <= seq < len(visual) or not 0 <= dst_slot[seq] < visual.shape[1]:
            continue
        listed = indices[seq, : max(0, int(index_len[seq]))].long()
        listed = listed[(listed >= 0) & (listed < visual.shape[1])]
        if len(listed):
            visual[seq, int(dst_slot[seq])] = visual[seq, listed].float().mean(0).to(visual.dtype)
