"""VisionZip (arXiv 2412.04467): keep what the vision tower looks at, merge the rest.

The paper reads the attention of CLIP's class token. InternVL's tower has one for each tile;
Qwen3-VL's has none, so the attention that a token receives from all patches of its picture takes
its place, as in public ports.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.config import require_float, require_int
from pydstp.errors import OptionError, show
from pydstp.pruning.base import (
    MergePlan,
    Pruner,
    Selection,
    VisualTokens,
    first_largest,
    top_indices,
    unit_rows,
)
from pydstp.pruning.registry import register_pruner


@register_pruner("visionzip")
@dataclass(frozen=True)
class VisionZip(Pruner):
    """Dominant tokens by attention received; contextual ones gather the others by their keys.

    Every step-th of the tokens that are not dominant is a target; each other one goes to the target
    whose key is most similar (cosine; of equals the first). A contextual token is its target *plus*
    the mean of what was assigned to it, and takes the target's place. In a span of which everything
    stays, nothing is merged.

    Attributes:
        block: of the vision tower; negative counts from the end.
        dominant_share: of the quota; the rest, at least one where the quota is two or more, is
            contextual.
        prune_only: the whole quota is dominant; nothing is merged.
        merge_only: the whole quota is contextual.

    Raises:
        OptionError: a value of the wrong type or outside its range, or both `*_only`.
    """

    block: int = -2
    dominant_share: float = 5.4 / 6.4
    prune_only: bool = False
    merge_only: bool = False

    def __post_init__(self) -> None:
        require_int("block", self.block, -(1 << 20), 1 << 20)
        require_float("dominant_share", self.dominant_share, 0.0, 1.0)
        for name in ("prune_only", "merge_only"):
            if not isinstance(getattr(self, name), bool):
                raise OptionError(f"{name}: expected True or False, "
                                  f"got {show(getattr(self, name))}")
        if self.prune_only and self.merge_only:
            raise OptionError("prune_only, merge_only: expected at most one of them, got both")

    @property
    def needs(self) -> frozenset[str]:
        """Keys only where something may be merged, attention where something is dominant."""
        names = {"vision_attention"} if not self.merge_only else set()
        return frozenset(names | ({"vision_keys"} if not self.prune_only else set()))

    @property
    def merges(self) -> bool:
        """Unless `prune_only`."""
        return not self.prune_only

    def select(self, tokens: VisualTokens) -> Selection:
        """Span by span; see `Selection` for what comes out."""
        kept, plans = [], []
        for span, quota in tokens.each_span():
            length = span.stop - span.start
            num_dominant = self.num_dominant(quota, length)
            dominant = torch.arange(span.start, span.start + num_dominant,
                                    device=tokens.features.device)
            if 0 < num_dominant < length:
                dominant = span.start + top_indices(tokens.vision_attention[span], num_dominant)
            kept.append(dominant)
            if num_dominant < quota:
                plans.append(merge_rest(tokens.vision_keys, span, dominant, quota - num_dominant))
        merge = MergePlan(torch.cat([plan.targets for plan in plans]),
                          torch.cat([plan.weights for plan in plans])) if plans else None
        return Selection(torch.cat(kept), merge)

    def num_dominant(self, quota: int, length: int) -> int:
        """How many of a quota are kept as they are, in a span of `length` tokens."""
        if quota == length or self.prune_only:
            return quota
        if self.merge_only:
            return 0
        if quota <= 1:
            return quota
        return min(math.floor(self.dominant_share * quota + 0.5), quota - 1)


def merge_rest(keys: Tensor, span: slice, dominant: Tensor, count: int) -> MergePlan:
    """Everything in the span that is not dominant, gathered into `count` tokens.

    Args:
        keys: [N, d] of all tokens.
        dominant: indices in the span; at least `count` tokens of it are left.
    """
    is_rest = torch.zeros(len(keys), dtype=torch.bool, device=keys.device)
    is_rest[span] = True
    is_rest[dominant] = False
    rest = is_rest.nonzero().squeeze(1)
    targets = rest[torch.arange(count, device=keys.device) * (len(rest) // count)]
    is_rest[targets] = False
    others = is_rest.nonzero().squeeze(1)
    unit, _ = unit_rows(keys)
    group = first_largest(unit[others] @ unit[targets].T)
    weights = torch.zeros(count, len(keys), dtype=torch.float32, device=keys.device)
    weights[group, others] = 1.0 / group.bincount(minlength=count)[group].float()
    return MergePlan(targets, weights)
