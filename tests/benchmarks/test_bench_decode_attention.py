"""The benchmark of decode attention runs through on few tokens, and its arithmetic is right."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch

from benchmarks import bench_decode_attention as bench
from benchmarks import common


def test_every_form_stands_beside_plain_reads(tmp_path: Path,
                                              monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    page = bench.run(bench.parse_arguments(["--threads", "1", "--batches", "1", "2", "--tokens",
                                            "66", "--pool-mib", "1", "--repeats", "2"]))
    rows = json.loads((tmp_path / "decode-attention.json").read_text())["rows"]
    assert page.read_text().startswith("# Decode attention") and len(rows) == 2 * 2 * 3
    assert {(row["visible"], row["held"]) for row in rows} == {(66, 66), (22, 66), (66, 198)}
    for row in rows:
        element = 2 if row["dtype"] == "bfloat16" else 4
        assert row["num_bytes"] == row["batch"] * row["visible"] * 2 * 8 * 128 * element
        assert set(row["ms"]) == set(bench.FORMS) and row["read_gb_s"]["min"] > 0


def test_wrong_results_end_the_benchmark(monkeypatch: pytest.MonkeyPatch) -> None:
    case = bench.Case("float32", 1, 1, 5, 9)
    caches = bench.Caches(case, 1)
    bench.check(case, caches)
    monkeypatch.setitem(bench.FORMS, bench.FOLDED, lambda caches, _: torch.zeros_like(caches.q))
    with pytest.raises(RuntimeError, match="folded differs"):
        bench.check(case, caches)


def test_ratios_are_taken_turn_by_turn() -> None:
    found = {bench.READ: [10.0, 20.0], bench.OWN: [1.0, 2.0], bench.WATCHED: [2.0, 2.0],
             bench.DEFAULT: [30.0, 40.0], bench.FOLDED: [5.0, 6.0], bench.PRODUCTS: [4.0, 8.0]}
    case = bench.Case("bfloat16", 1, 1, 1000, 1000)
    row = bench.row_of(case, found)
    assert row["folded_over_pydstp"]["max"] == 4.0 and row["folded_over_pydstp"]["min"] == 3.0
    assert row["default_over_pydstp"]["median"] == 25.0
    assert row["watched_over_pydstp"]["median"] == 1.5
    speeds = [4096e3 / 1e6, 4096e3 / 2e6]
    assert row["of_the_read_bandwidth"]["median"] == pytest.approx(
        (speeds[0] / 10 + speeds[1] / 20) / 2)
