"""The benchmark of prefill attention runs through on few rows, and its arithmetic is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from benchmarks import bench_prefill_attention as bench
from benchmarks import common


def test_operations_are_those_of_visible_pairs() -> None:
    assert bench.Shape("", (3, 2), 2, 1, 8).flops() == 4 * (9 + 4) * 2 * 8
    assert bench.Shape("", (3,), 2, 1, 8, is_causal=True).flops() == 4 * (1 + 2 + 3) * 2 * 8
    behind = bench.Shape("", (3,), 2, 1, 8, is_causal=True, num_past=5)
    assert behind.flops() == 4 * (6 + 7 + 8) * 2 * 8


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_every_row_stands_beside_a_prediction(dtype: str, tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    page = bench.run(bench.parse_arguments(
        ["--dtype", dtype, "--threads", "1", "--repeats", "2", "--shrink", "32"]))
    assert page.name == f"prefill-attention-{dtype}-1t.md"
    record = json.loads(page.with_suffix(".json").read_text())
    assert len(record["rows"]) == len(bench.SHAPES)
    for row in record["rows"]:
        assert row["pydstp_ms"]["count"] == 2 and row["predicted_ms"]["median"] > 0
        expected = row["flops"] / row["pydstp_ms"]["min"] / 1e6
        assert row["gflop_s"]["max"] == pytest.approx(expected)
