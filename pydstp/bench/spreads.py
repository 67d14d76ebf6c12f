"""Medians with their spread, and how a table shows them."""

from __future__ import annotations

import statistics
from collections.abc import Sequence


def spread(values: Sequence[float]) -> dict[str, float]:
    """Median, smallest and largest of repeated measurements."""
    return {"median": statistics.median(values), "min": min(values), "max": max(values),
            "count": len(values)}


def ratios(values: Sequence[float], others: Sequence[float]) -> dict[str, float]:
    """values / others, turn by turn."""
    return spread([a / b for a, b in zip(values, others, strict=True)])


def show(numbers: dict[str, float] | None, digits: int = 0) -> str:
    """`59 (57-63)`: a median with the smallest and the largest value, for a table."""
    if numbers is None:
        return "-"
    low, high = (f"{numbers[key]:,.{digits}f}" for key in ("min", "max"))
    return f"{numbers['median']:,.{digits}f}" + (f" ({low}-{high})" if low != high else "")
