"""The measurement of decode steps on a GPU: everything but the GPU, on a tiny shape."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import common, gpu_decode
from pydstp import ops


def test_a_tiny_shape_on_the_cpu_writes_a_whole_report(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert gpu_decode.main(["--shape", "tiny", "--device", "cpu", "--steps", "2"]) == 0
    record = json.loads((tmp_path / "gpu-decode-tiny.json").read_text())
    rows = record["rows"]
    assert len(rows) == 2 * (1 + 2 * 4) and record["left_out"] == []
    assert all(row["ms"]["count"] == 2 and row["bytes"] > 0 for row in rows)
    by = {(row["batch"], row["share"], row["setting"]): row["bytes"] for row in rows}
    for batch in (1, 3):
        assert by[batch, 0.1, "plain"] < by[batch, 0.33, "plain"] < by[batch, 1.0, "plain"]
        assert by[batch, 0.33, "in order"] == by[batch, 0.33, "plain"] < by[
            batch, 0.33, "swapping"]
    lines = (tmp_path / "gpu-decode-tiny.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(rows) + 2


def test_no_case_begins_when_time_is_up(monkeypatch):
    monkeypatch.setattr(gpu_decode, "CASES", {"tiny": ((1,), (64,))})
    record = gpu_decode.run(gpu_decode.parse(["--shape", "tiny", "--device", "cpu",
                                              "--minutes", "0"]))
    assert record["rows"] == [] and record["left_out"][0]["reason"] == "no time left"


def test_a_case_without_memory_is_left_out(monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 77.00 GiB.\nMore")

    monkeypatch.setattr(gpu_decode, "open_case", fail)
    record = gpu_decode.run(gpu_decode.parse(["--shape", "tiny", "--device", "cpu"]))
    assert record["rows"] == [] and "77.00 GiB" in gpu_decode.report(record)


def test_without_a_gpu_it_says_so(monkeypatch, capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_decode.main(["--shape", "4b"]) == 2
    assert "4b: device: expected" in capsys.readouterr().err


@pytest.mark.parametrize("shape, num_parameters", [("4b", 4.02e9), ("8b", 8.19e9)])
def test_shapes_have_the_parameters_of_the_released_decoders(shape, num_parameters):
    with torch.device("meta"):
        model = gpu_decode.random_model(shape, torch.device("meta"), torch.bfloat16)
    count = sum(p.numel() for p in model.language_model.parameters())
    assert count == pytest.approx(num_parameters, rel=0.01)
    assert ops.GraphRecording.replay.__name__ == "replay"
