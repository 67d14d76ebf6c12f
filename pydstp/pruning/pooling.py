"""Pooling (arXiv 2502.11501, algorithm 4): one token per window."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pydstp.errors import OptionError, show
from pydstp.pruning.base import MergePlan, Selection, VisualTokens, top_indices
from pydstp.pruning.before_layer import LayerPruner
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.windows import grids_of, nearest_size, window_size, windows_of

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
        if self.pool not in POOLS:
            raise OptionError(f"pool: expected one of {POOLS}, got {show(self.pool)}")
        if self.window is not None:
            window_size(self.window)

    @property
    def merges(self) -> bool:
        """Unless `pool` is "argmax_l1"."""
        return self.pool != "argmax_l1"

    def select(self, tokens: VisualTokens) -> Selection:
        """Span by span; see `Selection` for what comes out."""
        windows = [window for span, quota in tokens.each_span()
                   for window in windows_of(tokens, span, self._size(tokens, span, quota))]
        if not self.merges:
            norms = tokens.features.float().abs().sum(dim=1)
            flat = [window.flatten() for window in windows]
            best = [window[top_indices(norms[window], 1)] for window in flat]
            return Selection(torch.cat(best).sort().values)
        single = [window.view(1) for window in windows if window.numel() == 1]
        pooled = [window for window in windows if window.numel() > 1]
        return Selection(torch.cat([torch.empty(0, dtype=torch.int64), *single]),
                         self._plan(pooled, len(tokens)) if pooled else None)

    def _size(self, tokens: VisualTokens, span: slice, quota: int) -> tuple[int, int]:
        if self.window is not None:
            return window_size(self.window)
        return nearest_size(grids_of(tokens, span), quota)

    def _plan(self, windows: list[Tensor], num_tokens: int) -> MergePlan:
        """One merged token per window of two or more."""
        targets = torch.stack([window[(len(window) - 1) // 2, (window.shape[1] - 1) // 2]
                               for window in windows])
        weights = torch.zeros(len(windows), num_tokens, dtype=torch.float32)
        for row, window, target in zip(weights, windows, targets, strict=True):
            row[window.flatten()] = 1.0 / window.numel()
            if self.pool == "mean":
                row[target] -= 1.0  # a merged token begins as its target
        return MergePlan(targets, weights, "max" if self.pool == "max" else "sum")
