"""`pydstp eval`, `calibrate` and `analyze` on the embedded checkpoint, a few questions each."""

from __future__ import annotations

import json

import pytest

from pydstp import DSTP, cli
from pydstp.experiments import settings
from pydstp.experiments.evaluation import Evaluation
from pydstp.pruning import available_pruners
from pydstp.pruning.registry import pruner_class


def run(*arguments: str) -> int:
    return cli.main(list(arguments))


def test_eval(tmp_path, capsys) -> None:
    path = tmp_path / "rows.json"
    assert run("eval", "trail", "--n", "4", "--batch", "3", "--ratios", "1/3", "--timed", "1",
               "--methods", "none,fastv,visionzip", "--json", str(path)) == 0
    record = json.loads(path.read_text())
    rows = {(row["method"], row["shift"]): row for row in record["rows"]}
    assert len(rows) == 1 + 2 * 3 and rows["none", "none"]["accuracy"] == 1
    for (method, shift), row in rows.items():
        assert row["checkpoint_sha256"] == record["checkpoint_sha256"] and row["n"] == 4
        assert row["ms_per_token"] > 0
        if method != "none":
            assert row["kept"] < row["num_visual"] and row["mean_visible"] < 0.6
            assert (row["triggers"] > 0) == (shift != "none")
    out, err = capsys.readouterr()
    assert out.count("\n| ") == 1 + 7 and "7 of 7: trail: visionzip" in err


def test_every_policy_and_every_method_makes_a_row(tmp_path) -> None:
    path = tmp_path / "rows.json"
    methods = [name for name in available_pruners() if name != "none"
               and pruner_class(name).__module__.startswith("pydstp.")]  # not those of other tests
    assert run("eval", "trail", "--n", "2", "--timed", "0", "--methods", "random,none", "--ratios",
               "0.5", "--shift", ",".join(settings.POLICIES), "--json", str(path)) == 0
    rows = json.loads(path.read_text())["rows"]
    assert {row["shift"] for row in rows if row["method"] == "random"} == set(settings.POLICIES)
    assert all(0 <= row["trigger_rate"] <= 1 for row in rows)
    assert run("eval", "trail", "--n", "2", "--timed", "0", "--methods", ",".join(methods),
               "--ratios", "0.5", "--shift", "none", "--json", str(path)) == 0
    assert {row["method"] for row in json.loads(path.read_text())["rows"]} == set(methods)


def test_the_sketch_sweep(capsys) -> None:
    assert run("eval", "trail", "--n", "2", "--timed", "0", "--methods", "random", "--ratios",
               "0.5", "--sketch-sweep") == 0
    assert capsys.readouterr().out.count("| sketch: ") == len(settings.SKETCHES)


def test_the_ablation_and_its_random_trigger(tmp_path) -> None:
    path = tmp_path / "rows.json"
    assert run("eval", "trail", "--n", "4", "--ratios", "0.333", "--timed", "0", "--methods",
               "divprune", "--shift", "none", "--ablation", "--json", str(path)) == 0
    rows = {row["shift"]: row for row in json.loads(path.read_text())["rows"]}
    for timing in ("paper", "recommended"):
        copied = rows[f"{timing}: random + cpts"]["options"]["shift"]["trigger_rate"]
        assert copied == rows[f"{timing}: risd + cpts"]["trigger_rate"] > 0
        visible = [rows[f"{timing}: risd + {swap}"]["mean_visible"]
                   for swap in ("hard", "merge", "cpts", "full")]
        assert visible == sorted(visible) and len(set(visible)) == 4


def test_ctrl_c_leaves_what_was_measured(tmp_path, monkeypatch, capsys) -> None:
    measure, path = Evaluation.measure, tmp_path / "rows.json"

    def interrupted(self, setting):
        if setting.method == "random":
            self.asker.cancel.cancel()
        return measure(self, setting)

    monkeypatch.setattr(Evaluation, "measure", interrupted)
    assert run("eval", "read", "--n", "2", "--methods", "none,random", "--json", str(path)) == 130
    assert [row["method"] for row in json.loads(path.read_text())["rows"]] == ["none"]
    assert "| none " in capsys.readouterr().out


