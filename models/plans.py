"""How the rows of one decoder call are processed: a prompt chunk, or one new token per sequence.

A plan is everything a forward has to know about the cache. It holds no weights and no K/V.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Protocol, TypeAlias

from torch import Tensor

from pydstp import ops
from pydstp.models.attention import attend, masked_attention
from pydstp.models.gemm import gemm, linear, quantised_gemm


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
    context_slots: [num_context] int32, slots the rows may see, their own among them; None: causal
    among the rows. visible_len: [num_tokens] int32, row i sees so many of them, the first ones.
    mask: [num_tokens, num_context] bool in its place, True where row i sees slot j: any pattern, at
    the library's speed.
    queries: per layer, rows whose query is copied out, and where to, [num_heads, head_dim]; a slice
    or indices of rows go to [num_rows, num_heads, head_dim].
    projected: per layer, queries, keys and values of the rows where they are known before the layer
    runs; keys and values are in the arenas then.
    projected: per layer, queries, keys and values of the rows where they are known before the layer
    runs; keys and values are in the arenas then.
    """

    seq_idx: int
    seq_idx_rows: Tensor
    slot_idx: Tensor
    context_slots: Tensor | None = None
    visible_len: Tensor | None = None
    mask: Tensor | None = None
    queries: Mapping[int, Sequence[tuple[int | slice | Tensor, Tensor]]] = field(
        default_factory=dict
    )
    projected: Mapping[int, tuple[Tensor, Tensor, Tensor]] = field(default_factory=dict)

    def linear(self, x: Tensor, weight: Tensor | ops.QuantisedMatrix, ctx: Context) -> Tensor:
        """x: [num_tokens, in_features] -> [num_tokens, out_features]."""
        if isinstance(weight, ops.QuantisedMatrix):
            return quantised_gemm(x, weight, ctx.pool)
        return gemm(x, weight)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVArenas, layer_idx: int, ctx: Context
    ) -> Tensor:
        """Each row reads what the plan shows it (k and v are in the arenas already).

        q: [num_tokens, num_heads, head_dim]; k, v: [num_tokens, num_kv_heads, head_dim]
        -> [num_tokens, num_heads, head_dim].
        """
        for row, out in self.queries.get(layer_idx, ()):
            out.copy_(q[row])
        if self.context_slots is not None:
            arenas = cache.visual[layer_idx], cache.text[layer_idx]
            rows = ops.gather_kv(*arenas, self.seq_idx, self.context_slots, pool=ctx.pool)
            k, v = rows.unbind(1)
        if self.mask is not None:
            return masked_attention(q, k, v, self.mask)
        is_causal = self.visible_len is None
        return attend(
            q, k, v, pool=ctx.pool, visible_len=self.visible_len, is_causal=is_causal
        )


@dataclass(frozen=True)
class Returns:
    """What lets pruned tokens join a layer's attention in the step that needs them.

    sketches: one per layer. max_returned: [num_layers, max_batch]. reserve_indices: [max_batch,
    visual_capacity]; reserve_len, per_head, mass: [max_batch], see `ops.attention_with_return`.
    returned_indices: [num_layers, max_batch, num_kv_heads, capacity] and returned_len: [num_layers,
    max_batch, num_kv_heads], written, by row of the batch. Layers of other groups than
    reserve_group return nothing.
    """

    sketches: Sequence[ops.KeySketch]
    reserve_indices: Tensor
    reserve_len: Tensor
    max_returned: Tensor
    per_head: Tensor
    mass: Tensor
    returned_indices: Tensor
    returned_len: Tensor
    reserve_group: int
    workspace: Tensor
    return_workspace: Tensor

    def of_layer(self, layer_idx: int, batch: int) -> dict[str, object]:
        """What `ops.attention_with_return` takes beside the arguments of decode_attention."""
        return {
            "sketch": self.sketches[layer_idx],
            "reserve_indices": self.reserve_indices,
            "reserve_len": self.reserve_len,
            "max_returned": self.max_returned[layer_idx],
            "per_head": self.per_head,
            "mass": self.mass,
            "returned_indices": self.returned_indices[layer_idx, :batch],
            "returned_len": self.returned_len[layer_idx, :batch],
            "reserve_group": self.reserve_group,
            "workspace": self.workspace,
            "return_workspace": self.return_workspace,
        }


@dataclass(frozen=True)
class DecodePlan:
    """One new token for each of `batch` sequences; all tensors int32, read by the op.

    seq_idx_rows: [batch], the sequence of each row, -1 for a row to skip.
    slot_idx: [batch], where the K/V of the row's token is stored.
    visible_indices: [max_batch, num_groups, list_capacity]; visible_len: [max_batch, num_groups].
    layer_to_group: [max_batch, num_layers].
    text_len: [max_batch], tokens in the text arena, the new one included.
    monitor: where attention over the base set is gathered at the layers in `monitored`, whose
    queries are copied into queries[layer, :batch], [num_layers, max_batch, num_heads, head_dim].
    returns: None where no row brings tokens back within the step.
    """

    seq_idx_rows: Tensor
    slot_idx: Tensor
    visible_indices: Tensor
    visible_len: Tensor
    layer_to_group: Tensor
    text_len: Tensor
    workspace: Tensor | None = None
    status: Tensor | None = None
    monitor: ops.Monitor | None = None
    monitored: frozenset[int] = frozenset()
    queries: Tensor | None = None
    returns: Returns | None = None

    def linear(self, x: Tensor, weight: Tensor | ops.QuantisedMatrix, ctx: Context) -> Tensor:
        """x: [batch, in_features] -> [batch, out_features]; a row's bits do not depend on batch."""
        return linear(x, weight, ctx.pool)

    def attend(
        self, q: Tensor, k: Tensor, v: Tensor, cache: KVArenas, layer_idx: int, ctx: Context
    ) -> Tensor:
        """Each row reads its visible list and its text (k and v are in the arenas already).

        q: [batch, num_heads, head_dim] -> same shape.
        """
        is_monitored = layer_idx in self.monitored
        if is_monitored:
            ops.perform(self.queries[layer_idx, : len(q)].copy_, q)
        arenas = cache.visual[layer_idx], cache.text[layer_idx]
        reads = self.reads(layer_idx, q.shape[-1], ctx)
        reads["monitor"] = self.monitor if is_monitored else None
        if self.returns is None:
            return ops.decode_attention(q, *arenas, **reads)
        return ops.attention_with_return(
            q, *arenas, **{**reads, **self.returns.of_layer(layer_idx, len(q))}
        )

    def reads(self, layer_idx: int, head_dim: int, ctx: Context) -> dict[str, object]:
        """What the attention ops take to read the lists of this plan."""
        return {
            "seq_idx": self.seq_idx_rows,
            "visible_indices": self.visible_indices,
            "visible_len": self.visible_len,
            "layer_to_group": self.layer_to_group,
            "layer_idx": layer_idx,
            "text_len": self.text_len,
            "scale": head_dim**-0.5,
            "pool": ctx.pool,
            "workspace": self.workspace,
            "status": self.status,
        }


Plan: TypeAlias = PrefillPlan | DecodePlan
