"""How large a cache is, and how far one of its sequences had come."""

from __future__ import annotations

from dataclasses import dataclass

import torch


@dataclass(frozen=True)
class CacheGeometry:
    """Sizes of a cache; `visual_capacity` and `text_capacity` are tokens per sequence.

    num_heads: query heads, which the state of a shift policy is kept for.
    """

    num_layers: int
    num_kv_heads: int
    head_dim: int
    max_batch: int
    visual_capacity: int
    text_capacity: int
    num_heads: int = 1

    def kv_bytes(self, dtype: torch.dtype) -> int:
        """Bytes of keys and values of all sequences, all layers and both arenas."""
        tokens = self.max_batch * (self.visual_capacity + self.text_capacity)
        return tokens * self.num_layers * 2 * self.num_kv_heads * self.head_dim * dtype.itemsize


@dataclass(frozen=True)
class CacheMark:
    """How far one sequence had come; `KVCache.rewind` goes back to it."""

    visual_len: int
    text_len: int
    num_tokens: int
