"""Same-step return in plain PyTorch: clarity over speed."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp import ops
from tests.reference import attend


def folded(channel_scale: Tensor) -> Tensor:
    """[..., head_dim]: the scale of each channel from those of RoPE pairs."""
    return torch.cat([channel_scale, channel_scale], dim=-1)


def sketch_scale(visual: Tensor, seq: int, slots: Tensor, statistic: str) -> Tensor:
    """[num_kv_heads, head_dim / 2]"""
    slots = slots[(slots >= 0) & (slots < visual.shape[1])].long()
    keys = visual[seq, slots, 0].float()
    pairs = torch.stack(keys.chunk(2, dim=-1)).flatten(0, 1)  # [2 * n, num_kv_heads, pairs]
    if len(pairs) == 0:
        return torch.ones(pairs.shape[1:])
    if statistic == "rms":
        scale = pairs.double().pow(2).mean(0).sqrt().float()
    else:
        scale = pairs.abs().nan_to_num(0.0, torch.inf).amax(0)
    return torch.where((scale > 0) & scale.isfinite(), scale, torch.ones(()))


def sketch_keys(keys: Tensor, channel_scale: Tensor, bits: int) -> tuple[Tensor, Tensor]:
    """codes [..., head_dim] and scales [...] of keys [..., num_kv_heads, head_dim]."""
    values = keys.float() / folded(channel_scale)
    if bits == 2:
        scales = (0.49785 * values.double().pow(2).mean(-1).sqrt()).float()
    else:
        scales = values.abs().amax(-1) / (2**bits - 1)
    inverse = torch.where(scales > 0, 0.5 / scales, torch.zeros(()))
    codes = (values * inverse.unsqueeze(-1)).floor() + 2 ** (bits - 1)
    return codes.clamp(0, 2**bits - 1).to(torch.uint8), scales


def pack(codes: Tensor, bits: int) -> Tensor:
    """[..., n] for n whole words: byte j holds channels j, j + n, ..., lowest bits first."""
    size = -(-codes.shape[-1] * bits // 32) * 4
    packed = torch.zeros(*codes.shape[:-1], size, dtype=torch.uint8)
    for plane, part in enumerate(codes.split(size, dim=-1)):
        packed[..., : part.shape[-1]] |= part << plane * bits
    return packed


def entries_of(sketch: ops.KeySketch, seq: int) -> tuple[Tensor, Tensor]:
    """Packed codes [n, num_kv_heads, bytes] and scales [n, num_kv_heads] in the order of entries:
    blocks of 16 of them are stored with the words of one head side by side."""
    codes = sketch.codes[seq].permute(0, 3, 1, 2, 4)  # [blocks, 16, num_kv_heads, words, 4]
    return codes.flatten(3).flatten(0, 1), sketch.scales[seq].transpose(1, 2).flatten(0, 1)


def unpack(packed: Tensor, bits: int, head_dim: int) -> Tensor:
    """[..., head_dim] codes."""
    planes = [packed >> shift & 2**bits - 1 for shift in range(0, 8, bits)]
    return torch.cat(planes, dim=-1)[..., :head_dim]


def sketch_logits(q: Tensor, visual: Tensor, sketch: ops.KeySketch, seq: int, slots: Tensor,
                  entries: Tensor, scale: float) -> Tensor:
    """[num_heads, n] of q [num_heads, head_dim]; the key of slots[i] is entry entries[i]."""
    slots, (num_heads, head_dim) = slots.long(), q.shape
    group = num_heads // visual.shape[3]
    if sketch.bits == 16:
        keys = visual[seq, slots, 0].float().repeat_interleave(group, dim=1)
        logits = torch.einsum("hd,nhd->hn", q.float(), keys) * scale
    else:
        wide = q.float() * folded(sketch.channel_scale[seq]).repeat_interleave(group, dim=0)
        largest = wide.abs().amax(-1)
        inverse = torch.where(largest > 0, 127 / largest, torch.zeros(()))
        q8 = (wide * inverse.unsqueeze(-1)).round().long()
        packed, scales = entries_of(sketch, seq)
        codes = unpack(packed[entries], sketch.bits, head_dim).long()
        values = (2 * codes - (2**sketch.bits - 1)).repeat_interleave(group, dim=1)
        scales = scales[entries].repeat_interleave(group, dim=1).t()
        dots = torch.einsum("hd,nhd->hn", q8, values).float()
        logits = dots * (largest / 127 * scale).unsqueeze(-1) * scales
    return torch.where(logits.isnan(), torch.full((), -torch.inf), logits)


@dataclass
class Returned:
    """What one row got: its output, and by KV head the slots, in order of rank, and all shares."""

    out: Tensor
    slots: list[list[int]]
    shares: list[dict[int, float]]


def rank(shares: Tensor, slots: Tensor, most: int, mass: float) -> list[int]:
    """The slots that return, best first."""
    order = sorted(range(len(slots)), key=lambda i: (-float(shares[i]), int(slots[i])))
    taken, missing = [], float(shares.sum())
    for i in order[:most]:
        if mass > 0 and missing < mass:
            break
        taken.append(int(slots[i]))
        missing -= float(shares[i])
    return taken


def return_row(
    q: Tensor, visual: Tensor, rows: Tensor, sketch: ops.KeySketch, seq: int, reserve: Tensor,
    entries: Tensor, scale: float, most: int, per_head: bool, mass: float,
) -> Returned:
    """One token: q [num_heads, head_dim] with base rows [n, 2, num_kv_heads, head_dim]."""
    num_kv_heads = visual.shape[3]
    group = len(q) // num_kv_heads
    keys = rows[:, 0].float().repeat_interleave(group, dim=1)
    exact = torch.einsum("hd,nhd->hn", q.float(), keys) * scale
    logits = sketch_logits(q, visual, sketch, seq, reserve, entries, scale)
    shares = torch.cat([exact, logits], dim=1).softmax(1)[:, len(rows):].nan_to_num(0.0)
    shares = shares.unflatten(0, (num_kv_heads, group)).mean(1)  # [num_kv_heads, n]
    if not per_head:
        shares = shares.mean(0, keepdim=True).expand(num_kv_heads, -1)
    out, lists = torch.zeros_like(q), []
    for kv in range(num_kv_heads):
        lists.append(rank(shares[kv], reserve, most, mass))
        heads = slice(kv * group, (kv + 1) * group)
        seen = torch.cat([rows, visual[seq, lists[kv]]])[:, :, kv : kv + 1]
        out[heads] = attend(q[heads], seen, scale)
    named = [dict(zip(reserve.tolist(), row.tolist(), strict=True)) for row in shares]
    return Returned(out, lists, named)


def attention_with_return(
    q: Tensor, visual: Tensor, text: Tensor, *, seq_idx: Tensor, visible_indices: Tensor,
    visible_len: Tensor, layer_to_group: Tensor, layer_idx: int, text_len: Tensor, scale: float,
    sketch: ops.KeySketch, reserve_indices: Tensor, reserve_len: Tensor, max_returned: Tensor,
    per_head: Tensor | None = None, mass: Tensor | None = None, reserve_group: int | None = None,
) -> list[Returned]:
    """One entry per row of the batch."""
    results = []
    for i, seq in enumerate(seq_idx.tolist()):
        if not 0 <= seq < len(visual):
            lists = [[] for _ in range(visual.shape[3])]
            results.append(Returned(torch.zeros_like(q[i]), lists, [{} for _ in lists]))
            continue
        group = int(layer_to_group[seq, layer_idx])
        listed = visible_indices[seq, group, : int(visible_len[seq, group])].long()
        listed = listed[(listed >= 0) & (listed < visual.shape[1])]
        rows = torch.cat([visual[seq, listed], text[seq, : int(text_len[seq])]])
        is_off = reserve_group is not None and group != reserve_group
        reserve = reserve_indices[seq, : 0 if is_off else int(reserve_len[seq])]
        entries = ((reserve >= 0) & (reserve < visual.shape[1])).nonzero().squeeze(1)
        reserve = reserve[entries]
        own = per_head is not None and bool(per_head[seq])
        limit = 0.0 if mass is None else float(mass[seq])
        results.append(return_row(q[i], visual, rows, sketch, seq, reserve, entries, scale,
                                  int(max_returned[seq]), own, limit))
    return results
