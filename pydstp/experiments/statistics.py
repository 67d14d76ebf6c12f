"""The few statistics that the experiments report."""

from __future__ import annotations

import math
import statistics
from collections.abc import Hashable, Iterable, Sequence
from typing import Any

import numpy as np


def wilson(right: int, count: int, z: float = 1.959964) -> tuple[float, float]:
    """Wilson's score interval of a proportion, 95 % by default (Wilson 1927).

    Args:
        right: successes.
        count: trials, at least 1.
        z: the two-sided quantile of the normal distribution.

    Returns:
        (low, high), both in [0, 1].
    """
    share, spread_term = right / count, z * z / count
    centre = (share + spread_term / 2) / (1 + spread_term)
    half = z * math.sqrt(share * (1 - share) / count + spread_term / (4 * count))
    half /= 1 + spread_term
    return max(0.0, centre - half), min(1.0, centre + half)


def mean(values: Iterable[float]) -> float:
    """The mean as a plain float; 0 of nothing."""
    values = list(values)
    return float(statistics.fmean(values)) if values else 0.0


def median(values: Sequence[float]) -> float | None:
    """The median, or None of nothing."""
    return float(statistics.median(values)) if values else None


def spread(values: Sequence[float] | np.ndarray) -> float:
    """Standard deviation over mean: how widely positive values lie; 0 of nothing."""
    values = np.asarray(values, dtype=np.float64)
    return float(values.std() / values.mean()) if values.size and values.mean() > 0 else 0.0


def success_by(pairs: Iterable[tuple[Hashable, bool]]) -> list[dict[str, Any]]:
    """Success rates by key.

    Args:
        pairs: (key, whether it was right); the keys must be comparable with each other.

    Returns:
        One {"key", "n", "right", "accuracy", "ci95"} per key, in ascending order of keys.
    """
    groups: dict[Any, list[bool]] = {}
    for key, is_right in pairs:
        groups.setdefault(key, []).append(bool(is_right))
    return [{"key": key, "n": len(group), "right": sum(group),
             "accuracy": sum(group) / len(group), "ci95": wilson(sum(group), len(group))}
            for key, group in sorted(groups.items())]


def distribution(values: Iterable[int]) -> dict[int, int]:
    """How often each value occurs, in ascending order."""
    values = list(values)
    return {value: values.count(value) for value in sorted(set(values))}


def correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Pearson's correlation of two series of one length; None where one of them is constant."""
    a, b = np.asarray(first, np.float64), np.asarray(second, np.float64)
    if len(a) < 2 or a.std() == 0 or b.std() == 0:
        return None
    return float(np.corrcoef(a, b)[0, 1])


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Which (cost, value) points no other point beats: lower cost and higher value are better.

    Returns:
        Indices in ascending order of cost; of equal points the first.
    """
    order = sorted(range(len(points)), key=lambda i: (points[i][0], -points[i][1], i))
    front: list[int] = []
    for index in order:
        if not front or points[index][1] > points[front[-1]][1]:
            front.append(index)
    return front
