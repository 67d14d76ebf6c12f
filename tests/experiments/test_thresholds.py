"""Predicting how often a threshold swaps, against the states of the plain policy."""

from __future__ import annotations

import itertools
import math
import random

import numpy as np
import pytest

from pydstp import DSTP
from pydstp.experiments.thresholds import candidate_thresholds, expanded_share, find_threshold
from tests.shift.plain_policy import PlainDSTP, PlainPolicy

RNG = random.Random(1)
SERIES = [[round(RNG.uniform(0.2, 0.99), 3) for _ in range(length)] for length in (1, 7, 30, 40)]


def plain_share(series: list[float], threshold: float, **options) -> float:
    """The share of expanded steps when the policy runs on vectors of these cosines."""
    policy = PlainPolicy(PlainDSTP(threshold=threshold, **options), base=[0, 1], reserve=[2, 3],
                         anchor={0: 1.0, 1: 0.0})
    steps = [policy.step({0: value, 1: math.sqrt(1 - value * value)}, {2: 0.6, 3: 0.4})
             for value in series]
    return sum(step.expanded for step in steps) / len(steps)


@pytest.mark.parametrize("applies, expand_steps, retrigger", list(itertools.product(
    ("next", "redo", "early"), (1, 2, 5, 20), ("off", "extend", "reselect"))))
def test_the_prediction_plays_the_states_of_the_policy(applies, expand_steps, retrigger) -> None:
    options = {"applies": applies, "expand_steps": expand_steps, "retrigger": retrigger}
    limits = [0.0, 0.3, 0.55, 0.8, 1.1]
    found = expanded_share(SERIES, limits, DSTP(**options))
    expected = [np.mean([plain_share(series, limit, **options) for series in SERIES])
                for limit in limits]
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12)


def test_a_share_of_the_step_that_triggers() -> None:
    policy = DSTP(applies="early", expand_steps=1)
    assert expanded_share([[0.1, 0.9]], [0.5], policy, 0.4) == pytest.approx(0.2)
    assert expanded_share([[0.1, 0.9]], [0.5], policy) == pytest.approx(0.5)


def test_answers_of_one_token_have_no_steps() -> None:
    assert expanded_share([[], [0.1]], [0.5], DSTP(applies="redo")) == pytest.approx(0.5)


@pytest.mark.parametrize("target", [0.0, 0.2, 0.5, 0.8, 1.0])
def test_the_threshold_meets_the_target(target) -> None:
    policy = DSTP(applies="redo", expand_steps=1)
    series = [list(np.linspace(0.3, 0.9, 50)), list(np.linspace(0.2, 0.95, 40))]
    threshold, share = find_threshold(series, target, policy)
    assert share == pytest.approx(target, abs=0.02)
    assert expanded_share(series, [threshold], policy)[0] == share


def test_of_equal_thresholds_the_lowest() -> None:
    threshold, share = find_threshold([[0.5, 0.5]], 0.0, DSTP())
    assert (threshold, share) == (0.0, 0.0)


def test_thresholds_lie_between_the_similarities() -> None:
    limits = candidate_thresholds([[0.4, 0.6], [0.6]])
    assert limits.tolist() == [0.0, 0.2, 0.5, 0.61]
    assert len(candidate_thresholds([list(np.linspace(0, 1, 5000))])) < 600
