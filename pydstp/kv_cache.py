"""The visual KV cache: two arenas of keys and values, and the lists that say what is visible.

It owns memory and decides nothing. Everything has its final size from the start; nothing here is
reallocated, moved or copied afterwards, and a token keeps its slot for as long as its sequence.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pydstp.errors import CapacityError


@dataclass(frozen=True)
class CacheGeometry:
    """Sizes of a cache; `visual_capacity` and `text_capacity` are tokens per sequence."""

    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_batch: int
    visual_capacity: int
    text_capacity: int
    num_groups: int = 1

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values of all sequences, all layers and both arenas."""
        tokens = self.max_batch * (self.visual_capacity + self.text_capacity)
        return tokens * self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype.itemsize


@dataclass(frozen=True)
class CacheMark:
    """How far one sequence had come; `KVCache.rewind` goes back to it."""

    visual_len: int
    text_len: int


class KVCache:
    """Keys (after RoPE) and values of every sequence, and their visible lists.

    A slot is a token's row. Slots [0, visual_capacity) lie in the visual arena, slots
    [visual_capacity, visual_capacity + text_capacity) in the text arena. Decode attention of a
    sequence reads the visible list of its layer's group and the first `text_len` text rows.

    Attributes:
        visual: [num_layers, max_batch, visual_capacity, 2, num_kv_heads, head_dim], K then V.
        text: [num_layers, max_batch, text_capacity, 2, num_kv_heads, head_dim].
        visible_indices: [max_batch, num_groups, visual_capacity] int32, sorted.
        visible_len: [max_batch, num_groups] int32.
        layer_to_group: [max_batch, num_layers] int32.
        visual_len, text_len: [max_batch] int32, rows written so far.
        prompt_order: [max_batch, visual_capacity + text_capacity] int32: how many tokens of the
            sequence came before the token in this slot. Positions are no substitute for it: all
            tokens of a picture share one temporal position.
    """

    def __init__(self, geometry: CacheGeometry, dtype: torch.dtype) -> None:
        g = self.geometry = geometry
        row = (2, g.num_kv_heads, g.head_dim)
        self.visual = torch.empty(g.num_layers, g.max_batch, g.visual_capacity, *row, dtype=dtype)
        self.text = torch.empty(g.num_layers, g.max_batch, g.text_capacity, *row, dtype=dtype)
        self.visible_indices = _int32(g.max_batch, g.num_groups, g.visual_capacity)
        self.visible_len = _int32(g.max_batch, g.num_groups)
        self.layer_to_group = _int32(g.max_batch, g.num_layers)
        self.visual_len = _int32(g.max_batch)
        self.text_len = _int32(g.max_batch)
        self.prompt_order = _int32(g.max_batch, g.visual_capacity + g.text_capacity)
        self._free = list(reversed(range(g.max_batch)))

    def close(self) -> None:
        """Give up the memory of keys and values; the bookkeeping stays usable."""
        self.visual = self.text = torch.empty(0)

    @property
    def num_free(self) -> int:
        """Sequences that `acquire` can still hand out."""
        return len(self._free)

    def acquire(self) -> int:
        """An empty sequence; `CapacityError` if all `max_batch` are taken."""
        if not self._free:
            raise CapacityError(f"sequences: all max_batch = {self.geometry.max_batch} are in use")
        seq_idx = self._free.pop()
        self.rewind(seq_idx, CacheMark(0, 0))
        return seq_idx

    def release(self, seq_idx: int) -> None:
        """Give a sequence back."""
        self._free.append(seq_idx)

    def mark(self, seq_idx: int) -> CacheMark:
        """Where the sequence stands now."""
        return CacheMark(int(self.visual_len[seq_idx]), int(self.text_len[seq_idx]))

    def rewind(self, seq_idx: int, mark: CacheMark) -> None:
        """Forget every token that came after `mark`; rows before it stay where they are."""
        self.visual_len[seq_idx] = mark.visual_len
        self.text_len[seq_idx] = mark.text_len
        self._show_all(seq_idx)

    def append(self, seq_idx: int, is_visual: torch.Tensor) -> torch.Tensor:
        """Slots for a run of new tokens, in prompt order; new visual tokens are visible.

        Args:
            seq_idx: the sequence.
            is_visual: [num_tokens] bool.

        Returns:
            slot_idx [num_tokens] int32.

        Raises:
            CapacityError: the run does not fit; nothing was changed.
        """
        num_visual = int(is_visual.sum())
        num_text = is_visual.numel() - num_visual
        mark = self.mark(seq_idx)
        g = self.geometry
        _check_room("visual tokens", mark.visual_len + num_visual, g.visual_capacity,
                    "max_visual_tokens")
        _check_room("text tokens", mark.text_len + num_text, g.text_capacity, "max_text_tokens")
        slot_idx = torch.empty(is_visual.numel(), dtype=torch.int32)
        slot_idx[is_visual] = torch.arange(num_visual, dtype=torch.int32) + mark.visual_len
        text_start = g.visual_capacity + mark.text_len
        slot_idx[~is_visual] = torch.arange(num_text, dtype=torch.int32) + text_start
        order = torch.arange(is_visual.numel(), dtype=torch.int32)
        order += mark.visual_len + mark.text_len
        self.prompt_order[seq_idx, slot_idx.long()] = order
        self.visual_len[seq_idx] = mark.visual_len + num_visual
        self.text_len[seq_idx] = mark.text_len + num_text
        self._show_all(seq_idx)
        return slot_idx

    def append_text_rows(self, seq_idx: torch.Tensor) -> torch.Tensor:
        """A text slot for one new token of each sequence; seq_idx [batch] int64, distinct.

        Returns:
            slot_idx [batch] int32. The caller has made sure that there is room.
        """
        text_len = self.text_len[seq_idx]
        slot_idx = text_len + self.geometry.visual_capacity
        self.prompt_order[seq_idx, slot_idx.long()] = self.visual_len[seq_idx] + text_len
        self.text_len[seq_idx] = text_len + 1
        return slot_idx

    def slots_in_prompt_order(self, seq_idx: int) -> torch.Tensor:
        """[num_tokens] int32: the slots of all tokens of a sequence, first token first."""
        mark = self.mark(seq_idx)
        visual = torch.arange(mark.visual_len, dtype=torch.int32)
        text = torch.arange(mark.text_len, dtype=torch.int32) + self.geometry.visual_capacity
        slots = torch.cat([visual, text])
        return slots[self.prompt_order[seq_idx, slots.long()].argsort()]

    def mark_at(self, seq_idx: int, num_tokens: int) -> CacheMark:
        """The mark after the first `num_tokens` tokens of a sequence."""
        slots = self.slots_in_prompt_order(seq_idx)[:num_tokens]
        num_visual = int((slots < self.geometry.visual_capacity).sum())
        return CacheMark(num_visual, num_tokens - num_visual)

    def _show_all(self, seq_idx: int) -> None:
        visual_len = int(self.visual_len[seq_idx])
        self.visible_indices[seq_idx, :, :visual_len] = torch.arange(visual_len, dtype=torch.int32)
        self.visible_len[seq_idx] = visual_len


def _int32(*shape: int) -> torch.Tensor:
    return torch.zeros(*shape, dtype=torch.int32)


def _check_room(what: str, needed: int, capacity: int, option: str) -> None:
    if needed > capacity:
        raise CapacityError(f"{what}: the sequence needs {needed}, but {option} = {capacity}")
