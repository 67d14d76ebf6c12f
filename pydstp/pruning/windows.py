"""Grids of tokens cut into windows, for the methods that work window by window."""

from __future__ import annotations

from torch import Tensor, arange

from pydstp.config import require_int
from pydstp.errors import OptionError, show
from pydstp.pruning.base import VisualTokens


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
            grids.append(arange(start, start + rows * cols).view(rows, cols))
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
