"""Counting shifts of relevant visual information (RVIS) in a series of similarities.

DSTP (arXiv 2604.12358) compares the attention of every decode step over all visual tokens with
that of the prompt's last token, and counts the local minima of the cosine that lie below 0.7.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pydstp.config import require_float, require_int
from pydstp.errors import OptionError

BELOW = 0.7


def find_shifts(series: Sequence[float], below: float = BELOW, min_gap: int = 1,
                window: int = 1) -> list[int]:
    """Where the series has a local minimum below a bound.

    Args:
        series: [steps] similarities, one per decode step.
        below: only minima smaller than this count.
        min_gap: minima are at least so many steps apart; of two that are closer the lower counts,
            of equal ones the first.
        window: odd; each value is first replaced by the mean of so many around it (fewer at the
            ends). 1 smooths nothing.

    Returns:
        Indices, ascending. A minimum is lower than what comes before and after it; a plateau
        counts once, at its first step, if the series rises after it. The first and the last step
        have only one neighbour and never count.

    Raises:
        OptionError: an option outside its range.
    """
    require_float("below", below, 0.0)
    require_int("min_gap", min_gap, 1)
    require_int("window", window, 1)
    if window % 2 == 0:
        raise OptionError(f"window: expected an odd number, got {window}")
    smooth = _moving_mean(np.asarray(series, dtype=np.float64), window)
    minima = [index for index in _minima(smooth) if smooth[index] < below]
    kept: list[int] = []
    for index in sorted(minima, key=lambda i: (smooth[i], i)):
        if all(abs(index - other) >= min_gap for other in kept):
            kept.append(index)
    return sorted(kept)


def count_shifts(series: Sequence[float], below: float = BELOW, min_gap: int = 1,
                 window: int = 1) -> int:
    """How many shifts `find_shifts` finds."""
    return len(find_shifts(series, below, min_gap, window))


def _minima(series: np.ndarray) -> list[int]:
    """First steps of all valleys that have a higher step on either side."""
    found, start = [], None
    for index in range(1, len(series)):
        if series[index] < series[index - 1]:
            start = index
        elif series[index] > series[index - 1]:
            if start is not None:
                found.append(start)
            start = None
    return found


def _moving_mean(series: np.ndarray, window: int) -> np.ndarray:
    if window == 1 or not len(series):
        return series
    half = window // 2
    return np.array([series[max(0, i - half):i + half + 1].mean() for i in range(len(series))])
