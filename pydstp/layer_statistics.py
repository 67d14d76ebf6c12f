"""What the decoder layer before the pruning point says about the visual tokens of a prompt.

Attention comes from single queries, or summed over many of them: nothing here is as large as an
attention map.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from pydstp import ops
from pydstp.kv_cache import ALL, KVCache
from pydstp.models.plans import Context, DecodePlan
from pydstp.reserve import visible_lengths

COLUMN_SUMS = "column_sums"  # for methods that act on the cache
_BLOCK_ROWS = 64  # queries whose attention exists, KV head by KV head, at a time


@dataclass
class LayerStatistics:
    """The statistics of `pydstp.pruning.base.STATISTICS` that come from the decoder.

    Before the layer runs, `queries` says which of its queries have to be copied out; once it has
    run, `collect` computes them.

    Attributes:
        needs: the names to compute; those of the vision tower are none of its business.
        layer_idx: the layer before the pruning point, -1 where there is none.
        slots: [n] int64 of the rows, in prompt order; like visual and raters on the host.
        visual: [num_visual] int64, the rows that are visual tokens which may leave, of which a
            picture has lengths[i].
        raters: [num_raters] int64, the rows of text whose attention counts; num_text, how many rows
            stand behind the last picture.
        is_full: rows see all visual tokens, whatever has left.
        workspace: of `ops.attention_workspace`.
    """

    needs: frozenset[str]
    layer_idx: int
    cache: KVCache
    seq_idx: int
    slots: Tensor
    visual: Tensor
    lengths: list[int]
    raters: Tensor
    num_text: int
    is_full: bool
    workspace: Tensor
    ctx: Context

    def __post_init__(self) -> None:
        self._queries: dict[str, list[tuple[int | slice | Tensor, Tensor]]] = {}
        if "attention_row" in self.needs:
            self._queries["attention_row"] = [(len(self.slots) - 1, self._room())]
        if "picture_row" in self.needs:
            last = self.visual.new_tensor(self.lengths).cumsum(0) - 1  # of each picture
            self._queries["picture_row"] = [(row, self._room())
                                            for row in self.visual[last].tolist()]
        for name in {"received_attention", COLUMN_SUMS} & self.needs:
            self._queries[name] = [(slice(None), self._room(len(self.slots)))]
        if "text_attention" in self.needs:
            self._queries["text_attention"] = [(self.raters, self._room(len(self.raters)))]

    def _room(self, *shape: int) -> Tensor:
        """[*shape, num_heads, head_dim]"""
        geometry = self.cache.geometry
        return self.cache.visual.new_empty(*shape, geometry.num_heads, geometry.head_dim)

    @property
    def queries(self) -> list[tuple[int | slice | Tensor, Tensor]]:
        """Rows whose query is needed, and where to leave it."""
        return [pair for pairs in self._queries.values() for pair in pairs]

    def collect(self, x: Tensor, upcoming: Tensor | None) -> dict[str, Tensor]:
        """Everything needed, by name; x [n, hidden_size] has left layer `layer_idx`.

        upcoming: [num_heads, head_dim], the query of the last row in the layer behind, whose keys
        are in the cache; None where it is not needed.
        """
        text = len(self.slots) - self.num_text
        compute: dict[str, Any] = {
            "attention_row": self._attention_row, "picture_row": self._picture_row,
            "received_attention": self._received_attention,
            "text_attention": self._text_attention, COLUMN_SUMS: self._column_sums,
            "upcoming_row": lambda: self._last_row(upcoming, self.layer_idx + 1),
            "key_norms": lambda: self._key_norms(self.slots[self.visual]),
            "text_key_norms": lambda: self._key_norms(self.slots[text:]),
            "text_states": lambda: x[text:]}
        return {name: of() for name, of in compute.items() if name in self.needs}

    def _attention_row(self) -> Tensor:
        (_, query), = self._queries["attention_row"]
        return self._last_row(query, self.layer_idx)

    def _last_row(self, query: Tensor, layer_idx: int) -> Tensor:
        return self._row(len(self.slots) - 1, query, layer_idx)[self.slots[self.visual]]

    def _picture_row(self) -> Tensor:
        rows = [self._row(row, query, self.layer_idx)
                for row, query in self._queries["picture_row"]]
        slots = self.slots[self.visual].split(self.lengths)
        return torch.cat([row[some] for row, some in zip(rows, slots, strict=True)])

    def _row(self, row: int, query: Tensor, layer_idx: int) -> Tensor:
        """[visual_capacity] fp32: attention of one row over all that came with and before it."""
        cache, s, heads = self.cache, self.seq_idx, self.cache.geometry.num_heads
        group = self._group(layer_idx)
        seen = self._context(int(cache.prompt_order[s, self.slots[row]]) + 1, group)
        is_text = seen >= cache.geometry.visual_capacity
        text_len, visible_len = cache.text_len.clone(), cache.visible_len.clone()
        num_text = int(is_text.sum())
        text_len[s], visible_len[s, group] = num_text, len(seen) - num_text  # lists are in order
        probs = torch.zeros_like(cache.shift.probs)
        monitor = ops.Monitor(
            probs=probs, base_mask=None, norm=probs.new_ones(len(probs), dtype=torch.int32),
            head_weights=probs.new_full((len(probs), heads), 1 / heads),
            layer_weights=probs.new_ones(len(probs), cache.geometry.num_layers))
        groups = torch.full_like(cache.layer_to_group, group)
        attention_probs(cache, s, query, layer_idx, monitor, self.workspace, self.ctx,
                        layer_to_group=groups, text_len=text_len, visible_len=visible_len)
        return probs[s]

    def _group(self, layer_idx: int) -> int:
        """The list that rows of a layer see."""
        return ALL if self.is_full else int(self.cache.groups[self.seq_idx, layer_idx])

    def _context(self, end: int, group: int) -> Tensor:
        """[num_slots] int64 in prompt order: what a layer has seen below order `end`."""
        return self.cache.context(self.seq_idx, self.cache.visible_slots(self.seq_idx, group), end)

    def _keys(self, slots: Tensor) -> Tensor:
        """[num_slots, num_kv_heads, head_dim]"""
        cache, layer = self.cache, self.layer_idx
        rows = ops.gather_kv(cache.visual[layer], cache.text[layer], self.seq_idx,
                             slots.int().to(cache.device), pool=self.ctx.pool)
        return rows[:, 0]

    def _key_norms(self, slots: Tensor) -> Tensor:
        return self._keys(slots).float().abs().sum(dim=(1, 2))

    def _received_attention(self) -> Tensor:
        """[num_visual] fp32."""
        (_, queries), = self._queries["received_attention"]
        sums = self._sums(queries, self.slots, without_last=True).mean(dim=0)
        return sums[self._is_visual()] / (int(self.cache.num_tokens[self.seq_idx]) - 1)

    def _text_attention(self) -> Tensor:
        """[num_raters, num_visual] fp32."""
        (rows, queries), = self._queries["text_attention"]
        is_visual = self._is_visual()
        parts = [queries.new_empty(0, int(is_visual.sum()), dtype=torch.float32)]
        for some, slots in zip(queries.split(_BLOCK_ROWS), self.slots[rows].split(_BLOCK_ROWS),
                               strict=True):
            parts.append(self._sums(some, slots, per_row=True)[..., is_visual].mean(dim=0))
        return torch.cat(parts)

    def _column_sums(self) -> Tensor:
        """[num_kv_heads, n] fp32: attention that each of the rows gets of all of them, mean over
        the query heads of a KV head."""
        (_, queries), = self._queries[COLUMN_SUMS]
        return self._sums(queries, self.slots)[:, torch.isin(self._whole_context(), self.slots)]

    def _sums(self, queries: Tensor, slots: Tensor, **options: bool) -> Tensor:
        """`ops.attention_sums` of the rows in some slots over the whole context."""
        self.ctx.check()
        order, context = self.cache.prompt_order[self.seq_idx], self._whole_context()
        seen = visible_lengths(order[slots], order[context]).to(self.cache.device)
        return ops.attention_sums(
            queries, self._keys(context), visible_len=seen,
            scale=queries.shape[-1] ** -0.5, pool=self.ctx.pool, **options)

    def _whole_context(self) -> Tensor:
        return self._context(int(self.cache.num_tokens[self.seq_idx]), self._group(self.layer_idx))

    def _is_visual(self) -> Tensor:
        """[num_context] bool on the host: where the visual tokens are that may leave."""
        return torch.isin(self._whole_context(), self.slots[self.visual])


def attention_probs(cache: KVCache, seq_idx: int, query: Tensor, layer_idx: int,
                    monitor: ops.Monitor, workspace: Tensor, ctx: Context, *,
                    layer_to_group: Tensor, text_len: Tensor, visible_len: Tensor) -> None:
    """Add the attention of one query, [num_heads, head_dim], over lists of the cache to `monitor`.

    The lists are those of the cache, as long as visible_len and text_len say.
    """
    plan = DecodePlan(
        seq_idx_rows=text_len.new_tensor([seq_idx]), slot_idx=text_len[:0],
        visible_indices=cache.visible_indices, visible_len=visible_len,
        layer_to_group=layer_to_group, text_len=text_len, workspace=workspace)
    ops.attention_probs(query.unsqueeze(0), cache.visual[layer_idx], cache.text[layer_idx],
                        monitor=monitor, **plan.reads(layer_idx, query.shape[-1], ctx))
