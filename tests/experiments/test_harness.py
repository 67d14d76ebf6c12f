"""`pydstp eval` with a folder: what is kept, what is not measured again, and the report."""

from __future__ import annotations

import json
import sys
from dataclasses import replace

import pytest

from pydstp import CancelledError, CancelToken, OptionError, cli
from pydstp.experiments import harness
from pydstp.experiments.harness import EvalPlan, evaluate
from pydstp.experiments.runs import Asker

PLAN = EvalPlan("read", methods="none,random", ratios="0.5", shift="none,dstp", n=7, batch=3,
                timed=1)
SHARES = ("accuracy", "ci95", "right_by_question", "mean_visible", "kept", "triggers", "trr",
          "answer_gflops", "kv_bytes", "trigger_rate", "new_tokens", "bytes_per_token")


@pytest.fixture
def asked(monkeypatch) -> list[int]:
    """The number of every question that an engine is asked in a batch."""
    seen: list[int] = []
    plain = Asker.ask

    def ask(self, questions, **selection):
        for example, answer in plain(self, questions, **selection):
            seen.append(example.seed)
            yield example, answer

    monkeypatch.setattr(Asker, "ask", ask)
    return seen


def same(rows: list[dict], others: list[dict]) -> bool:
    """Whether rows agree in all but their times."""
    return [[json.loads(json.dumps(row[name])) for name in SHARES] for row in rows] == [
        [json.loads(json.dumps(row[name])) for name in SHARES] for row in others]


def test_what_is_there_is_not_measured_again(tmp_path, asked) -> None:
    plan = replace(PLAN, output=str(tmp_path / "new" / "folder"))
    first = list(evaluate(plan))
    assert len(first) == 3 and asked == 3 * list(range(7))
    asked.clear()
    ticks: list[int] = []
    again = list(evaluate(plan, tick=ticks.append))
    assert asked == [] and sum(ticks) == 21
    assert json.loads(json.dumps(again)) == json.loads(json.dumps(first))
    list(evaluate(replace(plan, n=8)))
    assert asked == 3 * list(range(8))
    asked.clear()
    list(evaluate(replace(plan, fresh=True)))
    assert asked == 3 * list(range(7))
    assert len((tmp_path / "new" / "folder" / "rows.jsonl").read_text().splitlines()) == 3


def test_another_version_or_checkpoint_measures_anew(tmp_path, asked, monkeypatch) -> None:
    plan = replace(PLAN, output=str(tmp_path), methods="none", timed=0)
    list(evaluate(plan))
    monkeypatch.setattr(harness, "commit", lambda: "another")
    list(evaluate(plan))
    list(evaluate(replace(plan, dtype="float32")))
    assert len(asked) == 3 * 7
    assert "2 rows of another version" in (tmp_path / "report.md").read_text()


@pytest.mark.parametrize("num_blocks", [1, 2])
def test_a_killed_run_goes_on_where_it_was(num_blocks, tmp_path, asked) -> None:
    plan = replace(PLAN, output=str(tmp_path), timed=0)
    whole = list(evaluate(replace(plan, output=None)))
    list(evaluate(plan))
    # What a kill in the second row leaves: one row, some blocks of three, and half a line of each.
    rows = (tmp_path / "rows.jsonl").read_bytes().splitlines(keepends=True)
    blocks = (tmp_path / "answers.jsonl").read_bytes().splitlines(keepends=True)
    (tmp_path / "rows.jsonl").write_bytes(rows[0] + rows[1][:50])
    (tmp_path / "answers.jsonl").write_bytes(b"".join(blocks[:3 + num_blocks]) + blocks[6][:99])
    asked.clear()
    assert same(list(evaluate(plan)), whole)
    assert asked == [*range(3 * num_blocks, 7), *range(7)]


def test_a_cancelled_run_keeps_its_blocks(tmp_path, asked) -> None:
    plan, cancel = replace(PLAN, output=str(tmp_path), timed=0), CancelToken()

    def tick(count: int) -> None:
        if len(asked) == 7 + 3:
            cancel.cancel()

    with pytest.raises(CancelledError):
        list(evaluate(plan, cancel=cancel, tick=tick))
    assert len((tmp_path / "rows.jsonl").read_text().splitlines()) == 1
    assert "| none " in (tmp_path / "report.md").read_text()
    asked.clear()
    assert len(list(evaluate(plan))) == 3 and asked == [3, 4, 5, 6, *range(7)]


def test_the_rate_of_a_random_trigger_is_found_again(tmp_path, asked) -> None:
    plan = replace(PLAN, tasks="trail", methods="divprune", ratios="0.333", shift="none",
                   ablation=True, n=3, timed=0, output=str(tmp_path))
    first = {row["shift"]: row for row in evaluate(plan)}
    num_asked = len(asked)
    again = {row["shift"]: row for row in evaluate(plan)}
    assert len(asked) == num_asked and list(first) == list(again)
    assert again["paper: random + cpts"]["options"]["shift"]["trigger_rate"] == pytest.approx(
        first["paper: risd + cpts"]["trigger_rate"])


