"""DART (arXiv 2502.11494): keep pivots, and what duplicates them least."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_int
from pydstp.cost import Cost
from pydstp.pruning.base import VisualTokens, unit_rows
from pydstp.pruning.before_layer import LayerPruner
from pydstp.pruning.registry import register_pruner


@register_pruner("dart")
@dataclass(frozen=True)
class Dart(LayerPruner):
    """Keeps visual pivots and, for every pivot, the tokens that are least similar to it.

    Pivots are the visual tokens and the tokens of the text behind the pictures whose keys have the
    largest L1 norm in layer `layer` - 1. Each pivot in turn takes, of the visual tokens that are
    left, those of lowest cosine to it between hidden states entering layer `layer`. Text pivots
    rank and are never part of the answer.

    Public programs take int(r N / pivots) tokens for every pivot, which misses the ratio, and go
    through the pivots in the order of a set. Here visual pivots come first, then those of the text,
    each by descending norm; the first ones take one token more where the rest does not divide, so
    that the quota is met exactly, and a quota below `visual_pivots` leaves that many of them. Of
    equal norms or cosines the first token is taken; a hidden state that is not finite comes last.
    The paper prunes before layer 2.

    Attributes:
        visual_pivots: of each span, at least 1. The sources have one span, so all tokens together
            are one unless asked otherwise.
        text_pivots: as many as there are, if fewer.

    Raises:
        OptionError: a value of the wrong type or outside its range.
    """

    default_quota: ClassVar[str] = "global"

    visual_pivots: int = 4
    text_pivots: int = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        require_int("visual_pivots", self.visual_pivots, 1, 1 << 20)
        require_int("text_pivots", self.text_pivots, 0, 1 << 20)

    @property
    def needs(self) -> frozenset[str]:
        """Of the text only with `text_pivots`."""
        of_text = {"text_key_norms", "text_states"} if self.text_pivots else set()
        return frozenset({"key_norms"} | of_text)

    def cost(self, num_visual: int, num_kept: int, hidden_size: int) -> Cost:
        """Every pivot passes over all features a few times, as fp64."""
        num_pivots = self.visual_pivots + self.text_pivots
        return Cost(3 * 8.0 * num_pivots * num_visual * hidden_size)

    def select(self, tokens: VisualTokens) -> Tensor:
        """Picks span by span."""
        directions, is_finite = unit_rows(tokens.features)
        words = directions[:0]
        if self.text_pivots:
            chosen = _descending(tokens.text_key_norms)[:self.text_pivots]
            words, _ = unit_rows(tokens.text_states[chosen])
        kept = []
        for span, quota in tokens.each_span():
            first = _descending(tokens.key_norms[span])[:min(self.visual_pivots, quota)]
            unit = directions[span]
            taken = grow(unit, is_finite[span], first, torch.cat([unit[first], words]), quota)
            kept.append(span.start + taken.nonzero().squeeze(1))
        return torch.cat(kept)


def grow(unit: Tensor, is_finite: Tensor, first: Tensor, pivots: Tensor, count: int) -> Tensor:
    """What stays: `first`, and what the pivots take in turn.

    Args:
        unit: [n, d] float32 rows of length 1.
        is_finite: [n] bool; the others are taken last.
        first: [p] int64, p <= count.
        pivots: [m, d], m >= 1.

    Returns:
        [n] bool, `count` of them True.
    """
    taken = unit.new_zeros(len(unit), dtype=torch.bool)
    taken[first] = True
    share, extra = divmod(count - len(first), len(pivots))
    for i, pivot in enumerate(pivots):
        left = (~taken).nonzero().squeeze(1)
        cosine = (unit[left].double() * pivot.double()).sum(dim=1)  # equal rows, equal numbers
        order = torch.where(is_finite[left], cosine, torch.inf).sort(stable=True).indices
        taken[left[order[:share + (i < extra)]]] = True
    return taken


def _descending(norms: Tensor) -> Tensor:
    """[n] int64: from the largest to the smallest, of equal ones the first first, NaN last."""
    known = torch.where(norms.isnan(), -torch.inf, norms)
    return known.sort(descending=True, stable=True).indices
