"""DivPrune (arXiv 2503.02175): keep tokens that are as different from each other as can be."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.cost import Cost
from pydstp.pruning.base import Pruner, VisualTokens, first_largest, unit_rows
from pydstp.pruning.registry import register_pruner

_BLOCK = 512  # rows of the N x N distances that are computed at a time
_MAX_KEPT = 8192  # tokens up to which all of them are kept
_PICKED, _LAST_RESORT = -2.0, -1.0  # below every distance


@register_pruner("divprune")
@dataclass(frozen=True)
class DivPrune(Pruner):
    """Greedy max-min diversity of the embeddings, distance 1 - cos, in fp32.

    The first token is the one farthest from its nearest neighbour, each further one the farthest
    from all picked so far. Of equally good ones the first is taken, and none twice. An embedding of
    length zero is at distance 1 from everything; one with a NaN or infinity is taken last.
    """

    def cost(self, num_visual: int, num_kept: int, hidden_size: int) -> Cost:
        """All distances, in fp32 at half the rate of bf16; some passes over a row per pick."""
        return Cost(6 * 4.0 * num_visual * (num_visual + num_kept),
                    2 * 2.0 * num_visual**2 * hidden_size)

    def select(self, tokens: VisualTokens) -> Tensor:
        """Picks span by span."""
        picked = [span.start + pick_diverse(tokens.features[span], quota).sort().values
                  for span, quota in tokens.each_span()]
        return torch.cat(picked)


def pick_diverse(features: Tensor, count: int) -> Tensor:
    """The greedy choice. All distances are needed once, for the first token: O(n^2 d).

    Up to 8,192 tokens they are kept (256 MiB), and a pick reads one row of them; beyond that a pick
    computes its row again, O(n d).

    Args:
        features: [n, d].
        count: at most n.

    Returns:
        [count] int64 in the order in which they were picked.
    """
    unit, is_finite = unit_rows(features)
    is_kept = len(unit) <= _MAX_KEPT
    rows = unit.new_empty(len(unit), len(unit)) if is_kept else None
    last_resort = torch.where(is_finite, torch.inf, _LAST_RESORT)
    distance = torch.minimum(last_resort, _nearest_neighbour(unit, is_finite, rows))
    nearest = last_resort  # distance to what is picked so far
    picked = torch.empty(count, dtype=torch.int64, device=features.device)
    for i in range(count):
        token = first_largest(nearest if i else distance)
        row = rows[token] if is_kept else _distances(unit, unit[token])
        nearest = torch.minimum(nearest, row)
        nearest[token] = _PICKED
        picked[i] = token
    return picked


def _distances(unit: Tensor, others: Tensor) -> Tensor:
    """1 - cos of others [d] or [m, d] with each row of unit: [n] or [m, n]."""
    return (1.0 - others @ unit.T).clamp_(min=0.0)


def _nearest_neighbour(unit: Tensor, is_finite: Tensor, rows: Tensor | None) -> Tensor:
    """[n] distance of each row to the nearest other finite one; infinity where there is none.

    rows: [n, n], written: all distances.
    """
    nearest = []
    for start in range(0, len(unit), _BLOCK):
        distances = _distances(unit, unit[start:start + _BLOCK])
        if rows is not None:
            rows[start:start + _BLOCK] = distances
        distances[:, ~is_finite] = torch.inf
        distances.diagonal(start).fill_(torch.inf)
        nearest.append(distances.amin(dim=1))
    return torch.cat(nearest)
