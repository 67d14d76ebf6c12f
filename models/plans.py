"""How the rows of one decoder call are processed: a prompt chunk, or one new token per sequence.

A plan is everything a forward has to know about the cache. It holds no weights and no K/V.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Protocol, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor

from pydstp import ops
from pydstp.models.gemm import gemm


@dataclass(frozen=True)
class Context:
    """What every forward needs from its caller.

    pool: threads of the native ops. check: called once per layer and vision block; raises
    CancelledError to stop a forward.
    """

    pool: ops.ThreadPool
    check: Callable[[], None]


class KVArenas(Protocol):
    """The K/V buffers of all layers.

    visual: [num_layers, max_batch, visual_capacity, 2, num_kv_heads, head_dim].
    text: [num_layers, max_batch, text_capacity, 2, num_kv_heads, head_dim].
    """

    visual: Tensor
    text: Tensor


@dataclass(frozen=True)
class PrefillPlan:
    """New prompt tokens of one sequence, in prompt order.

    seq_idx: the sequence. seq_idx_rows: [num_tokens] int32, seq_idx for every row.
    slot_idx: [num_tokens] int32, where the K/V of each row is stored; -1 stores nothing.
    past_slots: [num_past] int32, slots of the earlier tokens that every new row sees, or None.
    """

    seq_idx: int
    seq_idx_rows: Tensor
    slot_idx: Tensor
    past_slots: Tensor | None = None

    def linear(self, x: Tensor, weight: Tensor, ctx: Context) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        return gemm(x, weight)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVArenas, layer_idx: int, ctx: Context
    ) -> Tensor:
        """Causal among the new rows, after all of the past.

        q: [num_tokens, num_heads, head_dim]; k, v: [num_tokens, num_kv_heads, head_dim]
        -> [num_tokens, num_heads, head_dim].
        """
        mask = None
        if self.past_slots is not None:
            arenas = cache.visual[layer_idx], cache.text[layer_idx]
            past = ops.gather_kv(*arenas, self.seq_idx, self.past_slots, pool=ctx.pool)
            mask = torch.ones(len(q), len(past) + len(q), dtype=torch.bool).tril_(len(past))
            k, v = torch.cat((past[:, 0], k)), torch.cat((past[:, 1], v))
        heads_first = [t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
        out = F.scaled_dot_product_attention(
            *heads_first, attn_mask=mask, is_causal=mask is None, enable_gqa=True
        )
        return out.squeeze(0).transpose(0, 1)


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of `batch` sequences; all tensors int32, read by the op.

    seq_idx_rows: [batch], the sequence of each row, -1 for a row to skip.
    slot_idx: [batch], where the K/V of the row's token is stored.
    visible_indices: [max_batch, num_groups, list_capacity]; visible_len: [max_batch, num_groups].
    layer_to_group: [max_batch, num_layers].
    text_len: [max_batch], tokens in the text arena, the new one included.
    """

    seq_idx_rows: Tensor
    slot_idx: Tensor
    visible_indices: Tensor
    visible_len: Tensor
    layer_to_group: Tensor
    text_len: Tensor
    workspace: Tensor | None = None
    status: Tensor | None = None

    def linear(self, x: Tensor, weight: Tensor, ctx: Context) -> Tensor:
        """x: [batch, in_features] -> [batch, out_features]; a row's bits do not depend on batch."""
        return ops.linear(x, weight, pool=ctx.pool)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVArenas, layer_idx: int, ctx: Context
    ) -> Tensor:
        """Each row reads its visible list and its text (k and v are in the arenas already).

        q: [batch, num_heads, head_dim] -> same shape.
        """
        return ops.decode_attention(
            q,
            cache.visual[layer_idx],
            cache.text[layer_idx],
            seq_idx=self.seq_idx_rows,
            visible_indices=self.visible_indices,
            visible_len=self.visible_len,
            layer_to_group=self.layer_to_group,
            layer_idx=layer_idx,
            text_len=self.text_len,
            scale=q.shape[-1] ** -0.5,
            pool=ctx.pool,
            workspace=self.workspace,
            status=self.status,
        )


Plan: TypeAlias = PrefillPlan | DecodePlan
