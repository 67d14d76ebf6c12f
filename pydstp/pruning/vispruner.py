"""VisPruner (arXiv 2412.01818, version 2): important tokens, and among the rest different ones."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_float, require_int
from pydstp.cost import Cost
from pydstp.pruning.base import Pruner, VisualTokens, ranked, unit_rows, without_rounding
from pydstp.pruning.registry import register_pruner

_BLOCK = 512  # rows of the N x N cosines that are computed at a time
_NEAR = 32  # tokens nearest to each that a round looks at first


@register_pruner("vispruner")
@dataclass(frozen=True)
class VisPruner(Pruner):
    """floor(`important_share` * k) tokens by attention received, the others by de-duplication.

    The remaining tokens stand in a row, most attention first. In every round those at even places
    (A) are compared with those at odd places (B), s(a) = max over B of cos(a, b), and the tokens
    of A with the largest s are dropped: `drop` of them, or as many as are still too many. The rest
    of A, largest s first, and then B make up the row of the next round.

    Attention is that of `fastervlm`. Features are the visual tokens as the language model gets
    them; the paper compares patches of the tower, whose grid a 2 x 2 merger does not keep. Of equal
    ones the earlier in the row is dropped. Tokens with a NaN or infinity stay only where there are
    not enough others. The authors' program may drop more tokens than A has and fails for
    small pictures; here A bounds a round. Cost: O(N^2 d) for the cosines, which are kept.

    Attributes:
        important_share: of the quota (rho of the paper); 1 is `fastervlm`.
        drop: tokens per round.
        block: of the vision tower; negative counts from the end.

    Raises:
        OptionError: a value of the wrong type or outside its range.
    """

    needs: ClassVar[frozenset[str]] = frozenset({"vision_attention"})

    important_share: float = 0.5
    drop: int = 8
    block: int = -2

    def __post_init__(self) -> None:
        require_float("important_share", self.important_share, 0.0, 1.0)
        require_int("drop", self.drop, 1, 1 << 20)
        require_int("block", self.block, -(1 << 20), 1 << 20)

    def cost(self, num_visual: int, num_kept: int, hidden_size: int) -> Cost:
        """All cosines, in fp32 at half the rate of bf16, and passes over them."""
        return Cost(6 * 4.0 * num_visual**2, 2 * 2.0 * num_visual**2 * hidden_size)

    def select(self, tokens: VisualTokens) -> Tensor:
        """Span by span."""
        kept = []
        for span, quota in tokens.each_span():
            order = ranked(tokens.vision_attention[span])
            num_important = math.floor(self.important_share * quota)
            important, rest = order[:num_important], order[num_important:]
            diverse = rest[self.spread_out(tokens.features[span][rest], quota - num_important)]
            kept.append(span.start + torch.cat([important, diverse]).sort().values)
        return torch.cat(kept)

    def spread_out(self, features: Tensor, count: int) -> Tensor:
        """[n, d], most important first -> [count] int64: the rows that de-duplication leaves."""
        unit, is_finite = unit_rows(features)
        row, broken = is_finite.nonzero().squeeze(1), (~is_finite).nonzero().squeeze(1)
        if len(row) <= count or not count:
            return torch.cat([row, broken])[:count]
        cosines = torch.cat([without_rounding(block @ unit.T) for block in unit.split(_BLOCK)])
        near = cosines.topk(min(_NEAR, len(cosines)), dim=1)
        while len(row) > count:
            first, second = row[::2], row[1::2]
            is_second = torch.zeros(len(cosines), dtype=torch.bool, device=row.device)
            is_second[second] = True
            similarity = torch.where(is_second[near.indices[first]], near.values[first],
                                     -torch.inf).amax(dim=1)
            is_far = similarity == -torch.inf  # none of B is among the nearest
            similarity[is_far] = cosines[first[is_far][:, None], second].amax(dim=1)
            dropped = min(self.drop, len(row) - count, len(first))
            row = torch.cat([first[ranked(similarity)[dropped:]], second])
        return row
