"""What one block of the vision tower attends to, for methods that select visual tokens by it."""

from collections.abc import Callable

import torch
from torch import Tensor

MAX_WEIGHTS = 1 << 22  # attention weights held at a time: 16 MiB of fp32


def attention_received(
    q: Tensor, k: Tensor, segments: list[int], merge_unit: int, check: Callable[[], None]
) -> Tensor:
    """What all patches of its image give a visual token: mean over them, over heads and over the
    token's own patches.

    q, k: [num_patches, num_heads, head_dim] as attention takes them. segments: patches per image.
    check: called before every block of queries. -> [num_patches / merge_unit] fp32.
    """
    images = zip(*(t.float().transpose(0, 1).split(segments, dim=1) for t in (q, k)))
    received = [_mean_over_queries(queries, keys, check) for queries, keys in images]
    return torch.cat(received).view(-1, merge_unit).mean(dim=1)


def _mean_over_queries(q: Tensor, k: Tensor, check: Callable[[], None]) -> Tensor:
    """[num_heads, num_patches, head_dim] of one image -> [num_patches], in blocks of queries."""
    num_heads, num_patches, head_dim = q.shape
    received = q.new_zeros(num_patches)
    for block in q.split(max(1, MAX_WEIGHTS // (num_heads * num_patches)), dim=1):
        check()
        logits = (block * head_dim**-0.5) @ k.mT
        received += logits.softmax(dim=-1).sum(dim=(0, 1))
    return received / (num_heads * num_patches)


def class_attention(query: Tensor, k: Tensor, merge_unit: int) -> Tensor:
    """What the class token of its tile gives a visual token: mean over heads and over patches.

    query: [num_tiles, num_heads, head_dim], of the class tokens. k: [num_tiles, num_heads, 1 +
    patches, head_dim], the class token's first. -> [num_patches / merge_unit] fp32.
    """
    logits = (query.float() * query.shape[-1] ** -0.5).unsqueeze(2) @ k.float().mT
    weights = logits.softmax(dim=-1).mean(dim=1)[:, 0, 1:]
    return weights.reshape(-1, merge_unit).mean(dim=1)


def mean_keys(k: Tensor, merge_unit: int) -> Tensor:
    """k: [num_patches, num_heads, head_dim] -> [num_patches / merge_unit, head_dim] fp32, the mean
    over the patches of a token and over heads."""
    return k.float().unflatten(0, (-1, merge_unit)).mean(dim=(1, 2))
