"""The benchmark of bypass="auto" runs through on a tiny checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_bypass, common, make_random_checkpoint


def test_every_policy_stands_beside_all_tokens(tmp_path: Path,
                                               monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "random-tiny"
    monkeypatch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
    make_random_checkpoint.main()
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    options = bench_bypass.parse_arguments([
        "--checkpoint", str(folder), "--tokens", "12", "--new-tokens", "3", "--answers", "2",
        "--threads", "1"])
    page = bench_bypass.run(options).read_text()
    record = json.loads((tmp_path / "bypass-random-tiny.json").read_text())
    assert [row["policy"] for row in record["rows"]] == list(bench_bypass.POLICIES)
    assert record["rates"]["read_gb_s"] > 0 and page.count("\n| 12 ") == 4
    for row in record["rows"]:  # 12 tokens of a tiny model cost less than pruning them does
        assert row["bypassed"] and row["first_ms"]["min"] > 0
        assert row["first_auto"]["count"] == 2 and row["step_auto"]["count"] == 4


def test_intervals_are_those_of_the_median_ratio() -> None:
    same = bench_bypass.interval([2.0] * 5, [1.0] * 5)
    assert same == {"median": 2.0, "min": 2.0, "max": 2.0, "count": 5}
    found = bench_bypass.interval([float(i) for i in range(1, 102)], [50.0] * 101)
    assert found["median"] == pytest.approx(51 / 50)
    assert 0.6 < found["min"] < 51 / 50 < found["max"] < 1.4
