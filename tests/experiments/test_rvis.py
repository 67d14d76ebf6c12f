"""Counting shifts in series made by hand."""

from __future__ import annotations

import random

import pytest

from pydstp import OptionError
from pydstp.experiments.rvis import count_shifts, find_shifts
from tests.shift.plain_policy import count_local_minima


@pytest.mark.parametrize("series, count", [
    ([0.9, 0.8, 0.7, 0.6, 0.5], 0), ([0.1, 0.2, 0.3], 0),  # monotone
    ([0.9, 0.69, 0.9], 1), ([0.9, 0.71, 0.9], 0), ([0.9, 0.7, 0.9], 0),  # the bound is excluded
    ([0.9, 0.5, 0.5, 0.5, 0.9], 1),  # a plateau counts once
    ([0.9, 0.6, 0.6, 0.5], 0), ([0.9, 0.6, 0.6], 0),  # and only if the series rises after it
    ([0.2, 0.9, 0.1], 0),  # the ends have one neighbour
    ([0.9, 0.3, 0.6, 0.4, 0.8], 2), ([], 0), ([0.1], 0), ([0.1, 0.2], 0), ([0.5] * 4, 0)])
def test_counts(series, count) -> None:
    assert count_shifts(series) == count


def test_places() -> None:
    assert find_shifts([0.9, 0.3, 0.6, 0.4, 0.4, 0.8]) == [1, 3]
    assert find_shifts([0.9, 0.3, 0.6, 0.4, 0.8], below=0.35) == [1]


def test_of_close_minima_the_lower_counts() -> None:
    series = [0.9, 0.4, 0.6, 0.3, 0.8, 0.5, 0.9]
    assert find_shifts(series, min_gap=2) == [1, 3, 5]
    assert find_shifts(series, min_gap=3) == [3]
    assert find_shifts([0.9, 0.3, 0.6, 0.3, 0.9], min_gap=3) == [1]


def test_smoothing_removes_what_is_shorter_than_its_window() -> None:
    series = [0.9, 0.9, 0.9, 0.65, 0.9, 0.9, 0.9]
    assert count_shifts(series) == 1 and count_shifts(series, window=3) == 0
    assert count_shifts([0.9, 0.9, 0.1, 0.1, 0.1, 0.9, 0.9], window=3) == 1


def test_without_ties_it_is_the_formula_of_the_definition() -> None:
    rng = random.Random(0)
    for length in range(12):
        series = [rng.random() for _ in range(length)]
        assert count_shifts(series) == count_local_minima(series)


@pytest.mark.parametrize("options", [{"window": 2}, {"window": 0}, {"min_gap": 0},
                                     {"below": -1.0}, {"window": 1.5}])
def test_options_are_checked(options) -> None:
    with pytest.raises(OptionError, match=next(iter(options))):
        find_shifts([0.5], **options)
