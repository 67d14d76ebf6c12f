"""Decode steps beside transformers: everything but the GPU and the compiler, on a tiny shape."""

from __future__ import annotations

import json

import pytest
import torch

from benchmarks import common, gpu_peers

TINY = ["--shape", "tiny", "--device", "cpu", "--eager", "--turns", "2"]


def test_a_tiny_shape_on_the_cpu_writes_a_whole_report(monkeypatch, tmp_path):
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    assert gpu_peers.main(TINY) == 0
    record = json.loads((tmp_path / "gpu-peers-tiny.json").read_text())
    assert [(row["batch"], row["share"]) for row in record["rows"]] == [
        (batch, share) for batch in (1, 3) for share in (1.0, 0.33)]
    assert all(row["transformers"]["count"] == row["ratio"]["count"] == 2 for row in record["rows"])
    lines = (tmp_path / "gpu-peers-tiny.md").read_text().splitlines()
    assert sum(line.startswith("| ") for line in lines) == len(record["rows"]) + 2


def test_a_step_of_the_peer_sees_what_is_cached():
    options = gpu_peers.parse(TINY)
    torch.manual_seed(0)
    model, head = gpu_peers.peer_decoder("tiny", torch.device("cpu"), torch.float32)
    with torch.no_grad():
        step = gpu_peers.peer_step(model, head, 2, 70, options)
        seen = []
        model.layers[0].self_attn.register_forward_hook(
            lambda module, given, kwargs, out: seen.append(kwargs["past_key_values"]),
            with_kwargs=True)
        assert step().shape == (2,)
    assert int(seen[0].get_seq_length()) == 71


def test_a_case_without_memory_is_left_out(monkeypatch):
    def fail(*args):
        raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 77.00 GiB.\nMore")

    monkeypatch.setattr(gpu_peers, "open_case", fail)
    record = gpu_peers.run(gpu_peers.parse(TINY))
    assert record["rows"] == [] and "77.00 GiB" in gpu_peers.report(record)


def test_without_a_gpu_it_says_so(capsys):
    if torch.cuda.is_available():
        pytest.skip("this machine has a GPU")
    assert gpu_peers.main(["--shape", "4b"]) == 2
    assert "4b: device: expected" in capsys.readouterr().err
