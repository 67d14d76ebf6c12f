"""The papers' tables: their layout, what is missing or wrong, and that nothing is asked twice."""

from __future__ import annotations

import json
from dataclasses import dataclass, field, replace

import numpy as np
import pytest

from pydstp import CancelledError, OptionError, PydstpError, cli
from pydstp.cli_tables import model_config
from pydstp.cost_model import CostModel
from pydstp.experiments.runs import Asker
from pydstp.experiments.statistics import correlation, wilson
from pydstp.experiments.tables import TABLES, bench, find_table, layout, right_problem
from pydstp.experiments.tables import right_problem_cost as efficiency
from pydstp.experiments.tables import right_problem_position as position
from pydstp.experiments.tables import vision_pulse_correlation as masses
from pydstp.experiments.tables.bench import FULL, Bench, Column
from pydstp.experiments.tables.files import read_results, require_outputs, write_table
from pydstp.generation import Generation, StepLog
from tests.experiments.fakes import FakeEngine, generation, report

NUM_VISUAL = 64
KINDS = {"name", "share", "mean", "number", "published", "unknown", "absent", "correlation"}


def attention_of(kept: range) -> tuple[float, ...]:
    return tuple(1 / len(kept) if slot in kept else 0.0 for slot in range(NUM_VISUAL))


@dataclass(frozen=True)
class FakeAsker(Asker):
    """Even seeds are right; the upper quarter of the picture is kept."""

    failing: str | None = None
    asked: list = field(default_factory=list)

    def ask(self, questions, **selection):
        self.asked.append(selection)
        pruning = selection.get("pruning")
        if pruning is not None and pruning.name == self.failing:
            raise PydstpError("expected another method")
        for example in questions:
            yield example, self.answer(example, selection)

    def ask_alone(self, example, **selection):
        return self.answer(example, selection)

    def answer(self, example, selection) -> Generation:
        is_right = example.seed % 2 == 0 or selection.get("pruning") is None
        seen = attention_of(range(16))
        steps = [StepLog(None, "selected", 16, NUM_VISUAL, (), (), False,
                         tuple(weight * (0.2 + 0.1 * step) for weight in seen), mass=0.5)
                 for step in range(3)] if selection.get("log_steps") else None
        log = report(num_visual=NUM_VISUAL, kept=16, steps=steps, anchor=seen)
        return generation(example.answer if is_right else "wrong", log)


def make_bench(n: int = 3, **changes) -> Bench:
    return Bench(FakeAsker(FakeEngine([]), **changes), n, 0, model_config(None), "abc")


@pytest.mark.parametrize("name", TABLES)
def test_every_table_has_its_layout(name, tmp_path) -> None:
    runs = make_bench()
    table = find_table(name).build(runs)
    assert table.rows and len({row[0].text for row in table.rows}) > 1
    for row in table.rows:
        assert len(row) == len(table.header)
        for cell in row:
            assert cell.data["kind"] in KINDS and cell.text
            if cell.data["kind"] == "share":
                found = cell.data
                assert found["ci95"] == list(wilson(found["right"], found["n"]))
                assert (found["n"], found["seed"]) == (3, 0)
    record = {"environment": {"commit": "c", "date": "d", "cpu": "e", "processors": 1},
              "name": "x", "n": 3, "seed": 0, "checkpoint_sha256": "abc", "results": runs.results}
    write_table(tmp_path / "x.json", record, table, "pydstp tables x")
    written = json.loads((tmp_path / "x.json").read_text())
    assert written["table"] == json.loads(json.dumps(table.to_dict()))
    assert read_results(tmp_path / "x.json") == json.loads(json.dumps(runs.results))
    text = (tmp_path / "x.md").read_text()
    assert text.count("\n| ") == len(table.rows) + 2 and "abc" in text and table.source in text
    assert ("x.png" in text) == (table.figure is not None)


def test_nothing_is_asked_twice() -> None:
    first = make_bench()
    table = right_problem.grounding(first)
    assert first.asker.asked
    again = make_bench()
    again.results = json.loads(json.dumps(first.results))
    assert right_problem.grounding(again).to_dict() == table.to_dict() and not again.asker.asked
    more = Bench(again.asker, 4, 0, again.config, "abc", again.results)
    more.run(FULL, right_problem.GROUNDING)
    assert len(more.asker.asked) == 1


