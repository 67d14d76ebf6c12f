"""The options of an evaluation, from flags and from a file."""

from __future__ import annotations

import json
from dataclasses import fields

import pytest

from pydstp import OptionError, cli
from pydstp.cli_eval import FLAGS
from pydstp.experiments.plan import EvalPlan


def test_lists_may_be_texts() -> None:
    texts = EvalPlan("read,trail", methods="none, fastv", ratios="1/3,0.5", shift="none,dstp")
    lists = EvalPlan(["read", "trail"], methods=["none", "fastv"], ratios=["1/3", 0.5],
                     shift=["none", "dstp"])
    assert texts.settings() == lists.settings() and len(lists.settings()) == 1 + 2 * 2
    assert [questions.task for questions in lists.questions()] == ["read", "trail"]


def test_a_file_and_what_is_given_beside_it(tmp_path) -> None:
    path = tmp_path / "plan.json"
    path.write_text(json.dumps({"tasks": ["read"], "n": 5, "methods": ["random"]}))
    plan = EvalPlan.from_file(str(path), n=7)
    assert (plan.tasks, plan.n, plan.methods, plan.batch) == ("read", 7, "random", 32)
    assert EvalPlan.from_file(None, tasks="read") == EvalPlan("read")


def test_every_option_is_a_flag_and_every_flag_an_option() -> None:
    flags = {name.removeprefix("--").replace("-", "_") for name, _ in FLAGS} - {"config"}
    assert flags | {"tasks"} == {field.name for field in fields(EvalPlan)}


@pytest.mark.parametrize("content, says", [
    ("nonsense", "--config: expected JSON in"), ("[1]", "--config: expected a JSON object"),
    ("[" * 100_000, "--config: expected JSON in"),
    ('{"tasks": "read", "batches": 3}', "--config: expected options among tasks, methods, .*got "
     "'batches'"),
    ('{"n": 3}', "tasks: expected names among read, trail"),
    ('{"tasks": "nonsense"}', "task: expected names among read"),
    ('{"tasks": []}', "task: expected at least one"),
    ('{"tasks": {"read": 1}}', "tasks: expected a list"), ('{"tasks": [true]}', "tasks: expected"),
    ('{"tasks": "read", "n": "5"}', "n: expected an integer"),
    ('{"tasks": "read", "n": 0}', "n: expected an integer"),
    ('{"tasks": "read", "seed": -1}', "seed: expected"),
    ('{"tasks": "read", "timed": -1}', "timed: expected"),
    ('{"tasks": "read", "batch": 0}', "batch: expected"),
    ('{"tasks": "read", "max_new_tokens": 0}', "max_new_tokens: expected"),
    ('{"tasks": "read", "max_visual_tokens": true}', "max_visual_tokens: expected"),
    ('{"tasks": "read", "weights": "int3"}', "weights: expected"),
    ('{"tasks": "read", "ablation": 1}', "ablation: expected true or false"),
    ('{"tasks": "read", "model": 3}', "model: expected a text"),
    ('{"tasks": "read", "dtype": null}', "dtype: expected a text"),
    ('{"tasks": "read", "fresh": true}', "fresh: expected output"),
])
def test_what_is_wrong_in_a_file_is_said(content, says, tmp_path, capsys) -> None:
    path = tmp_path / "plan.json"
    path.write_text(content)
    with pytest.raises(OptionError, match=says):
        EvalPlan.from_file(str(path))
    assert cli.main(["eval", "--config", str(path)]) == 2
    assert capsys.readouterr().err.startswith("error: ")


@pytest.mark.parametrize("name", ["missing.json", "."])
def test_a_file_that_cannot_be_read_is_an_error(name, tmp_path) -> None:
    with pytest.raises(OptionError, match="--config: expected a JSON file"):
        EvalPlan.from_file(str(tmp_path / name))


def test_an_unknown_option_in_python_is_an_error() -> None:
    with pytest.raises(OptionError, match="EvalPlan: expected options among tasks, methods"):
        EvalPlan("read", batches=3)


@pytest.mark.parametrize("option, says", [
    ({"methods": "nonsense"}, "--methods"), ({"ratios": [2]}, "--ratios"),
    ({"shift": "nonsense"}, "nonsense: expected a JSON file"),
    ({"fastv_layer": 9}, "--fastv-layer"), ({"reserve": "never"}, "reserve: expected one of")])
def test_settings_are_checked_before_anything_is_loaded(option, says) -> None:
    with pytest.raises(OptionError, match=says):
        EvalPlan("read", **option).settings()
