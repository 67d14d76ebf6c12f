"""CDPruner (arXiv 2506.10967): different tokens that have to do with the question."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_float
from pydstp.cost import Cost
from pydstp.pruning.base import Pruner, VisualTokens, first_largest, ranked, unit_rows
from pydstp.pruning.registry import register_pruner

_SPANNED = 1e-5  # squared length of what is left of a unit vector: below, it is rounding
_RELEVANCE_FLOOR = 1e-6  # added before dividing, as the authors do: no relevance is zero


@register_pruner("cdpruner")
@dataclass(frozen=True)
class CDPruner(Pruner):
    """Greedy choice of the set A with the largest det(L_A), a determinantal point process, where

        L = diag(r) S diag(r),   S_ij = cos(v_i, v_j),   r = minmax(mean over words m of
        cos(v_i, t_m)) within the picture or tile,

    v the visual tokens and t the words of the last user message, as the language model gets them
    (the paper takes both from CLIP; there, relevance is negated, which its text tower needs and an
    embedding table does not). In each round the token with the largest r_i^2 d_i is taken, d_i the
    squared length of v_i / |v_i| without its components along the tokens taken before.

    Where the message has no words, or all are equally relevant, r is 1. Tokens whose direction
    is spanned by those taken (there cannot be more than hidden_size others) fill up what is missing
    by relevance, those with a NaN or infinity last. Of equally good ones the first is taken.
    float32; O(N k (d + k)) time, N k numbers of memory.

    Attributes:
        relevance_weight: theta in [0, 0.99]: r becomes exp(theta / (2 (1 - theta)) r), so that 0
            looks at diversity alone; None leaves r as it is, the authors' default.

    Raises:
        OptionError: `relevance_weight` is no number in its range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"text_embeddings"})

    relevance_weight: float | None = None

    def __post_init__(self) -> None:
        if self.relevance_weight is not None:
            require_float("relevance_weight", self.relevance_weight, 0.0, 0.99)

    def cost(self, num_visual: int, num_kept: int, hidden_size: int) -> Cost:
        """A pick reads all features, and what the picks before it span."""
        return Cost(4.0 * num_visual * num_kept * (hidden_size + num_kept / 2))

    def select(self, tokens: VisualTokens) -> Tensor:
        """Span by span."""
        return torch.cat([span.start + self._pick(tokens.features[span], tokens.text_embeddings,
                                                  quota).sort().values
                          for span, quota in tokens.each_span()])

    def _pick(self, features: Tensor, words: Tensor, count: int) -> Tensor:
        unit, is_finite = unit_rows(features)
        relevance = relevance_of(unit, words)
        if self.relevance_weight is not None:
            weight = self.relevance_weight / (2 * (1 - self.relevance_weight))
            relevance = (weight * (relevance - 1)).exp()  # a factor makes no difference
        return pick_by_determinant(unit, torch.where(is_finite, relevance, -torch.inf), count)


def relevance_of(unit: Tensor, words: Tensor) -> Tensor:
    """Mean cosine with the words, stretched to [0, 1].

    Args:
        unit: [n, d], of `unit_rows`.
        words: [m, d]; m may be 0.

    Returns:
        [n] float32.
    """
    if not len(words):
        return unit.new_ones(len(unit))
    cosine = unit @ unit_rows(words)[0].mean(dim=0)
    low, high = cosine.aminmax()
    if high - low < _RELEVANCE_FLOOR:
        return unit.new_ones(len(unit))
    return (cosine - low + _RELEVANCE_FLOOR) / (high - low)


def pick_by_determinant(unit: Tensor, relevance: Tensor, count: int) -> Tensor:
    """Greedy maximum of det(diag(relevance) unit unit^T diag(relevance)) over sets of rows.

    Args:
        unit: [n, d], rows of length 1 or 0.
        relevance: [n] >= 0; rows with -inf are taken last.
        count: at most n.

    Returns:
        [count] int64 in the order in which they were picked.
    """
    left = unit.square().sum(dim=1)  # squared length of what the picked rows do not span
    weight = relevance.clamp(min=0.0).square()
    components = unit.new_zeros(count, len(unit))
    picked: list[int] = []
    while len(picked) < count:
        gains = torch.where(left > _SPANNED, weight * left, 0.0)
        if not gains.any():
            break
        token = int(first_largest(gains / gains.max()))
        done = components[:len(picked)]
        along = (unit @ unit[token] - done[:, token] @ done) / left[token].sqrt()
        components[len(picked)] = along
        left = left - along.square()
        left[token] = 0.0
        picked.append(token)
    is_left = unit.new_ones(len(unit), dtype=torch.bool)
    is_left[picked] = False
    order = ranked(relevance)
    return torch.cat([order.new_tensor(picked), order[is_left[order]]])[:count]
