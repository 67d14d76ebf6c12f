"""PruMerge+ (arXiv 2403.15388): tokens that stand out, a raster of others, and their neighbours."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.config import require_int
from pydstp.errors import OptionError, show
from pydstp.pruning.base import (
    MergePlan,
    Pruner,
    Selection,
    VisualTokens,
    best_of_whole,
    top_indices,
    unit_rows,
    without_rounding,
)
from pydstp.pruning.registry import register_pruner


@register_pruner("prumerge")
@dataclass(frozen=True)
class PruMerge(Pruner):
    """Outliers of the attention and evenly spaced tokens; each gathers the tokens most like it.

    With a the attention of `fastervlm` over a picture or tile, Q1 and Q3 its quartiles (linear
    between ranks), a token stands out if a_i > Q3 + 1.5 (Q3 - Q1). Those stay, at most k of them,
    most attention first; where m others are left and c of the k places, others number 0, m/c,
    2m/c ... (rounded down) fill them. Each token p that stays becomes

        x_p + sum over j in N(p) of (a_j / sum a) x_j,

    N(p) the `neighbours` other tokens with the largest cosine of their keys to that of p, kept ones
    among them, of equals the first. It takes the place of p.

    The paper's first method keeps the outliers alone, as many as there are; the plus adds the
    raster, here without repeating an outlier, so that exactly k tokens stay. CLIP's attention sums
    to one over its tokens; that of a token here is a mean over its patches, so it is divided by its
    sum. In a span of which everything stays, nothing is merged.

    Attributes:
        neighbours: gathered by each token.
        prune_only: nothing is merged.
        block: of the vision tower; negative counts from the end.

    Raises:
        OptionError: a value of the wrong type or outside its range.
    """

    neighbours: int = 32
    prune_only: bool = False
    block: int = -2

    def __post_init__(self) -> None:
        require_int("neighbours", self.neighbours, 1, 1 << 20)
        require_int("block", self.block, -(1 << 20), 1 << 20)
        if not isinstance(self.prune_only, bool):
            raise OptionError(f"prune_only: expected True or False, got {show(self.prune_only)}")

    @property
    def needs(self) -> frozenset[str]:
        """Keys only where something is merged."""
        return frozenset({"vision_attention"} | ({"vision_keys"} if self.merges else set()))

    @property
    def merges(self) -> bool:
        """Unless `prune_only`."""
        return not self.prune_only

    def select(self, tokens: VisualTokens) -> Selection:
        """Span by span; see `Selection` for what comes out."""
        kept, plans = [tokens.features.new_empty(0, dtype=torch.int64)], []
        for span, quota in tokens.each_span():
            chosen = span.start + choose(tokens.vision_attention[span], quota)
            if self.merges and quota < span.stop - span.start:
                plans.append(gather(tokens, span, chosen, self.neighbours))
            else:
                kept.append(chosen)
        merge = MergePlan(torch.cat([plan.targets for plan in plans]),
                          torch.cat([plan.weights for plan in plans])) if plans else None
        return Selection(torch.cat(kept), merge)


def choose(attention: Tensor, count: int) -> Tensor:
    """[n] -> [count] int64, sorted: outliers, and others at equal steps."""
    low, high = attention.quantile(attention.new_tensor([0.25, 0.75]))
    num_outliers = int((attention > high + 1.5 * (high - low)).sum())
    outliers = top_indices(attention, min(num_outliers, count))
    is_left = attention.new_ones(len(attention), dtype=torch.bool)
    is_left[outliers] = False
    others, missing = is_left.nonzero().squeeze(1), count - len(outliers)
    spaced = others[torch.arange(missing, device=others.device) * len(others) // max(missing, 1)]
    return torch.cat([outliers, spaced]).sort().values


def gather(tokens: VisualTokens, span: slice, targets: Tensor, neighbours: int) -> MergePlan:
    """Each of `targets`, sorted indices in the span, with what it takes from the span's others."""
    unit, _ = unit_rows(tokens.vision_keys[span])
    own = targets - span.start
    cosines = without_rounding(unit[own] @ unit.T)
    cosines[torch.arange(len(own), device=own.device), own] = -torch.inf
    nearest = span.start + best_of_whole(cosines, min(neighbours, len(unit) - 1))
    attention = tokens.vision_attention.nan_to_num(nan=0.0, posinf=0.0, neginf=0.0).clamp(min=0.0)
    share = attention / attention[span].sum().clamp(min=torch.finfo(torch.float32).tiny)
    weights = share.new_zeros(len(targets), len(tokens))
    return MergePlan(targets, weights.scatter_(1, nearest, share[nearest]))
