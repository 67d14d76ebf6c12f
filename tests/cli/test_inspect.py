"""`pydstp inspect`: a report for people or programs; the status says whether it would load."""

from __future__ import annotations

import json
from pathlib import Path

from pydstp import cli
from pydstp.weights import inspect
from tests.checkpoints import tiny_qwen3_vl


def test_a_good_checkpoint(model, capsys) -> None:
    assert cli.main(["inspect", model]) == 0
    found, wanted = capsys.readouterr().out.splitlines(), inspect(model).to_text().splitlines()
    assert [line for line in found if "available" not in line] == [
        line for line in wanted if "available" not in line]  # the rest of the machine goes on
    assert found[-1] == "would be loaded"


def test_weights_in_8_bits_count_for_memory(model, capsys) -> None:
    assert cli.main(["inspect", model, "--json", "--weights", "int8"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["weights"] == "int8"
    assert found["memory"]["weights_bytes"] < inspect(model).memory["weights_bytes"]
    assert cli.main(["inspect", model, "--weights", "int4"]) == 2


def test_a_refused_checkpoint_names_every_reason(tmp_path: Path, capsys) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    config = json.loads((folder / "config.json").read_text())
    config["model_type"] = "qwen9_vl"
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").unlink()
    (folder / "vocab.json").unlink()
    assert cli.main(["inspect", str(folder), "--json"]) == 1
    problems = json.loads(capsys.readouterr().out)["problems"]
    assert any("qwen9_vl" in problem for problem in problems)
    assert any("tokenizer" in problem for problem in problems)


def test_damaged_files_beside_the_weights_are_reasons(tmp_path: Path, capsys) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    (folder / "tokenizer.json").write_text("{}")
    (folder / "chat_template.jinja").write_text("{% for %}")
    (folder / "preprocessor_config.json").write_text('{}')
    assert cli.main(["inspect", str(folder)]) == 1
    text = capsys.readouterr().out
    for name in ("tokenizer.json", "chat_template.jinja", "preprocessor_config"):
        assert name in text


def test_a_folder_that_is_not_there(capsys) -> None:
    assert cli.main(["inspect", "no/such/folder"]) == 1
    assert "no/such/folder" in capsys.readouterr().out
