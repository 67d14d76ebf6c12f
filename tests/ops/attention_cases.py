"""Inputs of the attention ops: rows that no list shows, and lists past their ends, are poison."""

from __future__ import annotations

from dataclasses import dataclass, field, replace

import torch
from torch import Tensor

from tests.generators import INT_MAX, in_wider_rows, normal, poison

MAX_BATCH, NUM_LAYERS, LAYER = 4, 3, 1


@dataclass
class Case:
    """Everything `decode_attention` takes; rows that no list shows hold NaN."""

    q: Tensor
    visual: Tensor
    text: Tensor
    lists: dict[str, Tensor | int | float] = field(default_factory=dict)

    def run(self, op: object, **options: object) -> Tensor:
        return op(self.q, self.visual, self.text, **self.lists, **options)

    def to(self, dtype: torch.dtype) -> Case:
        return replace(self, q=self.q.to(dtype), visual=self.visual.to(dtype),
                       text=self.text.to(dtype))

    def rows(self, index: slice | list[int]) -> Case:
        """The same cache with other rows of the batch."""
        lists = {**self.lists, "seq_idx": self.lists["seq_idx"][index]}
        return replace(self, q=self.q[index], lists=lists)


def make_case(
    dtype: torch.dtype, *, ratio: int = 3, num_kv_heads: int = 2, head_dim: int = 16,
    list_len: int = 97, text_len: int = 19, batch: int = 3, seed: int = 0,
) -> Case:
    """Sequences of the given lengths (the first is full length, others shorter) in two groups."""
    generator = torch.Generator().manual_seed(seed)
    visual_capacity, text_capacity = 2 * list_len + 1, text_len + 7
    row = (2, num_kv_heads, head_dim)
    visual = poison(MAX_BATCH, visual_capacity, *row, dtype=dtype)
    text = poison(MAX_BATCH, text_capacity, *row, dtype=dtype)
    indices = torch.full((MAX_BATCH, 2, list_len + 3), INT_MAX, dtype=torch.int32)
    lengths = torch.tensor([list_len, list_len // 2, min(1, list_len), 0], dtype=torch.int32)
    text_lens = torch.tensor([text_len, text_len, text_len // 2, min(1, text_len)]).int()
    for seq in range(MAX_BATCH):
        listed = torch.randperm(visual_capacity, generator=generator)[: int(lengths[seq])]
        indices[seq, 1, : len(listed)] = listed.int()
        visual[seq, listed] = normal(len(listed), *row, dtype=dtype, seed=seed + seq)
        count = int(text_lens[seq])
        text[seq, :count] = normal(count, *row, dtype=dtype, seed=seed + 10 + seq)
    seq_idx = torch.arange(batch, dtype=torch.int32) % MAX_BATCH
    layer_to_group = torch.zeros(MAX_BATCH, NUM_LAYERS, dtype=torch.int32)
    layer_to_group[:, LAYER] = 1
    visible_len = torch.stack([torch.full_like(lengths, 1), lengths], dim=1)
    q = in_wider_rows(normal(batch, ratio * num_kv_heads, head_dim, dtype=dtype, seed=seed + 20))
    return Case(q, visual, text, {
        "seq_idx": seq_idx, "visible_indices": indices, "visible_len": visible_len,
        "layer_to_group": layer_to_group, "layer_idx": LAYER, "text_len": text_lens,
        "scale": head_dim**-0.5})