def test_several_tasks_and_what_they_leave(tmp_path, capsys) -> None:
    folder = tmp_path / "results"
    arguments = ["eval", "read,trail", "--n", "3", "--methods", "none,fastv", "--ratios", "1/3",
                 "--shift", "none,recommended", "--timed", "1", "--output", str(folder),
                 "--json", str(tmp_path / "record.json")]
    assert cli.main(arguments) == 0
    out, err = capsys.readouterr()
    assert "read\n\n| m" in out and "trail\n\n| m" in out and "6 of 6: trail: fastv" in err
    rows = [json.loads(line) for line in (folder / "rows.jsonl").read_text().splitlines()]
    recorded = json.loads((tmp_path / "record.json").read_text())
    assert recorded["rows"] == rows
    assert [row["task"] for row in rows] == 3 * ["read"] + 3 * ["trail"]
    for row in rows:
        assert row["trr"] == pytest.approx(4 * row["num_visual"] / row["kept"])
        assert row["answer_gflops"] > row["prefill_gflops"] > 0 and row["kv_bytes"] > 0
        assert row["time_to_first_token_ms"] > 0 and row["identity"]["version"]
        assert row["environment"]["cpu"]
    blocks = [json.loads(line) for line in (folder / "answers.jsonl").read_text().splitlines()]
    assert [block["key"] for block in blocks] == [row["key"] for row in rows]
    assert all(answer["text"] for block in blocks for answer in block["answers"])
    report = (folder / "report.md").read_text()
    for word in ("## read", "## trail", "TRR", "first token", rows[0]["checkpoint_sha256"][:12]):
        assert word in report
    names = {"rows.jsonl", "answers.jsonl", "report.md"}
    if harness.has_matplotlib():
        names |= {"read.png", "trail.png"}
        assert "(trail.png)" in report
    assert {path.name for path in folder.iterdir()} == names
    assert cli.main(arguments) == 0
    assert capsys.readouterr().out == out


def test_without_matplotlib_there_are_no_figures(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    assert cli.main(["eval", "read", "--n", "1", "--methods", "none", "--timed", "0", "--output",
                     str(tmp_path)]) == 0
    assert "no figures without matplotlib" in capsys.readouterr().err
    names = {path.name for path in tmp_path.iterdir()}
    assert names == {"rows.jsonl", "answers.jsonl", "report.md"}


def test_a_config_file_and_flags_that_win(tmp_path, capsys) -> None:
    config = tmp_path / "plan.json"
    config.write_text(json.dumps({"tasks": ["read"], "methods": ["none"], "n": 2, "timed": 0}))
    path = tmp_path / "record.json"
    assert cli.main(["eval", "--config", str(config), "--n", "3", "--json", str(path)]) == 0
    row, = json.loads(path.read_text())["rows"]
    assert (row["task"], row["n"], row["num_timed"]) == ("read", 3, 0)


@pytest.mark.parametrize("arguments, says", [
    ("eval", "tasks: expected names among"),
    ("eval read,nonsense", "task: expected names among"),
    ("eval read --config missing.json", "--config: expected a JSON file"),
    ("eval read --fresh", "fresh: expected output"),
    ("eval read --n 1 --output file", "--output: expected a folder"),
    ("eval read --timed -1", "timed: expected"), ("eval read --batch 0", "batch: expected"),
    ("eval read --reserve lazy --shift sketch --methods fastv", "reserve: expected"),
])
def test_what_is_wrong_is_said_before_anything_runs(arguments, says, tmp_path, monkeypatch,
                                                    capsys) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "file").write_text("")
    assert cli.main(arguments.split()) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error:") and not out
    assert [path.name for path in tmp_path.iterdir()] == ["file"]


def test_a_folder_with_a_broken_line_is_refused(tmp_path) -> None:
    (tmp_path / "rows.jsonl").write_text("nonsense\n")
    with pytest.raises(OptionError, match="line 1 of .*rows.jsonl"):
        list(evaluate(replace(PLAN, output=str(tmp_path))))
    assert not (tmp_path / "report.md").exists()


def test_changed_files_are_told_apart(monkeypatch) -> None:
    monkeypatch.setattr(harness, "commit", lambda: "0123456789ab")
    assert harness.source_state() == "0123456789ab"
    monkeypatch.setattr(harness, "commit", lambda: "0123456789ab+")
    state = harness.source_state()
    assert state.startswith("0123456789ab+") and len(state) == 12 + 1 + 8


def test_rows_without_a_folder_have_no_key() -> None:
    row = next(evaluate(replace(PLAN, methods="none", n=1, timed=0)))
    assert "key" not in row and row["trr"] == 4
