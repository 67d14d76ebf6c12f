"""The benchmark of the methods' own cost runs through on a tiny checkpoint."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import pytest

from benchmarks import bench_methods, common, make_random_checkpoint
from pydstp.pruning import available_pruners


def test_every_method_stands_beside_a_random_subset(tmp_path: Path,
                                                    monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "random-tiny"
    monkeypatch.setattr(sys, "argv", ["make", str(folder), "--shape", "tiny"])
    make_random_checkpoint.main()
    monkeypatch.setattr(common, "RESULTS", tmp_path)
    options = bench_methods.parse_arguments([
        "--checkpoint", str(folder), "--tokens", "24", "--repeats", "1", "--threads", "1",
        "--vision-size", "64x96"])
    page = bench_methods.run(options).read_text()
    record = json.loads((tmp_path / "methods-random-tiny.json").read_text())
    rows = {row["method"]: row for row in record["rows"]}
    built_in = {"fastv", "divprune", "visionzip", "dart", "cdpruner", "pyramiddrop", "look_m"}
    assert built_in <= set(rows) <= {*available_pruners()}
    assert min(rows[name]["stated_ms"] for name in built_in) > 0
    assert rows["divprune"]["rows"] == [8, 8] and rows["look_m"]["rows"] == [24, 24]
    assert rows["divprune"]["against_rows"]["median"] > 0 and "Observing a block" in page
    assert record["tower"]["ratio"]["median"] > 0
