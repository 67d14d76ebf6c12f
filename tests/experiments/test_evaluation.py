"""Rows of an evaluation, from answers of an engine that is none."""

from __future__ import annotations

import json

import pytest

from pydstp import (
    DSTP,
    CancelledError,
    CancelToken,
    DyCoke,
    OptionError,
    PromptError,
    SketchReturn,
    VisionPulse,
)
from pydstp.experiments import settings
from pydstp.experiments.evaluation import HEADER, Evaluation, cells, one_line, watched_steps
from pydstp.experiments.runs import Asker, Questions, from_files, is_right
from pydstp.experiments.statistics import wilson
from tests.experiments.fakes import FakeEngine, generation, report

QUESTIONS = Questions("read", 10, seed=3)
REDO = DSTP(applies="redo", expand_steps=1)
NEEDED = {
    "task", "method", "retention_ratio", "shift", "accuracy", "ci95", "n", "mean_visible",
    "mean_visible_all_layers", "triggers", "forwards_per_token", "new_tokens", "bytes_per_token",
    "ms_per_token", "checkpoint_sha256", "options"}


def evaluation(engine, num_timed: int = 2, **options) -> Evaluation:
    return Evaluation(QUESTIONS, Asker(engine, batch=4, **options), num_timed, "side", "abc")


def rows_of(engine, methods="none,random", **options) -> list[dict]:
    policies = {"none": None, "dstp": REDO}
    chosen = settings.grid(settings.parse_methods(methods), [1 / 3], policies, 1)
    return list(evaluation(engine, **options).rows(chosen))


def test_a_row_says_what_was_asked_and_what_came() -> None:
    engine = FakeEngine(QUESTIONS, lambda example, pruning, shift: (
        pruning is None or (shift is not None and example.seed < 10)))
    full, base, dstp = rows_of(engine)
    assert [row["accuracy"] for row in (full, base, dstp)] == [1.0, 0.0, 0.7]
    assert dstp["ci95"] == wilson(7, 10) and dstp["n"] == 10 and dstp["right"] == 7
    assert dstp["right_by_question"] == "1111111000"
    assert (full["method"], full["retention_ratio"], full["shift"]) == ("none", 1.0, "none")
    assert (dstp["method"], dstp["shift"]) == ("random", "dstp")
    assert dstp["triggers"] == 2 and dstp["mean_visible"] == pytest.approx((3 * 10 + 32) / 150)
    assert dstp["new_tokens"] == 6 and dstp["ms_per_token"] == 2.0 and dstp["num_timed"] == 2
    assert dstp["accuracy_of_full"] == 0.7
    assert dstp["options"]["shift"] == REDO.to_dict() and dstp["options"]["reserve"] == "side"
    for row in (full, base, dstp):
        assert NEEDED <= set(row) and row["checkpoint_sha256"] == "abc"
        assert json.loads(json.dumps(row))["task"] == "read"
        assert len(cells(row)) == len(HEADER)
    assert one_line(dstp) == "random 0.333, dstp: 70.0 % right, 0.413 visible"


def test_questions_come_in_batches_and_some_alone() -> None:
    engine, ticks = FakeEngine(QUESTIONS), []
    row, = rows_of(engine, "none", tick=ticks.append)
    assert [len(call["prompts"]) for call in engine.calls] == [4, 4, 2, 1, 1, 1]
    assert ticks == [4, 4, 2]
    assert engine.calls[3]["prompts"] == engine.calls[4]["prompts"]  # the first one warms up
    assert rows_of(FakeEngine(QUESTIONS), "none", num_timed=0)[0]["ms_per_token"] is None


def test_every_question_has_a_seed_of_its_own() -> None:
    engine = FakeEngine(QUESTIONS)
    rows_of(engine, "random")
    first, other = engine.calls[0], engine.calls[6]
    assert [config.seed for config in first["pruning"]] == [3, 4, 5, 6]
    assert [policy.seed for policy in other["shift"]] == [3, 4, 5, 6]
    assert first["reserve"] == "side"


