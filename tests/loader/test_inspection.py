"""Reports: the sizes of a checkpoint, and every reason to refuse it at once."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch

from pydstp.preparation import READERS
from pydstp.weights import inspect
from pydstp.weights import inspection as inspection_module
from tests.checkpoints import tiny_qwen3_vl
from tests.loader.raw_files import edit_json, edit_tensors


def test_reports_a_good_checkpoint() -> None:
    report = inspect(tiny_qwen3_vl(dtype="bfloat16", num_shards=3))
    assert report.problems == []
    assert (report.num_files, report.num_tensors, report.parameters) == (3, 121, 497024)
    assert report.bytes_on_disk == 2 * 497024
    assert report.dtypes == {"BF16": 497024}
    assert (report.model_type, report.dtype, report.is_tied) == ("qwen3_vl", "float32", True)
    assert report.text["num_layers"] == 4
    assert report.memory["weights_bytes"] == 4 * 497024
    assert report.memory["cache_bytes"] == 4 * 8192 * 4 * 2 * 32 * 4
    text = report.to_text()
    assert "121 tensors in 3 files, 497,024 parameters" in text
    assert "would be loaded" in text


@pytest.mark.parametrize("options", [
    {}, {"moe": True, "experts": "hub"}, {"moe": True, "experts": "separate"}, {"tied": False},
    {"prefix": "old", "old_config": True},
])  # fmt: skip
def test_a_report_is_json(options: dict[str, object]) -> None:
    report = inspect(str(tiny_qwen3_vl(**options)))
    assert json.loads(json.dumps(report.to_dict()))["problems"] == []


def test_collects_problems_of_different_kinds(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {"model.visual.pos_embed.weight": torch.ones(7, 7),
                          "model.language_model.norm.weight": None, "extra": torch.ones(1)})
    (folder / "generation_config.json").write_text("[")
    for name in ("tokenizer.json", "vocab.json", "preprocessor_config.json"):
        (folder / name).unlink()
    report = inspect(folder, READERS)
    text = report.to_text()
    assert len(report.problems) == 6
    for part in ("generation_config.json: not valid JSON", "missing: model.language_model.norm",
                 "no place in the model: extra", "expected [49, 48], got [7, 7]", "no tokenizer",
                 "no image processor", "would be refused:"):
        assert part in text


def test_damaged_shards_do_not_hide_the_rest(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path, num_shards=3)
    (folder / "model-00001-of-00003.safetensors").write_bytes(b"")
    (folder / "model-00003-of-00003.safetensors").unlink()
    report = inspect(folder)
    assert 0 < report.num_tensors < 121
    assert "0 bytes are no safetensors file" in report.to_text()
    assert "files of the index are missing: model-00003-of-00003.safetensors" in report.to_text()


@pytest.mark.parametrize(("changes", "problem"), [
    ({"model_type": "llava"}, "llava"),
    ({"quantization_config": {"quant_method": "fp8"}}, "quantization_config"),
    ({"text_config": None}, "text_config"),
])
def test_a_refused_config_leaves_the_weights_readable(
    tmp_path: Path, changes: dict[str, object], problem: str
) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_json(folder / "config.json", **changes)
    report = inspect(folder)
    assert report.num_tensors == 121
    assert any(problem in p for p in report.problems)


@pytest.mark.parametrize("content", [b"", b"{}", b"[1]"])
def test_a_broken_config_leaves_the_weights_readable(tmp_path: Path, content: bytes) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    (folder / "config.json").write_bytes(content)
    report = inspect(folder)
    assert report.num_tensors == 121
    assert "config.json" in report.to_text()


def test_a_pipe_is_not_waited_for(tmp_path: Path) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    (folder / "config.json").unlink()
    os.mkfifo(folder / "config.json")
    assert "expected a regular file" in inspect(folder).problems[0]


def test_an_empty_folder_and_no_folder(tmp_path: Path) -> None:
    # config, weights, tokenizer, template, processor
    assert len(inspect(tmp_path, READERS).problems) == 5
    assert len(inspect(tmp_path / "nowhere").problems) == 1
    assert json.dumps(inspect(tmp_path / "nowhere").to_dict())


def test_says_when_memory_does_not_suffice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(inspection_module, "available_memory", lambda: 1 << 20)
    report = inspect(tiny_qwen3_vl())
    assert "GiB are needed" in report.problems[0]
    assert report.memory["available_bytes"] == 1 << 20
