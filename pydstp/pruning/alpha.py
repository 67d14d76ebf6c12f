"""The balance of importance and redundancy (arXiv 2502.11501, equation 6)."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.config import require_float
from pydstp.pruning.base import VisualTokens, unit_rows
from pydstp.pruning.fastv import FastV
from pydstp.pruning.registry import register_pruner


@register_pruner("alpha")
@dataclass(frozen=True)
class AlphaBalanced(FastV):
    """Keeps the best by alpha * mm(attention) + (1 - alpha) * (1 - mm(cosine)).

    `attention` is FastV's score, `cosine` that of the token and the last prompt token, between
    hidden states entering layer `layer`, and mm scales the numbers of all visual tokens to [0, 1];
    where all are equal it gives 0. Sums are taken in float64. A token whose numbers are not finite
    is kept last. The paper prunes before layer 2 and finds its best alpha anywhere from 0 to 0.9,
    by benchmark.

    Attributes:
        alpha: 1 is FastV; 0 looks at no attention, and none is computed.

    Raises:
        OptionError: `alpha` is not a number in [0, 1], or what FastV refuses.
    """

    alpha: float = 0.5

    def __post_init__(self) -> None:
        super().__post_init__()
        require_float("alpha", self.alpha, 0.0, 1.0)

    @property
    def needs(self) -> frozenset[str]:
        """Nothing whose weight is 0."""
        names = super().needs if self.alpha > 0 else frozenset()
        return names | ({"text_states"} if self.alpha < 1 else frozenset())

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best by both terms."""
        scores = tokens.features.new_zeros(len(tokens), dtype=torch.float64)
        if self.alpha > 0:
            scores += self.alpha * min_max(self.scores(tokens).double())
        if self.alpha < 1:
            scores += (1 - self.alpha) * (1 - min_max(self._cosines(tokens)))
        return tokens.top(scores)

    def _cosines(self, tokens: VisualTokens) -> Tensor:
        """[N] float64; NaN where a hidden state is not finite. Equal rows give equal numbers."""
        unit, is_finite = unit_rows(tokens.features)
        last, _ = unit_rows(tokens.text_states[-1:])
        cosines = (unit.double() * last.double()).sum(dim=1)
        return torch.where(is_finite, cosines, torch.nan)


def min_max(values: Tensor) -> Tensor:
    """[n] float64 scaled to [0, 1]; 0 where all are equal, NaN where one is not finite."""
    is_finite = values.isfinite()
    known = values[is_finite]
    if not len(known):
        return torch.full_like(values, torch.nan)
    low, high = known.min(), known.max()
    scaled = (values - low) / torch.where(high > low, high - low, 1.0)
    return torch.where(is_finite, scaled, torch.nan)
