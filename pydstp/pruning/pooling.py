"""Pooling (arXiv 2502.11501, algorithm 4): one token per window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.config import require_choice
from pydstp.pruning.base import Selection, VisualTokens, top_indices
from pydstp.pruning.before_layer import LayerPruner
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.windows import (
    grids_of,
    means_of,
    merged_windows,
    nearest_size,
    numbered_windows,
    window_size,
    windows_of,
)

POOLS = ("mean", "max", "argmax_l1")


@register_pruner("pooling")
@dataclass(frozen=True)
class Pooling(LayerPruner):
    """Pools the hidden states entering layer `layer`, window by window of each grid.

    Corrected: the printed algorithm computes pooled features and then returns, of each window, the
    token whose feature has the largest L1 norm, while the text speaks of pooling. The text is the
    default; `pool="argmax_l1"` is the algorithm as printed. A pooled token takes the place and the
    position of the token nearest the window's centre (of equally near ones the first). DeepStack
    features still to be added are pooled alike. A window of one token is kept as it is.

    The number of windows decides how many tokens stay, so the ratio is met only as nearly as whole
    windows allow; the result says what was achieved. The paper prunes before layer 2.

    Attributes:
        pool: "mean", "max" (number by number), or "argmax_l1" (of equal norms the first).
        window: side of the windows in tokens, or (rows, columns). None: of the sizes whose sides
            differ by at most one, that whose windows come nearest to the quota of the span. The
            paper's square of round(sqrt(1 / r)) tokens a side is what this gives where 1 / r is a
            square; with r above about 3/4 windows of one token are nearest, and all stay.

    Raises:
        OptionError: a value that is not listed.
    """

    adaptive: ClassVar[bool] = True

    pool: str = "mean"
    window: int | tuple[int, int] | None = None

    def __post_init__(self) -> None:
        super().__post_init__()
        require_choice("pool", self.pool, POOLS)
        if self.window is not None:
            window_size(self.window)

    @property
    def merges(self) -> bool:
        """Unless `pool` is "argmax_l1"."""
        return self.pool != "argmax_l1"

    def select(self, tokens: VisualTokens) -> Selection:
        """Span by span; see `Selection` for what comes out."""
        if not self.merges:
            return Selection(self._loudest(tokens))
        kept, targets, weights = [], [], []
        for span, quota in tokens.each_span():
            numbers, centres = numbered_windows(tokens, span, self._size(tokens, span, quota))
            is_single = numbers.bincount(minlength=len(centres)) == 1
            kept.append(centres[is_single])
            targets.append(centres[~is_single])
            weights.append(means_of(numbers, centres, span.start, len(tokens))[~is_single])
        return merged_windows(kept, targets, weights, "max" if self.pool == "max" else "sum")

    def _loudest(self, tokens: VisualTokens) -> Tensor:
        """[num_windows] int64, sorted: of each window the token of the largest L1 norm."""
        norms = tokens.features.float().abs().sum(dim=1)
        windows = [window.flatten() for span, quota in tokens.each_span()
                   for window in windows_of(tokens, span, self._size(tokens, span, quota))]
        best = [window[top_indices(norms[window], 1)] for window in windows]
        return torch.cat(best).sort().values

    def _size(self, tokens: VisualTokens, span: slice, quota: int) -> tuple[int, int]:
        if self.window is not None:
            return window_size(self.window)
        return nearest_size(grids_of(tokens, span), quota)
