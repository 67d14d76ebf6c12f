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
        "--checkpoint", str(folder), "--tokens", "12", "--new-tokens", "2", "3", "--repeats", "2",
        "--threads", "1"])
    page = bench_bypass.run(options).read_text()
    record = json.loads((tmp_path / "bypass-random-tiny.json").read_text())
    keys = {(row["num_new"], row["policy"]) for row in record["rows"]}
    assert keys == {(num_new, policy) for num_new in (2, 3) for policy in bench_bypass.POLICIES}
    assert record["rates"]["read_gb_s"] > 0 and page.count("\n| 12 ") == 8
    for row in record["rows"]:  # 12 tokens of a tiny model cost less than pruning them does
        assert row["bypassed"] and row["auto_ratio"]["count"] == 2
