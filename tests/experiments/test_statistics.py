"""Intervals, groups and fronts, against numbers worked out by hand."""

from __future__ import annotations

import pytest

from pydstp.experiments import statistics


@pytest.mark.parametrize("right, count, low, high", [
    (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0), (5, 10, 0.2366, 0.7634),
    (998, 1000, 0.9927, 0.9995), (1, 1, 0.2065, 1.0)])
def test_wilson(right, count, low, high) -> None:
    assert statistics.wilson(right, count) == (pytest.approx(low, abs=1e-4),
                                               pytest.approx(high, abs=1e-4))


def test_nothing_has_a_mean_of_zero_and_no_median() -> None:
    assert statistics.mean([]) == 0 and statistics.median([]) is None
    assert statistics.median([3, 1, 2]) == 2 and statistics.spread([]) == 0


def test_spread_is_deviation_over_mean() -> None:
    assert statistics.spread([1, 3]) == pytest.approx(0.5)
    assert statistics.spread([0.7] * 9) == pytest.approx(0)
    assert statistics.spread([2, 6]) == pytest.approx(statistics.spread([1, 3]))


def test_success_by_key() -> None:
    groups = statistics.success_by([(2, True), (0, False), (2, False), (2, True)])
    assert [(g["key"], g["n"], g["right"]) for g in groups] == [(0, 1, 0), (2, 3, 2)]
    assert groups[1]["ci95"] == statistics.wilson(2, 3)


def test_distribution() -> None:
    assert statistics.distribution([3, 0, 3, 1]) == {0: 1, 1: 1, 3: 2}


def test_correlation() -> None:
    assert statistics.correlation([1, 2, 3], [2, 4, 6]) == pytest.approx(1)
    assert statistics.correlation([1, 2, 3], [6, 4, 2]) == pytest.approx(-1)
    assert statistics.correlation([1, 1], [2, 3]) is None
    assert statistics.correlation([], []) is None


def test_pareto_front() -> None:
    points = [(0.5, 0.9), (0.3, 0.2), (0.4, 0.2), (0.3, 0.1), (0.6, 0.9), (1.0, 1.0)]
    assert statistics.pareto_front(points) == [1, 0, 5]
    assert statistics.pareto_front([(1, 1), (1, 1)]) == [0]
    assert statistics.pareto_front([]) == []
