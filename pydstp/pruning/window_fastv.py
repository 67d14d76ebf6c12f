"""Window FastV (arXiv 2502.11501, algorithm 3): FastV, spread out."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from pydstp.errors import OptionError
from pydstp.pruning.base import VisualTokens, top_indices
from pydstp.pruning.fastv import FastV
from pydstp.pruning.registry import register_pruner
from pydstp.pruning.windows import window_size, windows_of


@register_pruner("window_fastv")
@dataclass(frozen=True)
class WindowFastV(FastV):
    """Cuts each grid into windows and keeps the tokens of each that FastV would rank first.

    Corrected: the printed algorithm takes the best of a window's mean score, which is one number,
    and names grid and window by the same letters; here it is the best of the window's own scores.
    The paper keeps a fixed number per window. Here the quota of the span is shared out by area and
    largest remainder, so that it is met exactly; of equal remainders the larger window gets the
    token, then the earlier one. Of equal scores the first token stays.

    Attributes:
        window: side of the windows in tokens, or (rows, columns); the paper gives none.

    Raises:
        OptionError: a wrong value; at the request, windows of one token, which rank nothing, where
            fewer than all tokens are kept.
    """

    window: int | tuple[int, int] = 4

    def __post_init__(self) -> None:
        super().__post_init__()
        window_size(self.window)

    def select(self, tokens: VisualTokens) -> Tensor:
        """The best of each window of each span."""
        size, scores, kept = window_size(self.window), self.scores(tokens), []
        if size == (1, 1) and sum(tokens.quotas) < len(tokens):
            raise OptionError("window: expected more than one token where some are dropped, got 1")
        for span, quota in tokens.each_span():
            windows = [window.flatten() for window in windows_of(tokens, span, size)]
            counts = shares_by_area([len(window) for window in windows], quota)
            kept += [window[top_indices(scores[window], count)]
                     for window, count in zip(windows, counts, strict=True)]
        return torch.cat(kept).sort().values


def shares_by_area(areas: Sequence[int], total: int) -> list[int]:
    """`total` <= sum(areas) shared out in proportion, by largest remainder."""
    whole = sum(areas)
    counts = [total * area // whole for area in areas]
    ranked = sorted(range(len(areas)), key=lambda i: (-(total * areas[i] % whole), -areas[i], i))
    for i in ranked[:total - sum(counts)]:
        counts[i] += 1
    return counts
