"""How large a cache is, how far one of its sequences had come, and its lists of slots."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from pydstp.errors import CapacityError


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


def check_room(what: str, needed: int, capacity: int, option: str) -> None:
    """`CapacityError` where a sequence needs more than there is."""
    if needed > capacity:
        raise CapacityError(f"{what}: the sequence needs {needed}, but {option} = {capacity}")


def int32(*shape: int, device: torch.device | str = "cpu") -> torch.Tensor:
    """Zeros."""
    return torch.zeros(*shape, dtype=torch.int32, device=device)


def counting(start: int, count: int) -> torch.Tensor:
    """[count] int32 on the host: start, start + 1 ..."""
    return torch.arange(start, start + count, dtype=torch.int32, device="cpu")


def write_list(flags: torch.Tensor, slots: torch.Tensor, length: torch.Tensor) -> int:
    """Write a list and its length for ops to read: the places where flags, on the host, are set."""
    found = flags.nonzero().squeeze(1).int()
    slots[:len(found)].copy_(found)
    length.fill_(len(found))
    return len(found)
