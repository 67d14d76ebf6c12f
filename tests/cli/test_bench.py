"""`pydstp bench`: what it measures, what its record says, how it refuses."""

from __future__ import annotations

import json
import shutil
import sys
from pathlib import Path

import pytest
import torch

from pydstp import cli
from pydstp.bench import run as run_module
from pydstp.bench import server as server_module
from pydstp.bench.turns import PHASES
from tests.checkpoints import tiny_qwen3_vl
from tests.loader.raw_files import edit_tensors

QUICK = ["--threads", "1", "--new-tokens", "3", "--repeats", "2"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def page_and_record(folder: Path) -> tuple[str, dict]:
    """The whole command on the tiny shape."""
    path = folder / "bench.json"
    with pytest.MonkeyPatch.context() as patch:
        pages: list[str] = []
        patch.setattr("pydstp.cli_bench.write", lambda pieces: pages.extend(pieces))
        assert cli.main(["bench", "--shape", "tiny", "--folder", str(folder), *QUICK,
                         "--visual-tokens", "96", "--retention", "100,25", "--batch", "1,2",
                         "--json", str(path)]) == 0
    return pages[0], json.loads(path.read_text())


def test_every_row_has_every_phase(page_and_record) -> None:
    _, record = page_and_record
    assert [(row["engine"], row["retention"]) for row in record["rows"]] == [
        ("pydstp", 100), ("pydstp", 25)]
    for row in record["rows"]:
        assert row["visual_tokens"] == 96 and row["kept"] == 96 * row["retention"] // 100
        assert all(row[key]["count"] == 2 and row[key]["min"] > 0 for key in PHASES)
        assert row["first_token_ms"]["median"] > row["vision_ms"]["median"]
        assert row["peak_rss_bytes"] > row["imported_bytes"] > 1 << 20
    assert record["rows"][0]["same_tokens"] == 3


def test_predictions_are_those_of_the_cost_model(page_and_record) -> None:
    _, record = page_and_record
    full, pruned = (row["predicted"] for row in record["rows"])
    assert full["vision_ms"] == pruned["vision_ms"] > 0
    assert full["prefill_ms"] > pruned["prefill_ms"] > 0
    reads = record["rates"]["read_gb_s"]["median"]
    kv_bytes = 2 * 2 * 2 * 128 * 2  # K and V, two layers, two heads of 128, bf16
    saved = 72 * kv_bytes / reads / 1e6
    assert full["decode_ms"] - pruned["decode_ms"] == pytest.approx(saved)
    assert record["rates_alone"]["threads"] == 1
    assert record["rates"]["gemm_gflop_s"]["count"] == 2  # one per turn


def test_decode_steps_by_batch_and_retention(page_and_record) -> None:
    _, record = page_and_record
    cells = {(row["batch"], row["retention"]): row for row in record["sweep"]}
    assert cells.keys() == {(1, 100), (1, 25), (2, 100), (2, 25)}
    assert cells[2, 100]["tokens"] - cells[2, 25]["tokens"] == 72
    assert all(row["step_ms"]["min"] > 0 and row["predicted_ms"] > 0 for row in cells.values())
    assert cells[2, 25]["predicted_gain"] > cells[1, 25]["predicted_gain"] > 1
    assert "gain" not in cells[1, 100] and cells[1, 25]["gain"]["count"] == 2


def test_memory_stands_beside_weights_and_cache(page_and_record) -> None:
    memory = page_and_record[1]["memory"]
    assert memory["weights_bytes"] == 2 * 20_549_568
    prompt = page_and_record[1]["rows"][0]["prompt_tokens"]
    assert memory["cache_bytes"] == (prompt + 3) * 2 * 2 * 2 * 128 * 2
    needed = memory["weights_bytes"] + memory["cache_bytes"]
    assert memory["budget_bytes"] == int(1.15 * needed)
    assert memory["estimated_bytes"] > needed


def test_the_page_names_machine_setting_and_shares(page_and_record) -> None:
    page, record = page_and_record
    assert page.startswith("# tiny, bf16 weights, 1 threads\n")
    for words in (record["environment"]["cpu"], "96 visual tokens", "| pydstp, 25 % |",
                  "plain reads GB/s", "predicted gain", "Peak memory of pydstp"):
        assert words in page
    lines = [line for line in page.splitlines() if line.startswith("|")]
    assert {line[-1] for line in lines} == {"|"}


def test_weights_of_a_folder_serve_again_and_in_8_bits(folder, page_and_record, capsys) -> None:
    written = (folder / "tiny" / "config.json").stat().st_mtime_ns
    assert cli.main(["bench", "--shape", "tiny", "--folder", str(folder), *QUICK, "--image-size",
                     "128x128", "--weights", "int8", "--json", str(folder / "int8.json")]) == 0
    assert (folder / "tiny" / "config.json").stat().st_mtime_ns == written
    model = json.loads((folder / "int8.json").read_text())["model"]
    assert 0.5 < model["step_weight_bytes"] / page_and_record[1]["model"]["step_weight_bytes"] < 0.6
    assert "# tiny, int8 weights" in capsys.readouterr().out


def test_a_model_that_cuts_pictures_into_tiles(folder, capsys) -> None:
    path = folder / "tiles.json"
    assert cli.main(["bench", "--shape", "tiny-internvl", "--folder", str(folder), *QUICK,
                     "--image-size", "896x448", "--retention", "100,50", "--json", str(path)]) == 0
    rows = json.loads(path.read_text())["rows"]
    assert [(row["num_tiles"], row["visual_tokens"], row["kept"]) for row in rows] == [
        (3, 768, 768), (3, 768, 384)]
    assert rows[0]["predicted"]["vision_ms"] > 0
    assert "768 visual tokens" in capsys.readouterr().out


def test_against_transformers(model, folder, capsys) -> None:
    path = folder / "peer.json"
    assert cli.main(["bench", model, *QUICK, "--image-size", "128x128", "--against",
                     "transformers", "--json", str(path)]) == 0
    record = json.loads(path.read_text())
    engines = ["pydstp", "transformers", "transformers-packed"]
    assert [row["engine"] for row in record["rows"]] == engines
    assert len({row["prompt_tokens"] for row in record["rows"]}) == 1
    assert [row["engine"] for row in record["ratios"]] == engines[1:]
    for row, times in zip(record["ratios"], record["rows"][1:], strict=True):
        assert row["decode_ms"]["min"] > 0 and times["same_tokens"] >= 1
    assert "| transformers-packed |" in capsys.readouterr().out


@pytest.mark.parametrize(("arguments", "words"), [
    ([], "model: expected a checkpoint folder or --shape NAME, got neither"),
    (["MODEL", "--shape", "tiny"], "got both"),
    (["no/such/folder"], "no/such/folder"),
    (["--shape", "9b"], "shape: expected one of qwen3-vl-4b"),
    (["MODEL", "--threads", "0"], "threads: expected an integer in [1, 1024], got 0"),
    (["MODEL", "--threads", "10000"], "threads: expected an integer in [1, 1024], got 10000"),
    (["MODEL", "--weights", "int3"], "weights: expected"),
    (["MODEL", "--image-size", "640"], "image_size: expected WIDTHxHEIGHT in pixels, got '640'"),
    (["MODEL", "--image-size", "16x640"], "image_size: expected an integer in [32, 16384]"),
    (["MODEL", "--visual-tokens", "9"], "visual_tokens: expected an integer in [64, 16384]"),
    (["MODEL", "--visual-tokens", "99", "--image-size", "64x64"], "got both"),
    (["MODEL", "--new-tokens", "1"], "new_tokens: expected an integer in [2, 65536], got 1"),
    (["MODEL", "--repeats", "0"], "repeats: expected an integer in [1, 1000], got 0"),
    (["MODEL", "--retention", "101"], "retention: expected an integer in [1, 100], got 101"),
    (["MODEL", "--retention", "50,x"], "retention: expected numbers separated by commas"),
    (["MODEL", "--retention", "50,50"], "retention: expected each number once"),
    (["MODEL", "--batch", "0"], "batch: expected an integer in [1, 1024], got 0"),
    (["MODEL", "--retention", "50", "--pruning", "best"], "best"),
    (["MODEL", "--against", "vllm"], "against: expected transformers or openvino, got 'vllm'"),
    (["MODEL", "--against", "transformers", "--weights", "fp32"], "against: expected weights"),
    (["MODEL", "--against", "openvino"], "openvino_python: expected the python of an environment"),
    (["MODEL", "--against", "openvino", "--openvino-python", "no/python"], "got 'no/python'"),
    (["MODEL", "--json", "no/such/folder/x.json"], "--json: expected a file"),
    (["--shape", "internvl3.5-1b", "--visual-tokens", "256"], "expected --image-size"),
    (["--shape", "internvl3.5-1b", "--against", "transformers"], "expected a model of type"),
])
def test_refusals_are_one_line_and_status_2(arguments, words, model, capsys) -> None:
    arguments = [model if word == "MODEL" else word for word in arguments]
    assert cli.main(["bench", *arguments]) == 2
    out, err = capsys.readouterr()
    assert out == "" and err.startswith("error: ") and err.count("\n") == 1 and words in err


def test_memory_is_refused_with_its_arithmetic(tmp_path, monkeypatch, capsys) -> None:
    monkeypatch.setattr(run_module, "available_memory", lambda: 4 << 30)
    monkeypatch.setattr(run_module, "check_disk", lambda _: None)
    assert cli.main(["bench", "--shape", "qwen3-vl-4b", "--folder", str(tmp_path),
                     "--against", "transformers"]) == 2
    message = capsys.readouterr().err
    assert "weights 8.27" in message and "transformers-packed 15.58" in message
    assert "4.00 GiB are available" in message and list(tmp_path.iterdir()) == []


def test_a_missing_package_is_named_with_the_command_that_brings_it(model, monkeypatch,
                                                                   capsys) -> None:
    monkeypatch.setattr(server_module, "find_spec", lambda _: None)
    assert cli.main(["bench", model, "--against", "transformers"]) == 2
    assert "pip install transformers==5.23.0" in capsys.readouterr().err
    assert cli.main(["bench", model, "--against", "openvino",
                     "--openvino-python", sys.executable]) == 2
    message = capsys.readouterr().err
    assert "openvino-genai==2026.4.1" in message and "No module named" in message


def test_weights_that_are_quantised_already_are_refused(tmp_path, capsys) -> None:
    folder = tiny_qwen3_vl(tmp_path)
    edit_tensors(folder, {"model.language_model.layers.0.mlp.down_proj.weight_scale_inv":
                          torch.ones(1, 1)})
    assert cli.main(["bench", str(folder), "--weights", "int8"]) == 2
    assert "FP8 weights are not supported" in capsys.readouterr().err


def test_another_checkpoint_in_the_place_of_a_shape_is_refused(tmp_path, model, capsys) -> None:
    shutil.copytree(model, tmp_path / "tiny")
    assert cli.main(["bench", "--shape", "tiny", "--folder", str(tmp_path)]) == 2
    assert "expected the shape 'tiny', got another checkpoint" in capsys.readouterr().err