def test_calibrate_writes_a_policy(tmp_path, capsys) -> None:
    path = tmp_path / "policy.json"
    assert run("calibrate", "--task", "trail", "--n", "4", "--layers", "post_prune,2",
               "--shift", "recommended", "--target-expanded", "0.5", "--output", str(path)) == 0
    policy, record = DSTP.from_file(path), json.loads(path.read_text())
    assert policy.monitor_layers in ("post_prune", (2,)) and 0 < policy.threshold < 1
    assert policy.swap == DSTP.recommended().swap
    measured = record["candidates"][0]["measured"]
    assert measured["expanded"] == pytest.approx(0.5, abs=0.2)
    assert record["questions"]["split"] == "validation" and record["target"]["expanded"] == 0.5
    assert "chosen: layers" in capsys.readouterr().err
    assert run("eval", "trail", "--n", "2", "--methods", "divprune", "--ratios", "0.5", "--timed",
               "0", "--shift", str(path)) == 0
    assert "| policy " in capsys.readouterr().out


def test_calibrate_on_pictures_of_a_user(tmp_path) -> None:
    assert run("demo", "--seed", "3", "--output", str(tmp_path / "a.png")) == 0
    path = tmp_path / "policy.json"
    assert run("calibrate", "--images", str(tmp_path / "a.png"), "--prompts", "What is in row 2?",
               "--layers", "all", "--pruning", "divprune", "--retention-ratio", "0.5",
               "--shift-option", "applies=redo", "--target-expanded", "0.3",
               "--output", str(path)) == 0
    measured = json.loads(path.read_text())["candidates"][0]["measured"]
    assert "accuracy" not in measured and 0 <= measured["agreement"] <= 1
    assert DSTP.from_file(path).applies == "redo"


def test_analyze(tmp_path, capsys) -> None:
    pytest.importorskip("matplotlib")
    folder = tmp_path / "new" / "folder"
    assert run("analyze", "--task", "trail", "--n", "3", "--control", "1", "--overlays", "1",
               "--pruning", "divprune", "--retention-ratio", "0.4", "--output", str(folder)) == 0
    record = json.loads((folder / "analysis.json").read_text())
    assert record["options"]["pruning"]["name"] == "divprune"
    answer = record["answers"]["trail"][0]
    assert answer["full"]["right"] and len(answer["similarity"]) == answer["tokens"] - 1
    assert all(0 <= value <= 1 for value in answer["similarity"])
    assert record["summary"]["control"]["n"] == 6 and (folder / "control.png").exists()
    assert "trail, success by rvis" in capsys.readouterr().out


@pytest.mark.parametrize("arguments, says", [
    ("eval nonsense", "task: expected names among"),
    ("eval trail --methods nonsense", "--methods: expected names among"),
    ("eval trail --ratios 0", "--ratios: expected numbers in (0, 1]"),
    ("eval trail --n 0", "n: expected an integer >= 1"),
    ("eval trail --json missing/x.json", "--json: expected a file"),
    ("eval trail --pareto missing/x.png", "--pareto: expected one method"),
    ("eval trail --pareto missing/x.png --methods fastv --ratios .5", "--pareto: expected a file"),
    ("eval trail --fastv-layer 4", "--fastv-layer: expected an integer in [1, 3]"),
    ("eval trail --shift nonsense", "nonsense: expected a JSON file"),
    ("eval trail --model missing", "missing"),
    ("eval trail --reserve lazy --methods fastv --ratios .5 --pareto x.png", "reserve: expected"),
    ("calibrate", "--task: expected either a task"),
    ("calibrate --task nonsense", "task: expected one of"),
    ("calibrate --images missing.png --prompts a", "--images: expected picture files"),
    ("calibrate --task trail --target-visible 2", "target-visible: expected"),
    ("calibrate --task trail --layers 1+x", "--layers: expected one of"),
    ("calibrate --task trail --layers 9", "monitor_layers: expected layers below"),
    ("calibrate --task trail --shift none", "--shift: expected dstp"),
    ("calibrate --task trail --retention-ratio 0.5", "--retention-ratio: expected --pruning"),
    ("calibrate --task trail --bypass auto", "--bypass: expected 'never'"),
    ("calibrate --task trail --output missing/x.json", "--output: expected a file"),
    ("analyze --task nonsense --output x", "--task: expected names among"),
    ("analyze --task trail --output x --window 2", "window: expected an odd number"),
    ("analyze --task trail --output x --watch-layers 7", "monitor_layers: expected"),
    ("analyze --task trail --output x --n 0", "n: expected an integer >= 1"),
])
def test_what_is_wrong_is_said_before_anything_runs(arguments, says, capsys, tmp_path,
                                                    monkeypatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert run(*arguments.split()) == 2
    out, err = capsys.readouterr()
    assert says in err and err.startswith("error:") and not out
    assert list(tmp_path.iterdir()) == []
