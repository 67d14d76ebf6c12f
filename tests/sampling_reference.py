"""The next token from the definition: one number after the other, sums as fractions."""

from __future__ import annotations

import math
from collections.abc import Collection, Sequence
from fractions import Fraction

import numpy as np


def penalised(logits: Sequence[float], *, prompt_ids: Collection[int], new_ids: Collection[int],
              blocked_ids: Collection[int], repetition_penalty: float,
              presence_penalty: float) -> list[float]:
    """[vocab_size] logits after penalties, rounded to fp32 after each operation."""
    values = []
    for token, logit in enumerate(logits):
        value = np.float32(logit)
        if token in prompt_ids or token in new_ids:
            penalty = np.float32(repetition_penalty)
            value = value / penalty if value > 0 else value * penalty
        if token in new_ids:
            value = value - np.float32(presence_penalty)
        values.append(-math.inf if token in blocked_ids else float(value))
    return values


def ranked(values: Sequence[float]) -> list[int]:
    """Tokens by falling value, equals by rising id."""
    return sorted(range(len(values)), key=lambda token: (-values[token], token))


def survivors(values: Sequence[float], *, temperature: float, top_k: int, top_p: float,
              min_p: float) -> list[tuple[int, Fraction]]:
    """Tokens that may be drawn, best first, and how likely each is beside the best."""
    tokens = ranked(values)[: top_k or len(values)]
    best = values[tokens[0]]
    likely = [Fraction(math.exp((values[token] - best) / temperature)) for token in tokens]
    total, before, kept = sum(likely), Fraction(0), []
    for token, share in zip(tokens, likely, strict=True):
        is_in_top_p = top_p == 1.0 or before < Fraction(top_p) * total
        if is_in_top_p and share >= Fraction(min_p) * likely[0]:
            kept.append((token, share))
        before += share
    return kept


def draw(kept: Sequence[tuple[int, Fraction]], uniform: float) -> int:
    """The first token at which the sum so far exceeds this part of the whole."""
    target, reached = Fraction(uniform) * sum(share for _, share in kept), Fraction(0)
    for token, share in kept:
        reached += share
        if reached > target:
            return token
    raise AssertionError("uniform: expected a number below 1")
