"""DivPrune (arXiv 2503.02175): keep tokens that are as different from each other as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.pruning.base import Pruner, VisualTokens, first_largest, unit_rows
from pydstp.pruning.registry import register_pruner

_BLOCK = 512  # rows of the N x N distances that exist at a time
_PICKED, _LAST_RESORT = -2.0, -1.0  # below every distance


@register_pruner("divprune")
@dataclass(frozen=True)
class DivPrune(Pruner):
    """Greedy max-min diversity of the embeddings, distance 1 - cos, in fp32.

    The first token is the one farthest from its nearest neighbour, each further one the farthest
    from all picked so far. Of equally good ones the first is taken, and none twice. An embedding of
    length zero is at distance 1 from everything; one with a NaN or infinity is taken last.
    """

    def select(self, tokens: VisualTokens) -> Tensor:
        """Picks span by span."""
        picked = [span.start + pick_diverse(tokens.features[span], quota).sort().values
                  for span, quota in tokens.each_span()]
        return torch.cat(picked)


def pick_diverse(features: Tensor, count: int) -> Tensor:
    """The greedy choice, in O(n count d) behind the O(n^2 d) that finds its first token.

    Args:
        features: [n, d].
        count: at most n.

    Returns:
        [count] int64 in the order in which they were picked.
    """
    unit, is_finite = unit_rows(features)
    last_resort = torch.where(is_finite, torch.inf, _LAST_RESORT)
    distance = torch.minimum(last_resort, _nearest_neighbour(unit, is_finite))
    nearest = last_resort  # distance to what is picked so far
    picked = torch.empty(count, dtype=torch.int64, device=features.device)
    for i in range(count):
        token = first_largest(nearest if i else distance)
        nearest = torch.minimum(nearest, (1.0 - unit @ unit[token]).clamp_(min=0.0))
        nearest[token] = _PICKED
        picked[i] = token
    return picked


def _nearest_neighbour(unit: Tensor, is_finite: Tensor) -> Tensor:
    """[n] distance of each row to the nearest other finite one; infinity where there is none."""
    distances = []
    for start in range(0, len(unit), _BLOCK):
        cosine = unit[start:start + _BLOCK] @ unit.T
        cosine[:, ~is_finite] = -torch.inf
        cosine.diagonal(start).fill_(-torch.inf)
        distances.append((1.0 - cosine.amax(dim=1)).clamp_(min=0.0))
    return torch.cat(distances)
