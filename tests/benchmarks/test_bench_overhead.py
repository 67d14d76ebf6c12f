"""The clock around native calls sees all of them, and the benchmark runs through."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest
import torch

from benchmarks import bench_overhead, common, make_random_checkpoint
from pydstp import _C, ops


def test_native_calls_are_timed_and_then_plain_again() -> None:
    pool, x = ops.ThreadPool(1), torch.randn(2, 8)
    plain = _C.linear
    with bench_overhead.native_calls() as clock:
        ops.linear(x, torch.randn(4, 8), pool=pool)
        with ops.Recording(ops.Scratch()) as recording:
            ops.linear(x, torch.randn(4, 8), pool=pool)
        recording.replay()
    assert clock.num_calls == 3 and clock.ms > 0 and _C.linear is plain


def test_shares_are_those_of_the_steps(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "random-tiny"
    monkeypatch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
    make_random_checkpoint.main()
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    options = bench_overhead.parse_arguments([
        "--checkpoint", str(folder), "--tokens", "24", "--steps", "3", "--threads", "1",
        "--batches", "1", "2", "--weights", "float", "int8"])
    page = bench_overhead.run(options).read_text()
    rows = json.loads((tmp_path / "overhead-random-tiny.json").read_text())["rows"]
    assert len(rows) == 2 * 2 * 3 and page.startswith("# Decode steps outside kernels")
    for row in rows:
        assert 0 < row["outside_share"]["median"] < 1 and row["native_calls"] > 10