def test_a_random_trigger_fires_as_often_as_the_row_it_copies() -> None:
    engine = FakeEngine(QUESTIONS, series=lambda *_: [0.95, 0.5, 0.95, 0.95, 0.95])
    chosen = settings.ablation(["fastv"], [0.333], 1)
    rows = {row["shift"]: row for row in evaluation(engine, 0).rows(chosen)}
    # One of five steps triggers; with the paper's window the three behind it cannot.
    assert rows["paper: risd + cpts"]["trigger_rate"] == pytest.approx(1 / (5 - 3))
    rate = rows["paper: random + cpts"]["options"]["shift"]["trigger_rate"]
    assert rate == rows["paper: risd + cpts"]["trigger_rate"]


@pytest.mark.parametrize("options, steps", [
    ({"applies": "next", "expand_steps": 3}, 20 - 3 - 1),
    ({"applies": "redo", "expand_steps": 3}, 20 - 2 - 1),
    ({"applies": "early", "expand_steps": 1}, 20),
    ({"retrigger": "extend"}, 20), ({"expand_steps": 30}, 20 - 15 - 1)])
def test_steps_at_which_a_policy_may_trigger(options, steps) -> None:
    answer = generation("", report(triggers=(5, 19)), tokens=21)
    assert watched_steps(answer, DSTP(**options)) == steps
    assert watched_steps(answer, None) == 0


@pytest.mark.parametrize("shift, steps", [
    (SketchReturn(), 0), (SketchReturn(threshold=0.9), 20), (VisionPulse(), 0), (DyCoke(), 20)])
def test_steps_at_which_other_policies_may_act(shift, steps) -> None:
    answer = generation("", report(triggers=(5, 19)), tokens=21)
    assert watched_steps(answer, shift) == steps


def test_what_is_measured_before_a_cancellation_stays() -> None:
    engine, rows = FakeEngine(QUESTIONS, cancel_after=6), []
    chosen = settings.grid(["none", "random"], [0.5], {"none": None}, 1)
    with pytest.raises(CancelledError):
        rows.extend(evaluation(engine).rows(chosen[:1]))
        for row in evaluation(engine).rows(chosen[1:]):
            rows.append(row)
    assert [row["method"] for row in rows] == ["none"]
    cancel = CancelToken()
    cancel.cancel()
    with pytest.raises(CancelledError):
        next(Asker(FakeEngine(QUESTIONS), cancel=cancel).ask(QUESTIONS))


@pytest.mark.parametrize("task, n, seed", [("nonsense", 1, 0), ("read", 0, 0), ("read", 1, -1)])
def test_questions_are_checked(task, n, seed) -> None:
    with pytest.raises(OptionError):
        Questions(task, n, seed)


def test_options_of_the_asker_are_checked() -> None:
    with pytest.raises(OptionError, match="batch"):
        Asker(None, batch=0)
    with pytest.raises(OptionError, match="timed"):
        Evaluation(QUESTIONS, Asker(None), -1)


def test_splits_share_no_question() -> None:
    test, = Questions("read", 1, 5)
    validation, = Questions("read", 1, 5, "validation")
    assert (test.prompt, test.answer) != (validation.prompt, validation.answer)


def test_questions_of_a_user(tmp_path) -> None:
    paths = [str(tmp_path / name) for name in ("a.png", "b.png")]
    for path, example in zip(paths, QUESTIONS):
        example.images[0].save(path)
    found = from_files(paths, ["What?"])
    assert [example.prompt for example in found] == ["What?"] * 2
    assert is_right(found[0], generation("anything", report())) is None
    for bad in ((paths, ["a", "b", "c"]), ([], ["a"]), ([*paths, "missing.png"], ["a"])):
        with pytest.raises(OptionError):
            from_files(*bad)


def test_a_question_without_visual_tokens_is_refused() -> None:
    engine = FakeEngine(QUESTIONS)
    engine._answer = lambda *_: generation("", report(num_visual=0))
    with pytest.raises(PromptError, match="expected a picture"):
        list(Asker(engine).ask(QUESTIONS))
