"""Grids of tokens cut into windows, for the methods that work window by window."""

from __future__ import annotations

import torch
from torch import Tensor

from pydstp.config import require_int
from pydstp.errors import OptionError, show
from pydstp.pruning.base import MergePlan, Selection, VisualTokens


def window_size(window: object) -> tuple[int, int]:
    """(rows, columns) of an option `window`: an integer for both, or a pair.

    Raises:
        OptionError: anything else, or less than 1.
    """
    pair = window if isinstance(window, tuple) else (window, window)
    if len(pair) != 2:
        raise OptionError(f"window: expected an integer or a pair of them, got {show(window)}")
    for side in pair:
        require_int("window", side, 1, 1 << 20)
    return pair


def windows_of(tokens: VisualTokens, span: slice, size: tuple[int, int]) -> list[Tensor]:
    """The windows of all grids in a span, row by row: [rows, cols] int64 indices of tokens each.

    They do not overlap and leave nothing out; those at the right and lower edges may be smaller.
    """
    return [window for grid in grids_of(tokens, span) for band in grid.split(size[0])
            for window in band.split(size[1], dim=1)]


def grids_of(tokens: VisualTokens, span: slice) -> list[Tensor]:
    """The grids that lie in a span: [rows, cols] int64 indices of tokens each."""
    grids, start = [], 0
    for rows, cols in tokens.grids:
        if span.start <= start < span.stop:
            rows_of_grid = torch.arange(start, start + rows * cols, device=tokens.features.device)
            grids.append(rows_of_grid.view(rows, cols))
        start += rows * cols
    return grids


def nearest_size(grids: list[Tensor], count: int) -> tuple[int, int]:
    """The size whose windows are as nearly `count` as can be; its sides differ by at most one.

    Of equally near ones the smallest, and the wide one before the tall.
    """
    longest = max(max(grid.shape) for grid in grids)
    sizes = [(side + tall, side + wide) for side in range(1, longest + 1)
             for tall, wide in ((0, 0), (0, 1), (1, 0))]

    def miss(size: tuple[int, int]) -> int:
        return abs(count - sum(-(-rows // size[0]) * -(-cols // size[1])
                               for rows, cols in (grid.shape for grid in grids)))
    return min(sizes, key=miss)


def numbered_windows(tokens: VisualTokens, span: slice,
                     size: tuple[int, int]) -> tuple[Tensor, Tensor]:
    """The same windows as numbers: [n] int64, that of each token of the span, and [num_windows]
    int64, the token nearest the centre of each (of equally near ones the first)."""
    numbers, centres, count = [], [], 0
    for grid in grids_of(tokens, span):
        row, row_centres = _cut(grid.shape[0], size[0], grid.device)
        col, col_centres = _cut(grid.shape[1], size[1], grid.device)
        numbers.append((count + row[:, None] * len(col_centres) + col).flatten())
        centres.append(grid[row_centres[:, None], col_centres].flatten())
        count += len(centres[-1])
    return torch.cat(numbers), torch.cat(centres)


def _cut(length: int, side: int, device: torch.device) -> tuple[Tensor, Tensor]:
    """A side of a grid: the window of each place, and the middle of each window."""
    starts = torch.arange(0, length, side, device=device)
    ends = (starts + side).clamp(max=length)
    return torch.arange(length, device=device) // side, (starts + ends - 1) // 2


def merged_windows(kept: list[Tensor], targets: list[Tensor], weights: list[Tensor],
                   reduce: str = "sum") -> Selection:
    """The answer of a method that merges windows, from what it has of each span."""
    plan = MergePlan(torch.cat(targets), torch.cat(weights), reduce)
    return Selection(torch.cat(kept), plan if len(plan.targets) else None)


def means_of(numbers: Tensor, centres: Tensor, start: int, num_tokens: int) -> Tensor:
    """[num_windows, num_tokens] float32: `MergePlan.weights` that make the token at each centre the
    mean of its window; start: the first token of the span that `numbers` is about."""
    weights = torch.zeros(len(centres), num_tokens, dtype=torch.float32, device=numbers.device)
    share = 1.0 / numbers.bincount(minlength=len(centres)).float()
    weights[numbers, start + torch.arange(len(numbers), device=numbers.device)] = share[numbers]
    each = torch.arange(len(centres), device=centres.device)
    weights[each, centres] -= 1.0  # a merged token begins as its target
    return weights