def test_a_method_that_is_not_registered_is_not_an_error(monkeypatch) -> None:
    known = [name for name in bench.available_pruners() if name != "pooling"]
    monkeypatch.setattr(bench, "available_pruners", lambda: known)
    table = right_problem.methods(make_bench())
    cells = {row[0].text: row[2] for row in table.rows}
    assert cells["pooling"].text == layout.NOT_BUILT
    assert cells["pooling"].data["kind"] == "absent" and cells["fastv"].data["kind"] == "share"
    assert not any("pooling" in note and layout.REFUSED in note for note in table.notes)


def test_a_method_that_cannot_run_says_why() -> None:
    table = right_problem.grounding(make_bench(failing="dart"))
    row = next(row for row in table.rows if row[0].text == "dart")
    assert row[1].text == layout.REFUSED
    assert "`dart` refused: expected another method" in table.notes


def test_ctrl_c_is_no_refusal(monkeypatch) -> None:
    def stop(*_args, **_selection):
        raise CancelledError("stop")

    monkeypatch.setattr(FakeAsker, "ask", stop)
    for build in (right_problem.grounding, position.table):
        with pytest.raises(CancelledError):
            build(make_bench())


def test_options_reach_the_questions_and_the_method() -> None:
    runs = make_bench()
    drawn = list(runs.evaluation(Column("x", "locate", (("rows", 3), ("hits", 1)))).questions)
    assert {example.meta["rows"] for example in drawn} == {3}
    assert all(len(example.meta["cells"]) == 1 for example in drawn)
    assert runs.setting("random", 0.5).pruning.pruner.layer == 1
    assert runs.setting("fastv", 0.5, layer=3).pruning.pruner.layer == 3
    assert runs.setting("nonsense", 0.5) is None
    assert runs.run(None, Column("x", "locate")) == {"absent": layout.NOT_BUILT}


def run_of(right: int, count: int) -> dict:
    return {"right": right, "n": count, "accuracy": right / count, "ci95": wilson(right, count),
            "options": {"seed": 0}}


def test_the_mean_over_tasks_is_relative() -> None:
    cell = layout.relative_mean([run_of(5, 10), run_of(2, 10)], [run_of(10, 10), run_of(8, 10)])
    assert cell.data["value"] == pytest.approx((0.5 + 0.25) / 2)
    one = layout.relative_mean([run_of(5, 10)], [run_of(10, 10)])
    assert one.data["ci95"] == pytest.approx(wilson(5, 10))
    low, high = cell.data["ci95"]
    assert low < 0.375 < high and high - low < wilson(5, 10)[1] - wilson(5, 10)[0]
    assert layout.relative_mean([{"absent": "x"}], [run_of(1, 1)]).text == "x"


def test_numbers_that_are_not_known() -> None:
    assert layout.published(None).text == layout.UNKNOWN
    assert layout.published(52.54).text == "52.54"
    assert layout.number({**run_of(1, 2), "ms_per_token": None}, "ms_per_token").text == "-"


def test_compression_of_the_model_counts() -> None:
    rows = right_problem.counted(make_bench()).rows
    assert [row[2].text for row in rows] == ["0.333", "1.000", "0.222", "0.888", "0.111", "0.444"]
    assert [row[3].text for row in rows] == ["0.083", "0.250", "0.055", "0.222", "0.028", "0.111"]


def test_where_tokens_were_kept() -> None:
    found = position._ask(make_bench(4), bench.Setting("x", 0.25, "none"), position.COLUMNS[1])
    frequency = np.array(found["frequency"])
    assert frequency[:2].min() == 1 and frequency[2:].max() == 0
    assert found["bottom"] == {"value": 0.0, "ci95": [0.0, 0.0]} and found["right"]["value"] == 0.5
    rows = [example.meta["cells"][0][1] for example in
            make_bench(4).evaluation(position.COLUMNS[1]).questions]
    assert found["needed"] == sum(row < 2 for row in rows)


