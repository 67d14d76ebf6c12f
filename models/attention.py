"""Attention of many rows: the prompt's in the decoder, and every row's in the vision towers."""

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn.attention import SDPBackend, sdpa_kernel

from pydstp import ops

# What the library may take, the fastest for long prompts on recent GPUs first.
BACKENDS = [
    SDPBackend.CUDNN_ATTENTION,
    SDPBackend.FLASH_ATTENTION,
    SDPBackend.EFFICIENT_ATTENTION,
    SDPBackend.MATH,
]


def attend(
    q: Tensor,
    k: Tensor,
    v: Tensor,
    *,
    pool: ops.ThreadPool,
    segments: Sequence[int] | None = None,
    visible_len: Tensor | None = None,
    is_causal: bool = False,
) -> Tensor:
    """softmax(q @ k.T / sqrt(head_dim)) @ v per head, by our own op or, on a GPU, by the library.

    q: [num_queries, num_heads, head_dim]; k, v: [num_keys, num_kv_heads, head_dim]. segments: runs
    of rows that see each other only. visible_len: [num_queries] int32, row i sees so many keys of
    its segment, the first ones, at least one; is_causal says the same of row i and i + 1 keys, for
    one segment. -> [num_queries, num_heads, head_dim].
    """
    if q.is_cpu:
        if is_causal:
            visible_len = torch.arange(1, len(q) + 1, dtype=torch.int32, device=q.device)
        scale = q.shape[-1] ** -0.5
        return ops.prefill_attention(
            q, k, v, scale=scale, pool=pool, segments=segments, visible_len=visible_len
        )
    if is_causal:
        return masked_attention(q, k, v, None, is_causal=True)
    lengths = [len(q)] if segments is None else list(segments)
    keys = [len(k)] if segments is None else lengths
    seen = [None] * len(lengths) if visible_len is None else visible_len.split(lengths)
    parts = zip(q.split(lengths), k.split(keys), v.split(keys), map(prefix_mask, seen, keys))
    return torch.cat([masked_attention(*part) for part in parts])


def prefix_mask(visible_len: Tensor | None, num_keys: int) -> Tensor | None:
    """[num_queries, num_keys] bool, True where row i sees key j; None where all see all."""
    if visible_len is None:
        return None
    keys = torch.arange(num_keys, device=visible_len.device)
    return keys < visible_len.unsqueeze(1)


def masked_attention(
    q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None, is_causal: bool = False
) -> Tensor:
    """The library's attention, for any mask: [num_queries, num_keys] bool, True where a row sees.

    q, k, v and the result as in `attend`.
    """
    heads_first = [t.transpose(0, 1).unsqueeze(0) for t in (q, k, v)]
    with sdpa_kernel(BACKENDS, set_priority=True):
        out = F.scaled_dot_product_attention(
            *heads_first, attn_mask=mask, is_causal=is_causal, enable_gqa=True
        )
    return out.squeeze(0).transpose(0, 1)
