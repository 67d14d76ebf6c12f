"""From similarities of a run that never swaps to the threshold that swaps as often as wanted."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from pydstp.shift import DSTP

MAX_CANDIDATES = 512


def expanded_share(series: Sequence[Sequence[float]], thresholds: Sequence[float], shift: DSTP,
                   first_share: float | None = None) -> np.ndarray:
    """The share of decode steps that would read an expanded list, by threshold.

    Plays the policy's states on similarities that were recorded without swaps: a real run writes
    other words as soon as tokens return, so this is a prediction.

    Args:
        series: per answer [steps] similarities.
        thresholds: [T] those to try.
        shift: `applies`, `expand_steps` and `retrigger` count.
        first_share: how much of the step that triggers reads the new list; by default 0 where a
            swap applies from the next step on, else 1.

    Returns:
        [T] float64: the mean over answers.
    """
    limits = np.asarray(thresholds, dtype=np.float64)
    is_next = shift.applies == "next"
    first_share = (0.0 if is_next else 1.0) if first_share is None else first_share
    window = shift.expand_steps - (0 if is_next else 1)
    total = np.zeros_like(limits)
    for values in series:
        remaining, steps = np.zeros(len(limits), dtype=np.int64), np.zeros_like(limits)
        for value in values:
            is_expanded = remaining > 0
            fires = value < limits
            if shift.retrigger == "off":
                fires &= ~is_expanded
            steps += np.where(is_expanded, 1.0, first_share * fires)
            remaining = np.where(fires, window, np.maximum(remaining - 1, 0))
        total += steps / max(1, len(values))
    return total / max(1, len(series))


def candidate_thresholds(series: Sequence[Sequence[float]]) -> np.ndarray:
    """[T] values between neighbouring similarities, ascending, and one below and above all."""
    values = np.unique(np.concatenate([[0.0], *(np.asarray(s, np.float64) for s in series)]))
    middles = (values[1:] + values[:-1]) / 2
    if len(middles) > MAX_CANDIDATES:
        middles = middles[np.linspace(0, len(middles) - 1, MAX_CANDIDATES).astype(int)]
    return np.unique(np.round([0.0, *middles, values[-1] + 0.01], 6))


def find_threshold(series: Sequence[Sequence[float]], target: float, shift: DSTP,
                   first_share: float | None = None) -> tuple[float, float]:
    """The threshold whose expanded share comes closest to `target`; of equal ones the lowest.

    Returns:
        (threshold, its predicted expanded share).
    """
    limits = candidate_thresholds(series)
    shares = expanded_share(series, limits, shift, first_share)
    best = int(np.abs(shares - target).argmin())
    return float(limits[best]), float(shares[best])