def test_an_interval_over_questions() -> None:
    found = position.normal_interval([0.25, 0.75])
    assert found["value"] == 0.5
    assert found["ci95"] == pytest.approx([0.5 - 1.96 * 0.25, 0.5 + 1.96 * 0.25])
    assert position.normal_interval([0.5])["ci95"] == [0.5, 0.5]
    assert position.normal_interval([])["value"] == 0


def test_mass_and_activated_tokens_of_a_step() -> None:
    steps = [StepLog(None, "selected", 4, 4, (), (), False, attention, mass=0.8)
             for attention in ((0.4, 0.2, 0.0, 0.0), (0.1, 0.1, 0.1, 0.1))]
    answer = replace(generation("", report(num_visual=4, steps=steps)), prompt_tokens=4)
    assert masses.steps_of(answer) == pytest.approx(np.array([  # an even share is 1/5, then 1/6
        (0.6, 0.8, 1, 2), (0.4, 0.8, 0, 4)]))


def test_the_coefficient_and_its_interval() -> None:
    rng = np.random.default_rng(3)
    answers = []
    for _ in range(40):
        x = rng.normal(size=5)
        answers.append(np.stack([x, x + rng.normal(size=5)], axis=1))
    found = masses.resampled(answers)
    low, high = found["ci95"]
    assert found["value"] == correlation(*np.concatenate(answers).T)
    assert low < found["value"] < high and 0.1 < high - low < 0.3
    assert masses.resampled([np.ones((3, 2))])["value"] is None


def test_costs_follow_the_cost_model() -> None:
    model = CostModel(model_config(None), 4)
    run = {"method": "fastv", "mean_visible_all_layers": 0.5, "num_visual": 40, "kept": 10}
    found = efficiency.costs(run, model, 7.0)
    text = model.config.text
    linear = 2 * text.num_layers * model.layer_elements * 27
    assert found["visual_rows"] == 20 and found["visual_percent"] == 50
    assert linear < 1e6 * found["prefill_mflop"] < 1.2 * linear
    assert found["visual_kv_kib"] == 20 * text.num_layers * model.kv_bytes / 1024
    assert efficiency.costs({**run, "method": "resize"}, model, 7.0)["vision_mflop"] < (
        found["vision_mflop"] / 3)


@pytest.mark.parametrize("name", ["right-problem-position", "visionpulse-correlation"])
def test_a_table_with_a_figure_on_the_embedded_checkpoint(name, tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    path = tmp_path / "table.md"
    arguments = ["tables", name, "--n", "2", "--output", str(path)]
    assert cli.main(arguments) == 0
    record = json.loads(path.with_suffix(".json").read_text())
    assert (record["name"], record["n"], record["table"]["title"]) == (
        "table", 2, path.read_text().split("\n")[0].removeprefix("# "))
    assert path.with_suffix(".png").read_bytes()[1:4] == b"PNG"
    out, err = capsys.readouterr()
    assert out in path.read_text() and err.count("\n") == len(record["results"])
    assert cli.main([*arguments, "--resume"]) == 0
    out, err = capsys.readouterr()
    assert out in path.read_text() and not err


@pytest.mark.parametrize("arguments, says", [
    ("nonsense", "NAME: expected one of dstp-main"),
    ("dstp-main --n 0", "n: expected an integer >= 1"),
    ("dstp-main --seed -1", "seed: expected an integer >= 0"),
    ("dstp-main --output x.txt", "--output: expected a file that ends in .json or .md"),
    ("dstp-main --output missing/x.md", "--output: expected a file in a folder"),
    ("dstp-main --resume", "--resume: expected --output"),
    ("dstp-main --model missing", "missing"),
])
def test_what_is_wrong_is_said_before_anything_runs(arguments, says, capsys, tmp_path,
                                                    monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert cli.main(["tables", *arguments.split()]) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error:") and not out
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("text", ["{", "[]", "{}", '{"results": []}'])
def test_a_record_that_is_none_is_not_resumed(text, tmp_path) -> None:
    path = require_outputs(str(tmp_path / "x.md"))
    assert read_results(path) == {}
    path.write_text(text)
    with pytest.raises(OptionError, match="--resume"):
        read_results(path)
