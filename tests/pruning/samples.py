"""Visual tokens as the engine hands them to a method, random and hostile."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp import PruningConfig, VisualTokens

HIDDEN, HEAD_DIM, NUM_TEXT = 12, 6, 7
# One token, one picture, pictures of one token and of unequal sizes, equal pictures.
GRIDS = [((1, 1),), ((1, 2),), ((3, 5),), ((13, 7),), ((1, 1), (4, 6), (2, 3)),
         ((9, 1), (9, 1)), ((1, 1), (1, 1), (1, 1))]
Grids = tuple[tuple[int, int], ...]


def count(grids: Grids) -> int:
    return sum(rows * cols for rows, cols in grids)


def make_tokens(config: PruningConfig, grids: Grids, seed: int = 0,
                **changes: Tensor) -> VisualTokens:
    """Random tokens with everything a method may need; `changes` replace fields."""
    generator = torch.Generator().manual_seed(seed)
    num_tokens = count(grids)
    spans, quotas = config.quotas(grids)
    values = {
        "features": torch.randn(num_tokens, HIDDEN, generator=generator),
        "attention_row": distinct(num_tokens, generator),
        "upcoming_row": distinct(num_tokens, generator),
        "text_attention": torch.rand(NUM_TEXT, num_tokens, generator=generator),
        "vision_attention": distinct(num_tokens, generator),
        "picture_row": distinct(num_tokens, generator),
        "received_attention": distinct(num_tokens, generator),
        "key_norms": distinct(num_tokens, generator),
        "text_key_norms": distinct(NUM_TEXT, generator),
        "text_states": torch.randn(NUM_TEXT, HIDDEN, generator=generator),
        "vision_keys": torch.randn(num_tokens, HEAD_DIM, generator=generator),
        "text_embeddings": torch.randn(4, HIDDEN, generator=generator),
        **changes,
    }
    return VisualTokens(grids=grids, spans=spans, quotas=quotas, generator=config.generator(),
                        origins=torch.arange(num_tokens), **values)


def distinct(num_tokens: int, generator: torch.Generator) -> Tensor:
    """Multiples of 1/1024 in random order: exact under the sums and products that tests take."""
    return (torch.randperm(num_tokens, generator=generator) + 1) / 1024
