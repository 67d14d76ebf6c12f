"""Choosing layers and threshold, with an engine whose similarities the test decides."""

from __future__ import annotations

import json

import pytest

from pydstp import DSTP, OptionError, PromptError, PruningConfig
from pydstp.experiments.calibration import Calibration, agreement
from pydstp.experiments.candidates import (
    HEADER,
    Target,
    candidate_layers,
    describe_layers,
    parse_layers,
)
from pydstp.experiments.runs import Asker, Questions
from tests.experiments.fakes import FakeEngine

QUESTIONS = Questions("read", 6)
REDO = DSTP(applies="redo", expand_steps=1)
WIDE, NARROW = [0.9, 0.3, 0.8, 0.5, 0.7], [0.71, 0.72, 0.73, 0.74, 0.75]


def series(_example, shift) -> list[float]:
    """Layer 1 sees shifts; the others hardly move."""
    return WIDE if shift.monitor_layers == (1,) else NARROW


def calibration(rule=lambda *_: True, shift=REDO, target=None, **options) -> Calibration:
    engine = FakeEngine(QUESTIONS, rule, options.pop("series", series))
    return Calibration(Asker(engine, batch=4), QUESTIONS, PruningConfig("random", 1 / 3), shift,
                       target or Target(0.4), 4, **options)


def test_candidates_are_single_layers_and_their_sets() -> None:
    assert candidate_layers(4, 1) == [(1,), (2,), (3,), "post_prune", "all"]
    assert candidate_layers(3, 0) == [(0,), (1,), (2,), "post_prune"]
    assert candidate_layers(4, 3) == [(3,), "all"]


def test_layers_on_the_command_line() -> None:
    assert parse_layers("--layers", " 2+1") == (1, 2) and parse_layers("--layers", "all") == "all"
    assert describe_layers((1, 2)) == "1+2" and describe_layers("mid") == "mid"
    for text in ("", "1+", "x", "-1", "1,2", "²"):
        with pytest.raises(OptionError, match="--layers"):
            parse_layers("--layers", text)


@pytest.mark.parametrize("target, share", [
    (Target(1 / 3), 0.0), (Target(0.4), 1 / 3), (Target(16 / 30), 1.0), (Target(0.9), None),
    (Target(0.2), None), (Target(expanded=0.7), 0.7)])
def test_the_target_as_a_share_of_expanded_steps(target, share) -> None:
    assert target.expanded_share(1 / 3, 16 / 30) == (share if share is None
                                                     else pytest.approx(share))


@pytest.mark.parametrize("options", [{"visible": 0}, {"visible": 1.5}, {"expanded": -0.1}])
def test_targets_are_checked(options) -> None:
    with pytest.raises(OptionError, match="target"):
        Target(**options)


def test_without_other_evidence_the_first_of_the_widest_spread_wins() -> None:
    job = calibration(target=Target(1 / 3 + 0.4 * 0.2))  # two steps of five
    best = job.run([(0,), (1,)])[0]
    assert best.layers == (1,) and best.spread > 0.3
    assert 0.5 < best.threshold < 0.7 and best.predicted_expanded == pytest.approx(0.4)
    assert best.measured["mean_visible"] == pytest.approx(1 / 3 + 0.4 * 0.2)
    assert best.measured["triggers"] == 2 and best.measured["accuracy"] == 1
    policy = job.policy(best)
    assert policy == DSTP(applies="redo", expand_steps=1, monitor_layers=(1,),
                          threshold=best.threshold)


def test_the_most_accurate_finalist_wins() -> None:
    def rule(example, pruning, shift) -> bool:
        return pruning is None or shift.monitor_layers == "post_prune" or example.seed < 2

    found = calibration(rule, num_finalists=1).run()
    assert found[0].layers == "post_prune" and found[0].measured["accuracy"] == 1
    measured = [candidate.layers for candidate in found if candidate.measured]
    assert measured == ["post_prune", (1,)]  # every set, and one single layer
    assert len(found) == 5
    for candidate in found:
        assert json.loads(json.dumps(candidate.to_dict()))["layers"] is not None
        assert len(candidate.cells()) == len(HEADER)


def test_a_threshold_is_corrected_by_what_it_costs() -> None:
    def drifting(_example, shift) -> list[float]:  # swaps change the answer: more steps fall
        if shift.trigger == "never":
            return [0.05 * step for step in range(1, 20)]
        return [0.05 * step - 0.2 for step in range(1, 20)]

    job = calibration(series=drifting, target=Target(expanded=10 / 19))
    best = job.run([(1,)])[0]
    assert best.measured["expanded"] == pytest.approx(10 / 19, abs=0.06)
    assert best.predicted_expanded < 9 / 19


def test_targets_out_of_reach() -> None:
    with pytest.raises(OptionError, match=r"expected a share in \[0.333, 0.533\].*got 0.9"):
        calibration(target=Target(0.9)).run([(1,)])


def test_only_a_trigger_with_a_threshold_can_be_calibrated() -> None:
    for options in ({"shift": DSTP(trigger="avg")}, {"num_finalists": 0}):
        with pytest.raises(OptionError):
            calibration(**options)


def test_answers_of_one_token_leave_nothing_to_calibrate_on() -> None:
    def empty(_example, shift) -> list[float]:
        return [0.1] if shift.trigger == "every" else []

    job = calibration(series=empty)
    with pytest.raises(PromptError, match="two tokens or more"):
        job.run([(1,)])


def test_agreement_is_the_share_of_the_beginning() -> None:
    assert agreement([1, 2, 3], [1, 2, 3]) == 1
    assert agreement([1, 9, 3, 4], [1, 2, 3, 4]) == 0.25
    assert agreement([1, 2], [1, 2, 3, 4]) == 0.5 and agreement([1, 2, 3, 4], [1, 2]) == 0.5
    assert agreement([], []) == 0
