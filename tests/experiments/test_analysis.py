"""The diagnosis: records, summaries, and the files it leaves behind."""

from __future__ import annotations

import json

import pytest

from pydstp import DSTP, OptionError, PruningConfig
from pydstp.experiments.analysis import Analysis, Counting, summarise
from pydstp.experiments.control import Control
from pydstp.experiments.report import write_report
from pydstp.experiments.runs import Asker, Questions
from tests.experiments.fakes import FakeEngine

QUESTIONS = Questions("trail", 8)
DIPS = [0.9, 0.5, 0.9, 0.6, 0.9]
FLAT = [0.9, 0.8, 0.7, 0.6]


class Spelling:
    """A tokenizer whose tokens are numbers."""

    def decode(self, ids: list[int], skip_special_tokens: bool = True) -> str:
        return str(ids[0])


def rule(example, pruning, shift) -> bool:
    """All tokens: right. The method alone: never. The policy: where the seed is even."""
    return pruning is None or (shift is not None and example.seed % 2 == 0)


def analysis(questions=QUESTIONS, **options) -> Analysis:
    def series(example, _shift) -> list[float]:
        return DIPS if example.seed < 4 else FLAT

    engine = FakeEngine(questions, rule, series)
    policy = DSTP(applies="redo", expand_steps=1)
    return Analysis(Asker(engine, batch=5), PruningConfig("random", 1 / 3), policy, **options)


def test_three_runs_of_every_question() -> None:
    job = analysis(watch=(1, 2), reserve="side")
    records = job.run(QUESTIONS)
    first, second, third = job.asker.engine.calls[:3]
    assert "pruning" not in first or first["pruning"] is None
    assert first["shift"][0] == DSTP(trigger="never", monitor_layers=(1, 2))
    assert first["log_steps"] == third["log_steps"] == "attention"
    assert second["shift"] is None and second["reserve"] == third["reserve"] == "side"
    assert [record["rvis"] for record in records] == [2] * 4 + [0] * 4
    assert records[0]["shifts"] == [1, 3] and records[0]["similarity"] == DIPS
    assert [record["shift"]["right"] for record in records] == [True, False] * 4
    assert {record["base"]["right"] for record in records} == {False}
    for record, example in zip(records, QUESTIONS, strict=True):
        assert record["regions"] == example.meta["steps"] + 1 and record["seed"] == example.seed


def test_what_counts_as_a_shift_can_be_changed() -> None:
    records = analysis(counting=Counting(below=0.55)).run(QUESTIONS)
    assert [record["rvis"] for record in records] == [1] * 4 + [0] * 4
    with pytest.raises(OptionError, match="window"):
        Counting(window=2)


def test_a_few_answers_are_kept_to_be_drawn() -> None:
    job = analysis(num_shown=2)
    job.run(QUESTIONS)
    job.run(QUESTIONS, keep_shown=False)
    assert [shown.example.seed for shown in job.shown] == [0, 1]
    job.run(QUESTIONS)
    assert [shown.example.seed for shown in job.shown] == [0, 1, 0, 1]


def test_the_summary() -> None:
    summary = summarise(analysis().run(QUESTIONS))
    assert summary["n"] == 8 and summary["mean_rvis"] == 1
    assert summary["distribution"] == {0: 4, 2: 4}
    assert summary["distribution_by_kind"] == {"trail": {0: 4, 2: 4}}
    groups = summary["success_by_rvis"]["shift"]
    assert [(g["key"], g["n"], g["right"], g["mean_rvis"]) for g in groups] == [
        (0, 4, 2, 0), (2, 4, 2, 2)]
    assert summary["success"]["full"][0]["accuracy"] == 1
    assert summary["mean_visible"]["full"] == 1
    assert json.loads(json.dumps(summary))["triggers"] == pytest.approx(2)


def test_the_report(tmp_path) -> None:
    pytest.importorskip("matplotlib")
    control = Control(2, steps=3)
    questions = [*QUESTIONS, *control]
    job = analysis(questions, num_shown=1)
    found = {"trail": job.run(QUESTIONS), "control": job.run(control, keep_shown=False)}
    text = write_report(tmp_path, {"model": "none"}, found, job, Spelling())
    assert "| trail " in text and "control, success by regions" in text
    record = json.loads((tmp_path / "analysis.json").read_text())
    assert record["model"] == "none" and record["summary"]["trail"]["n"] == 8
    assert len(record["answers"]["control"]) == 6
    assert {path.name for path in tmp_path.glob("*.png")} == {
        "shifts.png", "similarity-trail.png", "shifts-by-regions-trail.png",
        "success-by-shifts-trail.png", "success-by-length-trail.png", "control.png",
        "steps-trail-0-full.png", "steps-trail-0-shift.png"}
